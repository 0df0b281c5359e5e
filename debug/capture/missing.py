"""What was to be saved and never came."""

from __future__ import annotations

from collections.abc import Iterable, Set

from loopwise.errors import StateError

from .collection import Collection
from .modules import Tap, Taps
from .parameters import Groups, is_bias

SHOWN = 5
"""Names in a message."""


class Check:
    """Looks once at each collection, in its first saved step.

    Args:
        collections: those that are saved.
    """

    def __init__(self, collections: Iterable[Collection]) -> None:
        self._left = [c for c in collections if c.name != "health"]  # it takes what comes

    def __call__(
        self, saved: Iterable[Collection], seen: Set[str], taps: Taps, groups: Groups, trained: bool
    ) -> list[str]:
        """What to say of the collections of a step that is complete.

        Args:
            saved: the step's collections.
            seen: names of the tensors that came.
            taps: of the modules.
            groups: of the parameters.
            trained: whether weights and gradients were to come in this step.
        """
        found = []
        for collection in [c for c in saved if c in self._left]:
            if groups.interest(collection) and not trained:
                continue
            self._left.remove(collection)
            absent = never_ran(collection, taps)
            if trained:
                absent += never_updated(collection, groups.trained, seen)
            if absent:
                found.append(message(collection, absent))
        return found


def never_ran(collection: Collection, taps: Iterable[Tap]) -> list[str]:
    """Inputs and outputs of modules that the collection wants and that did not come.

    Not of the model itself: frameworks call a method of it that is not its forward pass.
    """
    return [
        f"{tap.prefix}{which}"
        for tap in taps
        for which in ("input", "output")
        if tap.prefix and not tap.fired and tap.is_wanted(collection, which)
    ]


def never_updated(collection: Collection, names: Iterable[str], seen: Set[str]) -> list[str]:
    """Weights, biases and gradients of trained parameters that the collection wants and that did not come."""
    found = []
    for name in names:
        kinds = (("bias" if is_bias(name) else "weight", name), ("gradient", f"gradient/{name}"))
        found += [n for kind, n in kinds if collection.wants(kind, n) and n not in seen]
    return found


def message(collection: Collection, missing: list[str]) -> str:
    """What did not come, and why that may be."""
    shown = ", ".join(missing[:SHOWN]) + (f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else "")
    causes = []
    if any(name.endswith(("input", "output")) for name in missing):
        causes.append(
            "a module that the model holds and does not call, or that is called by another method than its own call"
        )
    if any(name.startswith("gradient/") for name in missing):
        causes.append("parameters that the loss does not depend on")
    if not all(name.startswith("gradient/") or name.endswith(("input", "output")) for name in missing):
        causes.append("parameters that no optimizer given to the Watch holds")
    return (
        f"the collection {collection.name!r} got nothing from {shown} in its first saved step; likely cause: "
        f"{', or '.join(causes)}; fix: check that, or leave them out with include="
    )


def error(text: str) -> StateError:
    """The same, for ``strict``."""
    seen, expected = text.split("; likely cause: ")[0], "every tensor of a collection in its first saved step"
    cause, fix = text.split("; likely cause: ")[1].split("; fix: ")
    return StateError(seen, expected, cause, fix)

"""Detection of tensors that a collection selects and that never came."""

from __future__ import annotations

from collections.abc import Iterable, Set

from loopwise.errors import StateError

from .collection import Collection
from .modules import Observer
from .parameters import Groups, is_bias

SHOWN = 5
"""Names in a message."""


class MissingTensors:
    """Inspection of each collection at the end of its first saved step.

    Args:
        collections: the collections that are saved.
    """

    def __init__(self, collections: Iterable[Collection]) -> None:
        self._left = [c for c in collections if c.name != "health"]  # selects all tensors that exist

    def inspect(
        self,
        saved: Iterable[Collection],
        seen: Set[str],
        observers: Iterable[Observer],
        groups: Groups,
        trained: bool,
    ) -> list[str]:
        """Return a message for each collection of a complete step that lacks tensors.

        Args:
            saved: the step's collections.
            seen: names of the tensors that came.
            observers: hooks of the modules.
            groups: the parameters.
            trained: true if this step must have weights and gradients.
        """
        messages = []
        for collection in [c for c in saved if c in self._left]:
            if groups.interest(collection) and not trained:
                continue
            self._left.remove(collection)
            names = never_ran(collection, observers)
            if trained:
                names += never_updated(collection, groups.trained, seen)
            if names:
                messages.append(message(collection, names))
        return messages


def never_ran(collection: Collection, observers: Iterable[Observer]) -> list[str]:
    """Return the inputs and outputs of modules that the collection selects and that never came.

    The model's own inputs and outputs are left out: frameworks call another method of the model than its forward pass.
    """
    return [
        f"{observer.prefix}{side}"
        for observer in observers
        for side in ("input", "output")
        if observer.prefix and not observer.fired and observer.is_wanted(collection, side)
    ]


def never_updated(collection: Collection, parameters: Iterable[str], seen: Set[str]) -> list[str]:
    """Return the weights, biases and gradients that the collection selects and that never came.

    Args:
        parameters: names of the trained parameters.
        seen: names of the tensors that came.
    """
    missing = []
    for name in parameters:
        kinds = (("bias" if is_bias(name) else "weight", name), ("gradient", f"gradient/{name}"))
        missing += [n for kind, n in kinds if collection.wants(kind, n) and n not in seen]
    return missing


def message(collection: Collection, missing: list[str]) -> str:
    """Return a message about missing tensors and its likely causes."""
    shown = ", ".join(missing[:SHOWN]) + (f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else "")
    causes = []
    if any(name.endswith(("input", "output")) for name in missing):
        causes.append(
            "a module that the model holds and does not call, that is called by another method than its own call, or "
            "whose graph torch.compile made before the Watch"
        )
    if any(name.startswith("gradient/") for name in missing):
        causes.append("parameters that the loss does not depend on")
    if not all(name.startswith("gradient/") or name.endswith(("input", "output")) for name in missing):
        causes.append("parameters that no optimizer of the Watch holds")
    return (
        f"the collection {collection.name!r} got nothing from {shown} in its first saved step; likely cause: "
        f"{', or '.join(causes)}; fix: inspect them, or leave them out with include="
    )


def error(text: str) -> StateError:
    """Return a message of ``message`` as an error."""
    seen, expected = text.split("; likely cause: ")[0], "every tensor of a collection in its first saved step"
    cause, fix = text.split("; likely cause: ")[1].split("; fix: ")
    return StateError(seen, expected, cause, fix)

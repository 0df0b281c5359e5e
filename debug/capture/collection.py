"""Collections: the tensors to save, the steps to save them in, and the form to save them in."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from torch import nn

from loopwise.errors import InputError

from ..model.vocabulary import KINDS, Save, check_save, pattern
from ..statistics.table import checked

BUILT_IN = {
    "losses": ("loss",),
    "metrics": (),
    "weights": ("weight",),
    "biases": ("bias",),
    "gradients": ("gradient",),
    "inputs": ("input",),
    "outputs": ("output",),
    "optimizer_state": ("optimizer_state",),
    "all": KINDS,
    "health": ("weight", "bias", "gradient", "output"),
}
"""Name of a built-in collection -> kinds of tensors in it.  A scalar belongs to ``losses`` if its name contains
``loss``, otherwise to ``metrics``.  ``health`` has what the rules need: also the inputs of the model and the updates
of its weights."""
HEALTH = ("min", "max", "mean", "std", "nan", "inf", "zero")
"""Statistics of ``health`` if none are named."""


SAVED = "saved"
"""Collection of the tensors that ``Watch.save`` was called with and that no other collection selects."""


@dataclass(frozen=True, slots=True, eq=False)
class Collection:
    """Tensors that are saved together.

    A tensor belongs to the collection if ``include``, ``modules`` or ``where`` selects it.  Without any of the
    three, ``name`` has to be a built-in name, which selects by the kind of tensor.

    Args:
        name: a built-in name (``losses``, ``metrics``, ``weights``, ``biases``, ``gradients``, ``inputs``,
            ``outputs``, ``optimizer_state``, ``all``, ``health``) or a name of your own.
        include: regular expressions, searched in tensor names.
        modules: modules whose outputs belong to the collection.
        where: function ``name -> bool`` of tensor names.
        save: steps to save; a schedule, or one for each mode (``train``, ``eval``, ``predict``); default: those of
            the ``Watch``.
        statistics: names of statistics to compute and save (see ``loopwise.debug.statistics.table``); default: none,
            and for ``health`` the seven in `HEALTH`.
        raw: save whole tensors; default: true if there are no statistics.

    Raises:
        InputError: a mode or statistic is unknown, a regular expression is invalid, nothing is selected, or nothing
            is saved of it.
    """

    name: str
    include: str | Iterable[str] = ()
    modules: Iterable[nn.Module] = ()
    where: Callable[[str], bool] | None = None
    save: Save | None = None
    statistics: Iterable[str] = ()
    raw: bool | None = None
    patterns: tuple[re.Pattern[str], ...] = field(init=False, default=())
    kinds: tuple[str, ...] = field(init=False, default=())

    def __post_init__(self) -> None:
        include = (self.include,) if isinstance(self.include, str) else tuple(self.include)
        statistics = checked(self.statistics) or (HEALTH if self.name == "health" else ())
        raw = not statistics if self.raw is None else self.raw
        if not raw and not statistics:
            raise InputError(
                f"a collection {self.name!r} with raw=False and no statistics",
                "statistics=, raw=True, or neither of them",
                "statistics were forgotten",
                "name the statistics, for instance statistics=('mean', 'std')",
            )
        in_collection = f"in the collection {self.name!r}"
        values = {
            "patterns": tuple(pattern(text, f"include={text!r} {in_collection}") for text in include),
            "modules": tuple(self.modules),
            "statistics": statistics,
            "raw": bool(raw),
        }
        check_save(self.save)
        if not (values["patterns"] or values["modules"] or self.where):
            if self.name not in BUILT_IN:
                raise InputError(
                    f"a collection {self.name!r} that nothing belongs to",
                    f"include=, modules= or where=, or a built-in name: {', '.join(BUILT_IN)}",
                    "a typo in a built-in name",
                    "select its tensors, for instance include='attention.*output'",
                )
            values["kinds"] = BUILT_IN[self.name]
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def wants(self, kind: str, name: str) -> bool:
        """Return whether a tensor belongs to the collection by its kind and name; ``modules`` are left to the caller.

        Args:
            kind: one of ``KINDS``.
            name: the tensor's name.
        """
        if self.kinds or self.name == "metrics":
            if kind == "scalar":
                return self.name in ("all", "losses" if "loss" in name.lower() else "metrics")
            is_model_input = kind == "input" and name.startswith("input.")
            return kind in self.kinds or (self.name == "health" and is_model_input)
        if any(pattern.search(name) for pattern in self.patterns):
            return True
        return self.where is not None and bool(self.where(name))


def collection_of(collection: str | Collection) -> Collection:
    """Return a collection, or the built-in one of a name."""
    return collection if isinstance(collection, Collection) else Collection(collection)

"""Collections: which tensors are saved, when, and what is kept of them."""

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
"""Collection -> the kinds in it.  Scalars are ``losses`` where their name says so, and ``metrics`` otherwise.
``health`` has what the rules look at: also the inputs of the model itself, and updates."""
HEALTH = ("min", "max", "mean", "std", "nan", "inf", "zero")
"""The statistics that ``health`` keeps where no others are named."""
RAW = "raw"


@dataclass(frozen=True, slots=True, eq=False)
class Collection:
    """Tensors that are saved together.

    A tensor belongs to it by any of ``include``, ``modules`` and ``where``; by its built-in meaning
    where the name is a built-in one and none of the three is given.

    Args:
        name: a built-in name (``losses``, ``metrics``, ``weights``, ``biases``, ``gradients``, ``inputs``,
            ``outputs``, ``optimizer_state``, ``all``, ``health``) or one of your own.
        include: regular expressions, searched in tensor names.
        modules: modules whose outputs belong to it.
        where: ``name -> bool`` over tensor names.
        save: when; a schedule, or one by mode (``train``, ``eval``, ``predict``); default: that of the ``Watch``.
        keep: ``raw``, and names of statistics; of ``health`` by default `HEALTH`.

    Raises:
        InputError: an unknown mode or statistic, a regular expression that is none, nothing to select by.
    """

    name: str
    include: str | Iterable[str] = ()
    modules: Iterable[nn.Module] = ()
    where: Callable[[str], bool] | None = None
    save: Save | None = None
    keep: Iterable[str] = (RAW,)
    patterns: tuple[re.Pattern[str], ...] = field(init=False, default=())
    kinds: tuple[str, ...] = field(init=False, default=())

    def __post_init__(self) -> None:
        include = (self.include,) if isinstance(self.include, str) else tuple(self.include)
        put = object.__setattr__
        put(
            self,
            "patterns",
            tuple(pattern(text, f"include={text!r} in the collection {self.name!r}") for text in include),
        )
        put(self, "modules", tuple(self.modules))
        keep = tuple(dict.fromkeys((self.keep,) if isinstance(self.keep, str) else self.keep))
        if self.name == "health" and keep == (RAW,):
            keep = HEALTH
        put(self, "keep", keep)
        checked(name for name in keep if name != RAW)
        check_save(self.save)
        if not (self.patterns or self.modules or self.where):
            if self.name not in BUILT_IN:
                raise InputError(
                    f"a collection {self.name!r} that nothing belongs to",
                    f"include=, modules= or where=, or a built-in name: {', '.join(BUILT_IN)}",
                    "a typing error in a built-in name",
                    "say what belongs to it, for instance include='attention.*output'",
                )
            put(self, "kinds", BUILT_IN[self.name])

    @property
    def raw(self) -> bool:
        """Whether whole tensors are kept."""
        return RAW in self.keep

    @property
    def statistics(self) -> tuple[str, ...]:
        return tuple(name for name in self.keep if name != RAW)

    def wants(self, kind: str, name: str) -> bool:
        """Whether the tensor ``name`` belongs to it; outputs of ``modules`` are not known by name."""
        if self.kinds or self.name == "metrics":
            if kind == "scalar":
                return self.name in ("all", "losses" if "loss" in name.lower() else "metrics")
            return kind in self.kinds or (
                self.name == "health" and kind == "input" and name.startswith("input.")
            )
        if any(pattern.search(name) for pattern in self.patterns):
            return True
        return self.where is not None and bool(self.where(name))


def collection_of(given: str | Collection) -> Collection:
    """A collection, from itself or a built-in name."""
    return given if isinstance(given, Collection) else Collection(given)

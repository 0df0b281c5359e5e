"""Finds the blocks that a question about a run is about, and says what there is where it finds none."""

from __future__ import annotations

import bisect
import difflib
import heapq
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any, TypeVar

from loopwise.errors import InputError

from ..model.vocabulary import MODES
from ..store.index import Block, Index
from ..store.layout import Layout

T = TypeVar("T")
COMPARED = 500
"""Names that near matches are looked for in; all of 100,000 take 10 s."""


class Lookup:
    """Questions to an index.

    Args:
        index: of the run; each question takes in what is new.
    """

    def __init__(self, index: Index) -> None:
        self._index = index
        self._kept: tuple[int, dict[Any, Any]] = (0, {})

    def steps(self, mode: str | None) -> list[int]:
        """Steps in order, over all modes or of one; not to be changed."""
        return self._keep(("steps", mode), lambda: sorted(self.by_step(mode)))

    def by_step(self, mode: str | None) -> Collection[int]:
        """Steps, over all modes or of one.

        Raises:
            InputError: no such mode.
        """
        self._index.refresh()
        if mode is None:
            return self._index.blocks
        if mode not in self._index.modes and mode not in MODES:
            modes = dict.fromkeys([*MODES, *self._index.modes])
            raise InputError(f"mode={mode!r}", f"one of: {', '.join(modes)}", "a typing error", "name a mode")
        return self._index.modes.get(mode, {})

    def layouts(self, mode: str | None = None) -> list[Layout]:
        """Layouts in use, in order of first appearance."""
        self._index.refresh()
        blocks = self._index.blocks

        def find() -> list[Layout]:
            each = (blocks[step][rank] for step in sorted(blocks) for rank in sorted(blocks[step]))
            return list(dict.fromkeys(block.layout for block in each if mode in (None, block.mode)))

        return self._keep(("layouts", mode), find)

    def names(self) -> list[str]:
        """All names in order of first appearance; not to be changed."""
        return self._keep("names", lambda: unique(layout.names() for layout in self.layouts()))

    def at(self, step: int, mode: str | None, rank: int | None) -> list[Block]:
        """Blocks of a step, of one rank or of all from the lowest on.

        Raises:
            InputError: there is none.
        """
        self.by_step(mode)
        whole = step if mode is None else self._index.modes.get(mode, {}).get(step)
        ranks = {} if whole is None else self._index.blocks.get(whole, {})
        if not ranks:
            raise InputError(
                f"step {step}" + (f" of mode {mode!r}" if mode else ""),
                f"a saved step: {span(self.steps(mode), step)}",
                "it was not saved, or not yet",
                "ask for one that was, or wait_for(step)",
            )
        if rank is None:
            return [ranks[each] for each in sorted(ranks)]
        if rank not in ranks:
            raise InputError(
                f"rank={rank} at step {step}",
                f"one of: {', '.join(map(str, sorted(ranks)))}",
                "that rank saved nothing, or nothing yet",
                "leave rank out, or wait",
            )
        return [ranks[rank]]

    def having(self, name: str, mode: str | None, rank: int | None) -> Iterator[tuple[int, list[Block]]]:
        """Steps at which a name was saved, and the blocks that have it by rank."""
        known: dict[Layout, bool] = {}
        steps = self.steps(mode)
        of_mode = self._index.modes.get(mode, {}) if mode else {}
        wholes = [of_mode[step] for step in steps] if mode else steps
        for step, whole in zip(steps, wholes, strict=True):
            ranks = self._index.blocks[whole]
            found = []
            for each in sorted(ranks) if rank is None else [rank] if rank in ranks else []:
                layout = ranks[each].layout
                if layout not in known:
                    known[layout] = name in layout
                if known[layout]:
                    found.append(ranks[each])
            if found:
                yield step, found

    def missing(self, name: str, layouts: Iterable[Layout], wanted: str) -> InputError:
        """The error for a name of which ``wanted`` (``values``, a statistic) is not in some layouts."""
        here = [layout for layout in layouts if name in layout]
        if here:
            saved = unique(
                [*layout.statistic_offsets(name), *(["values"] * (name in layout.tensors))] for layout in here
            )
            return InputError(
                f"{wanted} of {name!r}",
                f"one of: {', '.join(saved)}",
                "the collection saves its tensors in another form",
                "Collection(..., raw=True)" if wanted == "values" else f"Collection(..., statistics=({wanted!r},))",
            )
        steps = [step for step, _ in self.having(name, None, None)]
        if steps:
            return InputError(
                f"{name!r} at this step",
                f"a step that has it: {span(steps)}",
                "its collection was saved at other steps, or by other ranks",
                "names(step=...) lists what a step has",
            )
        close = near(name, self.names())
        return InputError(
            f"{name!r}",
            f"one of: {', '.join(close)}" if close else f"one of {len(self.names())} names",
            "a typing error, or nothing was saved of it yet",
            "names() lists all",
        )

    def _keep(self, key: Any, make: Callable[[], T]) -> T:
        """What ``make`` gives, made again when there are more blocks."""
        self._index.refresh()
        if self._kept[0] != self._index.version:
            self._kept = (self._index.version, {})
        if key not in self._kept[1]:
            self._kept[1][key] = make()
        found: T = self._kept[1][key]
        return found


def unique(several: Iterable[Iterable[str]]) -> list[str]:
    """Each string once, in order of first appearance."""
    return list(dict.fromkeys(text for each in several for text in each))


def near(name: str, names: Sequence[str]) -> list[str]:
    """Names that are meant, perhaps."""
    if len(names) > COMPARED:
        parts = set(re.split(r"[./#]", name))
        names = heapq.nlargest(
            COMPARED, names, key=lambda each: len(parts.intersection(re.split(r"[./#]", each)))
        )
    return difflib.get_close_matches(name, names, 5)


def span(steps: Sequence[int], beside: int | None = None) -> str:
    """Steps in a few words."""
    if not steps:
        return "none yet"
    if len(steps) <= 5:
        return ", ".join(map(str, steps))
    found = f"{len(steps)} from {steps[0]} to {steps[-1]}"
    if beside is not None:
        place = bisect.bisect(steps, beside)
        found += f", nearest {', '.join(map(str, steps[max(place - 1, 0) : place + 1]))}"
    return found

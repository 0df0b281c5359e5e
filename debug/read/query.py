"""Query of a run's index: selection of blocks, and errors that list the steps and names that exist."""

from __future__ import annotations

import bisect
import contextlib
import difflib
import functools
import heapq
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any, TypeVar

from loopwise.errors import InputError, LoopwiseError
from loopwise.validate import one_of

from ..model.vocabulary import MODES
from ..store.index import Block, Index
from ..store.layout import Layout

T = TypeVar("T")
COMPARED = 500
"""Largest number of names that are searched for near matches; 100,000 names would take 10 s."""


class Query:
    """Questions to an index; each first reads new records.

    Args:
        index: index of the run.
    """

    def __init__(self, index: Index) -> None:
        self.index = index
        self._cache: tuple[int, dict[Any, Any]] = (0, {})

    def steps(self, mode: str | None) -> list[int]:
        """Return steps in order, over all modes or of one; the caller must not change the list."""
        return self._cached(("steps", mode), lambda: sorted(self.by_step(mode)))

    def by_step(self, mode: str | None) -> Collection[int]:
        """Return steps, over all modes or of one.

        Raises:
            InputError: there is no such mode.
        """
        self.index.refresh()
        if mode is None:
            return self.index.blocks
        one_of("mode", mode, dict.fromkeys([*MODES, *self.index.modes]), fix="name a mode")
        return self.index.modes.get(mode, {})

    def layouts(self, mode: str | None = None) -> list[Layout]:
        """Return the layouts in use, in order of first appearance."""

        def find() -> list[Layout]:
            by_rank = (self.index.blocks[step] for step in self.steps(None))
            blocks = (ranks[rank] for ranks in by_rank for rank in sorted(ranks))
            return list(dict.fromkeys(block.layout for block in blocks if mode in (None, block.mode)))

        return self._cached(("layouts", mode), find)

    def names(self) -> list[str]:
        """Return all names in order of first appearance; the caller must not change the list."""
        return self._cached("names", lambda: unique(layout.names() for layout in self.layouts()))

    def blocks(self, step: int, mode: str | None, rank: int | None) -> list[Block]:
        """Return the blocks of a step, of one rank or of all, by rank.

        Raises:
            InputError: there is none.
        """
        self.by_step(mode)
        whole = step if mode is None else self.index.modes.get(mode, {}).get(step)
        ranks = {} if whole is None else self.index.blocks.get(whole, {})
        if not ranks:
            raise InputError(
                f"step {step}" + (f" of mode {mode!r}" if mode else ""),
                f"a saved step: {span(self.steps(mode), step)}",
                "the step was not saved, or not yet",
                "name a saved step, or wait for it",
            )
        if rank is None:
            return [ranks[number] for number in sorted(ranks)]
        if rank not in ranks:
            raise InputError(
                f"rank={rank} at step {step}",
                f"one of: {', '.join(map(str, sorted(ranks)))}",
                "that rank saved nothing, or nothing yet",
                "leave rank out, or wait",
            )
        return [ranks[rank]]

    def having(self, name: str, mode: str | None, rank: int | None) -> Iterator[tuple[int, list[Block]]]:
        """Yield the steps at which a name was saved, each with the blocks that have it, by rank."""
        has_name = functools.cache(lambda layout: name in layout)
        steps = self.steps(mode)
        wholes = dict(self.index.modes.get(mode, {})) if mode else {}
        for step in steps:
            by_rank = self.index.blocks[wholes.get(step, step)]
            ranks = sorted(by_rank) if rank is None else by_rank.keys() & {rank}
            if blocks := [by_rank[number] for number in ranks if has_name(by_rank[number].layout)]:
                yield step, blocks

    def missing(self, name: str, layouts: Iterable[Layout], wanted: str) -> InputError:
        """Return the error for a name if layouts lack ``wanted`` (``values``, or a statistic) of it."""
        here = [layout for layout in layouts if name in layout]
        if here:
            saved = unique(
                [*layout.statistic_offsets(name), *(["values"] * (name in layout.tensors))] for layout in here
            )
            return InputError(
                f"{wanted} of {name!r}",
                f"one of: {', '.join(saved)}",
                "the collection saves other things of its tensors",
                f"Collection(..., {'raw=True' if wanted == 'values' else f'statistics=({wanted!r},)'})",
            )
        steps = [step for step, _ in self.having(name, None, None)]
        if steps:
            return InputError(
                f"{name!r} at this step",
                f"a step that has it: {span(steps)}",
                "its collection was saved at other steps, or by other ranks",
                "names(step=...) lists the names of a step",
            )
        close = near(name, self.names())
        return InputError(
            f"{name!r}",
            f"one of: {', '.join(close)}" if close else f"one of {len(self.names())} names",
            "a typo, or nothing was saved of it yet",
            "names() lists all names",
        )

    def _cached(self, key: Any, make: Callable[[], T]) -> T:
        """Return the result of ``make``, which is called again only if there are new blocks."""
        self.index.refresh()
        if self._cache[0] != self.index.version:
            self._cache = (self.index.version, {})
        if key not in self._cache[1]:
            self._cache[1][key] = make()
        result: T = self._cache[1][key]
        return result


@contextlib.contextmanager
def fix_of_errors(fix: str) -> Iterator[None]:
    """Replace the fix of errors by one in the terms of the caller."""
    try:
        yield
    except LoopwiseError as error:
        seen, expected, cause, _ = error.args
        raise type(error)(seen, expected, cause, fix) from None


def unique(several: Iterable[Iterable[str]]) -> list[str]:
    """Return each string once, in order of first appearance."""
    return list(dict.fromkeys(text for texts in several for text in texts))


def near(name: str, names: Sequence[str]) -> list[str]:
    """Return names that are similar to ``name``."""
    if len(names) > COMPARED:
        parts = set(re.split(r"[./#]", name))
        names = heapq.nlargest(
            COMPARED, names, key=lambda other: len(parts.intersection(re.split(r"[./#]", other)))
        )
    return difflib.get_close_matches(name, names, 5)


def span(steps: Sequence[int], beside: int | None = None) -> str:
    """Return a short text that describes steps, with the steps nearest to ``beside``."""
    if not steps:
        return "none yet"
    if len(steps) <= 5:
        return ", ".join(map(str, steps))
    text = f"{len(steps)} from {steps[0]} to {steps[-1]}"
    if beside is not None:
        place = bisect.bisect(steps, beside)
        text += f", nearest {', '.join(map(str, steps[max(place - 1, 0) : place + 1]))}"
    return text

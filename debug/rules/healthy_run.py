"""Earlier healthy run that a training is compared with: its saved training steps, read as far as they are needed."""

from __future__ import annotations

import functools
import os
import re
from collections import deque
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from loopwise.errors import InputError, LoopwiseError, StateError
from loopwise.run import Run

from ..store.blocks import Blocks
from ..store.columns import Floats
from ..store.index import Block, Index
from .history import Step

NAME = "unlike_healthy_run"
"""Name of the rule that compares."""
RATE = "learning_rate"
"""Beginning of the names of learning rates among the scalars."""
PER_OCTAVE = 16
"""Largest number of steps with statistics, and of steps of scalars alone, that are read between a step and its double."""
VERIFIED = 2**20
"""Largest number of bytes of a block whose checksum is compared: blocks of raw tensors would take seconds."""
FLOOR = 1e-300
"""Smallest size whose logarithm is taken; zero counts as this size."""
ROUNDING = 1e-5
"""Share of a step's largest gradient, and of a weight, below which gradients and updates may be rounding errors alone."""
KINDS = ("step", "update", "gradient", "output", "weight")
"""Kinds of sizes that are compared; ``step`` is that of an update in units of the gradient's: the rate of plain SGD."""


class Sizes:
    """Logarithms of sizes of the tensors of one kind over steps, as far as they were read."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        """Numbers within the mode."""
        self._rows: list[tuple[Sequence[str], Floats]] = []
        self._tables: dict[tuple[str, ...], tuple[int, Floats]] = {}

    def add(self, step: int, names: Sequence[str], logs: Floats) -> None:
        """Add a step."""
        self.steps.append(step)
        self._rows.append((names, logs))

    def until(self, step: int, names: tuple[str, ...]) -> tuple[NDArray[np.int64], Floats]:
        """Return the steps up to ``step``, and the sizes of these names, (steps, names); NaN where there is none."""
        done, table = self._tables.get(names, (0, np.empty((0, len(names)))))
        if done < len(self._rows):
            places = {name: place for place, name in enumerate(names)}
            more = np.full((len(self._rows) - done, len(names)), np.nan)
            for row, (own, logs) in zip(more, self._rows[done:], strict=True):
                both = [(places[name], i) for i, name in enumerate(own) if name in places]
                row[[place for place, _ in both]] = logs[[i for _, i in both]]
            table = np.concatenate((table, more))
            self._tables = {names: (len(table), table)}  # names change seldom
        steps = np.array(self.steps, np.int64)
        return steps[steps <= step], table[steps <= step]


class HealthyRun:
    """Training steps of a run that a training is compared with.

    Only some steps are read: up to ``PER_OCTAVE`` between a step and its double.  Lost and damaged steps are left out.

    Args:
        run: the run, opened for reading.
        rank: rank whose blocks are read; the lowest one of a step if it has none of this rank.

    Attributes:
        name: name of the run's folder.
        last: last saved training step, within its mode.
        steps: steps with statistics, as far as they were read.
        scalars: steps with scalars, as far as they were read.
        with_gradient: parameters that get a gradient at every saved update of the whole run, as all of their kind do: an
            expert that the router of another seed leaves out is no difference.
        without_gradient: function that returns whether a parameter and all of its kind get none at any of them.

    Raises:
        InputError: no training step was saved.
    """

    def __init__(self, run: Run, rank: int = 0) -> None:
        folder = f"{run.path}/debug"
        index = Index(run.fs, folder, run.local)
        index.refresh(now=True)
        self.name = run.path.rstrip("/").rsplit("/", 1)[-1]
        self._blocks = Blocks(run.fs, folder, run.local)
        numbers = index.modes.get("train", {})
        by_step = {number: _of_rank(index.blocks[step], rank) for number, step in sorted(numbers.items())}
        if not by_step:
            raise InputError(
                f"like={run.url!r}, in which no training step is saved",
                "a run in which a Watch saved training steps",
                "a run without a Watch, or one that ended before its first step",
                "name the folder of a longer run",
            )
        self.last = max(by_step)
        self.with_gradient, self.without_gradient = _by_gradient(by_step.values())
        self._pending = deque(_some_of_each_octave(by_step))
        self.steps: list[Step] = []
        self.scalars: list[Step] = []
        self._types: dict[str, str] = {}
        self.sizes = {kind: Sizes() for kind in (*KINDS, "input", "input mean", "scalar")}
        """Logarithms of sizes, by kind; ``scalar``: losses and norms of gradients; ``input mean``: means, not logarithms."""

    def read(self, until: int) -> None:
        """Read the steps up to the number ``until`` within the mode."""
        while self._pending and self._pending[0].mode_step <= until:
            block = self._pending.popleft()
            read = functools.partial(self._blocks.read, block)
            try:
                if block.length <= VERIFIED and self._blocks.fault(block) is not None:
                    continue
                step = Step(
                    block.step, block.mode, block.mode_step, block.marks, block.layout, read, block.time
                )
            except StateError:
                continue
            self._add(step)

    def type_of(self, module: str) -> str:
        """Return the name of a module's class; empty if it is unknown."""
        return self._types.get(module.partition("#")[0], "")

    def _add(self, step: Step) -> None:
        number, scalars = step.mode_step, logs_of_scalars(step)
        self.scalars.append(step)
        if scalars:
            self.sizes["scalar"].add(number, tuple(scalars), np.array(list(scalars.values())))
        if step.layout.is_of_scalars:
            return
        self._types |= step.marks.get("modules", {})
        self.steps.append(step)
        for kind in (*KINDS, "input"):
            names, _, logs = logs_of(step, kind)
            if kind == "gradient" and np.isfinite(logs).any():
                logs = np.where(logs > np.nanmax(logs) + np.log(ROUNDING), logs, np.nan)
            elif kind in ("step", "update"):
                logs = np.where(logs_of(step, "update")[2] > np.log(ROUNDING), logs, np.nan)
            if names:
                self.sizes[kind].add(number, names, logs)
        means = step.columns("input", "mean")
        if means.names:
            self.sizes["input mean"].add(number, means.names, means.values[0])


def opened(
    like: str | os.PathLike[str] | Run, run: str | os.PathLike[str] | Run, rank: int = 0
) -> HealthyRun:
    """Open the run that ``run`` is compared with.

    Raises:
        InputError: there is no such run, nothing is saved in it, or it is ``run`` itself.
    """
    healthy = existing(like)
    try:
        own = run if isinstance(run, Run) else Run.existing(run)
    except LoopwiseError:  # it has not begun
        own = None
    if own is not None and _place(own) == _place(healthy):
        raise InputError(
            f"like={healthy.url!r}, which is the run itself",
            "an earlier run",
            "one path for both",
            "name another folder for the new run",
        )
    return HealthyRun(healthy, rank)


def existing(like: str | os.PathLike[str] | Run) -> Run:
    """Return the run that the argument ``like`` names.

    Raises:
        InputError: ``like`` is of another type, or names no run.
    """
    if isinstance(like, Run):
        return like
    if not isinstance(like, (str, os.PathLike)):
        raise InputError(
            f"like of type {type(like).__name__}",
            "the folder or URL of an earlier run, or a Run",
            "an argument in the place of another one",
            "pass like='runs/healthy'",
        )
    try:
        return Run.existing(like)
    except InputError as error:
        raise InputError(f"like={os.fspath(like)!r}: {error.args[0]}", *error.args[1:]) from None


def logs_of(step: Step, kind: str) -> tuple[tuple[str, ...], tuple[tuple[int, ...], ...], Floats]:
    """Return names, shapes and logarithms of the sizes of a step's tensors.

    The size is the root mean square; that of an update is relative to its weight.
    """
    if kind == "step":
        return _steps_by_gradient(step)
    if kind == "update":
        names, (sizes,), shapes, _ = step.columns(kind, "ratio")
    else:
        names, (mean, std), shapes, _ = step.columns(kind, "mean", "std")
        sizes = np.hypot(mean, std)
    return names, shapes, np.log(np.maximum(np.where(np.isfinite(sizes), sizes, np.nan), FLOOR))


def _steps_by_gradient(step: Step) -> tuple[tuple[str, ...], tuple[tuple[int, ...], ...], Floats]:
    names, (sizes, ratios), shapes, _ = step.columns("update", "size", "ratio")
    gradients = dict(zip(*logs_of(step, "gradient")[::2], strict=True))
    of_gradients = np.array([gradients.get(name, np.nan) for name in names])
    changes = sizes * ratios
    known = np.isfinite(changes) & (changes > 0) & (of_gradients > np.log(FLOOR))
    return names, shapes, np.where(known, np.log(np.where(known, changes, 1.0)) - of_gradients, np.nan)


def size(log: float) -> float:
    """Return the size that a logarithm is of."""
    return 0.0 if log <= np.log(FLOOR) else float(np.exp(log))


def logs_of_scalars(step: Step) -> dict[str, float]:
    """Return the logarithms of a step's losses and norms of gradients, by name, where they are above zero."""
    norms = {
        name: value for name, value in step.scalars("metrics").items() if name.startswith("gradient_norm")
    }
    values = step.scalars("losses") | norms
    return {name: float(np.log(value)) for name, value in values.items() if 0 < value < np.inf}


def kind_of_parameter(name: str) -> str:
    """Return a name without its numbers, which is the same for the layers or experts of a list."""
    return re.sub(r"\d+", "#", name)


def _by_gradient(blocks: Iterable[Block]) -> tuple[frozenset[str], Callable[[str], bool]]:
    layouts = dict.fromkeys(block.layout for block in blocks)
    updates = [layout for layout in layouts if layout.cells("update", ("ratio",)).names]
    names = [set(layout.cells("gradient", ("mean",)).names) for layout in updates]
    ever = set[str]().union(*names)
    always = set.intersection(*names) if names else set()
    seldom = {kind_of_parameter(name) for name in ever - always}
    some = {kind_of_parameter(name) for name in ever}
    with_gradient = frozenset(name for name in always if kind_of_parameter(name) not in seldom)
    return with_gradient, lambda name: kind_of_parameter(name) not in some


def _of_rank(blocks: dict[int, Block], rank: int) -> Block:
    return blocks[rank if rank in blocks else min(blocks)]


def _some_of_each_octave(by_step: dict[int, Block]) -> list[Block]:
    """Return some of the steps, evenly spread over each octave, those with statistics and those of scalars alone."""
    octaves: dict[tuple[int, bool], list[Block]] = {}
    for number, block in by_step.items():
        octaves.setdefault((number.bit_length(), block.layout.is_of_scalars), []).append(block)
    chosen = []
    for blocks in octaves.values():
        places = np.linspace(0, len(blocks) - 1, min(PER_OCTAVE, len(blocks))).round().astype(int)
        chosen += [blocks[place] for place in places]
    return sorted(chosen, key=lambda block: block.mode_step)


def _place(run: Run) -> str:
    return os.path.realpath(run.path) if run.local else run.url

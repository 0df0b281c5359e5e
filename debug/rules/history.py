"""History of the saved steps of a run, as arrays over tensors; rules over saved steps look at it."""

from __future__ import annotations

import itertools
import math
import re
from array import array
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..store.columns import Columns as Columns
from ..store.columns import Floats as Floats
from ..store.layout import Layout, Read
from .finding import Observation, Observations, Points

if TYPE_CHECKING:
    from .healthy_run import HealthyRun

Mask = NDArray[np.bool_]
WINDOW = 20
"""Number of saved steps of each mode whose statistics are kept; scalars of all steps are kept."""
SHOWN = 3
"""Largest number of tensors that a finding names in its sentence and gives as evidence."""


def some(names: Sequence[str]) -> str:
    """Return a text with the first few names and the number of the others."""
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def matrices(columns: Columns) -> Mask:
    """Return a mask of the tensors of two dimensions or more, which excludes biases and scales."""
    return np.array([len(shape) > 1 for shape in columns.shapes], dtype=bool)


def sizes(columns: Columns) -> NDArray[np.int64]:
    """Return the number of elements of each tensor."""
    return np.array([math.prod(shape) for shape in columns.shapes], dtype=np.int64)


@dataclass
class Step:
    """One saved step.

    Args:
        number: number of the step, over all modes.
        mode: mode of the step.
        mode_step: number of the step in its mode.
        marks: marks of the step in the index.
        layout: layout of the step's block.
        read: returns bytes of the block; it is valid only while rules look at the step.
    """

    number: int
    mode: str
    mode_step: int
    marks: Mapping[str, Any]
    layout: Layout
    read: Read
    time: float = 0.0
    """End of the step, in seconds since the epoch."""
    _numbers: Floats = field(init=False)
    _columns: dict[tuple[str, tuple[str, ...]], Columns] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._numbers = self.layout.numbers(self.read)

    def columns(self, kind: str, *statistics: str) -> Columns:
        """Return statistics of all tensors of a kind that have them.

        Args:
            kind: ``weight``, ``gradient``, ``update``, ``input``, ``output`` or ``samples``.
            statistics: names of the statistics.
        """
        key = (kind, statistics)
        if key not in self._columns:
            self._columns[key] = self.layout.columns(self._numbers, kind, statistics)
        return self._columns[key]

    @property
    def facts(self) -> Mapping[str, Any]:
        """Faults of the training's setup; ``loopwise.debug.capture.health`` notes them."""
        facts: Mapping[str, Any] = self.marks.get("facts", {})
        return facts

    @property
    def samples(self) -> int | None:
        """Number of samples in the model's input; ``None`` if it is not known."""
        if "samples" in self.marks:
            return int(self.marks["samples"])
        inputs = self.columns("input", "mean")
        shape = inputs.shapes[inputs.names.index("")] if "" in inputs.names else ()
        return shape[0] if shape else None

    @property
    def updated(self) -> bool:
        """True if the step has an update; a step that only accumulates gradients has none."""
        return bool(self.layout.cells("update", ("ratio",)).names) or "no_gradients" in self.facts

    def scalars(self, collection: str | None = None) -> dict[str, float]:
        """Return the scalars by name, of one collection (``losses``, ``metrics``) or of all."""
        return self.layout.column(self._numbers, "value", collection)

    def of_collection(self, collection: str, statistic: str) -> dict[str, float]:
        """Return a statistic by tensor name, for the tensors of one collection that have it."""
        return self.layout.column(self._numbers, statistic, collection)

    def tensor(self, name: str) -> torch.Tensor | None:
        """Return a copy of a tensor that was saved raw; ``None`` if it was not.  Valid for the latest step only."""
        entry = self.layout.tensor(name)
        if entry is None:
            return None
        data = bytearray(self.read(entry.offset, entry.length))
        flat = torch.frombuffer(data, dtype=entry.dtype) if data else torch.empty(0, dtype=entry.dtype)
        return flat.view(entry.shape)


def _gone(offset: int, length: int) -> Any:
    raise ValueError("the bytes of a step are available only while rules look at it")


class History:
    """Saved steps of one rank so far.

    Attributes:
        now: the latest step.
        first: the first step with an update.
        sampled: whether steps of evaluations were not saved, so that the means of whole evaluations are unknown.
        optimizers: number of optimizers.
        lines: lines of the user's code, by module.
        classes: number of classes of the losses that are cross-entropies, by name.
        samples: number of samples of the last training steps; ``None`` where it is not known.
        times: number and end of the last training steps, in seconds since the epoch.
        healthy: the run that this one is compared with, if any.
    """

    now: Step
    first: Step
    sampled: bool = False

    def __init__(self, healthy: HealthyRun | None = None) -> None:
        self.healthy = healthy
        self._steps: dict[str, deque[Step]] = {}
        self._scalars: dict[tuple[str, str], tuple[array[int], array[float], str]] = {}
        self._types: dict[str, str] = {}
        self.samples: deque[int | None] = deque(maxlen=WINDOW)
        self.times: deque[tuple[int, float]] = deque(maxlen=WINDOW)
        self.optimizers = 1
        self.lines: dict[str, str] = {}
        self.classes: dict[str, int] = {}
        self._rounds: dict[str, list[tuple[int, float, int]]] = {}
        self._evaluated = (-1, -1)

    def add(self, step: Step) -> None:
        """Add the next step."""
        if hasattr(self, "now"):
            self.now.read = _gone
        if step.updated and not hasattr(self, "first"):
            self.first = step
        self.now = step
        if not step.layout.is_of_scalars:
            self._steps.setdefault(step.mode, deque(maxlen=WINDOW)).append(step)
        if step.mode == "train":
            self.samples.append(step.samples)
            self.times.append((step.number, step.time))
        for collection in ("losses", "metrics"):
            for name, value in step.scalars(collection).items():
                empty = (array("q"), array("d"), collection)
                steps, values, _ = self._scalars.setdefault((step.mode, name), empty)
                steps.append(step.number)
                values.append(value)
        if step.mode == "eval":
            self._evaluate(step)
        self._types |= step.marks.get("modules", {})
        self.optimizers = step.marks.get("optimizers", self.optimizers)
        self.lines |= step.marks.get("lines", {})
        self.classes |= step.facts.get("classes", {})

    def _evaluate(self, step: Step) -> None:
        """Add the losses to the means of their evaluation, which is a sequence of eval steps without a training step."""
        number, mode_step = self._evaluated
        self.sampled |= mode_step >= 0 and step.mode_step != mode_step + 1
        for name, value in step.scalars("losses").items():
            rounds = self._rounds.setdefault(name, [])
            if rounds and step.number == number + 1:
                _, total, count = rounds[-1]
                rounds[-1] = (step.number, total + value, count + 1)
            else:
                rounds.append((step.number, value, 1))
        self._evaluated = (step.number, step.mode_step)

    def steps(self, mode: str = "train") -> Sequence[Step]:
        """Return the last steps of a mode, in order."""
        return tuple(self._steps.get(mode, ()))

    def last(self, count: int, mode: str = "train") -> Sequence[Step] | None:
        """Return the last ``count`` steps; ``None`` if there are fewer."""
        steps = self.steps(mode)
        return steps[-count:] if len(steps) >= count else None

    def updates(self, count: int) -> Sequence[Step] | None:
        """Return the last ``count`` training steps with an update; ``None`` if there are fewer or the latest has none."""
        steps = [step for step in self.steps() if step.updated]
        return steps[-count:] if len(steps) >= count and self.now.updated else None

    def evaluations(self) -> Iterator[tuple[str, Points]]:
        """Yield each loss of the latest step, an evaluation, with the last step and the mean loss of each evaluation.

        Nothing is yielded if not all steps are saved.  A last evaluation that is shorter than the one before may not be
        finished, and is left out.
        """
        for name in self.now.scalars("losses") if not self.sampled else ():
            rounds = self._rounds[name]
            if len(rounds) > 1 and rounds[-1][2] < rounds[-2][2]:
                rounds = rounds[:-1]
            yield name, [(number, total / count) for number, total, count in rounds]

    @property
    def begins_with_norm(self) -> bool:
        """True if the first known module normalizes its input."""
        return bool(re.search("(Batch|Layer|Instance|Group|RMS)Norm", next(iter(self._types.values()), "")))

    def scalar(self, name: str) -> tuple[Sequence[int], Sequence[float]]:
        """Return the steps and values of a training loss or metric; the caller must not change them."""
        return self._scalars.get(("train", name), ([], [], ""))[:2]

    def losses(self) -> list[str]:
        """Return the names of the training losses."""
        return [
            name for (mode, name), entry in self._scalars.items() if mode == "train" and entry[2] == "losses"
        ]

    def type_of(self, module: str) -> str:
        """Return the name of a module's class; empty if it is unknown."""
        return self._types.get(module.partition("#")[0], "")

    def points(self, kind: str, name: str, statistic: str) -> Points:
        """Return a statistic of one tensor over the last steps, as evidence."""
        points = []
        for step in self.steps():
            names, (values,), _, _ = step.columns(kind, statistic)
            if name in names:
                points.append((step.number, float(values[names.index(name)])))
        return points

    def evidence(self, kind: str, names: Sequence[str], statistic: str) -> dict[str, Points]:
        """Return a statistic over the last steps for the first few names."""
        return {name: self.points(kind, name, statistic) for name in names[:SHOWN]}

    def persistent(
        self, steps: float, kind: str, statistics: Sequence[str], test: Callable[..., Mask]
    ) -> tuple[str, ...]:
        """Return the names for which ``test`` holds at each of the last ``steps`` training steps with such tensors.

        If gradients accumulate, some steps have outputs and other steps have gradients.

        Args:
            steps: number of steps.
            kind: kind of the tensors.
            statistics: names of the statistics that ``test`` needs.
            test: function from the ``Columns`` of a step and the array of each statistic to a mask over their names.
        """
        having = [columns for step in self.steps() if (columns := step.columns(kind, *statistics)).names]
        if len(having) < steps or not self.now.columns(kind, *statistics).names:
            return ()
        last = having[-int(steps) :]
        kept = [set(itertools.compress(columns.names, test(columns, *columns.values))) for columns in last]
        return tuple(name for name in last[0].names if all(name in names for names in kept))

    def observe(
        self,
        steps: float,
        kind: str,
        statistics: Sequence[str],
        test: Callable[..., Mask],
        text: str,
        shown: str,
    ) -> Observations:
        """Yield an observation of the names that `persistent` returns, if there are any.

        Args:
            steps, kind, statistics, test: arguments of `persistent`.
            text: sentence about the tensors, with ``{}`` for their names.
            shown: statistic that is given as evidence.
        """
        if names := self.persistent(steps, kind, statistics, test):
            yield Observation(text.format(some(names)), names, self.evidence(kind, names, shown))


def noted(fact: str, text: str) -> Callable[[History], Observations]:
    """Return a ``detect`` that observes the names of a fact of the latest step; ``text`` has ``{}`` for the names."""

    def detect(history: History) -> Observations:
        if names := tuple(history.now.facts.get(fact, ())):
            yield Observation(text.format(some(names)), names)

    return detect

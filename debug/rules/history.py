"""What rules look at: the saved steps of a run, one after the other, as arrays over tensors."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..store.columns import Columns, Floats
from ..store.layout import Layout, Read

WINDOW = 20
"""Saved steps of a mode whose statistics are kept; scalars are kept of all."""
SHOWN = 3
"""Tensors of a finding that are named in its sentence, and whose series are kept."""


def some(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def matrices(columns: Columns) -> NDArray[np.bool_]:
    """Those of two dimensions or more: not biases and scales."""
    return np.array([len(shape) > 1 for shape in columns.shapes], dtype=bool)


@dataclass
class Step:
    """One saved step.

    Args:
        number: over all modes.
        mode: of the step.
        mode_step: of its mode.
        marks: remarks of the index.
        layout: layout of its block.
        read: gives its bytes; used while rules look at the step, not later.
    """

    number: int
    mode: str
    mode_step: int
    marks: Mapping[str, Any]
    layout: Layout
    read: Read
    time: float = 0.0
    """Seconds since the epoch, at its end."""
    _numbers: Floats = field(init=False)
    _columns: dict[tuple[str, tuple[str, ...]], Columns] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._numbers = self.layout.numbers(self.read)

    def columns(self, kind: str, *statistics: str) -> Columns:
        """Statistics of all ``weight``, ``gradient``, ``update``, ``input`` or ``output`` tensors that have them."""
        key = (kind, statistics)
        if key not in self._columns:
            self._columns[key] = self.layout.columns(self._numbers, kind, statistics)
        return self._columns[key]

    @property
    def facts(self) -> Mapping[str, Any]:
        """What was not as it should be with the training's set-up; see ``loopwise.debug.capture.health``."""
        found: Mapping[str, Any] = self.marks.get("facts", {})
        return found

    @property
    def updated(self) -> bool:
        """Whether there was an update, with gradients or without: not so while gradients accumulate."""
        return bool(self.layout.cells("update", ("ratio",)).names) or "no_gradients" in self.marks.get(
            "facts", {}
        )

    def scalars(self, collection: str | None = None) -> dict[str, float]:
        """Numbers by name, of one collection (``losses``, ``metrics``) or of all."""
        return self.layout.scalars(self._numbers, collection)

    def of_collection(self, collection: str, statistic: str) -> dict[str, float]:
        """A statistic by name, of what one collection keeps it of."""
        return self.layout.of_collection(self._numbers, collection, statistic)

    def tensor(self, name: str) -> torch.Tensor | None:
        """A copy of a tensor that was saved itself; of the latest step only."""
        entry = self.layout.tensor(name)
        if entry is None:
            return None
        data = bytearray(self.read(entry.offset, entry.length))
        flat = torch.frombuffer(data, dtype=entry.dtype) if data else torch.empty(0, dtype=entry.dtype)
        return flat.view(entry.shape)


def _gone(offset: int, length: int) -> Any:
    raise ValueError("the bytes of a step are there while rules look at it")


class History:
    """The saved steps so far, of one rank.

    Attributes:
        now: the latest one.
        first: the first one with an update.
        sampled: whether steps of evaluations were left out, so that there are no means of whole ones.
        optimizers: how many there are.
        lines: of the user's code, by module.
        classes: of the losses that are cross-entropies.
    """

    now: Step
    first: Step
    sampled: bool = False

    def __init__(self) -> None:
        self._steps: dict[str, deque[Step]] = {}
        self._scalars: dict[tuple[str, str], tuple[list[int], list[float], str]] = {}
        self._types: dict[str, str] = {}
        self.optimizers = 1
        self.lines: dict[str, str] = {}
        self.classes: dict[str, int] = {}
        self._rounds: dict[str, list[tuple[int, float, int]]] = {}
        self._evaluated = (-1, -1)

    def add(self, step: Step) -> None:
        """Take in the next step."""
        if hasattr(self, "now"):
            self.now.read = _gone
        if step.updated and not hasattr(self, "first"):
            self.first = step
        self.now = step
        self._steps.setdefault(step.mode, deque(maxlen=WINDOW)).append(step)
        for collection in ("losses", "metrics"):
            for name, value in step.scalars(collection).items():
                steps, values, _ = self._scalars.setdefault((step.mode, name), ([], [], collection))
                steps.append(step.number)
                values.append(value)
        if step.mode == "eval":
            self._evaluate(step)
        self._types |= step.marks.get("modules", {})
        self.optimizers = step.marks.get("optimizers", self.optimizers)
        self.lines |= step.marks.get("lines", {})
        self.classes |= step.facts.get("classes", {})

    def _evaluate(self, step: Step) -> None:
        """Take a loss's value into the mean of its evaluation: eval steps with no training step between."""
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
        """The last steps of a mode, in order."""
        return tuple(self._steps.get(mode, ()))

    def last(self, count: int, mode: str = "train") -> Sequence[Step] | None:
        """The last ``count`` steps; ``None`` where there are fewer."""
        found = self._steps.get(mode, ())
        return tuple(found)[-count:] if len(found) >= count else None

    def updates(self, count: int) -> Sequence[Step] | None:
        """The last ``count`` training steps with an update, up to now; ``None`` where there are fewer."""
        found = [step for step in self.steps() if step.updated]
        return found[-count:] if len(found) >= count and self.now.updated else None

    def evaluations(self, name: str) -> list[tuple[int, float]]:
        """Last step and mean of a loss over each evaluation; none where they are not saved as a whole.

        An evaluation that is shorter than the one before goes on, perhaps, and is left out.
        """
        if self.sampled:
            return []
        rounds = self._rounds.get(name, [])
        if len(rounds) > 1 and rounds[-1][2] < rounds[-2][2]:
            rounds = rounds[:-1]
        return [(number, total / count) for number, total, count in rounds]

    @property
    def begins_with_norm(self) -> bool:
        """Whether the first module that is known normalises."""
        first = next(iter(self._types.values()), "")
        return any(
            word in first for word in ("BatchNorm", "LayerNorm", "InstanceNorm", "GroupNorm", "RMSNorm")
        )

    def scalar(self, name: str, mode: str = "train") -> tuple[list[int], list[float]]:
        """Steps and values of a loss or metric; not to be changed."""
        steps, values, _ = self._scalars.get((mode, name), ([], [], ""))
        return steps, values

    def losses(self, mode: str = "train") -> list[str]:
        """Names of the losses."""
        return [name for (of, name), entry in self._scalars.items() if of == mode and entry[2] == "losses"]

    def type_of(self, module: str) -> str:
        """Name of a module's class, where it is known."""
        return self._types.get(module.partition("#")[0], "")

    def points(self, kind: str, name: str, statistic: str, mode: str = "train") -> list[tuple[int, float]]:
        """A statistic over the last steps: evidence."""
        found = []
        for step in self.steps(mode):
            names, (values,), _, _ = step.columns(kind, statistic)
            if name in names:
                found.append((step.number, float(values[names.index(name)])))
        return found

    def evidence(self, kind: str, names: Sequence[str], statistic: str) -> dict[str, list[tuple[int, float]]]:
        """A statistic over the last steps, of the first few names."""
        return {name: self.points(kind, name, statistic) for name in names[:SHOWN]}

    def persistent(
        self, steps: int, kind: str, statistics: Sequence[str], test: Callable[..., NDArray[np.bool_]]
    ) -> tuple[str, ...]:
        """Names for which ``test`` holds at each of the last ``steps`` training steps that have such tensors.

        Of steps that accumulate gradients some have outputs and others have gradients.

        Args:
            test: called with the ``Columns`` of a step; true where it holds.
        """
        having = [each for step in self.steps() if (each := step.columns(kind, *statistics)).names]
        if len(having) < steps or not self.now.columns(kind, *statistics).names:
            return ()
        found: dict[str, None] | None = None
        for columns in having[-steps:]:
            here = {name: None for name, holds in zip(columns.names, test(columns), strict=True) if holds}
            found = here if found is None else {name: None for name in found if name in here}
        return tuple(found or ())

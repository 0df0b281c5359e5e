"""Contract of a logger, and the numbers of a step that it is given."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from loopwise.errors import InputError

from ..rules import Finding
from ..store.layout import Layout, Read

STATISTICS = ("mean", "std", "ratio")
"""Statistics that loggers get if none are named; ``ratio`` is the size of an update over that of its weight."""
METHODS = ("log_steps", "log_finding", "close")


class LoggedStep(NamedTuple):
    """Numbers of one saved step."""

    step: int
    """Number of the step, over all modes."""
    mode: str
    mode_step: int
    time: float
    """End of the step, in seconds since the epoch."""
    scalars: dict[str, float]
    """Key: ``<mode>/<name>`` of a loss or metric, ``<statistic>/<tensor>`` of a statistic in training."""


class Logger(Protocol):
    """Destination of numbers and findings.  A thread of its own calls all methods; an error ends the delivery."""

    @property
    def statistics(self) -> Sequence[str]:
        """Names of the saved statistics of tensors that the logger gets; a plain attribute will do."""

    def log_steps(self, steps: Sequence[LoggedStep]) -> None:
        """Log steps, in order."""

    def log_finding(self, finding: Finding) -> None:
        """Log a finding."""

    def close(self) -> None:
        """Send what is pending.  A later call of another method begins again."""


def validated(loggers: Any) -> tuple[Logger, ...]:
    """Return the loggers.

    Raises:
        InputError: an object is no logger.
    """
    listed = tuple(loggers) if isinstance(loggers, Iterable) and not isinstance(loggers, str) else (loggers,)
    for logger in listed:
        is_logger = all(callable(getattr(logger, name, None)) for name in METHODS)
        if isinstance(logger, type) or not is_logger or isinstance(getattr(logger, "statistics", ""), str):
            kind = logger.__name__ + ", a class" if isinstance(logger, type) else type(logger).__name__
            raise InputError(
                f"loggers with {logger!r}" if isinstance(logger, str) else f"loggers with {kind}",
                f"objects with the methods {', '.join(METHODS)} and the attribute statistics",
                "the logger of another library, or a name",
                "use the loggers of loopwise.debug.loggers, such as TensorBoardLogger('runs/tensorboard')",
            )
    return listed


def step_of(record: Mapping[str, Any], layout: Layout, read: Read, statistics: Iterable[str]) -> LoggedStep:
    """Return the numbers of a saved step.

    Args:
        record: the step's record in the index.
        layout: layout of the step's block.
        read: function that returns bytes of the block.
        statistics: names of the statistics to take, of training steps.
    """
    numbers, mode = layout.numbers(read), record["mode"]
    scalars = {f"{mode}/{name}": value for name, value in layout.column(numbers, "value").items()}
    for statistic in statistics if mode == "train" else ():
        column = layout.column(numbers, statistic)
        scalars |= {f"{statistic}/{name}": value for name, value in column.items()}
    return LoggedStep(record["step"], mode, record["mode_step"], record["time"], scalars)

"""Logger for TensorBoard."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any, cast

from loopwise.errors import InputError
from loopwise.extras import required

from ..rules import SEVERITIES, Finding
from .logger import STATISTICS, LoggedStep

SECONDS = 10
"""Longest time that events wait in memory."""


class TensorBoardLogger:
    """Scalars and findings in an event file, while training goes on; findings are texts.

    Args:
        folder: folder of the event file, or a ``SummaryWriter`` of yours, which is not closed.
        statistics: names of the saved statistics of tensors to send; ``()`` for none.
        prefix: text before each name.

    Raises:
        InputError: ``folder`` is neither a path nor a ``SummaryWriter``.
        MissingExtra: the package ``tensorboard`` is not installed.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str] | Any,
        *,
        statistics: Iterable[str] = STATISTICS,
        prefix: str = "",
    ) -> None:
        with required("tensorboard", "loggers", "TensorBoardLogger"):
            from torch.utils.tensorboard import SummaryWriter
        is_path = isinstance(folder, (str, os.PathLike))
        if not is_path and not callable(getattr(folder, "add_scalar", None)):
            raise InputError(
                f"folder of type {type(folder).__name__}",
                "a folder, or a SummaryWriter",
                "an argument in the place of another one",
                "pass for instance TensorBoardLogger('runs/tensorboard')",
            )
        self.statistics, self._prefix = tuple(statistics), prefix
        self._folder, self._kind = folder, cast(Any, SummaryWriter)
        self._owned = is_path
        self._writer: Any = None if is_path else folder

    def log_steps(self, steps: Sequence[LoggedStep]) -> None:
        writer = self._open()
        for step in steps:
            for name, value in step.scalars.items():
                writer.add_scalar(self._prefix + name, value, step.step, step.time)

    def log_finding(self, finding: Finding) -> None:
        writer, name = self._open(), f"{self._prefix}finding/{finding.rule}"
        writer.add_text(name, str(finding), finding.step)
        writer.add_scalar(f"{name}/severity", SEVERITIES.index(finding.severity) + 1, finding.step)
        writer.flush()

    def close(self) -> None:
        if self._writer is None:
            return
        self._writer.flush()
        if self._owned:
            self._writer.close()
            self._writer = None

    def _open(self) -> Any:
        if self._writer is None:
            self._writer = self._kind(os.fspath(self._folder), flush_secs=SECONDS)
        return self._writer

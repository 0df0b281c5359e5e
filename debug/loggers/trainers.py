"""Loggers that a trainer has already, as destinations of a ``Watch``.

They get the numbers of training steps, counted as the trainer counts them, with names that begin with ``watch/``, and
findings.  Statistics of tensors are left out, as a model has thousands.
"""

from __future__ import annotations

import os
import queue
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..rules import SEVERITIES, Finding
from .logger import LoggedStep, Logger
from .mlflow import MLflowLogger
from .tensorboard import TensorBoardLogger
from .wandb import WandbLogger

PREFIX = "watch/"
QUIET: dict[str, Any] = {"statistics": (), "prefix": PREFIX}
WAITING = 10_000
"""Largest number of steps and findings that wait for a logger of the training thread."""


class InTraining:
    """Logger that passes training steps on to another one, by their number among training steps.

    Args:
        logger: the other logger.
    """

    statistics: Sequence[str] = ()

    def __init__(self, logger: Logger) -> None:
        self._logger = logger
        self.log_finding, self.close = logger.log_finding, logger.close

    def log_steps(self, steps: Sequence[LoggedStep]) -> None:
        if own := [step._replace(step=step.mode_step) for step in steps if step.mode == "train"]:
            self._logger.log_steps(own)


class Held:
    """Logger that keeps numbers and findings until the training thread passes them to a logger of Lightning.

    Loggers that Loopwise does not know may have no locks, so that only the thread that Lightning uses may call them.

    Args:
        logger: logger of Lightning.
    """

    statistics: Sequence[str] = ()

    def __init__(self, logger: Any) -> None:
        self._logger = logger
        self._items: queue.SimpleQueue[dict[str, float]] = queue.SimpleQueue()

    def log_steps(self, steps: Sequence[LoggedStep]) -> None:
        for step in steps:
            self._put({PREFIX + name: value for name, value in step.scalars.items()})

    def log_finding(self, finding: Finding) -> None:
        self._put({f"{PREFIX}finding/{finding.rule}": SEVERITIES.index(finding.severity) + 1.0})

    def close(self) -> None:
        """Keep what is pending for the training thread."""

    def pass_on(self, step: int) -> None:
        """Log the last values since the previous call, on the training thread."""
        values: dict[str, float] = {}
        while not self._items.empty():
            values |= self._items.get()
        if values:
            self._logger.log_metrics(values, step=step)

    def _put(self, values: dict[str, float]) -> None:
        if self._items.qsize() < WAITING:
            self._items.put(values)


def of_lightning(loggers: Iterable[Any]) -> list[Logger]:
    """Return destinations for the loggers of a Lightning ``Trainer``."""
    return [_of_lightning(logger) for logger in loggers]


def _of_lightning(logger: Any) -> Logger:
    kinds = [kind.__name__ for kind in type(logger).__mro__]
    if "TensorBoardLogger" in kinds:
        return InTraining(TensorBoardLogger(logger.experiment, **QUIET))
    if "WandbLogger" in kinds:
        return InTraining(WandbLogger(logger.experiment, **QUIET))
    if "MLFlowLogger" in kinds:
        _ = logger.experiment  # opens the run, and sets MLflow's own uri
        return InTraining(MLflowLogger(run_id=logger.run_id, **QUIET))
    return Held(logger)


def of_transformers(reports: str | Iterable[str] | None, output_folder: str | None) -> list[Logger]:
    """Return destinations for what Hugging Face's ``report_to`` names, of TensorBoard, W&B and MLflow.

    Call this when training begins, after the Trainer's own callbacks have opened their runs.

    Args:
        reports: ``TrainingArguments.report_to``.
        output_folder: ``TrainingArguments.output_dir``.
    """
    make: Mapping[str, Any] = {
        "tensorboard": lambda: TensorBoardLogger(_event_folder(output_folder or "."), **QUIET),
        "wandb": lambda: WandbLogger(**QUIET),
        "mlflow": lambda: MLflowLogger(**QUIET),
    }
    names = [reports] if isinstance(reports, str) else reports or ()
    return [InTraining(make[name]()) for name in names if name in make]


def _event_folder(output_folder: str) -> Path:
    """Return the folder that the Trainer's callback for TensorBoard writes into."""
    if chosen := os.environ.get("TENSORBOARD_LOGGING_DIR"):
        return Path(chosen).expanduser()
    runs = Path(output_folder) / "runs"
    folders = {path.parent for path in runs.glob("*/*tfevents*")}
    return max(folders, key=lambda folder: folder.stat().st_mtime, default=runs / "watch")

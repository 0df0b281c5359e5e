"""Logger for Weights & Biases."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, cast

from loopwise.extras import required

from ..rules import SEVERITIES, Finding
from .logger import STATISTICS, LoggedStep

STEP = "loopwise/step"
"""Metric on the horizontal axis: W&B's own step counts all calls of ``log``, also those of other code."""


class WandbLogger:
    """Scalars in a run of W&B, findings in its summary; those of severity ``warning`` or worse are alerts, too.

    Args:
        run: run to log into, which is not finished; default: the process's active run, or else a new one.
        statistics: names of the saved statistics of tensors to send; ``()`` for none.
        prefix: text before each name.
        init: arguments of ``wandb.init`` for a new run, such as ``project="digits"`` or ``mode="offline"``.

    Raises:
        MissingExtra: the package ``wandb`` is not installed.
    """

    def __init__(
        self,
        run: Any = None,
        *,
        statistics: Iterable[str] = STATISTICS,
        prefix: str = "",
        **init: Any,
    ) -> None:
        with required("wandb", "loggers", "WandbLogger"):
            import wandb
        self.statistics, self._prefix, self._init = tuple(statistics), prefix, init
        self._wandb: Any = wandb
        self._given, self._run, self._owned = run, cast(Any, None), False
        self._known: set[str] = set()

    def log_steps(self, steps: Sequence[LoggedStep]) -> None:
        run = self._open()
        for step in steps:
            for group in {self._prefix + name.partition("/")[0] for name in step.scalars} - self._known:
                self._known.add(group)
                run.define_metric(f"{group}/*", step_metric=STEP)
            run.log({self._prefix + name: value for name, value in step.scalars.items()} | {STEP: step.step})

    def log_finding(self, finding: Finding) -> None:
        run, severity = self._open(), SEVERITIES.index(finding.severity)
        run.summary[f"{self._prefix}finding/{finding.rule}"] = str(finding)
        if severity:
            level = self._wandb.AlertLevel.ERROR if severity == 2 else self._wandb.AlertLevel.WARN
            run.alert(title=f"{finding.severity}: {finding.rule}", text=str(finding), level=level)

    def close(self) -> None:
        run, self._run = self._run, None
        if run is not None and self._owned:
            self._init |= {"id": run.id, "resume": "allow"}  # another training goes on in the same run
            run.finish()

    def _open(self) -> Any:
        if self._run is None:
            self._known.clear()
            self._run = self._wandb.run if self._given is None else self._given
            self._owned = self._run is None
            if self._owned:
                self._run = self._wandb.init(**self._init)
                self._run.define_metric(STEP, hidden=True)
        return self._run

"""Logger for MLflow."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from loopwise.extras import required

from ..rules import Finding
from .logger import STATISTICS, LoggedStep

MOST = 1000
"""Largest number of metrics of a request."""
KEY, VALUE = 250, 5000
"""Largest lengths of a name and of a tag."""


class MLflowLogger:
    """Scalars as metrics of a run of MLflow, findings as its tags ``finding/<rule>``.

    Args:
        uri: tracking server or store, such as ``sqlite:///mlflow.db``; default: MLflow's own.
        experiment: name of the experiment of a new run; created if missing.
        run_id: run to log into, which is not ended; default: the thread's active run, or else a new one.
        run_name: name of a new run.
        statistics: names of the saved statistics of tensors to send; ``()`` for none.
        prefix: text before each name.

    Raises:
        MissingExtra: the package ``mlflow-skinny`` (or ``mlflow``) is not installed.
    """

    def __init__(
        self,
        uri: str | None = None,
        *,
        experiment: str = "loopwise",
        run_id: str | None = None,
        run_name: str | None = None,
        statistics: Iterable[str] = STATISTICS,
        prefix: str = "",
    ) -> None:
        with required("mlflow-skinny", "loggers", "MLflowLogger", "mlflow"):
            import mlflow
        self.statistics, self._prefix = tuple(statistics), prefix
        active = mlflow.active_run() if run_id is None else None
        self._run_id = active.info.run_id if active is not None else run_id
        self._owned = self._run_id is None
        self._mlflow: Any = mlflow
        self._client: Any = None
        self._status = ""
        self._uri, self._experiment, self._run_name = uri, experiment, run_name

    def log_steps(self, steps: Sequence[LoggedStep]) -> None:
        client, metric = self._open(), self._mlflow.entities.Metric
        metrics = [
            metric(self._key(name), value, round(step.time * 1000), step.step)
            for step in steps
            for name, value in step.scalars.items()
        ]
        for first in range(0, len(metrics), MOST):
            client.log_batch(self._run_id, metrics=metrics[first : first + MOST])

    def log_finding(self, finding: Finding) -> None:
        self._open().set_tag(self._run_id, self._key(f"finding/{finding.rule}"), str(finding)[:VALUE])

    def close(self) -> None:
        if self._client is not None and self._owned and self._status == "RUNNING":
            self._client.set_terminated(self._run_id)
            self._status = "FINISHED"

    def _key(self, name: str) -> str:
        """Return a name without the characters that MLflow refuses, such as the ``#`` of a second call."""
        return re.sub(r"[^\w.\- :/]", "_", self._prefix + name)[:KEY]

    def _open(self) -> Any:
        if self._client is None:
            self._client = self._mlflow.MlflowClient(tracking_uri=self._uri)
        if self._run_id is None:
            known = self._client.get_experiment_by_name(self._experiment)
            experiment = known.experiment_id if known else self._client.create_experiment(self._experiment)
            self._run_id = self._client.create_run(experiment, run_name=self._run_name).info.run_id
            self._status = "RUNNING"
        elif self._owned and self._status == "FINISHED":
            self._client.update_run(self._run_id, status="RUNNING")
            self._status = "RUNNING"
        return self._client

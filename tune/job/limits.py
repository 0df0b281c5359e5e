"""Limits of a job, the resource of Hyperband, and the jobs that another one starts from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from loopwise.extras import required

from .parameters import Strict

with required("pydantic", "tune", "tuning"):
    from pydantic import Field, model_validator

MOST = 20_000
"""Largest resource of Hyperband."""
STATIC = ("epochs", "numepochs", "n-epochs", "n_epochs", "num_epochs")
"""Static parameters that may tell the largest resource, as in SageMaker."""


class Limits(Strict):
    """Limits of a job.

    Args:
        trials: number of trials.
        parallel: number of trials that run at the same time.
        seconds: time of the whole job; trials that run then are stopped.
        trial_seconds: time of one trial, which is stopped then.
        retries: number of further attempts of a trial whose program fails.
        target: value of the objective that is good enough.
        not_improving: number of trials without an improvement by 1 % after which the job ends, at least 3.
        convergence: the job ends if the last finished trials, 20 of them or five for each searched parameter, improved the
            best objective by less than 1 % of its distance from the median of all finished trials.
    """

    trials: Annotated[int, Field(ge=1)]
    parallel: Annotated[int, Field(ge=1)] = 1
    seconds: Annotated[float, Field(gt=0)] | None = None
    trial_seconds: Annotated[float, Field(gt=0)] | None = None
    retries: Annotated[int, Field(ge=0, le=30)] = 0
    target: float | None = None
    not_improving: Annotated[int, Field(ge=3)] | None = None
    convergence: bool = False


class Hyperband(Strict):
    """Resource of strategy ``hyperband``: the number of reports of the objective, such as one an epoch.

    Args:
        min_resource: number of reports before which no trial is stopped.
        max_resource: number of reports of a whole trial; one that goes on is ended, and counts as finished.  ``None``: the
            static parameter ``epochs``, ``numepochs``, ``n-epochs``, ``n_epochs`` or ``num_epochs``.

    Raises:
        pydantic.ValidationError: numbers that are too large, or do not fit each other.
    """

    min_resource: Annotated[int, Field(ge=1, le=MOST)] = 1
    max_resource: Annotated[int, Field(ge=1, le=MOST)] | None = None

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.max_resource is not None and self.max_resource < self.min_resource:
            raise ValueError(
                f"max_resource must be at least min_resource, not {self.max_resource} and {self.min_resource}"
            )
        return self

    def largest(self, static: Mapping[str, Any]) -> int:
        """Return the number of reports of a whole trial.

        Raises:
            ValueError: neither ``max_resource`` nor a static parameter tells it.
        """
        if self.max_resource is not None:
            return self.max_resource
        for name in STATIC:
            if name in static:
                value = static[name]
                if not isinstance(value, int) or not self.min_resource <= value <= MOST:
                    raise ValueError(
                        f"strategy hyperband takes the static parameter {name!r} for max_resource, and it is {value!r}; "
                        f"expected a whole number from {self.min_resource} to {MOST}"
                    )
                return value
        raise ValueError(
            "strategy hyperband needs hyperband.max_resource, the number of reports of a whole trial, or one of the static "
            f"parameters {', '.join(STATIC)}"
        )


class WarmStart(Strict):
    """Jobs whose trials the search starts from.

    Args:
        parents: 1 to 5 folders of jobs.
        type: ``identical``: the same program and data, so that the best trial is that of the parents and this job;
            ``transfer``: another program or other data, so that only the order of the parents' trials counts.
    """

    parents: Annotated[tuple[str, ...], Field(min_length=1, max_length=5, strict=False)]
    type: Literal["identical", "transfer"] = "identical"

"""Description of a tuning job, validated as a whole."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from loopwise.errors import InputError
from loopwise.extras import required

from ..log.patterns import Pattern
from .command import misspelt, placeholders
from .database_url import database_url
from .parameters import Categorical, Parameter, Strict, Value

with required("pydantic", "tune", "tuning"):
    from pydantic import ConfigDict, Field, field_validator, model_validator

VARIABLE = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")


class Metric(Strict):
    """Number that the log tells.

    Args:
        name: 1 to 255 characters.
        regex: 1 to 500 characters, in the syntax of Python's ``re``; its first group, or the one named ``value``, is the
            number.  Without it, the program prints the metric by ``report``, or in that form.
        value: which of the matches is the metric's value: the ``last``, the ``max`` or the ``min``.

    Raises:
        pydantic.ValidationError: an expression that is not valid, or without a group.
    """

    name: Annotated[str, Field(min_length=1, max_length=255)]
    regex: Annotated[str, Field(min_length=1, max_length=500)] | None = None
    value: Literal["last", "max", "min"] = "last"

    @field_validator("regex")
    @classmethod
    def _compiles(cls, text: str | None) -> str | None:
        try:
            Pattern(text or "()")
        except InputError as error:
            seen, expected, _, fix = error.args
            raise ValueError(f"{seen}; expected {expected}; {fix}") from None
        return text


class Objective(Strict):
    """The metric to search by, and whether a larger or a smaller value of it is better."""

    metric: str
    goal: Literal["maximize", "minimize"]


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
    """

    trials: Annotated[int, Field(ge=1)]
    parallel: Annotated[int, Field(ge=1)] = 1
    seconds: Annotated[float, Field(gt=0, strict=False)] | None = None
    trial_seconds: Annotated[float, Field(gt=0, strict=False)] | None = None
    retries: Annotated[int, Field(ge=0, le=30)] = 0
    target: Annotated[float, Field(strict=False)] | None = None
    not_improving: Annotated[int, Field(ge=3)] | None = None


class Resources(Strict):
    """CPUs and GPUs that each trial has for itself.

    Args:
        cpu: number of CPUs.
        gpu: number of GPUs: a whole number, or a share below 1 of one that trials share.

    Raises:
        pydantic.ValidationError: a number of GPUs above 1 that is not whole.
    """

    cpu: Annotated[int, Field(ge=1)] = 1
    gpu: Annotated[float, Field(ge=0, strict=False)] = 0

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if self.gpu > 1 and self.gpu != int(self.gpu):
            raise ValueError(f"gpu must be a whole number or below 1, not {self.gpu:g}")
        return self


class Cluster(Strict):
    """Ray cluster on which trials run.

    Args:
        address: ``host:port`` of its head node; ``auto``: the cluster that this machine belongs to.
        working_dir: folder that Ray copies to every node, and in which programs start there; ``None``: programs start in the
            present folder, which is on a file system that the nodes share.
    """

    address: Annotated[str, Field(pattern=r"^(auto|[^/\s]+:\d+)$")] = "auto"
    working_dir: str | None = None


class Job(Strict):
    """Tuning job over any program.

    Args:
        command: the program and its arguments, split as a shell does, without a shell.  ``{name}`` is the value of a
            parameter; ``{flag:name}`` is ``--name`` if the value is true, and nothing if it is false.
        parameters: name -> ``Continuous``, ``Integer`` or ``Categorical``; at most 30.
        static: name -> value that is the same for all trials.
        metrics: at most 40 definitions.
        objective: the metric to search by.
        environment: name -> value of variables that every trial gets, which may contain ``{name}`` too.
        limits: when the job ends.
        strategy: ``bayesian``, ``random``, or ``grid`` for categorical parameters.
        early_stopping: ``auto`` stops a trial whose objective is worse than the median of the running averages of the
            finished trials at the same report.
        seed: seed of the search.
        resources: what each trial has for itself; ``None``: trials are counted by ``limits`` only.
        storage: URL of a PostgreSQL database that keeps the study; ``None``: a file in the run folder does.
        engine: ``local``: trials run on this machine; ``ray``: on a cluster.
        cluster: the cluster, for ``engine: ray``.
        container: ``sagemaker``: the program gets all values as arguments, and finds the folder, files and ``SM_*`` variables
            of SageMaker's container.
        channels: name -> folder with input data, for ``container``.

    Raises:
        pydantic.ValidationError: the error names each wrong field.
    """

    command: Annotated[str, Field(min_length=1)]
    parameters: Annotated[dict[str, Parameter], Field(min_length=1, max_length=30)]
    static: dict[str, Value] = Field(default_factory=dict)
    metrics: Annotated[tuple[Metric, ...], Field(min_length=1, max_length=40, strict=False)]
    objective: Objective
    environment: dict[str, str] = Field(default_factory=dict)
    limits: Limits
    strategy: Literal["bayesian", "random", "grid"] = "bayesian"
    early_stopping: Literal["off", "auto"] = "off"
    seed: Annotated[int, Field(ge=0)] = 0
    resources: Resources | None = None
    storage: Annotated[str | None, Field(repr=False)] = None
    engine: Literal["local", "ray"] = "local"
    cluster: Cluster | None = None
    container: Literal["sagemaker"] | None = None
    channels: dict[str, str] = Field(default_factory=dict)

    model_config = ConfigDict(hide_input_in_errors=True)  # beside that of Strict; a URL may hold a password

    @field_validator("storage")
    @classmethod
    def _is_database(cls, url: str | None) -> str | None:
        if url is not None:
            database_url(url)
        return url

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        names = [metric.name for metric in self.metrics]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two metrics are named {twice[0]!r}")
        if self.objective.metric not in names:
            raise ValueError(
                f"the objective {self.objective.metric!r} is no metric; defined are {', '.join(map(repr, names))}"
            )
        if both := sorted(set(self.parameters) & set(self.static)):
            raise ValueError(f"{both[0]!r} is searched and static")
        known = {*self.parameters, *self.static}
        for place, text in (("command", self.command), *self.environment.items()):
            if unknown := sorted(placeholders(text) - known):
                raise ValueError(
                    f"{{{unknown[0]}}} in {place} is no parameter; there are {', '.join(sorted(known))}; "
                    f"write {{{{{unknown[0]}}}}} for the text {{{unknown[0]}}} itself"
                )
            if (wrong := misspelt(text, known)) is not None:
                raise ValueError(
                    f"{wrong} in {place} is no placeholder; it is a name in braces and nothing else"
                )
        if names := [name for name in self.environment if not VARIABLE.fullmatch(name)]:
            raise ValueError(f"{names[0]!r} is no name of an environment variable")
        if self.channels and self.container is None:
            raise ValueError("channels need container: sagemaker")
        if self.cluster and self.engine != "ray":
            raise ValueError("cluster needs engine: ray")
        if self.strategy == "grid":
            ranges = [name for name, part in self.parameters.items() if not isinstance(part, Categorical)]
            if ranges:
                raise ValueError(f"strategy grid takes categorical parameters, and {ranges[0]!r} is a range")
        return self

    def values(self, stored: dict[str, Any]) -> dict[str, Value]:
        """Return all values that a trial's program gets, for what the study stores."""
        searched = {name: part.value(stored[name]) for name, part in self.parameters.items()}
        return {**self.static, **searched}

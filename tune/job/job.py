"""Description of a tuning job, validated as a whole."""

from __future__ import annotations

import functools
import re
import shlex
from typing import Annotated, Any, Literal, Self

from loopwise.extras import required

from .command import misspelt, placeholders
from .constraints import Constraint, validate_constraints
from .database_url import database_url
from .limits import Hyperband, Limits, WarmStart
from .metrics import Metric, Objective
from .parameters import Categorical, Parameter, Strict, Value
from .resources import Cluster, Resources

with required("pydantic", "tune", "tuning"):
    from pydantic import ConfigDict, Field, field_validator, model_validator

VARIABLE = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
Text = Annotated[str, Field(min_length=1, max_length=500)]


class Job(Strict):
    """Tuning job over any program.

    Args:
        command: the program and its arguments, split as a shell does, without a shell.  ``{name}`` is the value of a
            parameter; ``{flag:name}`` is ``--name`` if the value is true, and nothing if it is false.
        parameters: name -> ``Continuous``, ``Integer`` or ``Categorical``; at most 30.
        static: name -> value that is the same for all trials.
        metrics: at most 40 definitions.
        objective: the metric to search by.
        objectives: two or more of them in its place; the search is for trials of which no other one is better in all.
        constraints: conditions between parameters that the values of every trial satisfy; see ``Constraint``.
        environment: name -> value of variables that every trial gets, which may contain ``{name}`` too.
        limits: when the job ends.
        strategy: ``bayesian``, ``random``, ``grid`` for categorical parameters, or ``hyperband``, which stops trials at
            some numbers of reports.
        hyperband: the resource of strategy ``hyperband``.
        warm_start: jobs whose trials the search starts from.
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
    objective: Objective | None = None
    objectives: Annotated[tuple[Objective, ...], Field(min_length=2, max_length=40, strict=False)] | None = (
        None
    )
    constraints: Annotated[tuple[Text, ...], Field(max_length=40, strict=False)] = ()
    environment: dict[str, str] = Field(default_factory=dict)
    limits: Limits
    strategy: Literal["bayesian", "random", "grid", "hyperband"] = "bayesian"
    hyperband: Hyperband | None = None
    warm_start: WarmStart | None = None
    early_stopping: Literal["off", "auto"] = "off"
    seed: Annotated[int, Field(ge=0)] = 0
    resources: Resources | None = None
    storage: Annotated[str | None, Field(repr=False)] = None
    engine: Literal["local", "ray"] = "local"
    cluster: Cluster | None = None
    container: Literal["sagemaker"] | None = None
    channels: dict[str, str] = Field(default_factory=dict)

    model_config = ConfigDict(hide_input_in_errors=True)  # beside that of Strict; a URL may hold a password

    @field_validator("command")
    @classmethod
    def _names_program(cls, text: str) -> str:
        if not any(shlex.split(text)[:1]):
            raise ValueError("it names no program")
        return text

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
        if (self.objective is None) == (self.objectives is None):
            raise ValueError(
                "either objective or objectives is needed"
                if self.objective is None
                else "objective and objectives exclude each other"
            )
        goals = [goal.metric for goal in self.goals]
        for goal in goals:
            if goal not in names:
                raise ValueError(
                    f"the objective {goal!r} is no metric; defined are {', '.join(map(repr, names))}"
                )
            if goals.count(goal) > 1:
                raise ValueError(f"the objective {goal!r} stands twice")
        if "" in (*self.parameters, *self.static):
            raise ValueError("a parameter has no name")
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
        self._fits_strategy()
        validate_constraints(self.conditions, self.parameters, self.static)
        return self

    def _fits_strategy(self) -> None:
        """Raise an error unless the strategy, its options and the rules that end something early fit together."""
        if self.strategy == "grid":
            ranges = [name for name, part in self.parameters.items() if not isinstance(part, Categorical)]
            if ranges:
                raise ValueError(f"strategy grid takes categorical parameters, and {ranges[0]!r} is a range")
        if self.strategy == "hyperband":
            (self.hyperband or Hyperband()).largest(self.static)
            if self.early_stopping != "off":
                raise ValueError("strategy hyperband stops trials itself, and needs early_stopping: off")
        elif self.hyperband is not None:
            raise ValueError("the field hyperband needs strategy: hyperband")
        if self.objectives is not None:
            limits = ("target", "not_improving", "convergence")
            single = [
                f"limits.{name}"
                for name in limits
                if getattr(self.limits, name) is not (False if name == "convergence" else None)
            ]
            single += ["strategy: hyperband"] * (self.strategy == "hyperband")
            single += ["early_stopping"] * (self.early_stopping != "off")
            if single:
                raise ValueError(f"{single[0]} compares trials by one objective, and the job has several")

    @functools.cached_property
    def goals(self) -> tuple[Objective, ...]:
        """The objective, or all of them."""
        return self.objectives or ((self.objective,) if self.objective else ())

    @functools.cached_property
    def conditions(self) -> tuple[Constraint, ...]:
        """The constraints, parsed."""
        return tuple(map(Constraint, self.constraints))

    def admits(self, values: dict[str, Value]) -> bool:
        """Return whether the values of a trial satisfy all constraints."""
        return all(condition.holds(values) for condition in self.conditions)

    def values(self, stored: dict[str, Any]) -> dict[str, Value]:
        """Return all values that a trial's program gets, for what the study stores."""
        searched = {name: part.value(stored[name]) for name, part in self.parameters.items()}
        return {**self.static, **searched}

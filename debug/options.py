"""Arguments of ``Watch``, validated before files or threads are opened."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, cast

import torch
from torch import nn
from torch.optim import Optimizer

from loopwise import validate
from loopwise.errors import InputError
from loopwise.ranks import rank, world_size
from loopwise.run import Run
from loopwise.schedule import at, between, every
from loopwise.wrappers import innermost

from .alerts.notices import Tell
from .capture.capture import CaptureOptions
from .capture.collection import Collection, collection_of
from .capture.writer import ON_BACKLOG
from .loggers.logger import Logger, validated
from .model import names
from .model.vocabulary import Save, check_save
from .profiler import Profile
from .rules import SEVERITIES
from .rules.healthy_run import NAME, HealthyRun, existing, opened
from .rules.thresholds import Rules, Selection, select

SAVE = at((1, 2, 5, 10, 20, 50)) | (between(100, 1000) & every(100)) | every(500)
"""Default schedule of saved steps: densely at first, when most faults show, and later sparsely."""
OVERHEAD = 0.01
"""Largest share of the training time that saving by the default schedule takes."""
FREE = 0.5
"""Seconds of saving that the limit of the default schedule does not count: short runs are seen as well as long ones."""


@dataclass(frozen=True, kw_only=True)
class WatchOptions:
    """Arguments of ``Watch`` that do not depend on the model; ``Watch`` documents them.

    Raises:
        InputError: an argument cannot be used.
    """

    save: Save | None = None
    collections: Iterable[str | Collection] = ("losses", "metrics", "health")
    rules: Rules = "auto"
    like: str | os.PathLike[str] | Run | None = None
    on_finding: Tell | Sequence[Tell] | None = None
    loggers: Iterable[Logger] = ()
    stop_on: str | None = None
    on_backlog: str = "block"
    max_overhead: float | str | None = "auto"
    gather: bool = False
    trap: bool = True
    profile: bool | Profile = True
    strict: bool = False
    every_scalar: bool = field(init=False, default=False)
    """Whether losses and metrics are saved at every step: with the default schedule."""

    def __post_init__(self) -> None:
        check_save(self.save)
        put = functools.partial(object.__setattr__, self)
        put("every_scalar", self.save is None)
        put("save", SAVE if self.save is None else self.save)
        put("collections", _collections(self.collections))
        if not isinstance(self.rules, (bool, str, Mapping)) and isinstance(self.rules, Iterable):
            put("rules", tuple(self.rules))
        if self.like is not None:
            existing(self.like)
        put("on_finding", _functions(self.on_finding))
        put("loggers", validated(self.loggers))
        validate.one_of(
            "stop_on", self.stop_on, (*SEVERITIES, None), fix="pass for instance stop_on='critical'"
        )
        validate.one_of("on_backlog", self.on_backlog, ON_BACKLOG)
        if isinstance(self.max_overhead, str):
            validate.one_of(
                "max_overhead", self.max_overhead, ("auto",), fix="pass a share such as 0.01, or None"
            )
        elif self.max_overhead is not None:
            validate.fraction("max_overhead", self.max_overhead, "a share of the training time", 0.01)
        for name in ("gather", "trap", "strict"):
            validate.one_of(name, getattr(self, name), (False, True), "a value of another argument")
        if not isinstance(self.profile, Profile):
            cause, fix = (
                "an option of the profiler in place of a Profile",
                "pass profile=Profile(interval=...)",
            )
            validate.one_of("profile", self.profile, (True, False), cause, fix)
        self.selected_rules()

    @classmethod
    def of(cls, arguments: Mapping[str, Any]) -> WatchOptions:
        """Return the options of a callback's arguments.

        Raises:
            InputError: an argument is unknown or cannot be used.
        """
        known = [field.name for field in fields(cls) if field.init]
        for name in arguments:
            validate.one_of(
                "argument", name, known, fix="use an argument of Watch; the trainer gives it the others"
            )
        return cls(**arguments)

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of ``Watch``."""
        arguments = {field.name: getattr(self, field.name) for field in fields(self) if field.init}
        return arguments | ({"save": None} if self.every_scalar else {})

    def selected_rules(self) -> Selection:
        """Return the rules to apply; ``auto`` selects rules of saved steps only if ``health`` is saved."""
        health = any(isinstance(c, Collection) and c.name == "health" for c in self.collections)
        sources = ["saved step", "ranks", "schedules"] if self.rules != "auto" or health else []
        sources += ["NaN trap"] * self.trap + ["profile"] * (self.profile is not False)
        selected = select(self.rules, *sources)
        return selected if self.like is None else {NAME: {}} | selected

    def healthy_run(self, run: str | os.PathLike[str] | Run) -> HealthyRun | None:
        """Return the run that ``run`` is compared with; ``None`` if there is none.

        Raises:
            InputError: ``like`` is ``run``, or nothing is saved in it.
        """
        return None if self.like is None else opened(self.like, run, rank())

    def for_capture(
        self,
        models: Mapping[str, nn.Module],
        optimizers: MutableMapping[str, Optimizer],
        scaler: Any,
        sharded: bool,
    ) -> CaptureOptions:
        """Return the options of ``Capture``.

        Raises:
            InputError: ranks with shards of one model would save different steps.
        """
        if sharded and isinstance(self.max_overhead, float) and world_size() > 1:
            raise InputError(
                f"max_overhead={self.max_overhead!r} for a model in shards on several ranks",
                "no max_overhead there",
                "each rank would leave out other steps, and shards would not fit together",
                "leave max_overhead out, and save fewer steps",
            )
        collections, save = cast("list[Collection]", self.collections), cast(Save, self.save)
        gather = self.gather and sharded
        return CaptureOptions(
            models,
            optimizers,
            collections,
            save,
            scaler,
            self.on_backlog,
            gather,
            self.strict,
            self.every_scalar,
        )

    def limit(self, sharded: bool) -> tuple[float | None, float]:
        """Return the largest share of the training time to spend on saving, and seconds that it does not count."""
        if not isinstance(self.max_overhead, str):
            return self.max_overhead, 0.0
        limited = self.every_scalar and not (sharded and world_size() > 1)
        return (OVERHEAD if limited else None), FREE


def models(model: nn.Module | Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """Return models by key.

    Raises:
        InputError: an object of another type, or a module of TorchScript.
    """
    by_key: dict[str, nn.Module] = names.by_key(model, nn.Module, "model")
    modules = [module for root in by_key.values() for module in root.modules()]
    if any(isinstance(module, torch.jit.ScriptModule) for module in modules):
        raise InputError(
            "a model of TorchScript",
            "a module of Python, compiled or not",
            "torch.jit.script or torch.jit.trace, whose modules take no hooks",
            "watch the module that it was made of, or use torch.compile",
        )
    return by_key


def optimizers(optimizer: Optimizer | Mapping[str, Optimizer] | None) -> dict[str, Optimizer]:
    """Return optimizers by key, without the wrappers of trainers, which take no hooks.

    Raises:
        InputError: an object of another type.
    """
    by_key = {} if optimizer is None else names.by_key(optimizer, Optimizer, "optimizer")
    return {key: innermost(each) for key, each in by_key.items()}


def scaler(scaler: Any) -> Any:
    """Return the scaler.

    Raises:
        InputError: an object that is no GradScaler.
    """
    if scaler is not None and not (hasattr(scaler, "get_scale") and hasattr(scaler, "is_enabled")):
        raise InputError(
            f"scaler of type {type(scaler).__name__}",
            "a torch.amp.GradScaler, or None",
            "the scale or a switch was passed",
            "pass the scaler that the loop calls",
        )
    return scaler


def run(run: Any, resume: Any) -> None:
    """Validate ``run`` and ``resume`` without opening the run.

    Raises:
        InputError: ``run`` or ``resume`` is of another type, or both do not fit together.
    """
    if not isinstance(run, (str, os.PathLike, Run)):
        raise InputError(
            f"run of type {type(run).__name__}",
            "a folder, an fsspec URL such as s3://bucket/run, or a Run",
            "an argument in the place of another one",
            "pass run='runs/example'",
        )
    validate.one_of("resume", resume, (False, True), "a path in place of a switch")


def _collections(collections: Iterable[str | Collection]) -> list[Collection]:
    if isinstance(collections, (str, Collection)):
        collections = [collections]
    listed = [collection_of(collection) for collection in collections]
    names = [collection.name for collection in listed]
    if len(set(names)) < len(names):
        raise InputError(
            f"collections named {', '.join(names)}",
            "different names",
            "a built-in collection was listed together with another one of the same name",
            "keep one of them, or give it another name",
        )
    return listed


def _functions(on_finding: Any) -> Sequence[Callable[..., Any]] | None:
    if on_finding is None:
        return None
    several = isinstance(on_finding, Sequence) and not isinstance(on_finding, str)
    functions = list(on_finding) if several else [on_finding]
    for function in functions:
        validate.function(
            "on_finding", function, "a function of one Finding, or several functions", "on_finding=print"
        )
    return functions

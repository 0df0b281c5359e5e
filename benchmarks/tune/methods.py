"""Methods of search: one function for each, which calls a function 30 times and returns the smallest value."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .functions import Function, Values

Search = Callable[[Function, int, int], float]
"""(function, number of trials, seed) -> smallest value."""


def ours(function: Function, trials: int, seed: int, **options: Any) -> float:
    """Search by the study of a job, as the tuner does, one trial after the other."""
    from loopwise.tune import job_of
    from loopwise.tune.search.storage import open_storage
    from loopwise.tune.search.study import Study

    description = {
        "command": "program",
        "parameters": function.space,
        "metrics": [{"name": "loss", "regex": r"loss=(\S+)"}],
        "objective": {"metric": "loss", "goal": "minimize"},
        "limits": {"trials": trials},
        "seed": seed,
    }
    values = []
    with tempfile.TemporaryDirectory() as folder:
        study = Study(job_of(description | options, "job"), open_storage(None, Path(folder, "journal.log")))
        for _ in range(trials):
            number, drawn = study.ask()
            value = function.call(drawn)
            study.tell(number, 1, [value], False)
            values.append(value)
    return min(values)


def optuna_by(sampler: Callable[[int], Any]) -> Search:
    """Return the search by a sampler of Optuna, which is made for a seed, in a study in memory."""

    def search(function: Function, trials: int, seed: int) -> float:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        study = optuna.create_study(sampler=sampler(seed))
        study.optimize(lambda trial: function.call(_suggested(trial, function.space)), trials)
        return float(study.best_value)

    return search


def _suggested(trial: Any, space: dict[str, Values]) -> Values:
    values: Values = {}
    for name, part in space.items():
        if part["type"] == "categorical":
            values[name] = trial.suggest_categorical(name, part["values"])
        else:
            suggest = trial.suggest_int if part["type"] == "integer" else trial.suggest_float
            values[name] = suggest(name, part["low"], part["high"], log=part["scale"] == "log")
    return values


def tpe(seed: int) -> Any:
    """Return Optuna's default sampler."""
    import optuna

    return optuna.samplers.TPESampler(seed=seed)


def gp(seed: int) -> Any:
    """Return Optuna's sampler by Gaussian processes."""
    import optuna

    return optuna.samplers.GPSampler(seed=seed)


def drawn(function: Function, trials: int, seed: int) -> float:
    """Search at random."""
    import optuna

    return optuna_by(lambda seed: optuna.samplers.RandomSampler(seed=seed))(function, trials, seed)


def botorch(function: Function, trials: int, seed: int) -> float:
    """Search by Syne Tune's ``BOTorch``, its Bayesian optimization."""
    import warnings

    import numpy as np
    from syne_tune.config_space import choice, lograndint, loguniform, randint, uniform
    from syne_tune.optimizer.baselines import BOTorch
    from syne_tune.optimizer.schedulers.ask_tell_scheduler import AskTellScheduler

    kinds = {
        ("continuous", "linear"): uniform,
        ("continuous", "log"): loguniform,
        ("integer", "linear"): randint,
        ("integer", "log"): lograndint,
    }
    space = {
        name: choice(part["values"])
        if part["type"] == "categorical"
        else kinds[part["type"], part["scale"]](part["low"], part["high"])
        for name, part in function.space.items()
    }
    warnings.simplefilter("ignore")  # one for each fit, about values without noise
    np.random.seed(seed)  # it draws its first points by the global generators
    random.seed(seed)
    scheduler = AskTellScheduler(BOTorch(space, metric="loss", random_seed=seed))
    values = []
    for _ in range(trials):
        trial = scheduler.ask()
        values.append(function.call(trial.config))
        scheduler.tell(trial, {"loss": values[-1]})
    return min(values)

"""Read jobs in the form of SageMaker's API: ``CreateHyperParameterTuningJob``."""

from __future__ import annotations

import json
import logging
import math
import os
import shlex
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from loopwise.errors import InputError
from loopwise.extras import required

from ..job.command import literal
from ..job.files import job_of, problems_of
from ..job.job import Job
from .api import NOT_USED, Config, Definition, Ranges, Request, WarmStartConfig

with required("pydantic", "tune", "tuning"):
    import pydantic

SCALES = {"Auto": "auto", "Linear": "linear", "Logarithmic": "log", "ReverseLogarithmic": "reverse_log"}
WARM_STARTS = {"IdenticalDataAndAlgorithm": "identical", "TransferLearning": "transfer"}
PARAMETERS = 100
"""Most hyperparameters, searched and static ones."""
logger = logging.getLogger("loopwise.tune")


def read_request(path: str, command: str | None = None) -> Job:
    """Return the job that a request in JSON describes.

    Args:
        path: file with ``HyperParameterTuningJobConfig`` and ``TrainingJobDefinition``.
        command: the program in place of this interpreter and the static hyperparameter ``sagemaker_program``.

    Raises:
        InputError: the file is missing or no JSON, a field is wrong, or it asks for what is not supported.
    """
    return job_of(_description(_request(path), path, command), path)


def folder_of(path: str) -> str | None:
    """Return the run folder of a request by the name of its job; ``None``: it has none.

    Raises:
        InputError: as for ``read_request``.
    """
    name = _request(path).hyper_parameter_tuning_job_name
    return None if name is None else f"runs/{name}"


def _request(path: str) -> Request:
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
        if not isinstance(content, dict):
            raise ValueError("no object at the top")
        return Request.model_validate(content)
    except pydantic.ValidationError as error:
        raise InputError(
            f"{path}: {problems_of(error)}",
            "the fields of CreateHyperParameterTuningJob, by the limits of SageMaker's API",
            "a typo, or another kind of request",
            "correct the named places",
        ) from None
    except (OSError, ValueError) as error:
        raise InputError(
            f"the request {path!r}: {error}",
            "a JSON object",
            "another file",
            "pass the body of CreateHyperParameterTuningJob",
        ) from None


def _description(request: Request, path: str, command: str | None) -> dict[str, Any]:
    config, definition = request.hyper_parameter_tuning_job_config, request.definitions[0]
    if len(request.definitions) > 1:
        raise _unsupported(
            path,
            f"{len(request.definitions)} TrainingJobDefinitions",
            "one algorithm to a job",
            "write a request for each, and give the first one's job to the next by WarmStartConfig if it helps",
        )
    if request.autotune is not None:
        raise _unsupported(
            path,
            "Autotune",
            "ranges, objective and limits that are written out",
            "give ParameterRanges, and leave Autotune out",
        )
    objective = config.hyper_parameter_tuning_job_objective or definition.tuning_objective
    if objective is None:
        raise InputError(
            f"{path} without HyperParameterTuningJobConfig.HyperParameterTuningJobObjective",
            "the metric to search by, with its Type",
            "a job of a built-in algorithm, whose objective the service knows",
            "name a metric of MetricDefinitions",
        )
    static = {name: _value(text) for name, text in definition.static_hyper_parameters.items()}
    static.pop("_tuning_objective_metric", None)
    program = static.get("sagemaker_program")
    if command is None and not program:
        raise InputError(
            f"{path}: no sagemaker_program in StaticHyperParameters",
            "the script to run",
            "a job of a built-in algorithm or of an image",
            "pass --command 'python train.py'",
        )
    unused = [name for field, name in NOT_USED.items() if getattr(definition, field) is not None]
    unused += ["Tags"] if request.tags else []
    if unused:
        logger.info("%s: %s have no meaning on this machine", path, ", ".join(unused))
    parameters = _parameters(config.parameter_ranges or definition.hyper_parameter_ranges, path)
    if len(parameters) + len(static) > PARAMETERS:
        raise InputError(
            f"{path}: {len(parameters) + len(static)} hyperparameters",
            f"at most {PARAMETERS}, searched and static ones",
            "SageMaker's limit",
            "leave some out",
        )
    return {
        "command": command or f"{shlex.quote(sys.executable)} {program}",
        "parameters": parameters,
        "static": static,
        "metrics": [
            {"name": metric.name, "regex": metric.regex}
            for metric in definition.algorithm_specification.metric_definitions
        ],
        "objective": {"metric": objective.metric_name, "goal": objective.type.lower()},
        "environment": {name: literal(value) for name, value in definition.environment.items()},
        "channels": _channels(definition.input_data_config, path),
        "limits": _limits(config, definition, parameters, path),
        "early_stopping": config.training_job_early_stopping_type.lower(),
        "seed": config.random_seed,
        "container": "sagemaker",
        **_search(config, request.warm_start_config),
    }


def _search(config: Config, warm_start: WarmStartConfig | None) -> dict[str, Any]:
    """Return strategy, its resource and the parents."""
    search: dict[str, Any] = {"strategy": config.strategy.lower()}
    resource = config.strategy_config.hyperband_strategy_config
    if resource is not None:
        search["hyperband"] = resource.model_dump()
    if warm_start is not None:
        names = [p.hyper_parameter_tuning_job_name for p in warm_start.parent_hyper_parameter_tuning_jobs]
        search["warm_start"] = {
            "parents": [f"runs/{name}" for name in names],
            "type": WARM_STARTS[warm_start.warm_start_type],
        }
    return search


def _parameters(ranges: Ranges | None, path: str) -> dict[str, Any]:
    if ranges is not None and ranges.auto_parameters:
        raise _unsupported(
            path, "AutoParameters", "ranges that are written out", "give bounds in place of ValueHint"
        )
    parameters: dict[str, Any] = {}
    kinds = (
        ()
        if ranges is None
        else (
            ("continuous", float, ranges.continuous_parameter_ranges),
            ("integer", int, ranges.integer_parameter_ranges),
        )
    )
    for kind, convert, parts in kinds:
        for part in parts:
            try:
                low, high = convert(part.min_value), convert(part.max_value)
            except ValueError:
                raise InputError(
                    f"{path}: the range of {part.name!r} from {part.min_value!r} to {part.max_value!r}",
                    f"{'numbers' if kind == 'continuous' else 'whole numbers'} as texts",
                    "a typo, or another kind of range",
                    "write for instance '0.1' into ContinuousParameterRanges",
                ) from None
            scale = SCALES[part.scaling_type]
            _once(part.name, parameters, path)
            parameters[part.name] = {"type": kind, "low": low, "high": high, "scale": scale}
    for categories in () if ranges is None else ranges.categorical_parameter_ranges:
        _once(categories.name, parameters, path)
        parameters[categories.name] = {"type": "categorical", "values": list(categories.values)}
    return parameters


def _once(name: str, parameters: Mapping[str, Any], path: str) -> None:
    if name in parameters:
        raise InputError(f"{path}: two ranges of {name!r}", "one for each parameter", "a copy", "drop one")


def _limits(
    config: Config, definition: Definition, parameters: Mapping[str, Any], path: str
) -> dict[str, Any]:
    own, criteria = config.resource_limits, config.tuning_job_completion_criteria
    trials = own.max_number_of_training_jobs
    if config.strategy == "Grid":
        points = math.prod(len(part.get("values", "")) for part in parameters.values())
        if trials is not None and trials != points:
            logger.info("%s: MaxNumberOfTrainingJobs is %d, and the grid has %d points", path, trials, points)
        trials = trials or max(1, points)
    if trials is None:
        raise InputError(
            f"{path} without ResourceLimits.MaxNumberOfTrainingJobs",
            "the number of trials; only a grid has one of its own",
            "a job that the service's quota ends",
            "give a number, if need be a large one beside TuningJobCompletionCriteria",
        )
    retry = definition.retry_strategy
    limits = {
        "trials": trials,
        "parallel": own.max_parallel_training_jobs,
        "seconds": own.max_runtime_in_seconds,
        "trial_seconds": definition.stopping_condition.max_runtime_in_seconds,
        "retries": None if retry is None else retry.maximum_retry_attempts,
        "target": criteria.target_objective_metric_value,
        "not_improving": criteria.best_objective_not_improving.max_number_of_training_jobs_not_improving,
        "convergence": criteria.convergence_detected.complete_on_convergence == "Enabled",
    }
    return {name: value for name, value in limits.items() if value is not None}


def _channels(inputs: Iterable[Mapping[str, Any]], path: str) -> dict[str, str]:
    channels = {}
    for part in inputs:
        source = part.get("DataSource") or {}
        place = (source.get("S3DataSource") or {}).get("S3Uri") or (
            source.get("FileSystemDataSource") or {}
        ).get("DirectoryPath", "")
        folder = place.removeprefix("file://")
        if not os.path.isdir(folder) or "ChannelName" not in part:
            raise InputError(
                f"{path}: the channel {part.get('ChannelName')!r} at {place!r}",
                "a name, and a folder on this machine, such as file:///data/train",
                "data in the cloud",
                "copy the data, and write the folder into the request",
            )
        channels[part["ChannelName"]] = os.path.abspath(folder)
    return channels


def _value(text: str) -> Any:
    """Return the typed value of a hyperparameter's text."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        return text
    return value if isinstance(value, (str, int, float, bool)) else text


def _unsupported(path: str, name: str, expected: str, fix: str) -> InputError:
    return InputError(
        f"{path}: {name}", expected, "a feature of SageMaker that loopwise.tune does not have", fix
    )

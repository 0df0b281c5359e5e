"""Read jobs in the form of SageMaker's API: ``CreateHyperParameterTuningJob``."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from typing import Any

from loopwise.errors import InputError

from ..job.command import literal
from ..job.files import job_of
from ..job.job import VARIABLE, Job

SCALES = {"Auto": "auto", "Linear": "linear", "Logarithmic": "log", "ReverseLogarithmic": "reverse_log"}
STRATEGIES = {"Bayesian": "bayesian", "Random": "random", "Grid": "grid"}
VARIABLES, LONGEST = 48, 512
"""Most variables of ``Environment``, and most characters of a name or a value."""
NOT_USED = (
    "RoleArn",
    "OutputDataConfig",
    "ResourceConfig",
    "VpcConfig",
    "CheckpointConfig",
    "HyperParameterTuningResourceConfig",
)
logger = logging.getLogger("loopwise.tune")


def read_request(path: str, command: str | None = None) -> Job:
    """Return the job that a request in JSON describes.

    Args:
        path: file with ``HyperParameterTuningJobConfig`` and ``TrainingJobDefinition``.
        command: the program in place of ``python`` and the static hyperparameter ``sagemaker_program``.

    Raises:
        InputError: the file is missing or no JSON, a field is wrong, or it asks for what is not supported.
    """
    try:
        with open(path, encoding="utf-8") as file:
            request = json.load(file)
        if not isinstance(request, dict):
            raise ValueError("no object at the top")
    except (OSError, ValueError) as error:
        raise InputError(
            f"the request {path!r}: {error}",
            "a JSON object",
            "another file",
            "pass the body of CreateHyperParameterTuningJob",
        ) from None
    return job_of(_description(request, path, command), path)


def _description(request: Mapping[str, Any], path: str, command: str | None) -> dict[str, Any]:
    for name in ("WarmStartConfig", "TrainingJobDefinitions", "Autotune"):
        if name in request:
            raise _unsupported(path, name)
    config, definition = (
        _part(request, path, "HyperParameterTuningJobConfig"),
        _part(request, path, "TrainingJobDefinition"),
    )
    objective = config.get("HyperParameterTuningJobObjective") or definition.get("TuningObjective")
    if not objective:
        raise _missing(path, "HyperParameterTuningJobConfig.HyperParameterTuningJobObjective")
    strategy = config.get("Strategy", "Bayesian")
    if strategy not in STRATEGIES:
        raise _unsupported(path, f"Strategy {strategy!r}")
    static = {name: _value(text) for name, text in definition.get("StaticHyperParameters", {}).items()}
    static.pop("_tuning_objective_metric", None)
    program = static.get("sagemaker_program")
    if command is None and not program:
        raise InputError(
            f"{path}: no sagemaker_program in StaticHyperParameters",
            "the script to run",
            "a job of a built-in algorithm or of an image",
            "pass --command 'python train.py'",
        )
    unused = [name for name in NOT_USED if name in definition or name in request]
    if unused:
        logger.info("%s: %s have no meaning on this machine", path, ", ".join(unused))
    ranges = config.get("ParameterRanges") or definition.get("HyperParameterRanges") or {}
    return {
        "command": command or f"python {program}",
        "parameters": _parameters(ranges),
        "static": static,
        "metrics": [
            {"name": metric["Name"], "regex": metric["Regex"]}
            for metric in definition.get("AlgorithmSpecification", {}).get("MetricDefinitions", [])
        ],
        "objective": {"metric": objective.get("MetricName"), "goal": str(objective.get("Type", "")).lower()},
        "environment": _environment(definition.get("Environment", {}), path),
        "channels": _channels(definition.get("InputDataConfig", []), path),
        "limits": _limits(config, definition, path),
        "strategy": STRATEGIES[strategy],
        "early_stopping": str(config.get("TrainingJobEarlyStoppingType", "Off")).lower(),
        "seed": int(config.get("RandomSeed", 0)),
        "container": "sagemaker",
    }


def _parameters(ranges: Mapping[str, Any]) -> dict[str, Any]:
    parameters: dict[str, Any] = {}
    for kind, convert in (("continuous", float), ("integer", int)):
        for part in ranges.get(f"{kind.capitalize()}ParameterRanges", []):
            scale = part.get("ScalingType", "Auto")
            parameters[part["Name"]] = {
                "type": kind,
                "low": convert(part["MinValue"]),
                "high": convert(part["MaxValue"]),
                "scale": SCALES.get(scale, scale),
            }
    for part in ranges.get("CategoricalParameterRanges", []):
        parameters[part["Name"]] = {"type": "categorical", "values": list(part["Values"])}
    return parameters


def _limits(config: Mapping[str, Any], definition: Mapping[str, Any], path: str) -> dict[str, Any]:
    own, criteria = config.get("ResourceLimits", {}), config.get("TuningJobCompletionCriteria", {})
    if criteria.get("ConvergenceDetected", {}).get("CompleteOnConvergence") == "Enabled":
        raise _unsupported(path, "TuningJobCompletionCriteria.ConvergenceDetected")
    not_improving = criteria.get("BestObjectiveNotImproving", {}).get("MaxNumberOfTrainingJobsNotImproving")
    limits = {
        "trials": own.get("MaxNumberOfTrainingJobs"),
        "parallel": own.get("MaxParallelTrainingJobs"),
        "seconds": own.get("MaxRuntimeInSeconds"),
        "trial_seconds": definition.get("StoppingCondition", {}).get("MaxRuntimeInSeconds"),
        "retries": definition.get("RetryStrategy", {}).get("MaximumRetryAttempts"),
        "target": criteria.get("TargetObjectiveMetricValue"),
        "not_improving": not_improving,
    }
    return {name: value for name, value in limits.items() if value is not None}


def _environment(variables: Any, path: str) -> dict[str, str]:
    """Return the variables after validating them by the API's limits."""
    wrong = ""
    if not isinstance(variables, dict):
        wrong = f"Environment of type {type(variables).__name__}"
    elif len(variables) > VARIABLES:
        wrong = f"{len(variables)} variables in Environment"
    else:
        for name, value in variables.items():
            if (
                not isinstance(value, str)
                or len(value) > LONGEST
                or len(name) > LONGEST
                or not VARIABLE.fullmatch(name)
            ):
                wrong = f"the variable {name!r} in Environment"
    if wrong:
        raise InputError(
            f"{path}: {wrong}",
            f"a map of at most {VARIABLES} names [a-zA-Z_][a-zA-Z0-9_]* to texts, each of at most {LONGEST} characters",
            "a list, a number in place of a text, or a name with a dash",
            "write for instance {'SM_LOG_LEVEL': '10'}",
        )
    return {name: literal(value) for name, value in variables.items()}


def _channels(inputs: Any, path: str) -> dict[str, str]:
    channels = {}
    for part in inputs:
        source = part.get("DataSource", {})
        place = source.get("S3DataSource", {}).get("S3Uri") or source.get("FileSystemDataSource", {}).get(
            "DirectoryPath", ""
        )
        folder = place.removeprefix("file://")
        if not os.path.isdir(folder):
            raise InputError(
                f"{path}: the channel {part.get('ChannelName')!r} at {place!r}",
                "a folder on this machine, such as file:///data/train",
                "data in the cloud",
                "copy the data, and write the folder into the request",
            )
        channels[part["ChannelName"]] = os.path.abspath(folder)
    return channels


def _value(text: Any) -> Any:
    """Return the typed value of a hyperparameter's text."""
    try:
        value = json.loads(text)
    except (TypeError, json.JSONDecodeError):
        return text
    return value if isinstance(value, (str, int, float, bool)) else text


def _part(request: Mapping[str, Any], path: str, name: str) -> Mapping[str, Any]:
    part = request.get(name)
    if not isinstance(part, dict):
        raise _missing(path, name)
    return part


def _missing(path: str, name: str) -> InputError:
    return InputError(
        f"{path} without {name}",
        f"{name}",
        "another kind of request",
        "pass the body of CreateHyperParameterTuningJob",
    )


def _unsupported(path: str, name: str) -> InputError:
    return InputError(
        f"{path}: {name}",
        "a job with one definition, strategy Bayesian, Random or Grid, and no warm start",
        "a feature of SageMaker that loopwise.tune does not have",
        "leave it out",
    )

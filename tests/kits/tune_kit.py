"""Jobs and programs that the tests of tuning share."""

import copy
import json
import sys
import textwrap
import time

from click.testing import CliRunner

from loopwise.cli import main
from loopwise.programs.processes import identity
from loopwise.tune import job_of

PROGRAM = """
import argparse, os, time
parser = argparse.ArgumentParser()
parser.add_argument("--x", type=float)
parser.add_argument("--steps", type=int, default=3)
arguments = parser.parse_args()
for step in range(arguments.steps):
    print(f"step {step} loss={(arguments.x - 0.3) ** 2 + 1 / (step + 1):.6f}")
    time.sleep(float(os.environ.get("PAUSE", "0")))
"""

PATIENCE = 600
"""Seconds to wait on a busy machine."""


def program(folder, text=PROGRAM, name="train.py"):
    """Write a program and return the command that calls it."""
    path = folder / name
    path.write_text(textwrap.dedent(text))
    return f"{sys.executable} {path}"


def described(command, **changes):
    """Return the description of a job with one parameter."""
    limits = {"trials": 4, "parallel": 2} | changes.pop("limits", {})
    return {
        "command": command,
        "parameters": {"x": {"type": "continuous", "low": 0.0, "high": 1.0}},
        "metrics": [{"name": "loss", "regex": r" loss=(\S+)"}],
        "objective": {"metric": "loss", "goal": "minimize"},
        "limits": limits,
        "strategy": "random",
    } | changes


def job(command, **changes):
    """Return a job with one parameter."""
    return job_of(described(command, **changes), "job")


def wait_for(condition):
    deadline = time.monotonic() + PATIENCE
    while not (value := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return value


def alive(pid):
    return identity(pid) is not None


REQUEST = {
    "HyperParameterTuningJobName": "digits",
    "HyperParameterTuningJobConfig": {
        "Strategy": "Random",
        "HyperParameterTuningJobObjective": {"Type": "Minimize", "MetricName": "validation:loss"},
        "ResourceLimits": {
            "MaxNumberOfTrainingJobs": 3,
            "MaxParallelTrainingJobs": 2,
            "MaxRuntimeInSeconds": 3600,
        },
        "ParameterRanges": {
            "ContinuousParameterRanges": [
                {"Name": "lr", "MinValue": "1e-5", "MaxValue": "0.1", "ScalingType": "Logarithmic"}
            ],
            "IntegerParameterRanges": [{"Name": "depth", "MinValue": "1", "MaxValue": "4"}],
            "CategoricalParameterRanges": [{"Name": "kind", "Values": ["a", "10"]}],
        },
        "TrainingJobEarlyStoppingType": "Auto",
        "TuningJobCompletionCriteria": {
            "TargetObjectiveMetricValue": 0.001,
            "BestObjectiveNotImproving": {"MaxNumberOfTrainingJobsNotImproving": 5},
        },
        "RandomSeed": 7,
    },
    "TrainingJobDefinition": {
        "StaticHyperParameters": {"epochs": "3", "sagemaker_program": '"train.py"'},
        "AlgorithmSpecification": {
            "TrainingInputMode": "File",
            "MetricDefinitions": [{"Name": "validation:loss", "Regex": "Loss = (.*?);"}],
        },
        "StoppingCondition": {"MaxRuntimeInSeconds": 600},
        "RetryStrategy": {"MaximumRetryAttempts": 2},
        "Environment": {"SM_LOG_LEVEL": "10", "TEMPLATE": "{lr} {other}"},
        "RoleArn": "arn:aws:iam::1:role/x",
    },
}


def request_file(tmp_path, change=lambda request: None):
    request = copy.deepcopy(REQUEST)
    change(request)
    path = tmp_path / "request.json"
    path.write_text(json.dumps(request))
    return str(path)


def call(*arguments, code=0):
    """Call ``loopwise tune`` and return its output."""
    result = CliRunner().invoke(main, ["tune", *map(str, arguments)], env={"COLUMNS": "200"})
    assert result.exit_code == code, result.output
    return result.output

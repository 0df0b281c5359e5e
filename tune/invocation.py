"""Arguments and variables of a trial's program."""

from __future__ import annotations

import math
import os
from pathlib import Path

from loopwise.programs.sagemaker import prepare

from .job.command import arguments, filled, script_of
from .job.job import Job
from .process.attempt import Invocation
from .trials import Trial


def invocation(job: Job, trial: Trial, folder: Path, cwd: str) -> Invocation:
    """Return what the next attempt of a trial runs.

    Args:
        job: the job.
        trial: the trial.
        folder: the attempt's folder, which gets the folder of ``container: sagemaker``.
        cwd: the folder in which programs start.
    """
    variables = {
        "LOOPWISE_TRIAL": str(trial.number),
        "LOOPWISE_OBJECTIVE_METRIC": "\n".join(goal.metric for goal in job.goals),
        "PYTHONUNBUFFERED": "1",
    }
    program, resources = arguments(job.command, trial.values), job.resources
    if job.container == "sagemaker":
        channels = {name: os.path.join(cwd, path) for name, path in job.channels.items()}
        script = script_of(job.command)
        further, own = prepare(folder / "ml", trial.values, job.goals[0].metric, channels, script)
        if resources is not None:
            own["SM_NUM_CPUS"] = str(resources.cpu)
            if resources.gpu:
                own["SM_NUM_GPUS"] = str(math.ceil(resources.gpu))
        program, variables = [*program, *further], variables | own
    fixed = {name: filled(text, trial.values) for name, text in job.environment.items()}
    return Invocation(program, variables | fixed, cwd, trial.values, job.limits.trial_seconds)

"""Hyperparameter tuning of any program, from what it prints."""

from typing import TYPE_CHECKING

from loopwise.lazy import lazy_names

from .reporting import report as report

if TYPE_CHECKING:
    from .job.files import job_of as job_of
    from .job.files import read_job as read_job
    from .job.job import Job as Job
    from .job.limits import Hyperband as Hyperband
    from .job.limits import Limits as Limits
    from .job.limits import WarmStart as WarmStart
    from .job.metrics import Metric as Metric
    from .job.metrics import Objective as Objective
    from .job.parameters import Categorical as Categorical
    from .job.parameters import Continuous as Continuous
    from .job.parameters import Integer as Integer
    from .job.resources import Cluster as Cluster
    from .job.resources import Resources as Resources
    from .trials import Trial as Trial
    from .tuner import Tuner as Tuner
    from .tuner import run as run
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "job_of": ".job.files",
            "read_job": ".job.files",
            "Cluster": ".job.resources",
            "Job": ".job.job",
            "Hyperband": ".job.limits",
            "Limits": ".job.limits",
            "WarmStart": ".job.limits",
            "Metric": ".job.metrics",
            "Objective": ".job.metrics",
            "Resources": ".job.resources",
            "Categorical": ".job.parameters",
            "Continuous": ".job.parameters",
            "Integer": ".job.parameters",
            "Trial": ".trials",
            "Tuner": ".tuner",
            "run": ".tuner",
        },
    )

"""Hyperparameter tuning of any program, from what it prints."""

from typing import TYPE_CHECKING

from loopwise.lazy import lazy_names

from .reporting import report as report

if TYPE_CHECKING:
    from .job.files import job_of as job_of
    from .job.files import read_job as read_job
    from .job.job import Cluster as Cluster
    from .job.job import Job as Job
    from .job.job import Limits as Limits
    from .job.job import Metric as Metric
    from .job.job import Objective as Objective
    from .job.job import Resources as Resources
    from .job.parameters import Categorical as Categorical
    from .job.parameters import Continuous as Continuous
    from .job.parameters import Integer as Integer
    from .trials import Trial as Trial
    from .tuner import Tuner as Tuner
    from .tuner import run as run
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "job_of": ".job.files",
            "read_job": ".job.files",
            "Cluster": ".job.job",
            "Job": ".job.job",
            "Limits": ".job.job",
            "Metric": ".job.job",
            "Objective": ".job.job",
            "Resources": ".job.job",
            "Categorical": ".job.parameters",
            "Continuous": ".job.parameters",
            "Integer": ".job.parameters",
            "Trial": ".trials",
            "Tuner": ".tuner",
            "run": ".tuner",
        },
    )

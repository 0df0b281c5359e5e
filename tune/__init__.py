"""Hyperparameter tuning of any program, from what it prints."""

from .job.files import job_of as job_of
from .job.files import read_job as read_job
from .job.job import Job as Job
from .job.job import Limits as Limits
from .job.job import Metric as Metric
from .job.job import Objective as Objective
from .job.parameters import Categorical as Categorical
from .job.parameters import Continuous as Continuous
from .job.parameters import Integer as Integer
from .reporting import report as report
from .tuner import Trial as Trial
from .tuner import Tuner as Tuner
from .tuner import run as run

"""Lanes: the random streams of DataLoader's workers, and the execution of their tasks in any process."""

from .worker import Worker as Worker
from .worker import result as result

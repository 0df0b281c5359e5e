"""Lanes: the random streams of DataLoader's workers, and the execution of their tasks in any process."""

from .worker import Reply as Reply
from .worker import Worker as Worker

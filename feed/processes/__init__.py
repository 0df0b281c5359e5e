"""Local workers: processes on this machine, which hand over batches in shared memory."""

from .pool import ProcessPool as ProcessPool

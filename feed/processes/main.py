"""The main function of a worker process."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import threading
import time

import torch

from ..lanes import Worker
from ..protocol import Work
from ..ring.extents import Extents
from ..ring.file import CLOSED, NUMBER, POSITION, SharedFile, close_others
from ..torch_internals import set_signal_handlers
from .channel import Link, close_inherited

SECONDS = 1.0
"""Interval at which a worker looks whether the training process is still alive, in seconds."""


def main(work: Work, file: SharedFile, link: Link, forked: bool, several: bool, batches: int) -> None:
    """Execute tasks until the training process closes the connection, or ends.

    Args:
        work: the user's dataset and functions.
        file: the shared memory for the batches.
        link: the connection to the training process.
        forked: whether this process is a copy of the training process.
        several: whether tasks of more than one lane come.
        batches: number of batches for which free memory is kept.
    """
    if forked:
        close_inherited()
        close_others(file)
    set_signal_handlers()
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, name="loopwise-feed-parent", daemon=True).start()
    control = file.control()
    control[NUMBER] = -1
    extents = Extents(file, batches)

    def progress(number: int, position: int) -> None:
        control[POSITION] = position
        control[NUMBER] = number

    worker = Worker(work, extents, progress, several)
    try:
        while True:
            message = link.receive()
            if control[CLOSED]:
                return
            task, released = pickle.loads(message)
            del message
            extents.begin(released)
            fields = worker.run(task).fields()
            link.send(pickle.dumps((*fields, extents.take_retired()), protocol=5))
            control[NUMBER] = -1
    except (EOFError, ConnectionError, KeyboardInterrupt):
        return  # the training process has closed the connection, or gets the same interrupt


def _end_with_parent() -> None:
    """End this process once the training process has ended, also in the middle of a sample.

    The closed connection tells the same, but only between samples, and not while another child of the training process has
    a copy of it.  With ``forkserver`` the parent in the sense of the system is the server, which ends with the training
    process.
    """
    first, parent = os.getppid(), multiprocessing.parent_process()
    while os.getppid() == first and (parent is None or parent.is_alive()):
        time.sleep(SECONDS)
    os._exit(1)

"""Actor on a node of a group: one process that executes tasks, as a local worker does."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pickle
import platform
import secrets
import sys
import traceback
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import numpy as np
import torch

from loopwise.extras import required

from ..lanes import Worker
from ..ring.extents import Extents
from ..ring.file import NUMBER, POSITION, SharedFile
from .keys import Keys
from .link import Endpoint
from .service import Service

with required("ray", "feed", "a loader with a group"):
    import ray
    import ray.actor

TOKEN = -1
"""Word of the control page by which a trainer knows that it has opened the right file."""


@dataclass(frozen=True, slots=True)
class Hello:
    """Answer of an actor that has started."""

    endpoint: Endpoint
    pid: int
    descriptor: int
    """Descriptor of the actor's shared file."""
    token: int
    versions: dict[str, str]


def versions() -> dict[str, str]:
    """Return the versions of what decides about batches and their form."""
    return {
        "python": ".".join(platform.python_version_tuple()[:2]),
        "loopwise": metadata.version("loopwise"),
        "torch": torch.__version__,
        "numpy": np.__version__,
    }


def ordinary_priority() -> None:
    """Undo that Ray starts workers with the priority 15, if the system permits it: training waits for them."""
    for thread in os.listdir("/proc/self/task"):
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, int(thread), 0)


class Actor:
    """Worker on another machine; Ray runs it, and a trainer's messages tell it what to load."""

    def open(self, host: str, keys: Keys) -> Hello:
        """Listen for the trainer."""
        self._file = SharedFile()
        self._control = self._file.control()
        self._control[NUMBER] = -1
        self._control[TOKEN] = token = secrets.randbits(62)
        self._service = Service(host, keys)
        self._extents: Extents | None = None
        return Hello(self._service.endpoint, os.getpid(), self._file.descriptor, token, versions())

    def run(self) -> None:
        """Execute tasks until the trainer is gone."""
        torch.set_num_threads(1)
        ordinary_priority()
        self._worker: Worker | None = None
        self._user = b"", b""
        try:
            while (message := self._service.inbox.get()) is not None:
                getattr(self, f"_{message[0]}")(*message[1:])
        except BaseException:  # as a worker of DataLoader, which sys.exit ends too
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)
        ray.actor.exit_actor()  # os._exit would let Ray print in the trainer that a worker has crashed

    def _work(
        self, generation: int, digest: bytes, user: bytes | None, work: Any, batches: int, shared: bool
    ) -> None:
        """Begin the work of an iterator; ``user`` is not sent again if it is as before."""
        if user is not None:
            self._user = digest, user
        self._shared = shared
        self._extents = self._extents or Extents(self._file, batches)
        if self._worker is not None:
            self._worker.close()
            self._worker = None
        try:
            dataset, collate_fn, worker_init_fn = map(pickle.loads, pickle.loads(self._user[1]))
        except Exception as error:
            self._service.answer(0, pickle.dumps((0, generation, f"{type(error).__name__}: {error}")))
            return
        complete = dataclasses.replace(
            work, dataset=dataset, collate_fn=collate_fn, worker_init_fn=worker_init_fn
        )
        self._worker = Worker(complete, self._extents, self._progress, work.lanes > 1)
        self._service.answer(0, pickle.dumps((0, generation, "")))

    def _task(self, ticket: int, task: Any, released: list[Any]) -> None:
        """Execute a task and answer it."""
        sent = self._service.sent
        assert self._extents is not None
        self._extents.begin(released + [sent.popleft() for _ in range(len(sent))])
        if ticket in self._service.cancelled or self._worker is None:
            self._service.cancelled.discard(ticket)
            return
        reply = self._worker.run(task)
        frames = None if self._shared else reply.packed
        answer = ticket, *reply.fields(), self._extents.take_retired()
        self._service.answer(ticket, pickle.dumps(answer, protocol=5), frames)
        self._control[NUMBER] = -1

    def _progress(self, number: int, position: int) -> None:
        self._control[POSITION] = position
        self._control[NUMBER] = number

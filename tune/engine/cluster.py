"""Run trials on a Ray cluster: one actor for each attempt, on a node that has what the trial needs."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import shlex
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from loopwise.errors import InputError, StateError
from loopwise.extras import required
from loopwise.programs import locks, processes
from loopwise.storage import files

from ..job.command import placeholders
from ..job.job import Job
from ..job.resources import Cluster as Description
from ..job.resources import Resources
from ..log.curves import Definition
from ..process import supervise
from ..process.attempt import Attempt, Invocation
from . import node
from .remote import NAMESPACE, RemoteAttempt, on_node

with required("ray", "cluster", "engine: ray"):
    import ray
    from ray.exceptions import RayError

LOOK = 2.0
"""Seconds between two looks at the nodes of the cluster."""
LEAVING = 60.0
"""Most seconds to wait for actors that remove their files at the end of a job."""
ANSWER = 10.0
"""Most seconds to wait for the head node to answer."""
GONE = 30.0
"""Seconds without an answer of the head node after which a job is ended; Ray would kill this process after 60."""
PROBE = 120.0
"""Most seconds to wait for the nodes to tell what they have."""
logger = logging.getLogger("loopwise.tune")


class Cluster:
    """Ray cluster.

    Args:
        job: the job.
        name: of the job on the cluster.
        folder: the tuner's folder of the attempts of all trials.
        cwd: the folder in which programs start, if Ray does not copy one.

    Raises:
        InputError: there is no such cluster, no node has what a trial needs, or a node lacks the program or its folder.
    """

    def __init__(self, job: Job, name: str, folder: Path, cwd: str) -> None:
        self.resources = job.resources or Resources()
        self.description = job.cluster or Description()
        self._name, self._folder = name, folder
        self._live: dict[Path, RemoteAttempt] = {}
        self._leaving: dict[Any, Any] = {}
        self._looked, self._room, self._warned = -math.inf, 0, False
        self._answered, self._silent, self._lost = -math.inf, 0.0, False
        self._own = not ray.is_initialized()
        ray.cloudpickle.register_pickle_by_value(node)
        if self._own:
            self._connect()
        self._head: str = ray.get_runtime_context().gcs_address
        try:
            self._validate(job, cwd)
            self._end_old()
        except BaseException:
            self._disconnect()
            raise

    # -- the cluster ----------------------------------------------------------------------------

    def _connect(self) -> None:
        address, working_dir = self.description.address, self.description.working_dir
        if working_dir is not None and not os.path.isdir(working_dir):
            raise InputError(
                f"cluster.working_dir {working_dir!r}, which does not exist",
                "a folder on this machine",
                "a typo",
                "check the path",
            )
        try:
            if address != "auto":
                _probe(address)  # Ray itself would try for minutes
            ray.init(
                address=address,
                namespace=NAMESPACE,
                log_to_driver=False,
                logging_level=logging.WARNING,
                runtime_env=None if working_dir is None else {"working_dir": working_dir},
            )
        except (OSError, RuntimeError, ValueError, OverflowError, RayError) as error:
            told = str(error).strip().splitlines()
            raise InputError(
                f"no connection to a Ray cluster at {address!r}: {told[0] if told else error!r}",
                "a cluster that runs, to which this machine belongs",
                "no cluster, another address, or another version of Ray or Python",
                "start one with 'ray start --head', and set cluster.address if this machine belongs to several",
            ) from None

    def _disconnect(self) -> None:
        if self._own:
            ray.shutdown()

    def _nodes(self) -> list[dict[str, Any]]:
        return [other for other in ray.nodes() if other["Alive"]]

    def _fits(self, other: dict[str, Any]) -> int:
        """Return how many trials a node can run at the same time."""
        has, need = other["Resources"], self.resources
        by_cpu = has.get("CPU", 0) // need.cpu
        return int(by_cpu if not need.gpu else min(by_cpu, math.floor(has.get("GPU", 0) / need.gpu + 1e-9)))

    def _validate(self, job: Job, cwd: str) -> None:
        nodes = self._nodes()
        fitting = [other for other in nodes if self._fits(other)]
        if not fitting:
            raise InputError(
                f"resources with cpu: {self.resources.cpu} and gpu: {self.resources.gpu:g} for each trial",
                f"at most what one node of the cluster has: {'; '.join(map(_told, nodes))}",
                "a job for another cluster, or nodes that have not joined yet",
                "lower resources, or add a node",
            )
        words = shlex.split(job.command)
        program = "" if not words or placeholders(words[0]) else words[0]
        folder = None if self.description.working_dir is not None else cwd
        marker = str(self._folder.parent / "tuner.lock") if job.container == "sagemaker" else None
        task = ray.remote(node.missing)
        asked = [
            task.options(num_cpus=0, scheduling_strategy=on_node(other["NodeID"])).remote(
                folder, program, marker
            )
            for other in fitting
        ]
        missing = _answers(asked)
        if missing:
            raise InputError(
                f"nodes of the cluster without what a trial needs: {'; '.join(missing)}",
                "the program, and the folder in which it starts, on every node",
                "files on this machine only",
                "put them on a file system that the nodes share, or set cluster.working_dir to a folder that Ray copies "
                "(container: sagemaker needs the run folder on a shared file system)",
            )

    def _end_old(self) -> None:
        """End the actors of attempts that an earlier tuner has read to their ends or given up."""
        for actor in ray.util.list_named_actors(all_namespaces=True):
            job, _, attempt = actor["name"].partition("/")
            if actor["namespace"] == NAMESPACE and job == self._name:
                folder = self._folder / attempt
                if (folder / "exit").exists() or (folder.parent / str(int(folder.name) + 1)).exists():
                    _end(actor["name"])

    def look(self) -> None:
        """Wait until the head node answers, and raise an error if it does not.

        Ray itself has no error for this: its calls wait for the head node, until it kills the process that has called them.
        """
        if time.monotonic() - self._answered < LOOK:
            return
        while (told := _unreachable(self._head)) is not None:
            self._silent = (
                self._silent or time.monotonic()
            )  # an interruption ends this loop, and is followed by another one
            if time.monotonic() - self._silent > GONE:
                raise self._gone(told)
            time.sleep(1)
        self._answered, self._silent = time.monotonic(), 0.0

    @contextlib.contextmanager
    def errors(self) -> Iterator[None]:
        try:
            yield
        except RayError as error:
            raise self._gone((str(error).strip().splitlines() or [repr(error)])[0]) from None

    def _gone(self, told: str) -> StateError:
        self._lost = True
        running = sorted(int(folder.parent.name) for folder in self._live)
        return StateError(
            f"the Ray cluster with the head node {self._head!r} is lost: {told}; trials that ran: "
            + (", ".join(map(str, running)) or "none"),
            "a head node that runs for as long as the job",
            "ray stop, a head node that failed, or a network that failed",
            "ended trials are kept; start the cluster again, set cluster.address if it is another one, and go on with --resume "
            "(resume=True), which repeats the trials that ended with the cluster",
        )

    # -- attempts -------------------------------------------------------------------------------

    def attempt(self, folder: Path, definitions: list[Definition]) -> Attempt:
        return RemoteAttempt(folder, definitions, f"{self._name}/{folder.parent.name}/{folder.name}")

    def reserve(self) -> bool:
        if time.monotonic() - self._looked > LOOK:
            self._looked, self._room = time.monotonic(), sum(map(self._fits, self._nodes()))
            if not self._room and not self._warned:
                self._warned = True
                logger.warning("no node of the cluster has what a trial needs now; trials wait for one")
        return len(self._live) < max(1, self._room)

    def start(self, attempt: Attempt, invocation: Invocation) -> None:
        assert isinstance(attempt, RemoteAttempt)
        attempt.prepare(invocation, None)
        start = {
            "arguments": invocation.arguments,
            "folder": None if self.description.working_dir is not None else invocation.folder,
            "seconds": invocation.seconds,
        }
        sources = {  # they import the standard library and each other alone
            "supervise.py": Path(supervise.__file__).read_text(),
            "loopwise/programs/locks.py": Path(locks.__file__).read_text(),
            "loopwise/programs/processes.py": Path(processes.__file__).read_text(),
            "loopwise/storage/files.py": Path(files.__file__).read_text(),
        }
        actor: Any = ray.remote(node.Node).options(
            name=attempt.name,
            namespace=NAMESPACE,
            lifetime="detached",
            num_cpus=self.resources.cpu,
            num_gpus=self.resources.gpu,
        )
        attempt.actor = actor.remote(sources, start, invocation.variables, dict(invocation.values))
        self._live[attempt.folder] = attempt

    def adopt(self, attempt: Attempt) -> None:
        assert isinstance(attempt, RemoteAttempt)
        self._live[attempt.folder] = attempt

    def release(self, attempt: Attempt) -> None:
        known = self._live.pop(attempt.folder, None)
        if known is not None:
            self._forget()
            if known.actor is not None:
                self._leaving[known.actor.leave.remote()] = known.actor

    def close(self) -> None:
        if self._lost:  # calls would wait for the head node
            self._leaving.clear()
        if self._leaving:
            ray.wait(list(self._leaving), num_returns=len(self._leaving), timeout=LEAVING)
        self._forget()
        for actor in self._leaving.values():
            ray.kill(actor)
        self._leaving.clear()
        self._disconnect()

    def _forget(self) -> None:
        """Drop the actors that have ended."""
        for left in [left for left in self._leaving if ray.wait([left], timeout=0)[0]]:
            del self._leaving[left]


def _answers(asked: list[Any]) -> list[str]:
    """Return what nodes miss; nodes that die meanwhile count only if no other one has answered."""
    missing, failures, deadline = set(), [], time.monotonic() + PROBE
    for answer in asked:
        try:
            missing.add(ray.get(answer, timeout=max(0.0, deadline - time.monotonic())))
        except RayError as error:
            failures.append(str(error).strip().splitlines()[0])
    return sorted(missing - {""}) if missing else failures[:1]


def _probe(address: str) -> None:
    """Connect to ``host:port``, or raise OSError, ValueError or OverflowError."""
    host, _, port = address.rpartition(":")
    socket.create_connection((host.strip("[]"), int(port)), ANSWER).close()


def _unreachable(address: str) -> str | None:
    """Return why nothing answers at ``host:port``; ``None``: something does."""
    try:
        _probe(address)
    except OSError as error:
        return error.strerror or str(error)
    return None


def _told(other: dict[str, Any]) -> str:
    has = other["Resources"]
    return f"{other['NodeManagerAddress']} with cpu: {has.get('CPU', 0):g}, gpu: {has.get('GPU', 0):g}"


def _end(name: str) -> None:
    try:
        ray.kill(ray.get_actor(name, NAMESPACE))
    except (ValueError, RayError):
        return  # it has ended meanwhile

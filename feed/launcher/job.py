"""Run a job: start the groups, gather what they print, and end all of them when training ends."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from select import select
from types import FrameType
from typing import Any, BinaryIO

from loopwise.programs.processes import POLL

from . import torchrun
from .cluster import GRACE as NODE_GRACE
from .cluster import SECONDS, Cluster, free_port
from .environment import Host, variables
from .group import Group
from .machines import GRACE as MACHINE_GRACE
from .machines import Machines
from .node import GRACE
from .processes import Running

PATIENCE = 3.0
"""Seconds in which training may end by itself after the last host of another group has failed."""
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Job:
    """One run of a script on groups of hosts.

    Args:
        hosts: the hosts.
        training: the group that trains.
        folder: the job's folder.
        program: the script and its arguments.
        port: port of ``torchrun`` on the first host of the training group; 0: any free one.
        cluster: the Ray cluster of the hosts that load, which the job starts; ``None``: it starts none.
        machines: the nodes of a running Ray cluster that are the hosts; ``None``: all hosts are on this machine.
    """

    def __init__(
        self,
        hosts: list[Host],
        training: Group,
        folder: Path,
        program: list[str],
        port: int = 0,
        cluster: Cluster | None = None,
        machines: Machines | None = None,
    ) -> None:
        self.hosts, self.training, self.folder, self.program = hosts, training, folder, program
        self._outputs: tuple[BinaryIO, BinaryIO] = (sys.stdout.buffer, sys.stderr.buffer)
        self._job = f"{folder}/{uuid.uuid4().hex[:8]}"
        self._cluster, self._machines = cluster, machines
        self._port = port or (0 if machines is None else machines.port)
        self._running: list[Running] = []
        self._signals: list[int] = []
        self._lost_hosts: list[Host] = []

    def run(self, ready: int | None, seconds: float) -> int:
        """Run the job to its end and return the exit status.

        Args:
            ready: port on which all hosts of the other groups have to listen before training starts; ``None``: training
                starts at once.
            seconds: time limit for that.
        """
        with self._handled():
            try:
                status = self._start(ready, seconds)
                return self._follow() if status is None else status
            except BrokenPipeError:  # nobody reads what is printed, as in ``loopwise feed launch ... | head``
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, 1)  # Python flushes its own stream at exit
                os.close(nowhere)
                return 128 + signal.SIGPIPE
            finally:
                for one in self._running:
                    one.stop()
                for one in self._running:
                    one.close()
                if self._cluster is not None:
                    self._cluster.remove()

    def _start(self, ready: int | None, seconds: float) -> int | None:
        """Start all hosts, those that train last; return the status if the job is over already."""
        others = [host for host in self.hosts if host.group is not self.training and not host.group.loads]
        for host in others:
            self._start_host(host)
        status = None
        if self._cluster is not None:
            status = self._start_cluster(self._cluster)
        if status is None and ready is not None:
            status = self._wait(
                others,
                lambda host: _listens(host.address, ready),
                f"does not listen on port {ready}",
                seconds,
            )
        if status is not None:
            return status
        for host in self.hosts:
            if host.group is self.training:
                self._start_host(host)
        return None

    def _start_cluster(self, cluster: Cluster) -> int | None:
        """Start the head and then the nodes of the hosts that load; return the status if the job is over already."""
        for hosts in ([cluster.head], cluster.nodes):
            for host in hosts:
                own = self._variables(host) if host is not cluster.head else {}
                environment = {**os.environ, **own, **cluster.node_variables()}
                self._run(host, cluster.program(host), environment, NODE_GRACE, cluster.folder(host))
            status = self._wait(hosts, cluster.joined, "has not joined the Ray cluster", SECONDS)
            if status is not None:
                return status
        return None

    def _wait(
        self, hosts: list[Host], ready: Callable[[Host], bool], failure: str, seconds: float
    ) -> int | None:
        """Wait until all hosts are ready; return the status if the job is over already.

        Args:
            hosts: the hosts.
            ready: tells whether a host is ready.
            failure: what is said of a host that is not ready in time, after its name.
            seconds: the time limit.
        """
        deadline = time.monotonic() + seconds
        while True:
            self._forward()
            hosts = [host for host in hosts if not ready(host)]
            status = self._over()
            if status is not None or not hosts:
                return status
            if time.monotonic() > deadline:
                self._tell(f"{hosts[0]} at {hosts[0].address} {failure} after {seconds:g} s")
                return 1

    def _start_host(self, host: Host) -> None:
        own: dict[str, str] = {}
        arguments = self.program
        if host.group is self.training and host.group.nodes * host.group.processes > 1:
            first = next(other for other in self.hosts if other.group is self.training)
            self._port = self._port or free_port(first.address)
            own |= torchrun.prefix(str(host))
            nodes, processes, addresses = (
                host.group.nodes,
                host.group.processes,
                (host.address, first.address),
            )
            arguments = ["-P", "-m", torchrun.__name__]
            arguments += torchrun.arguments(host.node, nodes, processes, *addresses, self._port, self.program)
        if host.group is self.training and self._cluster is not None:
            own |= self._cluster.variables()
        if self._machines is None:
            own |= self._variables(host)
            self._run(host, [sys.executable, *arguments], {**os.environ, **own})
        else:
            folder = str(self.folder / f"{host.group.name}-{host.node}")
            program = self._machines.program(host, self.training, folder, self.program, arguments, own)
            self._run(host, program, dict(os.environ), MACHINE_GRACE)

    def _variables(self, host: Host) -> dict[str, str]:
        folder = self.folder / f"{host.group.name}-{host.node}"
        return variables(host, self.hosts, self.training, folder, self.program[0], self.program[1:])

    def _run(
        self,
        host: Host,
        program: list[str],
        environment: dict[str, str],
        grace: float = GRACE,
        scratch: str | None = None,
    ) -> None:
        running = Running(host, self._job, self._outputs)
        self._running.append(running)
        running.start(program, environment, os.getcwd(), grace, scratch)

    def _follow(self) -> int:
        """Return the status when the job is over, after what was printed until then is written."""
        while True:
            self._forward()
            status = self._over()
            if status is not None:
                break
        for one in self._running:
            one.stop()
        while not all(one.status() is not None and one.silent() for one in self._running):
            self._forward()
        return status

    def _over(self) -> int | None:
        """Return the exit status if the job is over: a signal, the end of training, or another group that is gone."""
        if self._signals:
            return 128 + self._signals[0]
        status = self._training()
        return self._lost() if status is None else status

    def _training(self) -> int | None:
        statuses = [one.status() for one in self._running if one.host.group is self.training]
        failed = [one for one in self._running if one.host.group is self.training and one.status()]
        if failed:
            self._note_lost()  # training may have failed for want of them
            first = min(failed, key=lambda one: one.ended or 0.0)
            self._tell(f"{first.host} {_told(first.status() or 0)}")
            return first.status()
        return 0 if statuses and all(status == 0 for status in statuses) else None

    def _note_lost(self) -> None:
        """Tell of hosts of other groups that failed."""
        for one in self._running:
            if one.host.group is not self.training and one.status() and one.host not in self._lost_hosts:
                self._lost_hosts.append(one.host)
                self._tell(f"{one.host} {_told(one.status() or 0)}")

    def _lost(self) -> int | None:
        """Return the status of a group without which training waits for ever."""
        self._note_lost()
        for group in dict.fromkeys(one.host.group for one in self._running):
            members = [one for one in self._running if one.host.group is group]
            if group is self.training or any(one.status() is None for one in members):
                continue
            failed = [one for one in members if one.status()]
            if failed and time.monotonic() - max(one.ended or 0.0 for one in members) > PATIENCE:
                last = max(failed, key=lambda one: one.ended or 0.0)
                self._tell(
                    f"the group {group.name!r} has no host any more; {self.training.name!r}, which still runs, is ended"
                )
                return last.status()
        return None

    def _forward(self) -> None:
        """Write what hosts print; wait for it for a moment."""
        pipes = {descriptor: one for one in self._running for descriptor in one.streams}
        if not pipes:
            time.sleep(POLL)
            return
        readable, _, _ = select(list(pipes), [], [], POLL)
        for descriptor in readable:
            pipes[descriptor].forward(descriptor)

    def _tell(self, message: str) -> None:
        with contextlib.suppress(BrokenPipeError):
            self._outputs[1].write(f"loopwise feed: {message}\n".encode())
            self._outputs[1].flush()

    @contextlib.contextmanager
    def _handled(self) -> Iterator[None]:
        """Note signals instead of ending by them, so that the hosts are ended first; other threads cannot."""

        def note(number: int, frame: FrameType | None) -> None:
            self._signals.append(number)

        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before: dict[int, Any] = {number: signal.signal(number, note) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _listens(address: str, port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((address, port), 1.0):
        return True
    return False


def _told(status: int) -> str:
    """Return what an exit status says, as the end of a sentence about the script."""
    if status == 128 + signal.SIGKILL:
        return (
            "was ended by SIGKILL (status 137); if nobody sent it, the kernel did, since memory had run out"
        )
    if status > 128:
        with contextlib.suppress(ValueError):
            return f"was ended by {signal.Signals(status - 128).name} (status {status})"
    return f"ended with status {status}"

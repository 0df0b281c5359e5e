"""Owner of a host's script on another machine: an actor of Ray, which starts there what owns a host on any machine.

The actor ends with the program that has made it (``remote_host.py``).  Then the pipe to the owner is closed, and the owner
ends all processes of the host.  Ray kills the children of an actor that ends, so the owner is the child of another process.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import psutil

from loopwise.programs.processes import exit_status, kill_marked

from . import node as owner
from .environment import JOB, Host, variables
from .group import Group

_PARENT = """
import os, subprocess, sys
code = subprocess.call(sys.argv[1:])
if code < 0:
    os.kill(os.getpid(), -code)
sys.exit(code)
"""
"""Program that runs its arguments and ends as they do."""
PERIOD = 0.5
"""Seconds for which ``read`` waits for output."""
CHUNK = 1 << 16


@dataclass(frozen=True, slots=True)
class Order:
    """Description of a host, with which its node can run it."""

    host: Host
    hosts: list[Host]
    training: Group
    folder: str
    """Folder of the host, on its node."""
    script: list[str]
    """The script and its arguments."""
    arguments: list[str]
    """What Python runs."""
    own: dict[str, str]
    """Further variables."""
    cwd: str
    """Working folder."""
    cluster: str
    """Address of the Ray cluster."""


class RemoteOwner:
    """Start a host's script on this node, hand over what it prints, and end it."""

    def start(self, order: Order, mark: str) -> str:
        """Start the script; ``mark`` identifies the job and the host.

        Returns:
            Why it cannot be started, else ``""``.
        """
        script = os.path.join(order.cwd, order.script[0])
        if not os.path.isfile(script):
            return f"{order.host} at {order.host.address} has no file {script!r}: put the script at the same path on all machines"
        self._mark = mark
        inherited = inherited_environment()
        members = variables(
            order.host, order.hosts, order.training, Path(order.folder), order.script[0], order.script[1:],
            interface(order.host.address),
        )  # fmt: skip
        environment = {**inherited, **members, **order.own, "RAY_ADDRESS": order.cluster, JOB: mark}
        self._process = subprocess.Popen(
            [sys.executable, "-S", "-c", _PARENT, sys.executable, "-P", "-m", owner.__name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**inherited, JOB: mark},
            start_new_session=True,
        )
        stdin, pipes = self._process.stdin, (self._process.stdout, self._process.stderr)
        assert stdin is not None
        self._open = [pipe.fileno() for pipe in pipes if pipe is not None]
        self._out = self._open[0]
        start = {
            "arguments": [sys.executable, *order.arguments],
            "environment": environment,
            "folder": order.cwd,
        }
        stdin.write(json.dumps({**start, "grace": owner.GRACE, "scratch": None}).encode() + b"\n")
        stdin.flush()
        return ""

    def read(self) -> tuple[bytes, bytes, int | None]:
        """Return what was printed since the last call, on both streams, and the exit status once all is over."""
        code = self._process.poll()
        if code is not None and code < 0:  # killed before it could end what it started
            kill_marked(f"{JOB}={self._mark}", owner.GRACE)
        out, err = b"", b""
        readable, _, _ = select.select(self._open, [], [], PERIOD if code is None else 0.0)
        for descriptor in readable:
            data = os.read(descriptor, CHUNK)
            if not data:
                self._open.remove(descriptor)
            elif descriptor == self._out:
                out = data
            else:
                err = data
        return out, err, exit_status(code) if code is not None and not out and not err else None

    def stop(self) -> None:
        """Ask for the end of the script and all its processes."""
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()


def inherited_environment() -> dict[str, str]:
    """Return the variables with which Ray was started on this node; those of an actor hide its GPUs."""
    try:
        data = Path(f"/proc/{os.getppid()}/environ").read_bytes()
    except OSError:
        return {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    return dict(entry.split("=", 1) for entry in os.fsdecode(data).split("\0") if "=" in entry)


def interface(address: str) -> str:
    """Return the name of the network interface that has an address, ``lo`` if it cannot be told."""
    interfaces = psutil.net_if_addrs().items()
    return next((name for name, own in interfaces if address in [each.address for each in own]), "lo")

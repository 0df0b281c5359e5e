"""Ray cluster of a job: one node for each host that loads batches, and a head that loads none.

The nodes are programs of hosts like the script, and end as it does.  Ray listens on all addresses of the machine; it answers
only those who have the token of the job.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import sys
import tempfile

from loopwise.extras import required

from . import ray_node
from .environment import Host
from .group import HEAD, Group

SECONDS = 300.0
"""Time limit for the start of the head, and again for that of the other nodes."""
GRACE = 1.0
"""Seconds in which a node may end by itself; Ray's processes wait for others that have ended already."""
MEMORY = 80_000_000
"""Bytes of Ray's object store on each node, about its minimum: batches do not pass through it."""


class Cluster:
    """Ray cluster of a job.

    Args:
        hosts: all hosts of the job; those of groups that load are nodes of the cluster.
        address: a further address of this machine, for the head.  It must not be 127.0.0.1, which Ray replaces by the address
            of the machine in its network.

    Raises:
        MissingExtra: Ray or pyzmq is not installed.
    """

    def __init__(self, hosts: list[Host], address: str) -> None:
        check_installed()
        self.head = Host(Group(HEAD), 0, address)
        self.nodes = [host for host in hosts if host.group.loads]
        self._port = free_port(address)
        self._token = secrets.token_hex(32)
        self._folders: dict[Host, str] = {}

    def variables(self) -> dict[str, str]:
        """Return the variables by which a training process finds the cluster."""
        return {
            "RAY_ADDRESS": f"{self.head.address}:{self._port}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self._token,
        }

    def node_variables(self) -> dict[str, str]:
        """Return the variables of a node."""
        own = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0", "RAY_ADDRESS": ""}
        return self.variables() | own

    def folder(self, host: Host) -> str:
        """Return the temporary folder of a node, whose path is short since it holds sockets."""
        if host not in self._folders:
            self._folders[host] = tempfile.mkdtemp(prefix="loopwise-")
        return self._folders[host]

    def program(self, host: Host) -> list[str]:
        """Return the program that runs the node of a host."""
        folder = self.folder(host)
        if host is self.head:
            place = [
                "--head",
                f"--port={self._port}",
                f"--ray-client-server-port={free_port(host.address)}",
                "--include-dashboard=false",
            ]
        else:
            resources = json.dumps({host.group.name: 1})
            place = [f"--address={self.head.address}:{self._port}", f"--resources={resources}"]
        shared = [
            f"--node-ip-address={host.address}",
            f"--temp-dir={folder}",
            "--num-cpus=0",  # Ray would start a worker for each in advance
            "--num-gpus=0",
            f"--object-store-memory={MEMORY}",
        ]
        return [sys.executable, "-P", "-m", ray_node.__name__, folder, *place, *shared]

    def joined(self, host: Host) -> bool:
        """Return whether the node of a host has joined the cluster."""
        return os.path.exists(os.path.join(self.folder(host), ray_node.READY))

    def remove(self) -> None:
        """Delete what the nodes have left: the owners of their hosts did so, unless they were killed."""
        for folder in self._folders.values():
            shutil.rmtree(folder, ignore_errors=True)


def check_installed() -> None:
    """Raise ``MissingExtra`` unless the packages of the extra ``feed`` are installed."""
    from importlib.util import find_spec

    for package, module in (("ray", "ray"), ("pyzmq", "zmq")):
        with required(package, "feed", "a group that loads", module=module):
            if find_spec(module) is None:
                raise ModuleNotFoundError(name=module)


def free_port(address: str) -> int:
    """Return a port on which nobody listens at an address of this machine."""
    with socket.socket() as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])

"""Hosts on the nodes of a Ray cluster that runs already.

A host on another machine is run by a process on this one, which has an owner as every host has: ``remote_host.py``.  So the
launcher itself never connects to Ray, and a host ends in the same ways wherever it runs.
"""

from __future__ import annotations

import base64
import json
import os
import pickle
import socket
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from loopwise.errors import InputError, StateError

from .cluster import check_installed
from .environment import Host
from .group import Group
from .remote_owner import Order

PACKAGE = __name__.rpartition(".")[0]
"""The programs below import Ray, which the launcher does without."""
GRACE = 6.5
"""Seconds that the process of a host on this machine gets to end: the script on the node has 5 seconds of them."""


@dataclass(frozen=True, slots=True)
class Machines:
    """Nodes of a Ray cluster, each of which is a host.

    Args:
        address: of the cluster.
        nodes: host -> Ray's id of its node.
        port: free port of the first host that trains.
    """

    address: str
    nodes: dict[Host, str]
    port: int

    @property
    def hosts(self) -> list[Host]:
        """Return all hosts."""
        return list(self.nodes)

    def program(
        self,
        host: Host,
        training: Group,
        folder: str,
        script: list[str],
        arguments: list[str],
        own: Mapping[str, str],
    ) -> list[str]:
        """Return the program on this machine that runs a host.

        Args:
            host: the host.
            training: the group that trains.
            folder: folder of the host, on its node.
            script: the script and its arguments.
            arguments: what Python runs on the node: the script, or ``torchrun`` with it.
            own: further variables of the host.
        """
        order = Order(
            host, self.hosts, training, folder, script, arguments, dict(own), os.getcwd(), self.address
        )
        text = base64.b64encode(pickle.dumps(order)).decode()
        return [sys.executable, "-P", "-m", f"{PACKAGE}.remote_host", self.nodes[host], text]


def machines_of(address: str, groups: Iterable[Group], training: Group) -> Machines:
    """Return the hosts of all groups on the nodes of a cluster: a node belongs to a group if it has a resource of that name.

    Raises:
        InputError: a group has fewer nodes than hosts.
        StateError: there is no such cluster.
        MissingExtra: Ray or pyzmq is not installed.
    """
    check_installed()
    host, _, port = address.rpartition(":")
    if host and port.isdecimal():  # Ray would try for minutes
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
        except OSError as error:
            raise _absent(address, str(error)) from None
    command = [sys.executable, "-P", "-m", f"{PACKAGE}.survey", address, training.name]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        raise _absent(address, (done.stderr.strip().splitlines() or ["no answer"])[-1])
    found = json.loads(done.stdout.splitlines()[-1])
    nodes = {}
    for group in groups:
        members = found["groups"].get(group.name, [])
        if len(members) < group.nodes:
            raise InputError(
                f"{group.nodes} hosts of the group {group.name!r}, and {len(members)} nodes of the cluster at "
                f"{found['address']} with a resource of that name",
                "a node for each host",
                "nodes did not start or have ended, or were started without the resource",
                f"start Ray there by `ray start --address={found['address']} --resources='{{\"{group.name}\": 1}}'`",
            )
        for number, (name, node_address) in enumerate(members[: group.nodes]):
            nodes[Host(group, number, node_address)] = name
    return Machines(found["address"], nodes, found["port"])


def _absent(address: str, reason: str) -> StateError:
    return StateError(
        f"cluster={address!r}, and no Ray cluster that answers there: {reason}",
        "the address of a running Ray cluster, such as 10.0.0.1:6379, or 'auto' on one of its machines",
        "Ray was not started, the address is another one, or this machine is none of its nodes",
        "start Ray by `ray start --head` and `ray start --address=...`, or leave out the cluster to use this machine",
    )

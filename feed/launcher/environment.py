"""Hosts of a job and the variables of each; inside the script, the group that it belongs to.

Variables of Loopwise, beside all of SageMaker's ``SM_*``:

``LOOPWISE_GROUP``            name of the host's group
``LOOPWISE_GROUP_NODE``       number of the host in its group, from 0
``LOOPWISE_GROUPS``           JSON: name of each group -> names of its hosts
``LOOPWISE_TRAINING_GROUP``   name of the group that trains
``LOOPWISE_HOST``             name of the host, which is an address that it may listen on
``LOOPWISE_JOB``              folder and number of the job and of the host, by which its processes are recognised
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loopwise.programs.sagemaker import prepare, text_of

from .group import Group

JOB = "LOOPWISE_JOB"


@dataclass(frozen=True, slots=True)
class Host:
    """One host of a group."""

    group: Group
    node: int
    """Number of the host in its group, from 0."""
    address: str
    """Name of the host, and the address on which it can be reached."""

    def __str__(self) -> str:
        return f"{self.group.name}/{self.node}"


def hosts_here(groups: Iterable[Group]) -> list[Host]:
    """Return hosts on this machine: each has an address of its own, so that all may listen on the same port."""
    nodes = [(group, node) for group in groups for node in range(group.nodes)]
    return [
        Host(group, node, f"127.0.{number // 250}.{number % 250 + 1}")
        for number, (group, node) in enumerate(nodes)
    ]


def resources(host: Host, hosts: Iterable[Host], interface: str = "lo") -> dict[str, Any]:
    """Return the content of SageMaker's ``resourceconfig.json`` for a host."""
    members: dict[str, list[str]] = {}
    for other in hosts:
        members.setdefault(other.group.name, []).append(other.address)
    return {
        "current_host": host.address,
        "hosts": [address for addresses in members.values() for address in addresses],
        "current_group_name": host.group.name,
        "current_instance_type": "local",
        "network_interface_name": interface,
        "instance_groups": [
            {"instance_group_name": name, "instance_type": "local", "hosts": addresses}
            for name, addresses in members.items()
        ],
    }


def variables(
    host: Host,
    hosts: list[Host],
    training: Group,
    folder: Path,
    script: str,
    arguments: list[str],
    interface: str = "lo",
) -> dict[str, str]:
    """Write the files that SageMaker's container has, and return the variables of a host.

    Args:
        host: the host.
        hosts: all hosts of the job.
        training: the group that trains.
        folder: folder of this host.
        script: the script's path.
        arguments: the script's arguments.
        interface: name of the network interface by which the hosts reach each other.
    """
    members: dict[str, list[str]] = {}
    for other in hosts:
        members.setdefault(other.group.name, []).append(other.address)
    _, container = prepare(
        folder / "ml", {}, None, {}, os.path.basename(script), resources(host, hosts, interface)
    )
    return {
        **container,
        "SM_USER_ARGS": text_of(arguments),
        "LOOPWISE_GROUP": host.group.name,
        "LOOPWISE_GROUP_NODE": str(host.node),
        "LOOPWISE_GROUPS": text_of(members),
        "LOOPWISE_TRAINING_GROUP": training.name,
        "LOOPWISE_HOST": host.address,
        "PYTHONUNBUFFERED": "1",
    }


def current_group(environment: Mapping[str, str] | None = None) -> str | None:
    """Return the name of the group that runs this script; ``None``: it was not started by ``loopwise feed launch``.

    Args:
        environment: variables to look at; default: those of this process.
    """
    return (os.environ if environment is None else environment).get("LOOPWISE_GROUP")

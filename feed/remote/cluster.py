"""Nodes of a group and actors on them, by Ray, which places actors and ends them with the trainer.

A node belongs to the group ``data`` if it was started with a resource of that name: ``ray start --resources='{"data": 1}'``.
Actors take a thousandth of it, so that the amount does not matter, and no processors: how many there are is the loader's
decision, and each is placed on a node by name.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from loopwise.errors import InputError, StateError
from loopwise.extras import required

from .actor import Actor, Hello, versions
from .keys import Keys

with required("ray", "feed", "a loader with a group"):
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

SHARE = 0.001
"""Part of a group's resource that an actor takes."""
PATIENCE = 180.0
"""Seconds within which an actor has to start."""
OWN = ("CPU", "GPU", "memory", "object_store_memory")
"""Resources of Ray that are no groups; ``node:...`` and ``accelerator_type:...`` are none either."""


@dataclass(frozen=True, slots=True)
class Node:
    """Machine of a group."""

    name: str
    """Ray's id of the node."""
    address: str
    cpus: int


def attach(group: str) -> None:
    """Connect this process to the Ray cluster, unless it is connected.

    Raises:
        StateError: there is no cluster.
    """
    if ray.is_initialized():
        return
    address = os.environ.get("RAY_ADDRESS") or "auto"
    try:
        host, _, port = address.rpartition(":")
        if host and port.isdecimal():  # Ray would try for minutes
            socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
        with _kept_handler():
            ray.init(address=address, configure_logging=False)
    except OSError:
        raise absent(group, address) from None


def groups(nodes: list[dict[str, Any]]) -> list[str]:
    """Return the groups that the living nodes of ``ray.nodes()`` belong to."""
    names = {name for node in nodes if node["Alive"] for name in node["Resources"]}
    return sorted(name for name in names if name not in OWN and ":" not in name)


def members(group: str) -> list[Node]:
    """Return the living nodes of a group.

    Raises:
        InputError: no node of the cluster belongs to the group.
        StateError: the cluster is gone.
    """
    try:
        nodes = ray.nodes() if ray.is_initialized() else None  # which would connect to any cluster
    except Exception as error:  # Ray's own errors of its client differ by what it was doing
        raise gone(group, error) from error
    if nodes is None:
        raise gone(group, ConnectionError())
    names = groups(nodes)
    if group not in names:
        raise InputError(
            f"group={group!r}",
            f"a group that has nodes: {', '.join(map(repr, names)) or 'there is none now'}",
            "the name is misspelt, or the nodes of the group did not start or have ended",
            f"start Ray on its nodes by `ray start --address=... --resources='{{\"{group}\": 1}}'`, "
            f"or pass --load {group} to `loopwise feed launch`",
        )
    return [
        Node(node["NodeID"], node["NodeManagerAddress"], int(node["Resources"].get("CPU", 0)))
        for node in nodes
        if node["Alive"] and group in node["Resources"]
    ]


def choose(nodes: Sequence[Node], taken: Iterable[str], before: int = 0) -> Node:
    """Return the node for the next actor: the one with the fewest for its processors.

    Ranks of a training place their actors at the same time and do not talk to each other.  Each therefore works out the
    places of the ranks before it, which choose by the same rule, and goes on from there.

    Args:
        nodes: nodes to choose from.
        taken: names of the nodes of this rank's other actors, once for each.
        before: number of actors of the ranks before this one.
    """
    ordered, counts = sorted(nodes, key=lambda node: node.name), Counter[str]()
    for _ in range(
        before % sum(_weight(node) for node in nodes)
    ):  # after so many, all nodes are equally full
        counts[_emptiest(ordered, counts).name] += 1
    counts.update(taken)
    return _emptiest(ordered, counts)


def _emptiest(nodes: Sequence[Node], counts: Counter[str]) -> Node:
    return min(nodes, key=lambda node: (counts[node.name] + 1) / _weight(node))


def _weight(node: Node) -> int:
    return max(node.cpus, 1)


@contextlib.contextmanager
def _kept_handler() -> Iterator[None]:
    """Keep the handler of SIGTERM: that of Ray prints a crash report, and ends this process by SIGABRT."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if before is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def absent(group: str, address: str) -> StateError:
    """Return the error for a cluster that is not there."""
    seen = f"group={group!r}, and no Ray cluster at {address!r}"
    if os.environ.get("LOOPWISE_GROUP"):
        return StateError(
            seen,
            f"a group that loads: --load {group}",
            f"`loopwise feed launch` runs the script on the hosts of the group {group!r}, too",
            f"start the script by `loopwise feed launch --group dnn=1 --group {group}=1 --load {group} ...`",
        )
    return StateError(
        seen,
        "a Ray cluster to which this machine belongs",
        "Ray was not started on this machine, or was stopped",
        f"start the script by `loopwise feed launch --group dnn=1 --group {group}=1 --load {group} ...`, or Ray by "
        "`ray start --head` here and `ray start --address=...` on the other machines, "
        "or leave out group= to load on this machine",
    )


def gone(group: str, error: Exception) -> StateError:
    """Return the error for a cluster that does not answer any more."""
    return StateError(
        f"group={group!r}: the Ray cluster does not answer ({type(error).__name__})",
        "a running cluster",
        "its head node was stopped or cannot be reached",
        "start the cluster and the training again; resume by the loader's load_state_dict",
    )


def place(group: str, node: Node, keys: Keys) -> tuple[Any, Hello]:
    """Start an actor on a node, and wait until it listens.

    Raises:
        InputError: the node has other versions of what decides about batches.
        ray.exceptions.RayError: the actor did not start within ``PATIENCE``.
    """
    remote: Any = ray.remote(Actor)
    options = remote.options(
        resources={group: SHARE},
        num_cpus=0,
        max_restarts=0,
        scheduling_strategy=NodeAffinitySchedulingStrategy(node.name, soft=False),
    )
    actor: Any = options.remote()
    try:
        hello: Hello = ray.get(actor.open.remote(node.address, keys), timeout=PATIENCE)
        compare(group, node.address, versions(), hello.versions)
    except BaseException:
        end(actor)
        raise
    actor.run.remote()
    return actor, hello


def end(actor: Any) -> None:
    """End an actor, also one that is frozen or does not answer."""
    with contextlib.suppress(Exception):  # the cluster may be gone, and the actor with it
        if ray.is_initialized():  # otherwise Ray would connect to any cluster
            ray.kill(actor)


def compare(group: str, node: str, here: dict[str, str], there: dict[str, str]) -> None:
    """Raise ``InputError`` if the versions of two machines differ in what decides about batches."""
    different = [name for name in here if here[name] != there.get(name)]
    if different:
        raise InputError(
            f"node {node} of group {group!r} has "
            + ", ".join(f"{name} {there.get(name, 'not at all')}" for name in different),
            "the trainer's versions: " + ", ".join(f"{name} {here[name]}" for name in different),
            "the machines were set up at different times, and their random numbers or pickles may differ",
            "install the same packages on all nodes",
        )

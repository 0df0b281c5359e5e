"""Groups of hosts: validate them, and read them from the command line."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from loopwise.errors import InputError
from loopwise.validate import whole_number

NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")
"""Valid names of groups, a part of those that SageMaker and Ray accept."""
HEAD = "ray"
"""Name of the group of the host that runs the head of the job's Ray cluster."""


@dataclass(frozen=True, slots=True)
class Group:
    """Hosts that run the script with the same task.

    Args:
        name: the name that the script finds in ``LOOPWISE_GROUP`` and ``SM_CURRENT_INSTANCE_GROUP``.
        nodes: number of hosts.
        processes: processes of the script on each host.  The hosts of a group with more than one process in all start them by
            ``torchrun``; only the training group may have more than one on a host.
        loads: the hosts do not run the script, but load batches for ``RemoteDataLoader(..., group=name)`` in it.
    """

    name: str
    nodes: int = 1
    processes: int = 1
    loads: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not NAME.fullmatch(self.name):
            raise InputError(
                f"the group {self.name!r}",
                "a name of letters, digits, '-' and '_' that begins with a letter",
                "the name and the number of nodes changed places",
                "write for instance --group data=2, or Group('data', nodes=2)",
            )
        whole_number(f"nodes of the group {self.name!r}: nodes", self.nodes, 1, "hosts", 1)
        whole_number(f"processes of the group {self.name!r}: processes", self.processes, 1, "processes", 1)


def parse(text: str) -> Group:
    """Return the group that an argument ``NAME=NODES`` describes."""
    name, equals, nodes = text.partition("=")
    if not equals or not re.fullmatch(r"-?\d+", nodes):
        raise InputError(
            f"--group {text}",
            "NAME=NODES, a name and a number of hosts",
            "a group without its number of nodes" if not nodes else "a typo",
            f"write for instance --group {name or 'data'}=1",
        )
    return Group(name, int(nodes))


def validated(groups: Iterable[Group], train: str | None) -> tuple[list[Group], Group]:
    """Return the groups and the one that trains.

    Args:
        groups: the groups.
        train: name of the group that trains; ``None``: the first one.
    """
    given: Sequence[Group] = list(groups)
    names = [group.name for group in given]
    if not given:
        raise InputError(
            "groups=[]",
            "at least one group",
            "the list was not filled",
            "pass for instance groups=[Group('dnn'), Group('data', nodes=2)]",
        )
    if doubled := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(
            f"the group {doubled[0]!r}, given twice",
            "different names",
            "two hosts of one group were given as two groups",
            f"give their number: --group {doubled[0]}=2",
        )
    if train is not None and train not in names:
        raise InputError(
            f"train={train!r}",
            f"one of the groups: {', '.join(names)}",
            "a typo",
            f"pass for instance train={names[0]!r}",
        )
    training = given[0] if train is None else given[names.index(train)]
    if any(group.loads for group in given):
        _check_loading(given, training)
    for group in given:
        if group is not training and group.processes > 1:
            raise InputError(
                f"processes={group.processes} of the group {group.name!r}",
                f"one process on each host of a group that does not train; {training.name!r} trains",
                "the first group trains unless another is named",
                f"pass train={group.name!r}, or let the script start its own processes",
            )
    return list(given), training


def _check_loading(groups: Sequence[Group], training: Group) -> None:
    """Refuse a training group that loads, and the name of the cluster's head."""
    if training.loads:
        raise InputError(
            f"the group {training.name!r}, which trains and loads",
            "a group that trains, and another one that loads for it",
            "the first group trains unless another is named, and hosts that load do not run the script",
            f"write for instance --group dnn=1 --group {training.name}={training.nodes} --load {training.name}",
        )
    if any(group.name == HEAD for group in groups):
        raise InputError(
            f"the group {HEAD!r} beside a group that loads",
            "another name",
            f"the launcher starts a host {HEAD}/0, by which training finds the hosts that load",
            "rename the group",
        )

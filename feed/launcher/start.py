"""The function ``launch``: validate a job, and run it on this machine."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Sequence
from pathlib import Path

from loopwise.errors import InputError, StateError
from loopwise.programs.locks import locked
from loopwise.validate import positive_number, whole_number

from .cluster import Cluster
from .environment import hosts_here
from .group import HEAD, Group, validated
from .job import Job
from .machines import machines_of


def launch(
    groups: Iterable[Group],
    script: str,
    args: Sequence[str] = (),
    *,
    train: str | None = None,
    folder: str | os.PathLike[str] | None = None,
    port: int | None = None,
    ready: int | None = None,
    ready_seconds: float = 60.0,
    cluster: str | None = None,
) -> int:
    """Run one script on all hosts of all groups, and return the exit status of training.

    On this machine a host is a process with an address of its own: 127.0.0.1, 127.0.0.2, ...  Inside the script,
    ``current_group()``, the variables ``LOOPWISE_*`` and the environment of SageMaker's heterogeneous clusters say which host
    it runs on.  The hosts of a group that loads are nodes of a Ray cluster, to which the training group is connected.  With ``cluster`` each
    host is a node of a Ray cluster that runs already, and has the script at the same path.  Whatever ends the job (the end of training, a failure, a signal to this process, its death), the processes of
    all hosts are asked to end by SIGTERM and killed 5 seconds later.  If all hosts of another group have ended and one
    of them has failed, training is ended 3 seconds later, and the status is that of the failed host.

    Args:
        groups: the groups.
        script: path of a Python script.
        args: arguments of the script.
        train: name of the group that trains; default: the first one.
        folder: the job's folder, whose ``feed/<group>-<node>/ml`` stands for ``/opt/ml`` on each host; default: ``runs/`` and
            the name of the script.
        port: port by which the processes of the training group find each other, if it has several; default: any free one.
        ready: port on which each host of the other groups has to listen before training starts; default: it starts at once.
        ready_seconds: time limit for that, in seconds.
        cluster: address of a running Ray cluster, or ``"auto"``: a host of the group ``data`` is a node with a resource of that
            name.  ``None``: all hosts are on this machine.

    Returns:
        0, or the status as a shell shows it: 137 for a training that was ended by SIGKILL, for instance for want of memory.

    Raises:
        InputError: wrong groups, no such script, a port that is taken, or a cluster with too few nodes of a group.
        StateError: another job runs in the folder, or there is no such cluster.
        MissingExtra: a group loads, or ``cluster`` is given, and Ray or pyzmq is not installed.
    """
    given, training = validated(groups, train)
    _validate_script(script)
    machines = None if cluster is None else machines_of(cluster, given, training)
    hosts = hosts_here(given) if machines is None else machines.hosts
    own_cluster = None
    if machines is None and any(group.loads for group in given):
        own_cluster = Cluster(hosts, hosts_here([*given, Group(HEAD)])[-1].address)
    first = next(host for host in hosts if host.group is training)
    if port is not None:
        _validate_port(port, first.address if machines is None else None)
    if ready is not None:
        whole_number("ready", ready, 1, example=6000)
    positive_number("ready_seconds", ready_seconds, "number of seconds", 60)
    place = Path(folder if folder is not None else Path("runs") / Path(script).stem).absolute() / "feed"
    place.mkdir(parents=True, exist_ok=True)
    with locked(place / "launcher.lock") as holds:
        if not holds:
            raise StateError(
                f"the folder {str(place.parent)!r}, in which another job runs",
                "a folder for each job",
                "the same script was started twice",
                "wait for the other job, or pass another folder",
            )
        program = [script, *(str(argument) for argument in args)]
        return Job(hosts, training, place, program, port or 0, own_cluster, machines).run(
            ready, ready_seconds
        )


def _validate_script(script: str) -> None:
    if not os.path.isfile(script):
        raise InputError(
            f"the script {script!r}",
            "the path of a Python script",
            "a typo, or another working folder" if not os.path.isdir(script) else "a folder was given",
            f"check the path; the working folder is {os.getcwd()}",
        )


def _validate_port(port: int, address: str | None) -> None:
    """Refuse what is no port, or one that is taken at an address of this machine."""
    whole_number("port", port, 1, example=29500)
    if address is None:
        return
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except (OSError, OverflowError) as error:
            raise InputError(
                f"port={port} on {address}: {getattr(error, 'strerror', None) or error}",
                "a free port, from 1024 to 65535",
                "another program listens on it, such as another training",
                "pass another port, or none, to use any free one",
            ) from None

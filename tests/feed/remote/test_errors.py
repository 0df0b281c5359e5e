"""Whole messages of errors for which a cluster would have to be broken."""

import socket

import pytest

from loopwise.errors import InputError, StateError
from loopwise.feed import RemoteDataLoader
from loopwise.feed.remote import cluster
from loopwise.feed.remote.fleet import none_left


def test_another_version_on_a_node():
    here = {"python": "3.11", "loopwise": "0.1.0", "torch": "2.15.0", "numpy": "2.4.6"}
    cluster.compare("data", "10.0.0.7", here, dict(here))
    with pytest.raises(InputError) as caught:
        cluster.compare("data", "10.0.0.7", here, here | {"torch": "2.14.0", "numpy": "2.3.0"})
    assert str(caught.value) == (
        "seen: node 10.0.0.7 of group 'data' has torch 2.14.0, numpy 2.3.0\n"
        "expected: the trainer's versions: torch 2.15.0, numpy 2.4.6\n"
        "likely cause: the machines were set up at different times, and their random numbers or pickles may differ\n"
        "fix: install the same packages on all nodes"
    )


def test_no_worker_is_left():
    error = none_left("data", "on node 10.0.0.7 refused the key", None)
    assert str(error) == (
        "seen: 3 workers of group 'data' in a row that loaded nothing; the last one on node 10.0.0.7 refused the key\n"
        "expected: at least one worker that starts and loads batches\n"
        "likely cause: the nodes of the group are gone, have no memory left, or cannot import loopwise\n"
        "fix: look at what the workers printed and at `ray status`; resume by the loader's load_state_dict"
    )


def test_a_cluster_that_does_not_answer():
    assert str(cluster.gone("data", TimeoutError())) == (
        "seen: group='data': the Ray cluster does not answer (TimeoutError)\n"
        "expected: a running cluster\n"
        "likely cause: its head node was stopped or cannot be reached\n"
        "fix: start the cluster and the training again; resume by the loader's load_state_dict"
    )


@pytest.mark.parametrize(
    ("launched", "expected"),
    [
        (
            False,
            "expected: a Ray cluster to which this machine belongs\n"
            "likely cause: Ray was not started on this machine, or was stopped\n"
            "fix: start the script by `loopwise feed launch --group dnn=1 --group data=1 --load data ...`, or Ray by "
            "`ray start --head` here and `ray start --address=...` on the other machines, "
            "or leave out group= to load on this machine",
        ),
        (
            True,
            "expected: a group that loads: --load data\n"
            "likely cause: `loopwise feed launch` runs the script on the hosts of the group 'data', too\n"
            "fix: start the script by `loopwise feed launch --group dnn=1 --group data=1 --load data ...`",
        ),
    ],
)
def test_no_cluster(monkeypatch, launched, expected):
    """No Ray runs at the address: it is that of a port which nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    monkeypatch.setenv("RAY_ADDRESS", address)
    if launched:
        monkeypatch.setenv("LOOPWISE_GROUP", "dnn")
    with pytest.raises(StateError) as caught:
        next(iter(RemoteDataLoader([1, 2], num_workers=1, group="data")))
    assert str(caught.value) == f"seen: group='data', and no Ray cluster at '{address}'\n" + expected

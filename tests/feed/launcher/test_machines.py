"""Hosts on the nodes of a running Ray cluster: training on two of them with ``torchrun``, a third one loads for it."""

import json
import os
import re
import signal

import pytest
from launch_kit import kill, pids, start, wait_for_end
from ray.cluster_utils import Cluster

from loopwise.errors import InputError, StateError
from loopwise.feed.launcher.environment import hosts_here
from loopwise.feed.launcher.group import Group
from loopwise.feed.launcher.machines import machines_of
from loopwise.feed.launcher.remote_owner import Order, RemoteOwner, interface
from loopwise.feed.launcher.start import launch

PATIENCE = 500
NODE = {"num_cpus": 1, "object_store_memory": 80 << 20}
TRAINING = """
import json, os, sys, torch
import torch.distributed as dist
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler
from loopwise.feed import RemoteDataLoader, current_group

if __name__ == "__main__":
    dist.init_process_group("gloo")
    data = torch.utils.data.TensorDataset(torch.arange(10))
    options = {"sampler": DistributedSampler(data, shuffle=False), "batch_size": 2, "num_workers": 1}
    batches = [batch[0].tolist() for batch in RemoteDataLoader(data, group="data", **options)]
    total = torch.tensor(sum(map(sum, batches)))
    dist.all_reduce(total)
    print(json.dumps([
        current_group(), os.environ["LOOPWISE_GROUP_NODE"], dist.get_rank(), dist.get_world_size(), sys.argv[1:],
        batches == [batch[0].tolist() for batch in DataLoader(data, **options)], int(total),
        len(json.loads(os.environ["LOOPWISE_GROUPS"])["dnn"]), os.environ.get("CUDA_VISIBLE_DEVICES"),
    ]), flush=True)
    dist.barrier()
    if dist.get_rank():
        os.kill(os.getpid(), 9)
    dist.barrier()
"""
WAITING = """
import os, pathlib, subprocess, sys, time
host = os.environ["LOOPWISE_GROUP"] + "-" + os.environ["LOOPWISE_GROUP_NODE"]
below = subprocess.Popen(["sleep", "1000"], start_new_session=True)
path = pathlib.Path(sys.argv[1], host)
path.with_suffix(".new").write_text(f"{os.getppid()} {os.getpid()} {below.pid}")
path.with_suffix(".new").rename(path)
print("ready", flush=True)
print("error", file=sys.stderr, flush=True)
time.sleep(1000)
"""


@pytest.fixture(scope="module")
def cluster():
    head = NODE | {"include_dashboard": False, "_system_config": {"worker_niceness": 0}}
    cluster = Cluster(initialize_head=True, head_node_args=head | {"resources": {"dnn": 1}})
    for group in ("dnn", "data"):
        cluster.add_node(**NODE, resources={group: 1})
    yield cluster
    cluster.shutdown()


def test_training_on_two_nodes_gets_its_batches_from_a_third(cluster, tmp_path):
    """``torchrun`` connects the two; the status is that of the rank that was killed."""
    options = ["--group", "dnn=2", "--group", "data=1", "--load", "data", "--cluster", cluster.address]
    job = start(tmp_path, *options, text=TRAINING, arguments=["-x"])
    try:
        out, err = job.communicate(timeout=PATIENCE)
    finally:
        kill(job)
    lines = dict(line.split(" ", 1) for line in out.splitlines())
    assert lines.keys() == {"[dnn/0:0]", "[dnn/1:0]"}, err
    for rank in (0, 1):
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES")  # Ray hides GPUs from its actors
        expected = ["dnn", str(rank), rank, 2, ["-x"], True, 45, 2, hidden]
        assert json.loads(lines[f"[dnn/{rank}:0]"]) == expected
    assert job.returncode == 137
    assert "dnn/1 was ended by SIGKILL" in err


@pytest.mark.parametrize(
    ("which", "number"),
    [
        ("launcher", signal.SIGTERM),
        ("launcher", signal.SIGKILL),
        ("owner", signal.SIGKILL),
        ("script", signal.SIGTERM),
    ],
)
def test_all_nodes_end_with_the_job(cluster, tmp_path, which, number):
    job = start(tmp_path, "--group", "dnn=1", "--group", "data=1", "--cluster", cluster.address, text=WAITING)
    try:
        hosts = {host: pids(tmp_path, host) for host in ("dnn-0", "data-0")}
        victim = {"launcher": job.pid, "owner": hosts["dnn-0"][0], "script": hosts["dnn-0"][1]}[which]
        os.kill(victim, number)
        out, err = job.communicate(timeout=PATIENCE)
        seconds = wait_for_end([pid for numbers in hosts.values() for pid in numbers])
    finally:
        kill(job)
    print(f"all have ended {seconds:.1f} s after the launcher")
    assert job.returncode == (-number if which == "launcher" and number == signal.SIGKILL else 128 + number)
    if which == "launcher" and number == signal.SIGKILL:
        return  # what it had not printed yet is lost
    whole = ("data/0",) if which == "owner" else ("dnn/0", "data/0")  # a killed owner may leave lines unread
    assert {f"[{host}] ready" for host in whole} <= set(out.splitlines())
    assert {f"[{host}] error" for host in whole} <= set(err.splitlines())


def test_a_node_that_is_switched_off_ends_the_job(cluster, tmp_path):
    """Training waits for a group without hosts for ever: it is ended, and so is what ran on the node."""
    node = cluster.add_node(**NODE, resources={"spare": 1})
    job = start(
        tmp_path, "--group", "dnn=1", "--group", "spare=1", "--cluster", cluster.address, text=WAITING
    )
    try:
        hosts = {host: pids(tmp_path, host) for host in ("dnn-0", "spare-0")}
        cluster.remove_node(node, allow_graceful=False)
        out, err = job.communicate(timeout=PATIENCE)
        wait_for_end([pid for numbers in hosts.values() for pid in numbers])
    finally:
        kill(job)
    assert job.returncode == 1
    assert re.search(r"\[spare/0\] the node at \S+ is lost \(", err)
    assert "spare/0 ended with status 1" in err
    assert "the group 'spare' has no host any more; 'dnn', which still runs, is ended" in err
    assert {"[dnn/0] ready", "[spare/0] ready"} <= set(out.splitlines())


def test_a_group_with_too_few_nodes_is_refused(cluster, tmp_path):
    script = tmp_path / "train.py"
    script.write_text("")
    with pytest.raises(InputError) as caught:
        launch([Group("dnn", 2), Group("data", 3)], str(script), cluster=cluster.address, folder=tmp_path)
    assert str(caught.value) == (
        f"seen: 3 hosts of the group 'data', and 1 nodes of the cluster at {cluster.address} with a resource of that name\n"
        "expected: a node for each host\n"
        "likely cause: nodes did not start or have ended, or were started without the resource\n"
        f"fix: start Ray there by `ray start --address={cluster.address} --resources='{{\"data\": 1}}'`"
    )


def test_a_script_that_a_node_does_not_have(tmp_path):
    (host,) = hosts_here([Group("dnn")])
    order = Order(host, [host], host.group, str(tmp_path), ["train.py"], ["train.py"], {}, str(tmp_path), "")
    assert RemoteOwner().start(order, "mark") == (
        f"dnn/0 at 127.0.0.1 has no file '{tmp_path}/train.py': put the script at the same path on all machines"
    )


def test_a_cluster_that_is_not_there_is_an_error():
    (host,) = hosts_here([Group("dnn")])
    address = f"{host.address}:1"
    with pytest.raises(StateError) as caught:
        machines_of(address, [host.group], host.group)
    assert str(caught.value) == (
        f"seen: cluster='{address}', and no Ray cluster that answers there: [Errno 111] Connection refused\n"
        "expected: the address of a running Ray cluster, such as 10.0.0.1:6379, or 'auto' on one of its machines\n"
        "likely cause: Ray was not started, the address is another one, or this machine is none of its nodes\n"
        "fix: start Ray by `ray start --head` and `ray start --address=...`, or leave out the cluster to use this machine"
    )


def test_the_interface_of_an_address():
    assert interface("127.0.0.1") == "lo"
    assert interface("203.0.113.7") == "lo"  # nobody has it

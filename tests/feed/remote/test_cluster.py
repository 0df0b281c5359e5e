"""Loading on a real cluster of two nodes: the batches of DataLoader, whatever dies."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import numpy as np
import psutil
import pytest
import ray
import torch
from ray.cluster_utils import Cluster
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from loopwise.errors import InputError
from loopwise.feed import RemoteDataLoader
from loopwise.feed.remote import cluster as placement
from loopwise.feed.remote import member
from loopwise.feed.remote.pool import close_fleets

PATIENCE = 120
SYSTEM = {"worker_niceness": 0}  # actors at the lowest priority would take minutes to start on a busy machine
NODE = {"num_cpus": 1, "object_store_memory": 80 << 20, "resources": {"data": 1}}


@pytest.fixture(scope="module")
def cluster():
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    cluster = Cluster(
        initialize_head=True, head_node_args=NODE | {"include_dashboard": False, "_system_config": SYSTEM}
    )
    second = cluster.add_node(**NODE)
    ray.init(cluster.address, log_to_driver=False, configure_logging=False)
    yield cluster, second
    close_fleets()
    ray.shutdown()
    cluster.shutdown()
    ray.cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


@pytest.fixture
def network(cluster, monkeypatch):
    """Hand over batches through the network, although all nodes are on this host."""
    monkeypatch.setattr(member, "SAME_HOST", False)
    close_fleets()
    yield
    close_fleets()


class Images(Dataset):
    """Random images of 150 KB with their index, and the process that made them."""

    def __init__(self, count=48, wait=0.0, broken=()):
        self.count, self.wait, self.broken = count, wait, broken

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        time.sleep(self.wait)
        if index in self.broken:
            raise KeyError(f"no sample {index}")
        image = torch.rand(3, 64, 64) + float(np.random.rand())
        return {"image": image, "index": index, "process": os.getpid()}


class Numbers(IterableDataset):
    """Numbers with noise; worker ``w`` has its own, of its own count."""

    def __iter__(self):
        lane = get_worker_info().id
        for number in range(10 + 7 * lane):
            yield 1000 * lane + number + torch.rand(())


def same(expected, batch):
    return torch.equal(expected["image"], batch["image"]) and torch.equal(expected["index"], batch["index"])


def loaded(loader, epochs=1):
    torch.manual_seed(5)
    return [batch for _ in range(epochs) for batch in loader]


ARGUMENTS = {"batch_size": 4, "shuffle": True, "num_workers": 3}


def assert_equal(expected, batches):
    assert len(expected) == len(batches)
    assert all(map(same, expected, batches))


def test_batches_are_those_of_dataloader(cluster):
    loader = RemoteDataLoader(Images(), **ARGUMENTS, group="data", workers=2)
    expected = loaded(DataLoader(Images(), **ARGUMENTS), 2)
    batches = loaded(loader, 2)
    assert_equal(expected, batches)
    processes = {int(process) for batch in batches for process in batch["process"]}
    assert len(processes) == 2
    assert os.getpid() not in processes
    report = loader.report()
    assert (report["batches"], report["copies"], report["workers_lost"]) == (12, 0, 0)
    assert report["held_bytes"] >= 24 * 4 * 3 * 64 * 64 * 4


def test_an_epoch_is_resumed_by_a_group_and_here(cluster):
    loader = RemoteDataLoader(Images(), **ARGUMENTS, group="data", workers=2)
    torch.manual_seed(5)
    iterator = iter(loader)
    for _ in range(4):
        next(iterator)
    state = loader.state_dict()
    expected = list(iterator)
    again = RemoteDataLoader(Images(), **ARGUMENTS, group="data", workers=2)
    again.load_state_dict(state)
    assert_equal(expected, list(again))
    here = RemoteDataLoader(Images(), **ARGUMENTS, workers=1)
    here.load_state_dict(state)
    assert_equal(expected, list(here))


def test_an_iterable_dataset_with_unequal_lanes(cluster):
    arguments = {"batch_size": 4, "num_workers": 3}
    expected = loaded(DataLoader(Numbers(), **arguments))
    batches = loaded(RemoteDataLoader(Numbers(), **arguments, group="data", workers=2))
    assert len(expected) == len(batches) == 14
    assert all(map(torch.equal, expected, batches))


def test_the_exception_of_a_dataset_and_the_batches_after_it(cluster):
    loaders = [
        DataLoader(Images(12, broken=[5]), batch_size=4, num_workers=2),
        RemoteDataLoader(Images(12, broken=[5]), batch_size=4, num_workers=2, group="data"),
    ]
    batches = []
    for loader in loaders:
        torch.manual_seed(5)
        iterator = iter(loader)
        batches.append([next(iterator)])
        with pytest.raises(KeyError, match=r"Caught KeyError in DataLoader worker process 1[^$]*no sample 5"):
            next(iterator)
        batches[-1] += iterator
    assert_equal(*batches)


def test_actors_that_are_killed_and_frozen_in_an_epoch(network):
    loader = RemoteDataLoader(Images(96, 0.01), **ARGUMENTS, group="data", workers=2)
    expected = loaded(DataLoader(Images(96), **ARGUMENTS))
    torch.manual_seed(5)
    batches, frozen = [], []
    for number, batch in enumerate(loader):
        batches.append(batch)
        if number in (2, 14):
            process = int(batch["process"][0])
            os.kill(process, signal.SIGKILL if number == 2 else signal.SIGSTOP)
            frozen.append(process)
    assert_equal(expected, batches)
    assert loader.report()["workers_lost"] == 2
    assert loader.report()["held_bytes"] >= 24 * 4 * 3 * 64 * 64 * 4
    for process in frozen:  # Ray does not end it before it wakes up
        if psutil.pid_exists(process):
            os.kill(process, signal.SIGCONT)


def test_the_batches_of_a_dead_actor_do_not_wait_for_its_replacement(network, monkeypatch):
    """The other actor takes them, and gives lanes to the replacement once that one can load."""
    loader = RemoteDataLoader(Images(2000, 0.01), **ARGUMENTS, group="data", workers=2)
    place, allowed = placement.place, threading.Event()

    def late(*arguments):
        allowed.wait(PATIENCE)
        return place(*arguments)

    torch.manual_seed(5)
    batches, before, new = [], set(), set()
    for number, batch in enumerate(loader):
        batches.append(batch)
        process = int(batch["process"][0])
        if number < 6:
            before.add(process)
        elif number == 6:
            monkeypatch.setattr(placement, "place", late)
            os.kill(process, signal.SIGKILL)
        elif number == 40:
            allowed.set()
        if process not in before:
            new.add(number)
        if len(new) == 5:
            break
    assert len(before) == 2
    assert min(new) > 40
    torch.manual_seed(5)
    expected = iter(DataLoader(Images(2000), **ARGUMENTS))
    assert_equal([next(expected) for _ in batches], batches)


def test_the_number_of_workers_follows_what_training_waits_for(cluster, monkeypatch):
    monkeypatch.setattr("loopwise.feed.remote.elastic.BATCHES", 4)
    monkeypatch.setattr("loopwise.feed.remote.elastic.SECONDS", 0.2)
    arguments = {"batch_size": 4, "shuffle": True, "num_workers": 4, "seeding": "sample"}
    loader = RemoteDataLoader(Images(4000, 0.01), **arguments, group="data", workers="auto")
    torch.manual_seed(5)
    batches, workers = [], []
    for batch in loader:
        batches.append(batch)
        workers.append(loader.report()["workers"])
        if 2 in workers:
            if workers[-1] == 1:
                break
            time.sleep(0.2)  # training is slow now
    assert set(workers) == {1, 2}
    torch.manual_seed(5)
    expected = iter(RemoteDataLoader(Images(4000), **arguments, workers=1))
    assert_equal([next(expected) for _ in batches], batches)
    assert loader.report()["workers_lost"] == 0


def test_a_killed_trainer_frees_its_workers(cluster, tmp_path):
    script = tmp_path / "train.py"
    script.write_text(
        textwrap.dedent("""
        import os, sys, time, torch
        from loopwise.feed import RemoteDataLoader

        class Slow(torch.utils.data.Dataset):
            def __len__(self):
                return 1000
            def __getitem__(self, index):
                time.sleep(0.05)
                return os.getpid()

        if __name__ == "__main__":
            for batch in RemoteDataLoader(Slow(), num_workers=1, group="data"):
                print(int(batch), flush=True)
        """)
    )
    environment = os.environ | {"RAY_ADDRESS": cluster[0].address}
    with subprocess.Popen(
        [sys.executable, script], stdout=subprocess.PIPE, text=True, env=environment
    ) as trainer:
        try:
            worker = psutil.Process(int(trainer.stdout.readline()))
        finally:
            trainer.kill()
        start = time.monotonic()
        worker.wait(PATIENCE)
        print(f"the worker ended after {time.monotonic() - start:.2f} s")


TWO_RANKS = """
import time, ray
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.distributed import DistributedSampler
from loopwise.feed import RemoteDataLoader
from loopwise.feed.remote.pool import close_fleets

class Noise(Dataset):
    def __len__(self):
        return 44
    def __getitem__(self, index):
        node = ray.get_runtime_context().get_node_id() if ray.is_initialized() else ""
        return torch.rand(20_000), index, os.getpid(), node

def loaded(make, **options):
    torch.manual_seed(dist.get_rank())
    sampler, batches = DistributedSampler(Noise(), shuffle=True), []
    loader = make(Noise(), batch_size=4, sampler=sampler, num_workers=2, **options)
    for epoch in range(2):
        sampler.set_epoch(epoch)
        batches += list(loader)
    return batches

model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(20_000, 1))
expected, batches = loaded(DataLoader), loaded(RemoteDataLoader, workers=1, group="data")
for batch in batches:
    model(batch[0]).sum().backward()
same = [torch.equal(ours[0], theirs[0]) and torch.equal(ours[1], theirs[1]) for ours, theirs in zip(batches, expected)]
if dist.get_rank():  # it ends its workers while the other rank loads
    close_fleets()
    dist.barrier()
    again = []
else:
    dist.barrier()
    again = loaded(RemoteDataLoader, workers=1, group="data")
indices = [int(index) for batch in batches[:6] for index in batch[1]]
print(json.dumps({
    "same": same, "expected": len(expected), "indices": indices, "again": [batch[1].tolist() for batch in again],
    "pids": sorted({int(pid) for batch in batches + again for pid in batch[2]}),
    "nodes": sorted({node for batch in batches + again for node in batch[3]}),
}))
"""


def test_ddp_ranks_share_a_group(cluster, ranks, monkeypatch):
    """Each has DataLoader's batches from a node of its own, goes on when the other one has ended, and leaves nothing."""
    monkeypatch.setenv("RAY_ADDRESS", cluster[0].address)
    first, second = ranks(TWO_RANKS)
    for rank in (first, second):
        assert rank["same"] == [True] * rank["expected"] == [True] * 12
        assert len(rank["pids"]) == len(rank["nodes"]) == 1
    assert first["nodes"] != second["nodes"]
    assert set(first["indices"] + second["indices"]) == set(range(44))
    assert [index for batch in first["again"][:6] for index in batch] == first["indices"]
    psutil.wait_procs(
        [psutil.Process(pid) for pid in first["pids"] + second["pids"] if psutil.pid_exists(pid)]
    )


def test_an_unknown_group_is_refused(cluster):
    loader = RemoteDataLoader(Images(), num_workers=1, group="date")
    with pytest.raises(InputError) as caught:
        next(iter(loader))
    assert str(caught.value) == (
        "seen: group='date'\n"
        "expected: a group that has nodes: 'data'\n"
        "likely cause: the name is misspelt, or the nodes of the group did not start or have ended\n"
        "fix: start Ray on its nodes by `ray start --address=... --resources='{\"date\": 1}'`, "
        "or pass --load date to `loopwise feed launch`"
    )


def test_a_dataset_that_cannot_be_pickled_names_the_attribute(cluster):
    dataset = Images()
    dataset.reader = {"lock": threading.Lock()}
    with pytest.raises(InputError) as caught:
        next(iter(RemoteDataLoader(dataset, num_workers=1, group="data")))
    assert str(caught.value) == (
        "seen: dataset.reader['lock'] of type lock, which cannot be pickled (cannot pickle '_thread.lock' object)\n"
        "expected: a dataset, collate_fn and worker_init_fn that can be pickled, since they travel to other machines\n"
        "likely cause: it holds an open file, a lock, a connection or a generator\n"
        "fix: open it in the worker when it is first used, or leave dataset.reader['lock'] out in __getstate__"
    )


def test_a_module_that_only_the_trainer_has(cluster, tmp_path, monkeypatch):
    (tmp_path / "only_here.py").write_text("class Data(list):\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    import only_here

    with pytest.raises(InputError) as caught:
        next(iter(RemoteDataLoader(only_here.Data([1]), num_workers=1, group="data")))
    address = ray.nodes()[0]["NodeManagerAddress"]
    assert str(caught.value) == (
        f"seen: a dataset that node {address} cannot load: ModuleNotFoundError: No module named 'only_here'\n"
        "expected: a dataset, collate_fn and worker_init_fn whose modules and files are on all nodes of the group\n"
        "likely cause: a module of yours is installed or on the path on this machine only\n"
        "fix: install it on the nodes, or start Ray there in the folder of the script"
    )


def test_a_node_that_is_killed_in_an_epoch(cluster):
    expected = loaded(DataLoader(Images(64), **ARGUMENTS))
    torch.manual_seed(5)
    loader, batches = RemoteDataLoader(Images(64, 0.01), **ARGUMENTS, group="data", workers=2), []
    for number, batch in enumerate(loader):
        batches.append(batch)
        if number == 4:
            raylet = psutil.Process(cluster[1].all_processes["raylet"][0].process.pid)
            for process in [raylet, *raylet.children(recursive=True)]:
                process.kill()
    assert_equal(expected, batches)
    assert loader.report()["workers_lost"] == 1

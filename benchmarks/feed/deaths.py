"""Workers, actors and nodes that are killed at random cost no sample, and less than 2 s each."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import psutil
import torch
from torch.utils.data import DataLoader, Dataset

from .. import harness
from ..record import Row

CLAIM = "feed_deaths"
QUICK = False
EPOCHS = {"processes": 100, "actors": 90, "nodes": 10}
"""Kind of victim -> epochs of a run, each with one kill."""
ARGUMENTS: dict[str, Any] = {"batch_size": 4, "shuffle": True, "num_workers": 3}
WORKERS = 2
NODE = {"num_cpus": 1, "object_store_memory": 80 << 20, "resources": {"data": 1}}


class Samples(Dataset[Any]):
    """Random samples with their index, and the process that made them."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __len__(self) -> int:
        return 240

    def __getitem__(self, index: int) -> tuple[int, torch.Tensor, int]:
        time.sleep(self.seconds)
        return index, torch.rand(64), os.getpid()


def kill_process(batch: Any) -> None:
    """Kill the process that made a batch."""
    with contextlib.suppress(
        ProcessLookupError
    ):  # it was killed in the epoch before, and the batch is from then
        os.kill(int(batch[2][0]), signal.SIGKILL)


def nothing() -> None:
    """Leave the cluster as it is."""


def train(
    loader: DataLoader[Any],
    epochs: int,
    seed: int,
    kill: Callable[[Any], None],
    repair: Callable[[], None] = nothing,
) -> dict[str, float]:
    """Run epochs with a kill in each, and compare them with DataLoader's; ``repair`` is called after each.

    Returns:
        Epochs whose batches differ in any way, and the median and longest recovery in seconds: the longest wait for a batch
        after the kill.
    """
    draws, wrong, recoveries = random.Random(seed), 0, []
    for epoch in range(epochs):
        torch.manual_seed(1000 * seed + epoch)
        expected = list(DataLoader(Samples(0.0), **ARGUMENTS))
        torch.manual_seed(1000 * seed + epoch)
        victim, batches, longest, before = draws.randrange(5, 40), [], 0.0, 0.0
        for batch in loader:
            now = time.perf_counter()
            if len(batches) > victim:
                longest = max(longest, now - before)
            batches.append(batch)
            if len(batches) - 1 == victim:
                kill(batch)
            before = time.perf_counter()
        repair()
        recoveries.append(longest)
        wrong += len(batches) != len(expected) or not all(
            torch.equal(ours[0], theirs[0]) and torch.equal(ours[1], theirs[1])
            for ours, theirs in zip(batches, expected, strict=True)
        )
    recoveries.sort()
    return {"wrong epochs": wrong, "recovery": recoveries[epochs // 2], "longest recovery": recoveries[-1]}


@contextlib.contextmanager
def cluster() -> Iterator[Any]:
    """Start a cluster of two nodes of the group ``data``; the first one is never killed."""
    import ray
    from ray.cluster_utils import Cluster

    head = NODE | {"include_dashboard": False, "_system_config": {"worker_niceness": 0}}
    nodes = Cluster(initialize_head=True, head_node_args=head)
    ray.init(nodes.address, log_to_driver=False, configure_logging=False)
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    try:
        yield nodes
    finally:
        ray.shutdown()
        nodes.shutdown()


def measure(victims: str, seed: int) -> dict[str, float]:
    """Run the epochs of one kind of victim."""
    from loopwise.feed import RemoteDataLoader

    epochs = max(3, EPOCHS[victims] // (10 if QUICK else 1))
    if victims == "processes":
        return train(
            RemoteDataLoader(Samples(0.005), **ARGUMENTS, workers=WORKERS), epochs, seed, kill_process
        )
    from loopwise.feed.remote import member
    from loopwise.feed.remote.pool import close_fleets

    member.SAME_HOST = False
    with cluster() as nodes:
        try:
            loader = RemoteDataLoader(Samples(0.005), **ARGUMENTS, workers=WORKERS, group="data")
            if victims == "actors":
                return train(loader, epochs, seed, kill_process)
            second = [nodes.add_node(**NODE)]

            def kill_node(_: Any) -> None:
                raylet = psutil.Process(second.pop().all_processes["raylet"][0].process.pid)
                for process in [raylet, *raylet.children(recursive=True)]:
                    process.kill()

            def add_node() -> None:
                second.append(nodes.add_node(**NODE))
                close_fleets()  # the next epoch has a worker on each node

            return train(loader, epochs, seed, kill_node, add_node)
        finally:
            close_fleets()


def cases(device: str) -> dict[str, Callable[[int], dict[str, float]]]:
    """Return the cases."""
    return {victims: partial(measure, victims) for victims in EPOCHS}


def rows(runs: harness.Runs) -> list[Row]:
    """Return wrong epochs and recoveries."""
    table = []
    for victims, of in runs.items():
        wrong = of["wrong epochs"]
        name = f"epochs of {EPOCHS[victims] // (10 if QUICK else 1)} with a kill of {victims}"
        table.append(Row(f"{name}: with a wrong batch", wrong, None, "", "epochs", "ours <= 0"))
        table.append(Row(f"{name}: median recovery", of["recovery"], None, "", "s", "ours <= 2"))
        table.append(Row(f"{name}: longest recovery", of["longest recovery"], None, "", "s", None))
    return table


if __name__ == "__main__":
    harness.main(sys.modules[__name__])

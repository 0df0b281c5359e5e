"""Batches of our workers beside SPDL's threads and rpcdataloader's remote workers, on the work that each of them is made for."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import psutil
import torch
from torch.utils.data import Dataset

from .. import harness
from ..record import Row
from . import local, peer_spdl

CLAIM = "feed_peers"
QUICK = False
WORKERS, ROUNDS = 2, 3
PICTURES, STACKS = 40, 100
"""Batches of 32 photographs, and of 64 images that take no time to load, in an epoch."""


def seconds_of_processors() -> float:
    """Return the processor time of this process and all below it, in seconds."""
    process = psutil.Process()
    times = [each.cpu_times() for each in (process, *process.children(recursive=True))]
    return sum(each.user + each.system for each in times)


def timed(loader: Any) -> dict[str, float]:
    """Time epochs after a first one."""
    for _ in loader:
        pass
    rates, costs = [], []
    for _ in range(1 if QUICK else ROUNDS):
        before, start, count = seconds_of_processors(), time.perf_counter(), 0
        for _ in loader:
            count += 1
        rates.append(count / (time.perf_counter() - start))
        costs.append(1e3 * (seconds_of_processors() - before) / count)
    return {"batches/s": statistics.median(rates), "ms": statistics.median(costs)}


def photographs() -> Dataset[Any]:
    """Return the photographs of ``benchmarks.feed.local``."""
    return local.Photographs(PICTURES // 4 if QUICK else PICTURES)


def images() -> Dataset[Any]:
    """Return images whose batches have 9.6 MB."""
    return local.Stacked(torch.uint8, STACKS // 4 if QUICK else STACKS)


def processes(seed: int) -> dict[str, float]:
    """Decode and augment in our worker processes."""
    from loopwise.feed import RemoteDataLoader

    return timed(RemoteDataLoader(photographs(), 32, num_workers=WORKERS, persistent_workers=True))


def threads(decoder: str, seed: int) -> dict[str, float]:
    """Decode and augment in SPDL's threads, in a process that finds FFmpeg's libraries."""
    with peer_spdl.libraries() as path:
        command = [sys.executable, "-m", f"{__package__}.peer_spdl", decoder, *["--quick"] * QUICK]
        done = subprocess.run(
            command, env=os.environ | {"LD_LIBRARY_PATH": path}, stdout=subprocess.PIPE, text=True, check=True
        )
    return dict(json.loads(done.stdout.splitlines()[-1]))


def actors(make: Callable[[], Dataset[Any]], batch_size: int, seed: int) -> dict[str, float]:
    """Load by actors of a cluster, whose batches come through the network although they are on this host."""
    from loopwise.feed import RemoteDataLoader
    from loopwise.feed.remote import member
    from loopwise.feed.remote.pool import close_fleets

    from .deaths import cluster

    member.SAME_HOST = False
    with cluster():
        try:
            return timed(RemoteDataLoader(make(), batch_size, num_workers=WORKERS, group="data"))
        finally:
            close_fleets()


@contextlib.contextmanager
def rpc_workers() -> Iterator[list[str]]:
    """Start workers of rpcdataloader and return their addresses."""
    with contextlib.ExitStack() as stack:
        addresses = []
        for _ in range(WORKERS):
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port = probe.getsockname()[1]
            command = [
                sys.executable,
                "-m",
                "rpcdataloader.launch",
                "--host",
                "127.0.0.1",
                "--port",
                str(port),
            ]
            worker = subprocess.Popen(command)
            stack.callback(worker.wait)
            stack.callback(worker.kill)
            addresses.append(f"127.0.0.1:{port}")  # the first call tries for two minutes
        yield addresses


def remote_calls(make: Callable[[], Dataset[Any]], batch_size: int, seed: int) -> dict[str, float]:
    """Load by workers of rpcdataloader on this host."""
    from rpcdataloader import RPCDataloader, RPCDataset

    with rpc_workers() as addresses:
        return timed(RPCDataloader(RPCDataset(addresses, _the_same, make()), batch_size=batch_size))


def _the_same(dataset: Dataset[Any]) -> Dataset[Any]:
    return dataset


def cases(device: str) -> dict[str, Callable[[int], dict[str, float]]]:
    """Return the cases, ours beside those with which they are compared."""
    return {
        "photographs, here": processes,
        "photographs, SPDL@feed": partial(threads, "pillow"),
        "photographs, SPDL's decoder@feed": partial(threads, "own"),
        "photographs, actors": partial(actors, photographs, 32),
        "photographs, rpcdataloader@feed": partial(remote_calls, photographs, 32),
        "images, actors": partial(actors, images, 64),
        "images, rpcdataloader@feed": partial(remote_calls, images, 64),
    }


COMPARED = {
    "photographs, SPDL@feed": ("photographs, here", "SPDL, the same function in threads"),
    "photographs, SPDL's decoder@feed": ("photographs, here", "SPDL, its own decoder and filters"),
    "photographs, rpcdataloader@feed": ("photographs, actors", "rpcdataloader"),
    "images, rpcdataloader@feed": ("images, actors", "rpcdataloader"),
}
"""Case of a peer -> our case, and the peer's name."""
WORK = {
    "photographs": "32 JPEG images, decoded and augmented",
    "images": "64 x 3 x 224 x 224 uint8 through the network",
}


def rows(runs: harness.Runs) -> list[Row]:
    """Compare throughput and processor time."""
    table = []
    for case, (own, name) in COMPARED.items():
        work, ours, theirs = WORK[case.partition(",")[0]], runs[own], runs[case]
        table.append(Row(work, ours["batches/s"], theirs["batches/s"], name, "batches/s", "ratio >= 1"))
        table.append(Row(f"{work}: processor time a batch", ours["ms"], theirs["ms"], name, "ms", None))
    return table


if __name__ == "__main__":
    harness.main(sys.modules[__name__])

"""Measure what a batch costs in a worker, and what a step takes with a batch at hand."""

from __future__ import annotations

import cProfile
import os
import statistics
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

from loopwise import batch, random_state

from .model import Costs

DECODERS = ("decode", "resize", "convolve", "jpeg", "imdecode")
"""Parts of names of functions whose work a GPU can do."""

RECEIVED, PAUSE = 6, 0.05
"""Batches by which the hand-over is measured, and the seconds between them."""


def usable() -> int:
    """Return the number of processors that this process may use."""
    return len(os.sched_getaffinity(0))


def synchronise() -> None:
    """Wait until the accelerator has done what was asked of it."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()


def queued() -> float:
    """Return the seconds for which this thread was ready to run and had no processor, as far as the kernel tells."""
    try:
        with open("/proc/thread-self/schedstat") as file:
            return int(file.read().split()[1]) / 1e9
    except (OSError, IndexError):
        return 0.0


def with_workers(loader: DataLoader[Any], workers: int) -> DataLoader[Any]:
    """Return a plain loader of the same batches with another number of workers."""
    given: dict[str, Any] = {"collate_fn": loader.collate_fn, "num_workers": workers}
    if workers:
        given |= {
            "worker_init_fn": loader.worker_init_fn,
            "multiprocessing_context": loader.multiprocessing_context,
        }
    if isinstance(loader.dataset, IterableDataset):
        return DataLoader(loader.dataset, batch_size=loader.batch_size, drop_last=loader.drop_last, **given)
    if loader.batch_sampler is None:
        return DataLoader(loader.dataset, batch_size=None, sampler=loader.sampler, **given)
    return DataLoader(loader.dataset, batch_sampler=loader.batch_sampler, **given)


def loading(loader: DataLoader[Any], count: int) -> tuple[list[tuple[float, float]], Any, float]:
    """Load batches in this process as a worker would, with one thread; random states are restored.

    Returns:
        Processor time and time of each batch but the first, in seconds, without the time in which other programs ran; the last batch; the share of the time in
        functions that a GPU could do.
    """
    states, threads = random_state.get(), torch.get_num_threads()
    times, last, profile = [], None, cProfile.Profile()
    torch.set_num_threads(1)
    try:
        iterator = iter(with_workers(loader, 0))
        for number in range(count + 2):
            wall, cpu, queue = time.perf_counter(), time.process_time(), queued()
            try:
                if number == count + 1:  # the last one is slower by the profiler, and is not counted
                    profile.runcall(next, iterator)
                    break
                last = next(iterator)
            except StopIteration:
                break
            elsewhere = queued() - queue  # other programs had the processor: no property of the loader
            times.append((time.process_time() - cpu, time.perf_counter() - wall - elsewhere))
    finally:
        torch.set_num_threads(threads)
        random_state.set(states)
    return times[1:] or times, last, _decoding(profile)


def _decoding(profile: cProfile.Profile) -> float:
    seconds = [(str(entry.code).lower(), entry.inlinetime) for entry in profile.getstats()]
    total = sum(own for _, own in seconds)
    known = sum(own for name, own in seconds if any(word in name for word in DECODERS))
    return known / total if total else 0.0


def stepping(step: Callable[[Any], Any], data: Any, count: int) -> float:
    """Return the median seconds of a step that gets the same batch again and again."""
    times = []
    for number in range(count + 1):
        synchronise()
        start = time.perf_counter()
        step(data)
        synchronise()
        if number:  # the first one allocates and compiles
            times.append(time.perf_counter() - start)
    return statistics.median(times)


def training(loader: Iterable[Any], step: Callable[[Any], Any], count: int) -> float | None:
    """Return the seconds of a step of the real loop, without those whose batches were fetched ahead.

    A loader with workers has ``prefetch_factor`` batches of each at hand before it is waited for; only what comes after them
    tells how fast they come.  ``None``: there were no others.
    """
    workers = getattr(loader, "num_workers", 0)
    ahead = 1 + workers * (getattr(loader, "prefetch_factor", None) or 0)
    start, done = time.perf_counter(), 0
    for number, data in enumerate(loader):
        step(data)
        if number + 1 == ahead:
            synchronise()
            start = time.perf_counter()
        done = number + 1 - ahead
        if done == count:
            break
    synchronise()
    return (time.perf_counter() - start) / done if done > 0 else None


class _Same(Dataset[Any]):
    """Dataset that has one batch again and again."""

    def __init__(self, data: Any) -> None:
        self.data = data

    def __getitem__(self, index: int) -> Any:
        if index >= RECEIVED:
            raise IndexError(index)
        return self.data

    def __len__(self) -> int:
        return RECEIVED


def receiving(data: Any) -> float:
    """Return the seconds that DataLoader takes to hand over a batch that a worker has finished."""
    times = []
    iterator = iter(DataLoader(_Same(data), batch_size=None, num_workers=1))
    for _ in range(RECEIVED):
        time.sleep(PAUSE)  # the worker has finished its two batches by then
        start = time.perf_counter()
        next(iterator)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def costs_of(times: list[tuple[float, float]], data: Any, step: float, handover: float = 0.0) -> Costs:
    """Return the costs of a batch from its measured times.

    Args:
        times: processor time and time of each batch, in seconds.
        data: a batch.
        step: seconds of a step with a batch at hand.
        handover: seconds of receiving a finished batch.
    """
    walls = sorted(wall for _, wall in times)
    cpu = min(statistics.median(cpu for cpu, _ in times), statistics.median(walls))
    slowest = walls[min(len(walls) - 1, int(0.95 * len(walls)))]
    waiting = max(0.0, statistics.median(walls) - cpu)
    return Costs(cpu, waiting, slowest, step, handover, batch.nbytes(data))

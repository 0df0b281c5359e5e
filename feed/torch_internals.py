"""Adapter to the private names of torch's DataLoader; no other module of the part may use them."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.data import DataLoader
from torch.utils.data._utils import collate, pin_memory, signal_handling, worker
from torch.utils.data.dataloader import _BaseDataLoaderIter, _DatasetKind, _SingleProcessDataLoaderIter

BaseIterator: Any = _BaseDataLoaderIter
"""Base class of DataLoader's iterators: draws the seed, issues the warnings and counts the batches."""
SingleProcessIterator: Any = _SingleProcessDataLoaderIter
"""DataLoader's iterator without workers."""


def is_iterable(loader: DataLoader[Any]) -> bool:
    """Return whether the loader's dataset is an ``IterableDataset``."""
    return bool(loader._dataset_kind == _DatasetKind.Iterable)


def plain_iterator(loader: DataLoader[Any]) -> Any:
    """Return the iterator that ``DataLoader`` itself would make."""
    return DataLoader._get_iterator(loader)


def cpu_count() -> int | None:
    """Return the number of processors that this process may use, as torch counts them."""
    if hasattr(torch._utils, "cpu_count"):  # not in torch 2.11
        return torch._utils.cpu_count()
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def iterable_fetcher(dataset: Any, auto_collation: bool, collate_fn: Any, drop_last: bool) -> Any:
    """Return torch's fetcher of an iterable dataset; it calls ``iter(dataset)``."""
    make: Any = _DatasetKind.create_fetcher
    return make(_DatasetKind.Iterable, dataset, auto_collation, collate_fn, drop_last)


def set_worker_info(lane: int, lanes: int, seed: int, dataset: Any) -> None:
    """Set the value of ``torch.utils.data.get_worker_info()`` in this process."""
    worker._worker_info = worker.WorkerInfo(id=lane, num_workers=lanes, seed=seed, dataset=dataset)


def clear_worker_info() -> None:
    """Let ``get_worker_info()`` return ``None`` again."""
    worker._worker_info = None


def numpy_seed(base_seed: int, lane: int) -> list[int]:
    """Return the seed of NumPy's global generator in a worker of DataLoader."""
    generate: Any = worker._generate_state
    return list(generate(base_seed, lane))


def wrap_exception(lane: int) -> Any:
    """Return the exception being handled as the object by which DataLoader brings it to the training process."""
    wrapper: Any = torch._utils.ExceptionWrapper
    return wrapper(where=f"in DataLoader worker process {lane}")


def is_wrapped_exception(value: Any) -> bool:
    """Return whether the value is an exception of ``wrap_exception``."""
    return isinstance(value, torch._utils.ExceptionWrapper)


def collate_functions() -> dict[Any, Callable[..., Any]]:
    """Return the table from types to functions that ``default_collate`` uses; changing it changes them."""
    return collate.default_collate_fn_map


def collate_tensors(batch: Any, **options: Any) -> torch.Tensor:
    """Stack tensors as ``default_collate`` does."""
    stacked: torch.Tensor = collate.collate_tensor_fn(batch, **options)
    return stacked


def pinned(batch: Any, device: str | None) -> Any:
    """Return the batch in pinned memory of torch's own allocator."""
    pin: Any = pin_memory.pin_memory
    return pin(batch, device)


def set_signal_handlers() -> None:
    """Let a worker process name the signal that ends it, as DataLoader's workers do."""
    signal_handling._set_worker_signal_handlers()  # type: ignore[attr-defined]
    torch.multiprocessing._set_thread_name("pt_data_worker")


def observe_iterators(observer: Callable[[Any], None]) -> Callable[[], None]:
    """Call a function with every loader for which an iterator of torch or torchdata is made in this process, just before.

    Returns:
        Function that ends this.  If another program has replaced the iterators' ``__init__`` meanwhile, that remains.
    """
    make: Any = BaseIterator.__init__
    observers = [observer]

    @functools.wraps(make)
    def observed(iterator: Any, loader: Any, *arguments: Any, **options: Any) -> None:
        for each in observers:
            each(loader)
        make(iterator, loader, *arguments, **options)

    def end() -> None:
        observers.clear()
        if BaseIterator.__init__ is observed:
            BaseIterator.__init__ = make

    BaseIterator.__init__ = observed
    return end

"""Validation of the loader's own arguments."""

from __future__ import annotations

from loopwise.errors import InputError
from loopwise.validate import one_of, whole_number

from .torch_internals import cpu_count

SEEDINGS = ("worker", "sample")
ON_CRASH = ("raise", "skip")


def resolved_seeding(seeding: str | None, workers: int | str | None, iterable: bool) -> str:
    """Return the seeding in use: by default that of DataLoader, or by samples with a changing number of workers."""
    if seeding is None:
        return "sample" if workers == "auto" and not iterable else "worker"
    one_of("seeding", seeding, SEEDINGS)
    if seeding == "sample" and iterable:
        raise InputError(
            "seeding='sample' with an IterableDataset",
            "a dataset whose samples have an index",
            "the samples of an iterable dataset depend on the worker that iterates it",
            "leave out seeding=, which is 'worker' then",
        )
    return seeding


def validate(workers: int | str | None, num_workers: int, prefetch_bytes: int | None, on_crash: str) -> None:
    """Check the arguments that DataLoader does not have."""
    one_of("on_crash", on_crash, ON_CRASH)
    if prefetch_bytes is not None:
        whole_number("prefetch_bytes", prefetch_bytes, 1, "bytes", 1 << 30)
    if workers is None:
        return
    if isinstance(workers, str):
        one_of("workers", workers, ("auto",), fix="pass workers='auto', a number, or None for num_workers")
    else:
        whole_number("workers", workers, 1, "processes")
    if not num_workers:
        raise InputError(
            f"workers={workers!r} with num_workers=0",
            "num_workers of at least 1",
            "num_workers is the number of random streams, which workers share among them",
            "pass num_workers=8 as well, for instance",
        )
    if not isinstance(workers, str) and workers > num_workers:
        raise InputError(
            f"workers={workers} with num_workers={num_workers}",
            "at most as many workers as num_workers",
            "each worker needs a random stream of its own; num_workers is their number",
            f"pass num_workers={workers}",
        )


def local_processes(workers: int | str | None, num_workers: int) -> int:
    """Return the number of local worker processes; ``"auto"``: one for each processor, at most ``num_workers``."""
    if workers is None:
        return num_workers
    return min(num_workers, cpu_count() or 1) if isinstance(workers, str) else workers


def remote_workers(workers: int | str | None, num_workers: int) -> int | None:
    """Return the number of workers on the nodes of a group; ``None``: it follows what training waits for."""
    if isinstance(workers, str):
        return None
    return num_workers if workers is None else workers

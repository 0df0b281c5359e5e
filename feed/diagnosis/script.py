"""Diagnose a script that knows nothing of it: watch its first loader with enough batches, and then end the script."""

from __future__ import annotations

import contextlib
import os
import runpy
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

from torch.utils.data import DataLoader

from loopwise.errors import InputError
from loopwise.validate import whole_number

from . import measure
from .diagnosis import HERE, Diagnosis, concluded, followed, machines, record, too_few


class _Enough(BaseException):
    """Ends the script: enough batches were seen.  Scripts catch ``Exception``, not this."""


class Watched:
    """Times of one loader of the script.

    Args:
        loader: the loader.
        workers: number of its workers.
    """

    def __init__(self, loader: DataLoader[Any], workers: int) -> None:
        self.loader = loader
        self.ahead = 1 + workers * (loader.prefetch_factor or 2)
        """Batches that were at hand before the loop waited for the first one."""
        self.asked: list[float] = []
        """Times at which the loop asked for a batch, in seconds of ``time.perf_counter``."""
        self.given: list[float] = []
        """Times at which it got one."""

    def step(self) -> float:
        """Return the median seconds between a batch and the next request, without the first step."""
        steps = [after - before for before, after in zip(self.given, self.asked[1:], strict=False)]
        return statistics.median(steps[1:] or steps)

    def whole(self) -> float | None:
        """Return the seconds of a step, of those whose batches were not at hand already; ``None``: there were none."""
        later = self.asked[self.ahead :]
        return (later[-1] - later[0]) / (len(later) - 1) if len(later) > 1 else None


def observe(script: str, args: Sequence[str], batches: int, workers: int | None = None) -> Watched:
    """Run a script until one of its loaders has given enough batches.

    Args:
        script: path of the script.
        args: its arguments.
        batches: batches after which the script is ended, beside those that are fetched ahead.
        workers: number of workers that the loaders get in place of their own.

    Returns:
        The loader that has given most batches.
    """
    seen: list[Watched] = []
    original = DataLoader.__iter__

    def iterate(loader: DataLoader[Any]) -> Iterator[Any]:
        own = next((one for one in seen if one.loader is loader), None)
        if own is None:
            own = Watched(loader, loader.num_workers if workers is None else workers)
            seen.append(own)
        return timed(own, original(loader if workers is None else measure.with_workers(loader, workers)))

    def timed(own: Watched, iterator: Any) -> Iterator[Any]:
        while True:
            measure.synchronise()
            own.asked.append(time.perf_counter())
            if len(own.given) >= batches + own.ahead:
                raise _Enough
            try:
                data = next(iterator)
            except StopIteration:
                return
            own.given.append(time.perf_counter())
            yield data

    folder = os.path.dirname(os.path.abspath(script))
    argv, path = sys.argv, list(sys.path)
    DataLoader.__iter__ = iterate  # type: ignore[assignment,method-assign]
    sys.argv, sys.path[:0] = [script, *args], [folder]
    try:
        with contextlib.suppress(_Enough, SystemExit):
            runpy.run_path(script, run_name="__main__")
    finally:
        DataLoader.__iter__ = original  # type: ignore[method-assign]
        sys.argv, sys.path[:] = argv, path
    if not seen:
        raise too_few(0)
    return max(seen, key=lambda one: len(one.given))


def diagnose_script(
    script: str,
    args: Sequence[str] = (),
    *,
    batches: int = 20,
    price: float | None = None,
    larger: tuple[int, float] | None = None,
    host: tuple[int, float | None] = (36, None),
    bandwidth: float = 10.0,
    run: str | None = None,
) -> Diagnosis:
    """Diagnose the training loop of a script; see ``diagnose`` for the arguments that are not listed here.

    The script runs in this process until its loop has taken enough batches, and a second time with the advised number of
    workers if this machine has the processors for them.  What it writes until then stays.

    Args:
        script: path of the script.
        args: its arguments.

    Raises:
        InputError: there is no such script, or its loop takes fewer than 5 batches.
    """
    whole_number("batches", batches, 5, "batches", 20)
    if not os.path.isfile(script):
        raise InputError(
            f"the script {script!r}",
            "the path of a Python script",
            "a typo, or another working folder",
            f"check the path; the working folder is {os.getcwd()}",
        )
    machines(0, price, larger, host, bandwidth)
    watched = observe(script, args, batches)
    if len(watched.given) < 5:
        raise too_few(len(watched.given))
    loader = watched.loader
    setting = machines(loader.num_workers, price, larger, host, bandwidth)
    times, data, decoding = measure.loading(loader, batches)
    handover = measure.receiving(data) if loader.num_workers else 0.0
    result = concluded(
        measure.costs_of(times, data, watched.step(), handover), setting, decoding, watched.whole()
    )
    if result.verdict.name in HERE:
        then = observe(script, args, batches, result.verdict.workers)
        result = followed(result, then.whole())
    record(result, run)
    return result

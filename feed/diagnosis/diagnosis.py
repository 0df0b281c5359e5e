"""Diagnose a training loop: measure it, predict its step, advise, and run the prediction where that is possible here."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils.data import DataLoader

from loopwise.errors import InputError
from loopwise.run import Run, as_run
from loopwise.validate import function, instance, positive_number, whole_number

from . import measure
from .advice import Setting, Verdict, advise
from .model import Costs

HERE = ("local workers", "more readers")
"""Verdicts whose prediction can be run on this machine."""


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """Measured times, verdict, and predictions beside what was seen; times are in seconds."""

    costs: Costs
    setting: Setting
    verdict: Verdict
    predicted: float
    """Predicted time of a step with the present number of workers."""
    seen: float | None
    """Measured time of the same; ``None``: all batches of the loop were at hand already."""
    then: float | None = None
    """Measured time of a step with the advised number of workers; ``None``: it was not run."""

    def __str__(self) -> str:
        costs, lines = self.costs, [self.verdict.text, ""]
        lines.append(
            f"one batch in one worker: {_ms(costs.cpu)} of a processor and {_ms(costs.waiting)} of waiting; "
            f"95 % take at most {_ms(costs.slowest)}; {costs.nbytes / 1e6:.1f} MB"
        )
        lines.append(
            f"one step with a batch at hand: {_ms(costs.step)}; hand-over of a batch: {_ms(costs.handover)}"
        )
        lines.append(f"{'workers':>8} {'predicted':>12} {'seen':>12}")
        lines.append(f"{self.setting.workers:>8} {_ms(self.predicted):>12} {_told(self.seen):>12}")
        if self.verdict.name != "nothing":
            lines.append(f"{self.verdict.workers:>8} {_ms(self.verdict.step):>12} {_told(self.then):>12}")
        return "\n".join(lines)

    def record(self) -> dict[str, Any]:
        """Return the record for a run: times in seconds."""
        return {
            "verdict": self.verdict.name,
            "text": self.verdict.text,
            "cpu": self.costs.cpu,
            "waiting": self.costs.waiting,
            "slowest": self.costs.slowest,
            "step": self.costs.step,
            "handover": self.costs.handover,
            "bytes": self.costs.nbytes,
            "processors": self.setting.processors,
            "steps": [
                [self.setting.workers, self.predicted, self.seen],
                *(
                    []
                    if self.verdict.name == "nothing"
                    else [[self.verdict.workers, self.verdict.step, self.then]]
                ),
            ],
        }


def diagnose(
    loader: DataLoader[Any],
    step: Callable[[Any], Any],
    *,
    batches: int = 20,
    price: float | None = None,
    larger: tuple[int, float] | None = None,
    host: tuple[int, float | None] = (36, None),
    bandwidth: float = 10.0,
    run: str | os.PathLike[str] | Run | None = None,
) -> Diagnosis:
    """Say what a training loop waits for, how many workers would fill its step, and what that costs and saves.

    The loop is run as it is, one batch is trained on again and again, and batches are loaded in this process.  If more workers
    on this machine would do, the loop is run with them, too.  Afterwards the random states of this process are as if only the
    loop had run; the model has been trained by ``step``, so pass a copy if that matters.

    Args:
        loader: the loader of the loop.
        step: function that trains on a batch; its result is not used.
        batches: batches for each measurement.
        price: price of this machine for an hour, in any currency.
        larger: processors and price for an hour of a machine with the same accelerators and more processors.
        host: processors and price for an hour of a machine for a data group.
        bandwidth: bandwidth between machines, in Gbit/s.
        run: run in which the diagnosis is recorded, for the page of ``loopwise report``.

    Returns:
        The diagnosis; ``print`` shows the verdict, and predicted times beside the measured ones.

    Raises:
        InputError: wrong arguments, or a loader with fewer than two batches.
    """
    fix = "pass the loader that the loop iterates over"
    instance("loader", loader, DataLoader, "a torch.utils.data.DataLoader", fix)
    function("step", step, "a function of a batch", "step=lambda batch: train_on(batch)")
    whole_number("batches", batches, 5, "batches", 20)
    setting = machines(loader.num_workers, price, larger, host, bandwidth)
    times, data, decoding = measure.loading(loader, batches)
    if len(times) < 2:
        raise too_few(len(times))
    costs = measure.costs_of(
        times,
        data,
        measure.stepping(step, data, batches),
        measure.receiving(data) if loader.num_workers else 0.0,
    )
    result = concluded(costs, setting, decoding, measure.training(loader, step, batches))
    if result.verdict.name in HERE:
        then = measure.training(measure.with_workers(loader, result.verdict.workers), step, batches)
        result = followed(result, then)
    record(result, run)
    return result


def record(result: Diagnosis, run: str | os.PathLike[str] | Run | None) -> None:
    """Record a diagnosis in a run, if one is given."""
    handle = as_run(run, "feed", resume=run is not None and not isinstance(run, Run))
    if handle is not None:
        handle.run.append("feed", "diagnosis", result.record())
        handle.release()


def machines(
    workers: int,
    price: float | None,
    larger: tuple[int, float] | None,
    host: tuple[int, float | None],
    bandwidth: float,
) -> Setting:
    """Return the validated setting; see ``diagnose`` for the arguments."""
    positive_number("bandwidth", bandwidth, "number of Gbit/s", 10)
    for name, value in (("price", price), ("larger", larger and larger[1]), ("host", host[1])):
        if value is not None:
            positive_number(name, value, "price for an hour", 3.825)
    for name, machine in (("larger", larger), ("host", host)):
        if machine is not None:
            whole_number(name, machine[0], 1, "processors", 36)
    return Setting(
        workers=workers,
        processors=measure.usable(),
        price=price,
        larger=larger,
        host=host,
        bandwidth=bandwidth,
        accelerator=torch.cuda.is_available() and torch.cuda.is_initialized(),  # type: ignore[no-untyped-call]
    )


def concluded(costs: Costs, setting: Setting, decoding: float, seen: float | None) -> Diagnosis:
    """Return the diagnosis of measured costs."""
    setting = replace(setting, decoding=decoding)
    predicted = costs.predicted(setting.workers, setting.processors)
    return Diagnosis(costs, setting, advise(costs, setting), predicted, seen)


def followed(result: Diagnosis, then: float | None) -> Diagnosis:
    """Return a diagnosis with the measured time of a step after its advice was followed."""
    return Diagnosis(result.costs, result.setting, result.verdict, result.predicted, result.seen, then)


def too_few(count: int) -> InputError:
    """Return the error for a loader or a script with too few batches."""
    return InputError(
        f"{count} batches",
        "at least 2 batches to measure",
        "a dataset that is too small, or a script that ended early",
        "diagnose a loop with more data",
    )


def _told(seconds: float | None) -> str:
    return "not run" if seconds is None else _ms(seconds)


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"

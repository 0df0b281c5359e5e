"""Training steps in several forms, each in a process of its own, that run in turns and are timed by processor time.

A form's first step finds nothing that another form has compiled or imported since the model was made.  On one thread and
a quiet machine processor time equals wall-clock time.
"""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import statistics
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

import torch

from .forms import OFF, made

THREADS = 1
"""Of torch, as in ``benchmarks/sift/overhead.py``."""
TURNS, WARM = 15, 3
"""Timed turns, and turns before them."""
Make = Callable[[], tuple[Any, Any, Sequence[Any]]]
"""Function that makes model, loss and batches; equal for equal seeds."""


class FormError(RuntimeError):
    """Error of one form's process, with its traceback."""


@dataclass
class Measured:
    """Times of a model's training step by form."""

    first: dict[str, float] = field(default_factory=dict)
    """Form -> processor seconds of the first step, compilers in child processes included."""
    steps: dict[str, list[float]] = field(default_factory=dict)
    """Form -> processor milliseconds of a step in each turn."""
    plans: dict[str, str] = field(default_factory=dict)
    """Form of ours -> the plan after the last turn."""

    def quantities(self) -> dict[str, float]:
        """Return seconds of the first step and the median milliseconds of a step by name, as a benchmark's case does."""
        first = {f"{form}: first step, s": seconds for form, seconds in self.first.items()}
        return first | {f"{form}: step, ms": statistics.median(times) for form, times in self.steps.items()}


def processor_seconds() -> float:
    """Return the processor time of this process and of its ended children."""
    return sum(os.times()[:4])


def measure(make: Make, seed: int, forms: Sequence[str], turns: int = TURNS) -> Measured:
    """Measure the first step of each form, then steps of all forms in turns.

    Args:
        make: makes model, loss and batches.
        seed: seed of torch for the model and the batches.
        forms: names of forms; ``OFF`` runs only its first step.
        turns: timed turns; each runs all batches.

    Raises:
        FormError: a form failed.
    """
    result, running = Measured(), {}
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"  # no pool: its processor time would not be seen
    torch.set_num_threads(THREADS)
    torch.manual_seed(seed)
    make()  # the forms find its imports done; on one thread no pool of threads is lost by a fork
    with tempfile.TemporaryDirectory() as folder:
        try:
            for form in forms:
                process = _Process(make, form, seed, folder)
                running[form] = process
                result.first[form] = process.receive()
                if form == OFF:
                    running.pop(form).end()
            times: dict[str, list[float]] = {form: [] for form in running}
            for _ in range(WARM + turns):
                for form, process in running.items():
                    times[form].append(process.ask("turn"))
            result.steps = {form: values[WARM:] for form, values in times.items()}
            result.plans = {form: plan for form, process in running.items() if (plan := process.ask("plan"))}
        finally:
            for process in running.values():
                process.end()
    return result


class _Process:
    """One form's process and the connection to it."""

    def __init__(self, make: Make, form: str, seed: int, folder: str) -> None:
        context = multiprocessing.get_context("fork")
        self._connection, other = context.Pipe()
        self._form = form
        work = functools.partial(_serve, other, make, form, seed, f"{folder}/{form.replace(' ', '')}")
        self._process = context.Process(target=work)
        self._process.start()
        other.close()

    def ask(self, question: str) -> Any:
        self._connection.send(question)
        return self.receive()

    def receive(self) -> Any:
        """Return the next answer of the process.

        Raises:
            FormError: the process failed or ended.
        """
        try:
            kind, value = self._connection.recv()
        except EOFError:
            self._process.join()
            raise FormError(f"{self._form}: the process ended with {self._process.exitcode}") from None
        if kind == "error":
            raise FormError(f"{self._form}: {value}")
        return value

    def end(self) -> None:
        with contextlib.suppress(OSError):  # it has failed and ended
            self._connection.send("end")
        self._connection.close()
        self._process.join()


def _serve(connection: Connection, make: Make, form: str, seed: int, folder: str) -> None:
    """Train in one form: answer ``turn`` with the milliseconds of a step, ``plan`` with the plan of our step."""
    try:
        os.environ |= {"LOOPWISE_CACHE": folder, "TORCHINDUCTOR_CACHE_DIR": f"{folder}/inductor"}
        torch.set_num_threads(THREADS)
        torch.manual_seed(seed)
        model, loss, batches = make()
        before = processor_seconds()
        step = made(form, model, loss)
        step(batches[0])
        connection.send(("seconds", processor_seconds() - before))
        while (question := connection.recv()) != "end":
            connection.send(("answer", _turn(step, batches) if question == "turn" else _plan(step)))
    except EOFError:
        return  # the other side has been killed
    except Exception:
        connection.send(("error", traceback.format_exc()))


def _turn(step: Callable[[Any], torch.Tensor], batches: Sequence[Any]) -> float:
    """Return the processor milliseconds of a step over all batches."""
    start = time.process_time()
    for batch in batches:
        step(batch)
    return 1e3 * (time.process_time() - start) / len(batches)


def _plan(step: Any) -> str:
    return str(getattr(step, "plan", None) or "")


def in_turns(steps: dict[str, Callable[[], Any]], turns: int = TURNS) -> dict[str, list[float]]:
    """Return the processor seconds of functions of this process that run in turns, by name."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(WARM + turns):
        for name, step in steps.items():
            start = time.process_time()
            step()
            if number >= WARM:
                times[name].append(time.process_time() - start)
    return times

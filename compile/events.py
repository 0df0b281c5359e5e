"""Plans of a training step and events, for ``explain()`` and the run folder.

Format of the JSON lines in a run:

``compile/plans.rank<r>.<n>.jsonl``
    One line for each plan that the step goes on with: ``batch`` (number of batches that the step has seen), ``plan``
    (the fields of ``loopwise.compile.Plan``), ``source`` (where the plan comes from, in words), ``forms`` (a list with
    one object for each variant that was tried or left out) and ``remarks`` (the other texts of ``explain()``).  An
    object in ``forms`` has ``form`` (the variant's plan in words), ``ms``, ``least`` and ``most`` (median, minimum and
    maximum of the milliseconds of forward and backward; null if it was not timed), ``MiB`` (peak memory; null if it was
    not measured), ``compile s`` (seconds of compilation) and ``verdict`` (``chosen``, ``in use`` after a step back to
    eager, or the reason why it is not used).
``compile/events.rank<r>.<n>.jsonl``
    One line for each later event, such as a step back to eager: ``batch`` (number of batches that the step has seen)
    and ``text``.
"""

from __future__ import annotations

import dataclasses
import os
from typing import TYPE_CHECKING, Any

from loopwise.warnings import warn

from .explain import Explanation

if TYPE_CHECKING:
    from loopwise.run import Run, RunHandle


class Events:
    """Collector of lines for ``explain()``, which also writes the lines and the plans into a run.

    The run is released by ``close``, when this object is garbage-collected, or when the process exits.

    Args:
        run: a folder, an fsspec URL, a ``Run``, or ``None`` for no records.
        resume: go on in a folder that already holds a run.
    """

    def __init__(self, run: str | os.PathLike[str] | Run | None, resume: bool) -> None:
        self.texts: list[str] = []
        self.batch = 0
        """Number of batches that the step has seen; events are recorded with it."""
        self._handle: RunHandle | None = None  # the run is released with the handle
        if run is not None:
            from loopwise.run import as_run  # storage on remote file systems takes long to import

            self._handle = as_run(run, "compile", resume)
        self._run = None if self._handle is None else self._handle.run

    def add(self, text: str) -> None:
        """Add a line for ``explain()``."""
        self.texts.append(text)
        self.write(text)

    def write(self, text: str) -> None:
        """Write a line into the run only."""
        self._write("events", {"batch": self.batch, "text": text})

    def plan(self, explanation: Explanation) -> None:
        """Write the plan that is in use from now on."""
        plan = None if explanation.plan is None else dataclasses.asdict(explanation.plan)
        record: dict[str, Any] = {"plan": plan, "source": explanation.source}
        record |= {"forms": explanation.rows, "remarks": explanation.remarks}
        self._write("plans", {"batch": self.batch} | record)

    def close(self) -> None:
        """Release the run; only ``explain()`` shows later events."""
        if self._handle is not None:
            self._handle.release()
        self._handle = self._run = None

    def _write(self, name: str, record: dict[str, Any]) -> None:
        if self._run is None:
            return
        try:
            self._run.append("compile", name, record)
            self._run.flush()
        except Exception as error:  # a full disk must not end the training
            self._run = None
            text = f"the run's record could not be written, compile writes no more of it: {error!r}"
            warn(f"loopwise.compile: {text}", stacklevel=3)

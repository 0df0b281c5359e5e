"""Counts and times of a sifting loader, the estimate of the time it saves, and their records in a run.

Format of the JSON lines in a run:

``sift/epochs.rank<r>.<n>.jsonl``
    One line for each pass over the wrapped loader: ``epoch`` (its number, from 0), ``complete`` (false if the pass
    was ended early), and what the pass added to the counts of ``Report``: in samples ``seen``, ``skipped``,
    ``scored``, ``kept``, ``dropped``, ``cut``, ``not_finite`` and ``trained``; ``batches``; and ``loading_seconds``,
    ``scoring_seconds``, ``selecting_seconds`` and ``training_seconds``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from loopwise.warnings import warn

if TYPE_CHECKING:
    from loopwise.run import Run, RunHandle

ACTIVITIES = ("loading", "scoring", "selecting", "training")


@dataclass(slots=True)
class Report:
    """Counts in samples and batches, times in seconds, since the loader was made."""

    epochs: int = 0
    """Complete passes over the wrapped loader."""
    seen: int = 0
    """Number of samples that the wrapped loader yielded or that were left out before loading."""
    skipped: int = 0
    """Samples left out before they were loaded, by their remembered losses."""
    scored: int = 0
    """Samples scored by a forward pass."""
    kept: int = 0
    """Samples chosen for the training step, including those that were not scored."""
    dropped: int = 0
    """Number of samples that no training step sees, because they were not chosen or were cut."""
    cut: int = 0
    """Chosen samples that were dropped all the same, by ``drop_last`` or because another rank's data ended."""
    not_finite: int = 0
    """Samples whose loss was NaN or infinite; they are kept, whatever the policy."""
    batches: int = 0
    """Batches yielded to the training step."""
    trained: int = 0
    """Number of samples in the yielded batches."""
    loading_seconds: float = 0.0
    """Time spent waiting for the wrapped loader."""
    scoring_seconds: float = 0.0
    """Time of the scoring forward passes, including the transfer of batches and losses."""
    selecting_seconds: float = 0.0
    """Time of the loader's own work: validation, policy, selecting and joining samples, coordination of ranks."""
    training_seconds: float = 0.0
    """Seconds from the yield of a batch to the request for the next one."""
    classes: dict[int, list[int]] = field(default_factory=dict)
    """Number of samples seen and kept of each class, counted if samples are scored as batches come."""
    policies: dict[str, tuple[int, float]] = field(default_factory=dict)
    """Number of samples that each policy decided about, and the expected number of them that it dropped; the whole
    policy first, then the policies inside it."""
    steps: list[float] = field(default_factory=lambda: [0, 0.0, 0.0])
    """Number of timed batches, sum and sum of squares of their training seconds per sample, without the first batch."""

    @property
    def share(self) -> float:
        """Share of the seen samples that was kept, a fraction; 1 before the first sample."""
        return self.kept / self.seen if self.seen else 1.0

    @property
    def saved_seconds(self) -> float:
        """Estimated seconds of omitted training steps and loading, minus the time of scoring and selecting."""
        spent = self.scoring_seconds + self.selecting_seconds
        loaded = self.seen - self.skipped
        loading = self.loading_seconds / loaded if loaded else 0.0
        return self.dropped * self.seconds_per_sample + self.skipped * loading - spent

    @property
    def saved_interval(self) -> tuple[float, float]:
        """Seconds: interval of 95 % around ``saved_seconds``, from the variance of the training steps' times."""
        count, total, squares = self.steps
        if count < 2:
            return (-math.inf, math.inf)
        variance = max(squares - total * total / count, 0.0) / (count - 1)
        half = 1.96 * self.dropped * math.sqrt(variance / count)
        return (self.saved_seconds - half, self.saved_seconds + half)

    @property
    def seconds_per_sample(self) -> float:
        """Mean training seconds of a sample; 0 before the first training step."""
        return self.steps[1] / self.steps[0] if self.steps[0] else 0.0

    def scoring_pays(self, samples: int, slack: float) -> bool:
        """Return whether scoring ``samples`` more keeps the training within 1 + ``slack`` of a plain loop's time."""
        if not self.seconds_per_sample:
            return False
        spent = self.scoring_seconds + self.selecting_seconds
        cost = spent / self.scored if self.scored else self.seconds_per_sample
        plain = self.loading_seconds + self.training_seconds + self.dropped * self.seconds_per_sample
        return self.saved_seconds - cost * samples >= -slack * plain

    @contextlib.contextmanager
    def timed(self, activity: str) -> Iterator[None]:
        """Add the time of the body to ``loading_seconds``, ``scoring_seconds`` or ``selecting_seconds``."""
        start = time.perf_counter()
        try:
            yield
        finally:
            name = f"{activity}_seconds"
            setattr(self, name, getattr(self, name) + time.perf_counter() - start)

    def add_step(self, seconds: float, samples: int) -> None:
        """Count the training time of a batch."""
        self.training_seconds += seconds
        if self.batches > 1 and samples:
            per_sample = seconds / samples
            count, total, squares = self.steps
            self.steps = [count + 1, total + per_sample, squares + per_sample * per_sample]

    def add_skipped(self, samples: int) -> None:
        """Count samples that were left out before loading."""
        self.seen += samples
        self.skipped += samples
        self.dropped += samples

    def add_cut(self, samples: int) -> None:
        """Count chosen samples that no training step sees all the same."""
        self.cut += samples
        self.dropped += samples
        self.kept -= samples

    def uncount(self, samples: int) -> None:
        """Take back the counts of kept samples that will be loaded again."""
        self.seen -= samples
        self.kept -= samples

    def add_classes(self, labels: list[int], kept: list[int]) -> None:
        """Count the samples of a pool by class, and those at the positions ``kept``."""
        for label in labels:
            self.classes.setdefault(label, [0, 0])[0] += 1
        for position in kept:
            self.classes[labels[position]][1] += 1

    def record(self) -> dict[str, float]:
        """Return the counts and seconds as a dict, for a JSON line."""
        return {k: v for k, v in dataclasses.asdict(self).items() if isinstance(v, (int, float))}

    def state_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, value in dataclasses.asdict(Report(**state)).items():
            setattr(self, name, value)

    def __str__(self) -> str:
        low, high = self.saved_interval
        interval = f" (95 %: {low:.2f} to {high:.2f} s)" if math.isfinite(low) else ""
        rows = [
            ("samples seen", f"{self.seen:,}"),
            ("not loaded", f"{self.skipped:,}"),
            ("samples scored", f"{self.scored:,}"),
            ("samples kept", f"{self.kept:,} ({self.share:.1%})"),
            ("samples trained on", f"{self.trained:,} in {self.batches:,} batches"),
            *(
                (f"dropped by {name}", f"{dropped:,.0f} of {samples:,}")
                for name, (samples, dropped) in self.policies.items()
            ),
            ("losses not finite", f"{self.not_finite:,}"),
            *((name, f"{getattr(self, f'{name}_seconds'):.2f} s") for name in ACTIVITIES),
            ("estimated saving", f"{self.saved_seconds:.2f} s{interval}"),
        ]
        return "\n".join(f"{name:<19} {value}" for name, value in rows)


class EpochLog:
    """Log that writes one record per epoch into a run.

    If nobody releases the run, it ends with the log.

    Args:
        report: the counts, of which a record contains the increase during its epoch.
        run: folder, fsspec URL or ``Run``; ``None`` writes nothing.
        resume: go on in a folder that already holds a run.
    """

    _handle: RunHandle | None = None
    _epoch: tuple[int, dict[str, float]] | None = None
    _warned = False

    def __init__(self, report: Report, run: str | os.PathLike[str] | Run | None, resume: bool) -> None:
        self._report = report
        if run is not None:
            from loopwise.run import as_run  # it imports fsspec, which takes 20 ms

            self._handle = as_run(run, "sift", resume)

    def begin(self, epoch: int) -> None:
        self._epoch = epoch, self._report.record()

    def end(self, complete: bool) -> None:
        """Write the record of the epoch; a failure is a warning."""
        epoch, self._epoch = self._epoch, None
        if epoch is None or self._handle is None:
            return
        number, before = epoch
        now = self._report.record()
        counts = {name: value - before[name] for name, value in now.items() if name != "epochs"}
        try:
            self._handle.run.append("sift", "epochs", {"epoch": number, "complete": complete, **counts})
            self._handle.run.flush()
        except Exception as error:  # a full disk must not end the training
            if not self._warned:
                warn(f"loopwise.sift: a record of the run could not be written and is missing: {error!r}")
            self._warned = True

    def release(self, state: str) -> None:
        """Write the record of an unfinished epoch, and release the run as ``finished`` or ``failed``."""
        self.end(False)
        handle, self._handle = self._handle, None
        if handle is not None:
            handle.release(state)

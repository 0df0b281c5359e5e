"""What sifting did, what it cost and what it saved."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Report:
    """Counts in samples and batches, times in seconds, since the loader was made."""

    epochs: int = 0
    """Times the wrapped loader was gone through to its end."""
    seen: int = 0
    """Samples that were considered: those the wrapped loader gave and those left out before loading."""
    skipped: int = 0
    """Samples left out before they were loaded, by their remembered losses."""
    scored: int = 0
    """Samples that went through a scoring forward pass."""
    kept: int = 0
    """Samples chosen for the training step, unscored ones among them."""
    dropped: int = 0
    """Samples that no training step will see: those not chosen, and a tail cut by ``drop_last``."""
    cut: int = 0
    """Of those dropped, chosen ones: a tail cut by ``drop_last`` or because another rank's data ended."""
    not_finite: int = 0
    """Samples whose loss was NaN or infinite: kept, whatever the policy."""
    batches: int = 0
    """Batches handed to the training step."""
    trained: int = 0
    """Samples in those batches."""
    loading_seconds: float = 0.0
    """Waiting for the wrapped loader."""
    scoring_seconds: float = 0.0
    """Scoring forward passes, the transfer of batches and losses included."""
    selecting_seconds: float = 0.0
    """The wrapper's own work: checks, policy, selecting and joining samples, agreeing with other ranks."""
    training_seconds: float = 0.0
    """Between a batch being handed out and the next one being asked for."""
    classes: dict[int, list[int]] = field(default_factory=dict)
    """Class -> samples seen and samples kept, where scores are made as batches come."""
    policies: dict[str, tuple[int, float]] = field(default_factory=dict)
    """Policy -> samples that it decided about, and the expected number of them that it dropped; the whole
    policy first, then what it is made of."""
    steps: list[float] = field(default_factory=lambda: [0, 0.0, 0.0])
    """Batches timed, sum and sum of squares of their training seconds a sample, the first batch left out."""

    @property
    def share(self) -> float:
        """Share of the seen samples that was kept, a fraction; 1 before anything was seen."""
        return self.kept / self.seen if self.seen else 1.0

    @property
    def saved_seconds(self) -> float:
        """Estimate: training steps and loading not done, less scoring and selecting."""
        spent = self.scoring_seconds + self.selecting_seconds
        return self.dropped * self.seconds_a_sample + self.skipped * self._loading_a_sample - spent

    @property
    def saved_interval(self) -> tuple[float, float]:
        """The 95 % interval of ``saved_seconds``, from the spread of the training steps' times."""
        count, total, squares = self.steps
        if count < 2:
            return (-math.inf, math.inf)
        variance = max(squares - total * total / count, 0.0) / (count - 1)
        half = 1.96 * self.dropped * math.sqrt(variance / count)
        return (self.saved_seconds - half, self.saved_seconds + half)

    @property
    def seconds_a_sample(self) -> float:
        """Mean training seconds of a sample; 0 before it is known."""
        return self.steps[1] / self.steps[0] if self.steps[0] else 0.0

    @property
    def _loading_a_sample(self) -> float:
        loaded = self.seen - self.skipped
        return self.loading_seconds / loaded if loaded else 0.0

    def time_step(self, seconds: float, samples: int) -> None:
        """Count the training time of a batch."""
        self.training_seconds += seconds
        if self.batches > 1 and samples:
            each = seconds / samples
            self.steps = [self.steps[0] + 1, self.steps[1] + each, self.steps[2] + each * each]

    def count_classes(self, labels: list[int], kept: list[int]) -> None:
        """Count the samples of a pool and, at the positions ``kept``, those chosen."""
        for label in labels:
            self.classes.setdefault(label, [0, 0])[0] += 1
        for position in kept:
            self.classes[labels[position]][1] += 1

    def copy(self) -> Report:
        classes = {label: list(counts) for label, counts in self.classes.items()}
        policies = dict(self.policies)
        return dataclasses.replace(self, classes=classes, policies=policies, steps=list(self.steps))

    def record(self) -> dict[str, float]:
        """The counts and seconds as a dict, for a JSON line."""
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
            ("left out unloaded", f"{self.skipped:,}"),
            ("samples scored", f"{self.scored:,}"),
            ("samples kept", f"{self.kept:,} ({self.share:.1%})"),
            ("samples trained on", f"{self.trained:,} in {self.batches:,} batches"),
            *(
                (f"dropped by {name}", f"{dropped:,.0f} of {of:,}")
                for name, (of, dropped) in self.policies.items()
            ),
            ("losses not finite", f"{self.not_finite:,}"),
            ("loading", f"{self.loading_seconds:.2f} s"),
            ("scoring", f"{self.scoring_seconds:.2f} s"),
            ("selecting", f"{self.selecting_seconds:.2f} s"),
            ("training", f"{self.training_seconds:.2f} s"),
            ("estimated saving", f"{self.saved_seconds:.2f} s{interval}"),
        ]
        return "\n".join(f"{name:<19} {value}" for name, value in rows)

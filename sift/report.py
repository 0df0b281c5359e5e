"""What sifting did and what it cost."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass


@dataclass(slots=True)
class Report:
    """Counts in samples and batches, times in seconds, since the loader was made."""

    epochs: int = 0
    """Times the wrapped loader was gone through to its end."""
    seen: int = 0
    """Samples that the wrapped loader gave."""
    scored: int = 0
    """Samples that went through a scoring forward pass."""
    kept: int = 0
    """Samples chosen for the training step, unscored ones among them."""
    dropped: int = 0
    """Samples that no training step will see: those not chosen, and a tail cut by ``drop_last``."""
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
    """The wrapper's own work: checks, policy, selecting and joining samples."""
    training_seconds: float = 0.0
    """Between a batch being handed out and the next one being asked for."""

    @property
    def share(self) -> float:
        """Share of the seen samples that was kept, a fraction; 1 before anything was seen."""
        return self.kept / self.seen if self.seen else 1.0

    def record(self) -> dict[str, float]:
        """The fields as a dict, for a JSON line."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        rows = [
            ("samples seen", f"{self.seen:,}"),
            ("samples scored", f"{self.scored:,}"),
            ("samples kept", f"{self.kept:,} ({self.share:.1%})"),
            ("samples trained on", f"{self.trained:,} in {self.batches:,} batches"),
            ("losses not finite", f"{self.not_finite:,}"),
            ("loading", f"{self.loading_seconds:.2f} s"),
            ("scoring", f"{self.scoring_seconds:.2f} s"),
            ("selecting", f"{self.selecting_seconds:.2f} s"),
            ("training", f"{self.training_seconds:.2f} s"),
        ]
        return "\n".join(f"{name:<20}{value}" for name, value in rows)

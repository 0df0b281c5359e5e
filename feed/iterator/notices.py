"""Warnings about batches that arrive otherwise than was asked for, each once for a loader."""

from __future__ import annotations

from loopwise.warnings import warn

from ..protocol import Result

LEVEL = 7
"""Frames between ``warn`` and the training loop."""


class Notices:
    """Warnings of one loader.

    Args:
        told: names of the warnings that were issued, which the loader keeps.
        limit: the loader's ``prefetch_bytes``.
        lanes: the loader's ``num_workers``.
    """

    def __init__(self, told: set[str], limit: int | None, lanes: int) -> None:
        self._told, self._limit, self._lanes = told, limit, lanes

    def arrived(self, result: Result) -> None:
        """Look at a result: its batch may be larger than the limit, and its dataset may have failed to tell its state."""
        if self._limit is not None and result.nbytes > self._limit:
            self._tell(
                "prefetch_bytes",
                f"a batch of {result.nbytes:,} bytes is larger than prefetch_bytes={self._limit:,}: each of the {self._lanes} "
                "lanes loads one batch at a time, and the next one only after the training loop has taken it; pass "
                f"prefetch_bytes={2 * self._lanes * result.nbytes} for two batches of each lane, or leave it out",
            )
        if result.stateless:
            self._tell(
                "state_dict",
                f"state_dict() of the dataset raised {result.stateless}: after a worker's death, and after load_state_dict, the "
                "dataset is iterated again up to the batch that is due, which takes time; mend its state_dict, or remove it",
            )

    def _tell(self, name: str, text: str) -> None:
        if name not in self._told:
            self._told.add(name)
            warn(text, stacklevel=LEVEL)

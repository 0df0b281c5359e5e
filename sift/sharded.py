"""Scoring through a model that is sharded over the ranks (FSDP2): all ranks score at the same time."""

from __future__ import annotations

from .buffer import Part
from .coordination import Elsewhere
from .pipeline import FRESH, Sieve
from .source import Given

_TROUBLE, _OVER, _SCORES, _WAITS = "trouble", "over", "scores", "waits"


class InStep(Sieve):
    """A sieve whose ranks make each batch together.

    A forward pass of a sharded model gathers weights from all ranks, so it must be the same one on
    all of them.  The ranks score in rounds until each has a batch; in a round a rank that has one
    already scores an old batch again and forgets the scores.  Two small collectives a round keep
    them in step.
    """

    _company: Given | None = None

    def _made(self) -> Part | None:
        if self.mode != FRESH or not self.agreement.live:
            return super()._made()
        part: Part | None = None
        while True:
            part = part or (self._buffer.take() if self._buffer else None)
            if all(self.agreement.share(part is not None)):
                return part
            pool, trouble = None, None
            try:
                pool = None if part else self._pull()
                part = part or (None if pool else self._last())
            except Exception as error:  # the other ranks must hear of it before it is raised
                trouble = error
            over = _OVER if part is None and pool is None else _WAITS
            said = self.agreement.share(_TROUBLE if trouble else _SCORES if pool and pool[1] else over)
            if trouble:
                raise trouble
            if _TROUBLE in said:
                raise Elsewhere
            if _OVER in said:
                self._leave(pool[0] if pool else [])
                return part
            if pool:
                self._company = pool[0][0]
                self._sift(*pool)
            elif _SCORES in said and self._company is not None:
                self.chooser.scorer(self._company.batch, self._company.size)

    def _leave(self, pool: list[Given]) -> None:
        """The end came on another rank: what was read for this round is not trained on."""
        samples = sum(given.size for given in pool)
        self.report.kept += samples
        self._cut(samples)

    def _pays(self, size: int) -> bool:
        return True  # by the clock of one rank, the ranks would decide differently

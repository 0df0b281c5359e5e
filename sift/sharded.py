"""Scoring through a model that FSDP2 shards over the ranks: all ranks score at the same time."""

from __future__ import annotations

from loopwise import ranks

from .buffer import Samples
from .coordination import OtherRankFailed
from .pipeline import Pipeline
from .reader import FRESH

_FAILED, _OVER, _SCORES, _WAITS = "failed", "over", "scores", "waits"


class ShardedPipeline(Pipeline):
    """Pipeline whose ranks make each batch together.

    A forward pass of a sharded model gathers weights from all ranks, so all ranks must run the same one.  The ranks
    score in rounds until each has a batch.  A rank that already has its batch scores an old batch again in the remaining
    rounds and discards the scores.  Two small collectives per round keep the ranks together.
    """

    _last_scored: Samples | None = None

    def _make_batch(self) -> Samples | None:
        if self.mode != FRESH or not self.coordination.active:
            return super()._make_batch()
        batch: Samples | None = None
        while True:
            batch = batch or self._buffer.take(self.batch_size or 0)
            if all(ranks.gather(batch is not None)):
                return batch
            pool, trouble = None, None
            try:
                pool = None if batch else self._read_pool()
                batch = batch or (None if pool else self._take_rest())
            except Exception as error:  # the other ranks must hear of it before it is raised
                trouble = error
            idle = _OVER if batch is None and pool is None else _WAITS
            states = ranks.gather(_FAILED if trouble else _SCORES if pool and pool[1] else idle)
            if trouble:
                raise trouble
            if _FAILED in states:
                raise OtherRankFailed
            if _OVER in states:  # nothing trains on the samples that were read for this round
                unused = sum(loaded.size for loaded in pool[0]) if pool else 0
                self.report.kept += unused
                self.report.add_cut(unused)
                return batch
            if pool:
                self._last_scored = pool[0][0]
                self._select(*pool)
            elif _SCORES in states and self._last_scored is not None:
                self.selector.scorer(self._last_scored.batch, self._last_scored.size)

"""Equal numbers of batches on all ranks, agreed on through the process group's key-value store.

Every rank looks one batch ahead and posts, before it hands out batch t, whether it has a batch
t + 1; the last rank to post decides.  A rank asks for the decision on t + 1 only when its training
step t is over, and by then the others have posted, so the question is one look-up and no rank waits
for another longer than the training step itself makes it wait.  No collective takes place, so none
can get out of step with those of the training (gradient accumulation, early stops, extra
collectives of the user's).  Keys of decided batches are deleted.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, _get_default_store, default_pg_timeout

from loopwise.errors import StateError
from loopwise.ranks import rank, world_size


class Elsewhere(Exception):
    """Another rank could not make its batch; it posts why, and ``go`` raises that here."""


_loaders = itertools.count()  # ranks make their loaders in the same order, as they make their modules


class Agreement:
    """One loader's agreements; ``live`` when there is more than one rank."""

    def __init__(self) -> None:
        self.live = dist.is_available() and dist.is_initialized() and world_size() > 1
        if self.live:
            name = f"loopwise/sift/{next(_loaders)}"
            self._store = PrefixStore(name, _get_default_store())
        self._pass = -1
        self._step = 0

    def start(self) -> None:
        """A new pass over the data begins, on all ranks."""
        self._pass += 1
        self._step = 0

    def post(self, has_batch: bool, trouble: str = "") -> None:
        """Say whether this rank has the next batch, or what kept it from making one."""
        key = self._key(self._step)
        if trouble:
            self._store.set(f"{key}/go", f"!{rank()} {trouble}")
        elif not has_batch:
            self._store.set(f"{key}/go", "over")
        elif self._store.add(f"{key}/ready", 1) == world_size():
            self._store.set(f"{key}/go", "go")
            if self._step:  # every rank has read the decision before it posted this
                self._store.delete_key(f"{self._key(self._step - 1)}/go")
                self._store.delete_key(f"{self._key(self._step - 1)}/ready")

    def go(self) -> bool:
        """Whether all ranks have the next batch.  Waits for the slowest rank to say so."""
        key = f"{self._key(self._step)}/go"
        self._store.wait([key], default_pg_timeout)  # as long as a collective: one rank may be evaluating
        verdict = self._store.get(key).decode()
        self._step += 1
        if verdict.startswith("!"):
            number, _, trouble = verdict[1:].partition(" ")
            raise StateError(
                f"rank {number} could not make its next batch: {trouble}",
                "a batch on every rank",
                "the data of that rank",
                "see the error on that rank; all ranks stop together",
            )
        return verdict == "go"

    def share(self, news: Any) -> list[Any]:
        """What every rank brings, in the order of ranks: one collective, at the start of an epoch."""
        if not self.live:
            return [news]
        everything: list[Any] = [None] * world_size()
        dist.all_gather_object(everything, news)
        return everything

    def _key(self, step: int) -> str:
        return f"{self._pass}/{step}"

"""Equal numbers of batches on all ranks, agreed on through the key-value store of the process group.

Every rank prepares one batch ahead.  Before a rank yields batch t, it posts whether it has a batch t + 1.  The last rank
that posts writes the decision "go".  A rank reads the decision after its training step t.  By then the other ranks have
usually posted, so reading takes one look-up.  A rank waits only for ranks whose training step takes longer.  The store
needs no collective, which could get out of order with those of the training (gradient accumulation, early stops,
collectives of the user).  Keys of decided batches are deleted.
"""

from __future__ import annotations

import itertools

import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, default_pg_timeout

from loopwise.errors import StateError
from loopwise.ranks import rank, world_size
from loopwise.torch_internals import default_store


class OtherRankFailed(Exception):
    """Another rank failed while it made its batch; ``all_have_batch`` raises a ``StateError`` with its reason."""


# the same on all ranks, because all ranks create their loaders in the same order
_numbers = itertools.count()


class Coordination:
    """Coordination of one loader with those of the other ranks.

    Attributes:
        active: true if there is more than one rank.
    """

    def __init__(self) -> None:
        self.active = dist.is_available() and dist.is_initialized() and world_size() > 1
        if self.active:
            self._store = PrefixStore(f"loopwise/sift/{next(_numbers)}", default_store())
        self._pass = -1
        self._step = 0

    def start(self) -> None:
        """Begin a new pass over the data, on all ranks."""
        self._pass += 1
        self._step = 0

    def post(self, has_batch: bool, trouble: str = "") -> None:
        """Post whether this rank has the next batch, or the error that prevented it."""
        key = self._key(self._step)
        if trouble:
            self._store.set(f"{key}/go", f"!{rank()} {trouble}")
        elif not has_batch:
            self._store.set(f"{key}/go", "over")
        elif self._store.add(f"{key}/ready", 1) == world_size():
            self._store.set(f"{key}/go", "go")
            if self._step:  # every rank has read the previous decision before it posted this
                self._store.delete_key(f"{self._key(self._step - 1)}/go")
                self._store.delete_key(f"{self._key(self._step - 1)}/ready")

    def all_have_batch(self) -> bool:
        """Return whether all ranks have the next batch, after waiting for the slowest of them to post it.

        Raises:
            StateError: a rank could not make its batch.
        """
        key = f"{self._key(self._step)}/go"
        self._store.wait([key], default_pg_timeout)  # as long as a collective: a rank may be evaluating
        decision = self._store.get(key).decode()
        self._step += 1
        if decision.startswith("!"):
            number, _, trouble = decision[1:].partition(" ")
            raise StateError(
                f"rank {number} could not make its next batch: {trouble}",
                "a batch on every rank",
                "the data of that rank",
                "see the error on that rank; all ranks stop together",
            )
        return decision == "go"

    def _key(self, step: int) -> str:
        return f"{self._pass}/{step}"

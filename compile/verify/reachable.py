"""State that a forward and backward pass can change: everything reachable from model, loss, optimizer and batch."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from loopwise import batch as batches
from loopwise.wrappers import unwrap

from ..spec import StepSpec
from ..torch_internals import hooks_of_all_modules
from .places import Place
from .traversal import Walk

MOST_BYTES = 256 * 2**20
"""Bytes of tensors and arrays that are copied beside those of the model, its loss, the optimizer and the batch."""
BATCH = "batch"
"""Name of the batch, with which the paths of its places begin."""


class Reachable(Walk):
    """Places that hold state, reached from the model, the loss, the optimizer and the batch of a step.

    Args:
        spec: the training step.
        batch: the batch of the pass.
    """

    def __init__(self, spec: StepSpec, batch: Any) -> None:
        weights = sum(p.nbytes for p in unwrap(spec.model).parameters())
        super().__init__(MOST_BYTES + batches.nbytes(batch) + 4 * weights)
        self.parameters = _named_parameters(spec)  # others follow by the path to them
        self._seen = {id(p): p for p in self.parameters.values()}
        for name, parameter in self.parameters.items():
            self._add_tensor(name, parameter)
        roots = [("model", unwrap(spec.model)), ("loss", spec.loss), (BATCH, batch)]
        roots += [("a hook of all modules", hook) for hook in hooks_of_all_modules()]
        self.walk([*self._queue, *roots])
        calculated = len(self.floating)
        self.walk([("optimizer", spec.optimizer)])
        del self.floating[calculated:]  # the optimizer's state takes no part in a pass
        del self._seen, self._queue


def of_batch(batch: Any) -> list[Place]:
    """Return the places that a batch alone leads to."""
    found = Walk(MOST_BYTES + batches.nbytes(batch))
    found.walk([(BATCH, batch)])
    return [place for place in found.places if is_of_batch(place)]


def is_of_batch(place: Place) -> bool:
    """Return whether a place belongs to the batch, by its path."""
    return place.name == BATCH or place.name.startswith((f"{BATCH}.", f"{BATCH}["))


def _named_parameters(spec: StepSpec) -> dict[str, Tensor]:
    """Return the parameters of model and loss that need a gradient, by name."""
    named: dict[str, Tensor] = {n: p for n, p in unwrap(spec.model).named_parameters() if p.requires_grad}
    if isinstance(spec.loss, nn.Module):
        own = set(map(id, named.values()))
        pairs = spec.loss.named_parameters()
        named |= {f"loss.{n}": p for n, p in pairs if p.requires_grad and id(p) not in own}
    return named

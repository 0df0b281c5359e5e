"""Forward and backward passes that leave no trace.

A sandbox restores everything that a pass changes and that ``reachable`` finds: gradients, buffers, modes, random
states, attributes, counters, the batch itself, and weights that a hook updates.  The first pass in a sandbox shows
which places change; later passes copy only those.
"""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from loopwise import batch as batches
from loopwise import random_state
from loopwise.errors import StateError
from loopwise.preserve import preserve, restored
from loopwise.ranks import world_size
from loopwise.wrappers import unwrap

from ..losses import scalar_loss
from ..spec import Compute, StepSpec
from .communication import CollectivesSeen, obstacle, without_communication
from .mappings import MappingPlace
from .places import Place, SequencePlace, TensorPlace, as_tensors
from .reachable import Reachable
from .traversal import Walk

Observed = dict[str, torch.Tensor]
"""Tensors of one pass by name: ``loss``, ``gradient/<parameter>``, ``buffer/<buffer>``, and ``state/<path>`` for
anything else that the pass changed."""


class Sandbox:
    """Context in which passes of a step run without a trace; it can be entered again and again, but not inside itself.

    Args:
        spec: the training step.
        batch: the batch of the passes.
        changing: paths that a pass is known to change; ``None``: the first pass finds out, by copies of everything.
        updates: whether weights and the optimizer's state change inside as well, so that they are copied each time.
        communicate: whether DDP communicates inside; all ranks must then run the same passes.
        awaited: whether a forward pass of the model still awaits its backward pass.  Gradients are then computed
            without accumulating them, because DDP's reducer would take them for the awaited ones.
    """

    def __init__(
        self,
        spec: StepSpec,
        batch: Any,
        changing: frozenset[str] | None = None,
        updates: bool = False,
        communicate: bool = False,
        awaited: bool = False,
    ) -> None:
        self.spec, self.batch = spec, batch
        self.reachable = Reachable(spec, batch)
        self.changing = changing
        """Paths of the places that a pass changes; ``None`` before the first pass."""
        self.drew = False
        """Whether the first pass drew random numbers."""
        self.has_collectives = False
        """Whether the first pass communicated with other ranks, DDP's own communication excepted."""
        self._updates, self._communicate, self._awaited = updates, communicate, awaited
        self._buffers = {id(buffer) for buffer in unwrap(spec.model).buffers()}
        self._saved: list[tuple[Place, Any]] = []
        self._twins: dict[int, Tensor] = {}
        self._stack = contextlib.ExitStack()
        if changing is None and not updates:
            for place in self._tensors():
                place.keep_base()

    def _tensors(self) -> Iterator[TensorPlace]:
        return (place for place in self.reachable.places if isinstance(place, TensorPlace))

    @property
    def obstacle(self) -> str:
        """Reason why no pass can be tried without a trace; empty if there is none."""
        if found := obstacle(self.spec.model):
            return found
        if self.has_collectives:
            return "its passes communicate with other ranks, which may not try the same number of passes"
        if self.reachable.iterators:
            names = ", ".join(self.reachable.iterators)
            return f"a trial pass would advance {names}: draw its items outside of the loss"
        if self.reachable.writers:
            names = ", ".join(self.reachable.writers)
            return f"trial passes would write to {names}: return what is to be written, and write it after the step"
        lost = [p.name for p in self._tensors() if not p.copied and p.name in (self.changing or ())]
        return f"a pass changes {', '.join(lost)}, too large to be copied and restored" if lost else ""

    def refuse_traces(self) -> None:
        """Raise a ``StateError`` if a pass cannot be tried without a trace: state may be younger than the search."""
        if found := self.obstacle:
            raise StateError(
                "a comparison by passes that would leave a trace",
                "a step whose passes can be undone",
                found,
                "leave that out of model, loss and batch, or compare a step without it",
            )

    def __enter__(self) -> Sandbox:
        model = self.spec.model
        leaves = self.reachable.parameters.values()
        loss = [self.spec.loss] if isinstance(self.spec.loss, nn.Module) else []
        self._saved = [(place, self._save(place)) for place in self.reachable.places]
        self._stack.enter_context(restored("grad", leaves))
        self._stack.callback(self._restore)
        self._stack.enter_context(preserve(unwrap(model), *loss))
        if not self._communicate:
            self._stack.enter_context(without_communication(model))
        for leaf in leaves:
            leaf.grad = None
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def _save(self, place: Place) -> Any:
        if not isinstance(place, TensorPlace):
            return place.save()
        return place.save(values=self._updates or place.name in (self.changing or ()))

    def _restore(self) -> None:
        self._twins = {}
        for place, saved in self._saved:
            if isinstance(place, TensorPlace):
                # the first pass has no other copy of what changes
                place.restore(saved, from_base=place.name in (self.changing or ()))
            else:
                place.restore(saved)
        self._saved = []

    def observe(
        self,
        compute: Compute,
        within: contextlib.AbstractContextManager[Any] | None = None,
    ) -> Observed:
        """Run one forward and backward pass and return its tensors; the sandbox must not be entered already.

        Args:
            compute: the forward pass.
            within: context of the passes.
        """
        with self:
            before = _random_states()
            with self._watched(), within or contextlib.nullcontext():
                loss = scalar_loss(compute(self.batch))
                self._backward(loss)
            after = _random_states()
            self.drew = self.drew or before != after
            observed = {"loss": loss.detach().clone()}
            observed["state/random numbers"] = torch.tensor(zlib.crc32(repr(after).encode()))
            for name, leaf in self.reachable.parameters.items():
                gradient = self._twins.get(id(leaf), leaf).grad
                if gradient is not None:
                    observed[f"gradient/{name}"] = gradient.detach().clone()
            buffers = unwrap(self.spec.model).named_buffers()
            observed |= {f"buffer/{name}": buffer.detach().clone() for name, buffer in buffers}
            for name, value in self._changes().items():
                if id(value) not in self._buffers:
                    observed |= as_tensors(f"state/{name}", value)
        return observed

    @contextlib.contextmanager
    def _watched(self) -> Iterator[None]:
        """Note in the first pass whether it communicates."""
        if self.changing is not None or self._communicate or world_size() == 1:
            yield
            return
        with CollectivesSeen() as seen:
            yield
        self.has_collectives = seen.any

    def _backward(self, loss: Tensor) -> None:
        if not self._awaited:
            loss.backward()  # type: ignore[no-untyped-call]
            return
        leaves = [self._twins.get(id(leaf), leaf) for leaf in self.reachable.parameters.values()]
        gradients = torch.autograd.grad(loss, leaves, allow_unused=True)
        for leaf, gradient in zip(leaves, gradients, strict=True):
            leaf.grad = gradient

    def _changes(self) -> dict[str, Any]:
        """Return what the pass changed, by path; find out which places change if that is not known."""
        changes: dict[str, Any] = {}
        changing = set()
        for place, saved in self._saved:
            own = place.changes(saved)
            changing |= {place.name} if own else set()
            if self.changing is None and isinstance(place, TensorPlace) and place.base is not None:
                own = place.changes_from_base(saved)  # values that are written but equal are no change
                changing |= set(own)  # by operations that do not count as changes
            changes |= own
        if self.changing is None:
            self.changing = frozenset(changing)
            self._find_what_was_made(changes)
        return changes

    def _find_what_was_made(self, changes: dict[str, Any]) -> None:
        """Note iterators and files that the first pass made: the first step makes them again, and others advance them."""
        made, reachable = Walk(0), self.reachable
        made.walk(changes.items())
        reachable.iterators += [name for name in made.iterators if name not in reachable.iterators]
        reachable.writers += [name for name in made.writers if name not in reachable.writers]

    def substitute(self, twins: dict[int, Tensor]) -> None:
        """Put twins of tensors, by the tensors' identities, into all containers until the sandbox is left."""
        self._twins = twins
        for place in self.reachable.places:
            if isinstance(place, (MappingPlace, SequencePlace)):
                place.substitute(twins)

    def training_pass(self, compute: Compute) -> Callable[[], None]:
        """Return a function that runs a forward and backward pass, to be timed inside the sandbox."""
        leaves = list(self.reachable.parameters.values())

        def run() -> None:
            for leaf in leaves:
                leaf.grad = None
            scalar_loss(compute(self.batch)).backward()  # type: ignore[no-untyped-call]

        return run

    def weights(self) -> list[Tensor]:
        """Return all parameters of floating-point or complex numbers that a pass calculates with."""
        return [
            t for t in self.reachable.floating if isinstance(t, nn.Parameter) and t.layout == torch.strided
        ]


def _random_states() -> list[Any]:
    """Return the random states of Python, NumPy, torch and its devices as values that can be compared."""
    leaves = batches.leaves(random_state.get())
    return [leaf.tolist() if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]

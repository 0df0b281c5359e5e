"""Losses of the training step's own forward pass, read by a hook: scoring without an extra forward pass."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from loopwise import batch as batches
from loopwise import sample_losses
from loopwise.errors import InputError
from loopwise.loss import is_pair
from loopwise.preserve import inside

from ..loss_history import LossHistory
from ..scoring import validate_losses
from .checksums import Fingerprint

_LossesOf = Callable[["_Batch"], torch.Tensor | None]
"""Function from a waiting batch to its losses; ``None``: they cannot be had."""
_TRUE = torch.tensor(True)
AHEAD = 16
"""Most batches that a framework may fetch before it trains on them."""


@dataclass(slots=True, eq=False)
class _Batch:
    """A yielded batch whose forward pass has not come yet."""

    indices: torch.Tensor
    target: Any
    fingerprint: Fingerprint
    forwards: int = 0
    """Number of forward passes of as many samples since the batch was yielded."""
    yields: int = 0
    """Number of batches yielded since."""
    done: bool = False


@dataclass(slots=True)
class _Deferred:
    """Losses on an accelerator that belong to ``batch`` if ``same`` is true, which nobody has waited for yet."""

    batch: _Batch
    losses: torch.Tensor
    same: torch.Tensor


@dataclass(slots=True, eq=False, weakref_slot=True)
class StepLosses:
    """Hook on the forward pass that follows a yielded batch; adds its per-sample losses to the history.

    A forward pass is that of a batch if checksums of all rows of its input are those of the batch.  Other forward passes
    (of the other half of a GAN, of replayed or unlabelled samples, of a second loader) are waited past; a batch that the
    loop reorders, mixes or changes is never recognised.  The hook exists only from the yielding of a batch to its
    forward pass, so that models are pickled and copied without it.  On an accelerator the comparison is fetched with
    the losses, once an epoch, except in the first batches, from which the hook learns how many forward passes come
    before that of the batch.  After the first batches, a forward pass of the very tensors that were yielded is recognised
    without checksums.

    A compiled training step calls no hook, and gives its losses itself (``receive``), or the outputs of its forward
    passes (``receive_output``).  Its model gets no hook, which would have the step captured again.

    Attributes:
        expected: number of batches that were yielded.
        observed: number of those whose losses were read.
        forwards: number of forward passes with gradient that came while a batch waited for its own.
        foreign: description of the last forward pass that was no batch's.
        compiled: ``torch.compile`` traced the model, so the hook cannot see its forward passes.
        problem: reason why losses cannot be read; empty: they can.
        error: the criterion returned no per-sample losses, which the loader raises.
        agreement: cosine of the gradient of the loop's loss with that of the criterion's, both by the output of the
            first recognised forward pass, 1 where one of them is zero; ``None``: no backward pass came yet.
        settled: the first batches were recognised; from now on nothing waits for an accelerator.
    """

    model: nn.Module
    loss: Callable[..., torch.Tensor]
    history: LossHistory
    expected: int = 0
    observed: int = 0
    forwards: int = 0
    foreign: str = ""
    compiled: bool = False
    problem: str = ""
    error: InputError | None = None
    agreement: torch.Tensor | None = None
    settled: bool = False
    _active: bool = True
    _identical: bool = False
    """The latest forward pass received the very tensors that were yielded."""
    _gives: bool = False
    """A compiled training step has given losses or outputs."""
    _pending: deque[_Batch] = field(default_factory=lambda: deque(maxlen=AHEAD))
    _deferred: list[_Deferred] = field(default_factory=list)
    _handle: RemovableHandle | None = None
    _forwards: int = 1
    """Number of forward passes of as many samples up to that of the batch, as learnt from the first batches."""
    _lag: int = 0
    """Number of batches that are yielded before the forward pass of a batch."""

    def expect(self, indices: torch.Tensor, batch: Any) -> None:
        """Wait for the forward pass of the batch (input, target) of the samples ``indices``.

        Raises:
            InputError: a batch of another form.
        """
        if not self._active:
            return
        validate_pair(batch)
        self.expected += 1
        for pending in self._pending:
            pending.yields += 1
        if self.settled:  # on an accelerator nothing says at once that a batch was recognised
            while self._pending and self._pending[0].yields > self._lag:
                self._pending.popleft()
        fingerprint = Fingerprint(batch[0], len(indices), copied=not self._identical)
        if not fingerprint:
            self._active, self.problem = (
                False,
                "the batch's input holds no tensor with one row for each sample",
            )
            return
        sample_losses.subscribe(self.model, self)
        if self._handle is None and not self._waits_for_a_step():
            try:
                self._handle = self.model.register_forward_hook(self._hook, with_kwargs=True)
            except RuntimeError as error:  # a module of torch.jit.script takes no hook
                self._active, self.problem = False, str(error)
                return
        self._pending.append(_Batch(indices, batch[1], fingerprint))

    def _waits_for_a_step(self) -> bool:
        """Return whether a compiled training step gives the losses, or may give the first ones."""
        return (self._gives or self.expected == 1) and sample_losses.announced(self.model)

    def cancel(self) -> None:
        """Remove the hook, and wait for no batch."""
        self._release()
        sample_losses.unsubscribe(self.model, self)
        self._pending.clear()

    def fetch(self) -> None:
        """Add the losses to the history whose comparison was left on an accelerator."""
        deferred, self._deferred = self._deferred, []
        flags = (
            torch.stack([entry.same.to("cpu", non_blocking=True) for entry in deferred]) if deferred else ()
        )
        for entry, same in zip(deferred, flags, strict=True):
            if same and not entry.batch.done:
                entry.batch.done = True
                self._add(entry.batch, entry.losses)

    def _release(self) -> None:
        if self._handle is not None:
            self._handle.remove()
        self._handle = None

    def _add(self, batch: _Batch, losses: torch.Tensor) -> None:
        self.history.add_losses(batch.indices, losses)
        self.observed += 1

    def _hook(self, module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        if torch.compiler.is_compiling():
            self._active, self.compiled = False, True
            return
        # a trial pass of another part, perhaps at other weights, is not the step's
        if inside() or not self._pending or not torch.is_grad_enabled():
            return
        self._match((*args, *kwargs.values()), lambda batch: self._losses(batch, output), output)

    def receive(self, batch: Any, losses: torch.Tensor | None) -> None:
        """Take the losses of a batch that a compiled training step has trained on, shape (batch,), detached."""
        if self._pending and self._active:
            self._gives = True
            self._match((batch,), lambda waiting: self._given(waiting, losses))

    def receive_output(self, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """Take a forward pass that a compiled training step has made; its output may be detached."""
        if self._pending and self._active:
            self._gives = True
            self._match((*args, *kwargs.values()), lambda batch: self._losses(batch, output), output)

    def _match(self, given: tuple[Any, ...], losses: _LossesOf, output: Any = None) -> None:
        """Find the batch that a forward pass received, and add its losses."""
        self.forwards += 1
        waiting = False
        for batch in list(self._pending):
            known = self.settled and batch.fingerprint.is_unchanged(given)
            self._identical = known  # if not, the next batches are copied, and compared by checksums
            same = _TRUE if known else batch.fingerprint.equals(given)
            if same is None:
                continue
            batch.forwards += 1
            if self.settled and deferred(same):
                waiting = True
                if (found := losses(batch)) is not None:
                    self._deferred.append(_Deferred(batch, found, same))
            elif bool(same):
                self._recognised(batch, losses(batch), output)
                return
        if waiting:
            self._stop_waiting()
        elif not self.settled:
            self.foreign = batches.describe(given if len(given) != 1 else given[0])

    def _recognised(self, batch: _Batch, losses: torch.Tensor | None, output: Any) -> None:
        """Add the losses of a batch, and wait no longer for it and for those before it."""
        if not self.settled:
            self._forwards, self._lag = max(self._forwards, batch.forwards), max(self._lag, batch.yields)
        if losses is not None:
            if not self.observed and output is not None:
                self._watch_gradient(batch, output)
            self._add(batch, losses)
        while self._pending and self._pending.popleft() is not batch:
            pass
        if not self._pending:
            self._release()

    def _stop_waiting(self) -> None:
        """Wait no longer for a batch after as many forward passes as the first batches took."""
        most = self._forwards * (self._lag + 1)
        while self._pending and self._pending[0].forwards >= most:
            self._pending.popleft()
        if not self._pending:
            self._release()

    def _losses(self, batch: _Batch, output: Any) -> torch.Tensor | None:
        try:
            with torch.no_grad():
                losses = self.loss(output.detach(), _on(batch.target, output.device))
            return validate_losses(losses, len(batch.indices))
        except InputError as error:
            self._active, self.error = False, error
        except Exception as error:  # the training step must go on
            self._active, self.problem = False, repr(error)
        return None

    def _given(self, batch: _Batch, losses: torch.Tensor | None) -> torch.Tensor | None:
        """Return the losses that a compiled training step gave for a batch."""
        size = len(batch.indices)
        if losses is None or losses.numel() != size:
            self._active = False
            self.problem = "the compiled training step has one loss for a batch (give TrainStep the loss with reduction='none')"
            return None
        return losses.reshape(size)

    def _watch_gradient(self, batch: _Batch, output: Any) -> None:
        """Compare the gradient that the loop's backward pass will give the output with that of the criterion."""
        if not output.requires_grad:
            return
        try:
            with torch.enable_grad():
                leaf = output.detach().float().requires_grad_()
                loss = self.loss(leaf, _on(batch.target, output.device)).sum()
                (expected,) = torch.autograd.grad(loss, leaf)
        except Exception:  # a criterion without a gradient, or for another dtype
            return

        def compare(gradient: torch.Tensor) -> None:
            if self.agreement is None:
                pair = gradient.detach().flatten().double(), expected.flatten().double()
                cosine = torch.nn.functional.cosine_similarity(*pair, dim=0)
                zero = (pair[0] == 0).all() | (
                    pair[1] == 0
                ).all()  # a warm-up from 0, or nothing left to learn
                self.agreement = torch.where(zero, 1.0, cosine)

        output.register_hook(compare)


def deferred(same: torch.Tensor) -> bool:
    """Return whether reading ``same`` would wait for an accelerator."""
    return same.device.type != "cpu"


def validate_pair(batch: Any) -> None:
    """Raise an error unless ``batch`` has exactly the fields (input, target), which a criterion takes."""
    if is_pair(batch):
        return
    raise InputError(
        f"batches of the form {batches.describe(batch)}, and a criterion as loss",
        "batches of exactly two fields, (input, target)",
        "which fields are the input and the target cannot be known",
        "pass loss=function, with def function(model, batch) returning one loss per sample; or use "
        "criterion = loader.criterion(nn.CrossEntropyLoss()) in the loop",
    )


def _on(target: Any, device: torch.device) -> Any:
    return batches.map_tensors(lambda tensor: tensor.to(device, non_blocking=True), target)

"""Losses of a batch's samples, by a forward pass without side effects."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn

from loopwise import batch as batches
from loopwise.devices import channels_last, native_dtype
from loopwise.errors import InputError
from loopwise.loss import pair, takes_model
from loopwise.preserve import preserve
from loopwise.wrappers import is_sharded, unwrap

from .compile_decision import CompileDecision


class Scores(NamedTuple):
    """Results of a scoring pass over n samples, on the CPU."""

    losses: torch.Tensor
    """float32 of shape (n,)."""
    gradients: torch.Tensor | None = None
    """Norms of the loss's gradient by the model's output, float32 of shape (n,)."""
    features: torch.Tensor | None = None
    """Outputs of the model, flattened, float32 of shape (n, d)."""


_Results = tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]
"""Losses, norms of gradients, and features, as the model returns them."""


class _ModelWithLoss(nn.Module):
    """Model and loss as one module, so that ``functional_call`` can run it with weights of another layout."""

    loss: Callable[..., torch.Tensor]

    def __init__(self, model: nn.Module, loss: Callable[..., torch.Tensor], needs: frozenset[str]) -> None:
        super().__init__()
        self.model = model
        self.needs = needs
        self.__dict__["loss"] = loss  # no submodule, so that a criterion's buffers are no part of the state
        self.takes_model = takes_model(loss)

    def forward(self, batch: Any) -> _Results:
        if self.takes_model:
            return self.loss(self.model, batch), None, None
        inputs, targets = pair(batch)
        outputs, gradients = self.model(inputs), None
        if "gradients" in self.needs:
            with torch.enable_grad():
                leaf = outputs.detach().float().requires_grad_()
                (gradient,) = torch.autograd.grad(self.loss(leaf, targets).sum(), leaf)
            gradients = gradient.flatten(1).norm(dim=1)
        features = outputs.flatten(1) if "features" in self.needs else None
        return self.loss(outputs, targets), gradients, features


class Scorer:
    """Scores batches in evaluation mode, without gradient, under autocast, and restores everything afterwards.

    Evaluation mode switches dropout off and uses BatchNorm's running statistics.  DDP's wrapper is left out, which
    avoids its collectives.  For 4-dimensional inputs the convolution weights are passed in channels_last layout: the
    same numbers, about a third faster on CPUs.

    Args:
        model: the model in training.
        loss: a per-sample criterion, or ``loss(model, batch)``.
        dtype: autocast dtype; ``torch.float32`` for no autocast; ``"auto"`` for bfloat16 if the hardware multiplies it
            natively, float16 on older GPUs, else float32.
        compiled: run the scoring pass through ``torch.compile``; ``"auto"``: if that proves faster.
        needs: results besides the losses, of ``gradients`` and ``features``.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[..., torch.Tensor],
        dtype: torch.dtype | str,
        compiled: bool | str = False,
        needs: frozenset[str] = frozenset(),
    ) -> None:
        self.model = unwrap(model)
        self.sharded = is_sharded(self.model)
        self.dtype = dtype
        self._loss = loss
        self._model_with_loss = _ModelWithLoss(self.model, loss, needs)
        plain = "gradients" in needs or (compiled == "auto" and self.sharded)  # ranks must decide alike
        self._decision = CompileDecision(self._plain, torch.compile)
        self._decision.decided = plain or compiled != "auto"
        if compiled is True and not plain:
            self._decision.run = torch.compile(self._plain)
        self._other_models: dict[int, Scorer] = {}

    def device(self, batch: Any) -> torch.device:
        """Return the device to score on, after verifying that the batch can be there."""
        first = next(self.model.parameters(), None)
        tensors = [leaf for leaf in batches.leaves(batch) if isinstance(leaf, torch.Tensor)]
        of_batch = tensors[0].device if tensors else torch.device("cpu")
        if first is None:
            return of_batch
        of_model = first.device
        if of_batch == of_model or (of_batch.type == "cpu" and of_model.type != "meta"):
            return of_model
        raise InputError(
            f"a model on {of_model} and a batch on {of_batch}",
            "both on one device, or the batch on the CPU (it is moved for scoring)",
            "model.to(device) was forgotten, or names another device than the loader's",
            f"model.to({str(of_batch)!r}), or let the loader yield batches on the CPU",
        )

    def moved(self, batch: Any) -> Any:
        """Return the batch on the device to score on."""
        device = self.device(batch)
        return batches.map_tensors(lambda t: t.to(device, non_blocking=True), batch)

    def for_model(self, model: nn.Module) -> Scorer:
        """Return a scorer of the same loss and dtype for another model."""
        if id(model) not in self._other_models:
            self._other_models[id(model)] = Scorer(model, self._loss, self.dtype)
        return self._other_models[id(model)]

    def __call__(self, batch: Any, size: int) -> Scores:
        """Return the scores of a batch of ``size``."""
        start, device = time.perf_counter(), self.device(batch)
        moved = self.moved(batch)
        dtype = self.dtype if isinstance(self.dtype, torch.dtype) else native_dtype(device)
        autocast = torch.autocast(
            device.type,
            dtype=None if dtype is torch.float32 else dtype,
            enabled=dtype is not torch.float32,
            cache_enabled=False,  # a cached cast without gradient would reach an enclosing autocast
        )
        with preserve(self.model, training=False), torch.no_grad(), autocast:
            losses, gradients, features = self._forward(moved)
            if self.sharded:
                self._reshard()
        results = (validate_losses(losses, size), gradients, features)
        moved_back = (None if values is None else values.float().cpu() for values in results)
        scores = Scores(*moved_back)  # type: ignore[arg-type]  # there are always losses
        self._decision.add_time(time.perf_counter() - start, size)  # the copies have waited for the device
        return scores

    def _reshard(self) -> None:
        """Free the weights that FSDP's root keeps gathered until a backward pass; the next update would outdate them."""
        from torch.distributed.fsdp import FSDPModule  # it imports DTensor, which takes a second

        for module in self.model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()

    def _forward(self, batch: Any) -> _Results:
        images = any(isinstance(leaf, torch.Tensor) and leaf.ndim == 4 for leaf in batches.leaves(batch))
        weights = {
            f"model.{name}": weight.contiguous(memory_format=torch.channels_last)
            for name, weight in self.model.named_parameters()
            if images and weight.ndim == 4 and type(weight) is nn.Parameter
        }
        results: _Results = self._decision.run(
            weights, batches.map_tensors(channels_last, batch) if weights else batch
        )
        return results

    def _plain(self, weights: dict[str, torch.Tensor], batch: Any) -> _Results:
        if not weights:
            return self._model_with_loss(batch)  # type: ignore[no-any-return]
        return torch.func.functional_call(self._model_with_loss, weights, (batch,))  # type: ignore[no-any-return]


def validate_losses(losses: Any, size: int) -> torch.Tensor:
    """Return ``losses`` in shape (size,) if there is one per sample: of shape (size,) or (size, 1)."""
    expected = f"a Tensor of shape ({size},): one loss per sample"
    if not isinstance(losses, torch.Tensor):
        raise InputError(
            f"a loss of type {type(losses).__name__}",
            expected,
            "the loss function returns a number or a tuple",
            "return the per-sample losses as a Tensor",
        )
    if losses.ndim == 0:
        raise InputError(
            "a loss that is a single number",
            expected,
            "the criterion averages over the batch (reduction='mean' is the default)",
            "make the criterion with reduction='none'; the one in the training step stays as it is",
        )
    if losses.shape == (size, size) and size > 1:
        raise InputError(
            f"losses of shape {tuple(losses.shape)} for a batch of {size}",
            expected,
            f"an output of shape ({size}, 1) and a target of shape ({size},), which the criterion broadcasts: the "
            "training step does so too, and then averages over all pairs",
            "make both of one shape, in the training step as well: output.squeeze(1), or target.unsqueeze(1)",
        )
    if losses.shape not in ((size,), (size, 1)):  # (size, 1): regression
        raise InputError(
            f"losses of shape {tuple(losses.shape)} for a batch of {size}",
            expected,
            "losses per token or pixel, or of another batch",
            "average over all dimensions but the first, for instance loss.flatten(1).mean(1)",
        )
    return losses.reshape(size)

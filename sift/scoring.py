"""Per-sample losses by a forward pass that leaves no trace."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule

from loopwise import batch as batches
from loopwise.devices import channels_last, native_dtype
from loopwise.errors import InputError
from loopwise.loss import pair, takes_model
from loopwise.preserve import preserve
from loopwise.wrappers import is_sharded, unwrap

from .compile_trial import WhenItPays


@dataclass(slots=True)
class Scores:
    """What a scoring pass found, on the CPU."""

    losses: torch.Tensor
    """float32 of shape (n,)."""
    gradients: torch.Tensor | None = None
    """Norms of the loss's gradient by the model's output, float32 of shape (n,)."""
    features: torch.Tensor | None = None
    """The model's outputs, flattened, float32 of shape (n, d)."""


_Found = tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]


class _Scored(nn.Module):
    """Model and loss as one module, so that ``functional_call`` can lend it other weight layouts."""

    def __init__(self, model: nn.Module, loss: Callable[..., torch.Tensor], needs: frozenset[str]) -> None:
        super().__init__()
        self.model = model
        self.needs = needs
        self.__dict__["loss"] = loss  # not a submodule: a criterion's buffers stay its own
        self.takes_model = takes_model(loss)

    def forward(self, batch: Any) -> _Found:
        if self.takes_model:
            return self.loss(self.model, batch), None, None  # type: ignore[operator]
        inputs, targets = pair(batch)
        outputs, gradients = self.model(inputs), None
        if "gradients" in self.needs:
            with torch.enable_grad():
                leaf = outputs.detach().float().requires_grad_()
                (slope,) = torch.autograd.grad(self.loss(leaf, targets).sum(), leaf)  # type: ignore[operator]
            gradients = slope.flatten(1).norm(dim=1)
        features = outputs.flatten(1) if "features" in self.needs else None
        return self.loss(outputs, targets), gradients, features  # type: ignore[operator]


class Scorer:
    """Scores batches: evaluation mode, no gradient, autocast, everything restored afterwards.

    The model is scored in evaluation mode (dropout off, BatchNorm's running statistics), without
    DDP's wrapper (no collective).  Convolution weights are lent in channels_last layout for 4-d
    input: the same numbers, about a third faster on CPUs.

    Args:
        model: the model in training.
        loss: a per-sample criterion, or ``loss(model, batch)``.
        dtype: autocast dtype; ``torch.float32`` for none; ``"auto"`` for bfloat16 where the
            hardware multiplies it natively, float16 on older GPUs, else float32.
        compiled: run the scoring pass through ``torch.compile``; ``"auto"``: where that proves faster.
        needs: what to find beside the losses, of ``gradients`` and ``features``.
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
        self.scored = _Scored(self.model, loss, needs)
        self.dtype = dtype
        plain = "gradients" in needs or (compiled == "auto" and self.sharded)  # ranks must not differ
        self._trial = WhenItPays(self._plain, torch.compile)
        self._trial.decided = plain or compiled != "auto"
        if compiled is True and not plain:
            self._trial.run = torch.compile(self._plain)
        self._others: dict[int, Scorer] = {}

    def device(self, batch: Any) -> torch.device:
        """The device to score on, after checking that the batch can be there."""
        first = next(self.model.parameters(), None)
        tensors = [leaf for leaf in batches.leaves(batch) if isinstance(leaf, torch.Tensor)]
        given = tensors[0].device if tensors else torch.device("cpu")
        if first is None:
            return given
        wanted = first.device
        if given == wanted or (given.type == "cpu" and wanted.type != "meta"):
            return wanted
        raise InputError(
            f"a model on {wanted} and a batch on {given}",
            "both on one device, or the batch on the CPU (it is moved for scoring)",
            "model.to(device) was forgotten, or names another device than the loader's",
            f"model.to({str(given)!r}), or let the loader yield batches on the CPU",
        )

    def moved(self, batch: Any) -> Any:
        """The batch on the device to score on."""
        device = self.device(batch)
        return batches.map_tensors(lambda t: t.to(device, non_blocking=True), batch)

    def of(self, model: nn.Module) -> Scorer:
        """A scorer of the same loss and dtype for another model."""
        if id(model) not in self._others:
            self._others[id(model)] = Scorer(model, self.scored.__dict__["loss"], self.dtype)
        return self._others[id(model)]

    def __call__(self, batch: Any, size: int) -> Scores:
        """Scores of a batch of ``size``."""
        start, device = time.perf_counter(), self.device(batch)
        moved = self.moved(batch)
        dtype = self._dtype(device)
        autocast = torch.autocast(
            device.type,
            dtype=None if dtype is torch.float32 else dtype,
            enabled=dtype is not torch.float32,
            cache_enabled=False,  # a cached cast without gradient would reach an enclosing autocast
        )
        with preserve(self.model, training=False), torch.no_grad(), autocast:
            losses, gradients, features = self._forward(moved)
            self._reshard()
        found = Scores(
            checked(losses, size).float().cpu(),
            None if gradients is None else gradients.cpu(),
            None if features is None else features.float().cpu(),
        )
        self._trial.note(time.perf_counter() - start, size)  # the copies have waited for the device
        return found

    def _reshard(self) -> None:
        """Without a backward pass FSDP's root would keep gathered weights, which the next update makes stale."""
        for module in self.model.modules() if self.sharded else ():
            if isinstance(module, FSDPModule):
                module.reshard()

    def _forward(self, batch: Any) -> _Found:
        images = [t for t in batches.leaves(batch) if isinstance(t, torch.Tensor) and t.ndim == 4]
        weights = {
            f"model.{name}": weight.contiguous(memory_format=torch.channels_last)
            for name, weight in self.model.named_parameters()
            if images and weight.ndim == 4 and type(weight) is nn.Parameter
        }
        found: _Found = self._trial.run(
            weights, batches.map_tensors(channels_last, batch) if weights else batch
        )
        return found

    def _plain(self, weights: dict[str, torch.Tensor], batch: Any) -> _Found:
        if not weights:
            return self.scored(batch)  # type: ignore[no-any-return]
        return torch.func.functional_call(self.scored, weights, (batch,))  # type: ignore[no-any-return]

    def _dtype(self, device: torch.device) -> torch.dtype:
        if isinstance(self.dtype, torch.dtype):
            return self.dtype
        return native_dtype(device)


def checked(losses: Any, size: int) -> torch.Tensor:
    """``losses`` when they are one a sample of a batch of ``size``."""
    if not isinstance(losses, torch.Tensor):
        raise InputError(
            f"a loss of type {type(losses).__name__}",
            f"a Tensor of shape ({size},): one loss a sample",
            "the loss function returns a number or a tuple",
            "return the per-sample losses as a Tensor",
        )
    if losses.ndim == 0:
        raise InputError(
            "a loss that is a single number",
            f"a Tensor of shape ({size},): one loss a sample",
            "the criterion averages over the batch (reduction='mean' is the default)",
            "make the criterion with reduction='none'; the one in the training step stays as it is",
        )
    if losses.shape != (size,):
        raise InputError(
            f"losses of shape {tuple(losses.shape)} for a batch of {size}",
            f"a Tensor of shape ({size},): one loss a sample",
            "losses per token or pixel, or of another batch",
            "average over all dimensions but the first, for instance loss.flatten(1).mean(1)",
        )
    return losses

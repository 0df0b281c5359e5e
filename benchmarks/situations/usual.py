"""The usual loop's step, which situations are compared with, and the recorder of losses."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel


class UsualStep:
    """Training step of the usual loop, with the arguments and methods of ``TrainStep`` that situations use."""

    def __init__(self, model: nn.Module, loss: Any, optimizer: Any = None, **options: Any) -> None:
        self.model, self.loss, self.optimizer = model, loss, optimizer
        self.scaler, self.clip = options.get("scaler"), options.get("clip")
        self.accumulate, self.batches = options.get("accumulate", 1), 0

    def prepare(self, batch: Any) -> None:
        """Do nothing: there is no plan to choose."""

    def forward(self, batch: Any) -> torch.Tensor:
        """Return the loss of a batch."""
        parameters = list(inspect.signature(self.loss).parameters)
        by_model = not isinstance(self.loss, nn.Module) and parameters[0] == "model"
        loss = self.loss(self.model, batch) if by_model else self.loss(self.model(batch[0]), batch[1])
        return loss if loss.ndim == 0 else loss.mean()

    def __call__(self, batch: Any) -> torch.Tensor:
        """Train on one batch; an update follows after ``accumulate`` batches."""
        if self.batches % self.accumulate == 0:
            self.optimizer.zero_grad()
        self.batches += 1
        last = self.batches % self.accumulate == 0
        if isinstance(self.model, DistributedDataParallel) and not last:
            with self.model.no_sync():
                return self._backward(batch)
        loss = self._backward(batch)
        if last:
            self._update()
        return loss

    def _backward(self, batch: Any) -> torch.Tensor:
        loss = self.forward(batch)
        share = loss / self.accumulate
        (share if self.scaler is None else self.scaler.scale(share)).backward()
        return loss.detach()

    def _update(self) -> None:
        if self.clip is not None:
            if self.scaler is not None:
                self.scaler.unscale_(self.optimizer)
            parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
            nn.utils.clip_grad_norm_(parameters, self.clip)
        if self.scaler is None:
            self.optimizer.step()
        else:
            self.scaler.step(self.optimizer)
            self.scaler.update()


class Recorded:
    """A step whose losses are recorded; everything else is the step's own."""

    def __init__(self, step: Any, losses: list[float]) -> None:
        self.inner, self._losses = step, losses

    def __call__(self, batch: Any) -> torch.Tensor:
        loss = self.inner(batch)
        self._losses.append(float(loss))
        return loss

    def forward(self, batch: Any) -> torch.Tensor:
        """Return the loss of a batch for the caller's backward pass."""
        loss = self.inner.forward(batch)
        self._losses.append(float(loss.detach()))
        return loss

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "inner":  # copying and pickling ask for such names
            raise AttributeError(name)
        return getattr(self.inner, name)

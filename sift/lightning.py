"""Sifting in a Lightning ``Trainer``: one callback, nothing else changes.

Trainer(callbacks=[SiftingCallback(keep=0.5)]).fit(module, datamodule)
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.modules.loss import _Loss

from loopwise.errors import InputError, MissingExtra
from loopwise.ranks import rank, world_size

from .loader import SiftingDataLoader

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
except ImportError:
    try:
        from pytorch_lightning import (  # type: ignore[assignment]  # the same, by its older name
            Callback,
            LightningModule,
            Trainer,
        )
    except ImportError:
        raise MissingExtra.of("lightning", "lightning", "SiftingCallback") from None


class _Feed:
    """The loader as Lightning sees it: without a length, so that the end of an epoch is its own."""

    def __init__(self, loader: SiftingDataLoader) -> None:
        self.loader = loader
        self.untrained = 0

    def __iter__(self) -> Iterator[Any]:
        self.untrained = 0
        for batch in self.loader:
            self.untrained += 1
            yield batch


class SiftingCallback(Callback):
    """Wraps the train loader of ``Trainer.fit`` in a ``SiftingDataLoader``.

    The state of the loader travels in Lightning's checkpoints, one of each rank.

    Args:
        loss: per-sample criterion or ``loss(model, batch)``; default: the module's own criterion (an
            attribute that is one of torch's losses), made to give one loss a sample.
        model: from the LightningModule to the network that ``training_step`` calls with the input;
            default: the LightningModule itself.
        options: those of ``SiftingDataLoader``.

    Raises:
        InputError: no or several criteria in the module, or several train loaders.
    """

    def __init__(
        self,
        loss: Callable[..., torch.Tensor] | None = None,
        *,
        model: Callable[[LightningModule], nn.Module] = lambda module: module,
        **options: Any,
    ) -> None:
        self.loss, self.model, self.options = loss, model, options
        self.loader: SiftingDataLoader | None = None
        self._feed: _Feed | None = None
        self._state: dict[str, Any] | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        loop: Any = trainer.fit_loop
        combined = loop._combined_loader
        if combined is None or len(combined.flattened) != 1:
            raise InputError(
                f"{0 if combined is None else len(combined.flattened)} train loaders",
                "one train loader",
                "train_dataloader() returns several",
                "wrap the one to be sifted in SiftingDataLoader, in train_dataloader()",
            )
        loss = self.loss if self.loss is not None else _criterion(pl_module)
        model = self.model(pl_module)
        self.loader = SiftingDataLoader(combined.flattened[0], model, loss=loss, **self.options)
        self.loader.epoch = trainer.current_epoch
        self.loader.fetched_ahead(2)
        self._feed = _Feed(self.loader)
        self._load()
        combined.flattened = [self._feed]
        limit = trainer.limit_train_batches
        combined.limits = [limit if isinstance(limit, int) else math.inf]
        loop._data_fetcher.setup(combined)
        iter(loop._data_fetcher)
        loop.max_batches = combined.limits[0]
        if trainer.val_check_interval == 1.0:
            trainer.val_check_batch = math.inf

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.loader is not None and not self.loader.running:
            self.loader.set_epoch(trainer.current_epoch)

    def on_train_batch_end(self, *_: Any) -> None:
        if self._feed is not None:
            self._feed.untrained = max(0, self._feed.untrained - 1)

    def state_dict(self) -> dict[str, Any]:
        """States of all ranks.  Collective where there are several, as saving a checkpoint is."""
        if self.loader is None or self._feed is None:
            return {}
        own = copy.deepcopy(self.loader.state_dict(self._feed.untrained))
        states: list[Any] = [own]
        if world_size() > 1 and dist.is_initialized():
            states = [None] * world_size()
            dist.all_gather_object(states, own)
        return {"ranks": states}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._state = state_dict or None

    def _load(self) -> None:
        state, self._state = self._state, None
        if state is None or self.loader is None:
            return
        if len(state["ranks"]) != world_size():
            raise InputError(
                f"a checkpoint of {len(state['ranks'])} ranks",
                f"one of {world_size()} ranks",
                "samples are spread differently over another number of ranks",
                "resume with as many processes as the checkpoint was saved with",
            )
        self.loader.load_state_dict(state["ranks"][rank()])


def _criterion(module: nn.Module) -> nn.Module:
    """A copy of the module's own criterion that gives one loss a sample."""
    found = {name: part for name, part in module.named_modules() if isinstance(part, _Loss)}
    if len(found) != 1:
        raise InputError(
            f"{len(found)} criteria in {type(module).__name__}: {', '.join(found) or 'none'}",
            "one attribute that is one of torch's losses",
            "the loss is computed by a function in training_step, or there are several",
            "pass SiftingCallback(loss=nn.CrossEntropyLoss(reduction='none')) or a function",
        )
    criterion = copy.deepcopy(next(iter(found.values())))
    criterion.reduction = "none"
    return criterion

"""Sifting in a Lightning ``Trainer`` by one callback.

Trainer(callbacks=[SiftingCallback(keep=0.5)]).fit(module, datamodule)
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn
from torch.nn.modules import loss as criteria

from loopwise import validate
from loopwise.errors import InputError
from loopwise.extras import required
from loopwise.ranks import gather, rank

from .loader import DEFAULTS, SiftingDataLoader
from .options import validate_loss, validate_passed_on

with required("lightning", "lightning", "SiftingCallback"):
    try:
        from lightning.pytorch import Callback, LightningModule, Trainer
    except ModuleNotFoundError:
        if find_spec("pytorch_lightning") is None:
            raise
        from pytorch_lightning import Callback, LightningModule, Trainer  # type: ignore[assignment]

CRITERIA = tuple(getattr(criteria, name) for name in criteria.__all__)


class _UnsizedLoader:
    """Loader without a length, so that Lightning ends an epoch when the batches end, and a count of untrained batches."""

    def __init__(self, loader: SiftingDataLoader) -> None:
        self.loader = loader
        self.untrained = 0

    def __iter__(self) -> Iterator[Any]:
        self.untrained = 0
        for batch in self.loader:
            self.untrained += 1
            yield batch


class SiftingCallback(Callback):
    """Callback that wraps the train loader of ``Trainer.fit`` in a ``SiftingDataLoader``.

    Lightning's checkpoints contain the state of the loader on each rank.

    Args:
        loss: per-sample criterion or ``loss(model, batch)``; default: the module's own criterion (an attribute that is
            one of torch's losses), changed to return one loss per sample.
        model: function from the LightningModule to the network that ``training_step`` calls with the input; default:
            the LightningModule itself.
        options: options of ``SiftingDataLoader``.

    Raises:
        InputError: invalid options; when training begins: no or several criteria in the module, or several train
            loaders.
    """

    def __init__(
        self,
        loss: Callable[..., torch.Tensor] | None = None,
        *,
        model: Callable[[LightningModule], nn.Module] = lambda module: module,
        **options: Any,
    ) -> None:
        if loss is not None:
            validate_loss(loss)
        expected = "a function from the LightningModule to the network that training_step calls"
        validate.function("model", model, expected, "model=lambda module: module.net")
        validate_passed_on(options, DEFAULTS, "SiftingCallback(...)")
        self.loss, self.model, self.options = loss, model, options
        self.loader: SiftingDataLoader | None = None
        self._unsized: _UnsizedLoader | None = None
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
        self.loader = SiftingDataLoader(combined.flattened[0], model, loss, **self.options)
        self.loader.epoch = trainer.current_epoch
        self.loader.hold_yielded(2)
        self._unsized = _UnsizedLoader(self.loader)
        if self._state is not None:  # the loader refuses the state of another number of ranks
            states = self._state["ranks"]
            self.loader.load_state_dict(states[rank() % len(states)])
            self._state = None
        combined.flattened = [self._unsized]
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
        if self._unsized is not None:
            self._unsized.untrained = max(0, self._unsized.untrained - 1)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if self.loader is not None:
            self.loader.close("failed")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self.loader is not None:
            self.loader.close("finished")

    def state_dict(self) -> dict[str, Any]:
        """Return the states of all ranks; every rank has to call this function, as for saving a checkpoint."""
        if self.loader is None or self._unsized is None:
            return {}
        return {"ranks": gather(copy.deepcopy(self.loader.state_dict(self._unsized.untrained)))}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._state = state_dict or None


def _criterion(module: nn.Module) -> nn.Module:
    """Return a copy of the module's own criterion that returns one loss per sample."""
    losses = {name: part for name, part in module.named_modules() if isinstance(part, CRITERIA)}
    if len(losses) != 1:
        raise InputError(
            f"{len(losses)} criteria in {type(module).__name__}: {', '.join(losses) or 'none'}",
            "one attribute that is one of torch's losses",
            "the loss is computed by a function in training_step, or there are several",
            "pass SiftingCallback(loss=nn.CrossEntropyLoss(reduction='none')) or a function",
        )
    criterion: nn.Module = copy.deepcopy(next(iter(losses.values())))
    criterion.reduction = "none"  # type: ignore[assignment]
    return criterion

"""Watching a Lightning ``Trainer``: one callback, nothing else changes.

Trainer(callbacks=[WatchCallback(run="runs/digits", save=every(100))]).fit(module, datamodule)
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch

from loopwise.errors import MissingExtra
from loopwise.run import Run

from .callback import Watching

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
        raise MissingExtra.of("lightning", "lightning", "WatchCallback") from None


class WatchCallback(Watching, Callback):
    """A ``Watch`` over the LightningModule, from the start of ``Trainer.fit`` to its end.

    Each training batch is a step, and so is each batch of validation and test (mode ``eval``) and of
    prediction (mode ``predict``).  Its scalars are the numbers that ``training_step`` returns, and those that were
    logged with ``self.log(..., on_step=True)``; the loss is that of the batch, also where batches are
    accumulated.  What a whole evaluation logged is one more step of mode ``eval``.

    The step counters travel in Lightning's checkpoints; a fit that goes on from one goes on in the same folder.
    A fit that ends by an exception leaves a run that says ``failed``.

    Args:
        run: folder or fsspec URL of the run, or a ``Run``, which the caller closes.
        stop_on: severity of findings (``warning``, ``critical``) from which on ``trainer.should_stop`` is set.
        options: those of ``Watch``.

    Raises:
        InputError: when training begins, for options that ``Watch`` refuses.
        StateError: when training begins, where the folder holds another run.
    """

    def __init__(
        self, *, run: str | os.PathLike[str] | Run, stop_on: str | None = None, **options: Any
    ) -> None:
        super().__init__(run=run, stop_on=stop_on, **options)
        self._loaded: dict[str, Any] = {}
        self._progress: Any = None
        self._done = 0
        self._before: dict[str, Any] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._progress = trainer.fit_loop.epoch_loop.batch_progress
        self._done = self._progress.total.processed
        counters, self._loaded = self._loaded or self._earlier(), {}
        fresh = {"step": self._done, "steps": {"train": self._done}}
        self._open(trainer, pl_module, counters or fresh, bool(counters))

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        self._done = self._progress.total.processed
        self._look(trainer)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any) -> None:
        def read() -> dict[str, Any]:
            returned = _returned(outputs)
            if isinstance(returned.get("loss"), torch.Tensor) and pl_module.automatic_optimization:
                returned["loss"] = returned["loss"] * trainer.accumulate_grad_batches
            return returned | self._logged(trainer)

        self._session.step(read)
        if self._stops():
            trainer.should_stop = True
        self._done = self._progress.total.processed

    def on_train_epoch_end(self, *_: Any) -> None:
        self._done = self._progress.total.processed

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self._evaluate(trainer, pl_module, "eval")

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any
    ) -> None:
        self._session.step(lambda: _returned(outputs))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._session.watch is None:
            return
        found: dict[str, Any] = {}
        with self._session.guarded():
            found = self._logged(trainer)
        if found:
            self._session.step(lambda: found)
        self._session.turn("train")

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._evaluate(trainer, pl_module, "eval")

    def on_test_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any) -> None:
        self._session.step(lambda: _returned(outputs))

    on_test_end = on_validation_end

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._evaluate(trainer, pl_module, "predict")

    def on_predict_batch_end(self, *_: Any) -> None:
        self._session.step()

    def on_exception(self, *_: Any) -> None:
        self._session.close("failed")

    def teardown(self, *_: Any, **__: Any) -> None:
        self._session.close()

    def state_dict(self) -> dict[str, Any]:
        watch = self._session.watch
        counters = self._session.counters if watch is None else watch.state_dict()
        if counters and self._progress is not None:
            counters = _moved(counters, self._progress.total.processed - self._done)
        return counters

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._loaded = state_dict

    def _earlier(self) -> dict[str, Any]:
        """Counters of an earlier call of the trainer, where this fit goes on from there."""
        counters = self._session.counters
        trained = counters.get("steps", {}).get("train", 0)
        return counters if bool(trained) == bool(self._done) else {}

    def _evaluate(self, trainer: Trainer, pl_module: LightningModule, mode: str) -> None:
        if self._session.watch is None:  # not inside a fit
            counters, self._loaded = self._session.counters or self._loaded, {}
            self._open(trainer, pl_module, counters or None, bool(counters))
        self._session.turn(mode)
        self._look(trainer)

    def _open(
        self, trainer: Trainer, pl_module: LightningModule, counters: dict[str, Any] | None, resume: bool
    ) -> None:
        optimizers = {str(number): optimizer for number, optimizer in enumerate(trainer.optimizers)}
        self._session.open(
            pl_module,
            optimizers["0"] if len(optimizers) == 1 else optimizers or None,
            scaler=getattr(trainer.precision_plugin, "scaler", None),
            counters=counters,
            resume=resume,
        )

    def _look(self, trainer: Trainer) -> None:
        """Note what is logged already: it stays there, and a later step has not logged it."""
        self._before = {}
        watch = self._session.watch
        if watch is not None and (watch.saves or self._session.mode != "train"):
            with self._session.guarded():
                self._before = dict(trainer.callback_metrics)

    def _logged(self, trainer: Trainer) -> dict[str, Any]:
        """What was logged since, once where it has several names."""
        found: dict[Any, str] = {}
        metrics = trainer.callback_metrics
        for name, value in metrics.items():
            if name not in self._before or _place(self._before[name]) != _place(value):
                found.setdefault(_place(value), name)
        self._before = {}
        return {name: metrics[name] for name in found.values()}


def _returned(outputs: Any) -> dict[str, Any]:
    """What a step of the module returned, by name."""
    if isinstance(outputs, torch.Tensor):
        return {"loss": outputs}
    return dict(outputs) if isinstance(outputs, Mapping) else {}


def _place(value: Any) -> Any:
    """Equal for what is the same object to Lightning, which gives out a new tensor of the same memory each time."""
    return value.data_ptr() if isinstance(value, torch.Tensor) else id(value)


def _moved(counters: Mapping[str, Any], batches: int) -> dict[str, Any]:
    """Counters after batches that Lightning has counted and the ``Watch`` has not been told of yet."""
    steps = {**counters["steps"], "train": counters["steps"].get("train", 0) + batches}
    return {"step": counters["step"] + batches, "steps": steps}


__all__ = ["Trainer", "WatchCallback"]

"""Callback for a Lightning ``Trainer``; nothing else of a training script changes.

Trainer(callbacks=[WatchCallback(run="runs/digits", save=every(100))]).fit(module, datamodule)
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from loopwise.extras import required
from loopwise.run import Run

from .callback import TRAINER, WatchingCallback
from .loggers import Logger
from .loggers.trainers import Held, of_lightning

with required("lightning", "lightning", "WatchCallback"):
    try:
        from lightning.pytorch import Callback, LightningModule, Trainer
    except ModuleNotFoundError:
        from pytorch_lightning import (  # type: ignore[assignment]  # its older name
            Callback,
            LightningModule,
            Trainer,
        )


class WatchCallback(WatchingCallback, Callback):
    """A ``Watch`` over the LightningModule, from the start of ``Trainer.fit`` to its end.

    Each training batch is a step, and so is each batch of validation and test (mode ``eval``) and of
    prediction (mode ``predict``).  Its scalars are the numbers that ``training_step`` returns, and those that were
    logged with ``self.log(..., on_step=True)``; the loss is that of the batch, also if batches are accumulated.
    At the end of an evaluation, the values that it logged are saved as one further step of mode ``eval``.

    Lightning's checkpoints hold the step counters; a fit that goes on from a checkpoint goes on in the same folder.
    A fit that ends by an exception leaves a run whose state is ``failed``.

    Args:
        run: folder or fsspec URL of the run, or a ``Run``, which the caller closes.
        resume: go on in a folder that already holds a run, even without a checkpoint; only if ``run`` is a path.
        loggers: ``"trainer"``: the Trainer's loggers get numbers and findings, on their own threads; others, such
            as ``CSVLogger``, at the Trainer's logging steps;
            or loggers of ``loopwise.debug.loggers``; ``()`` for none.
        options: options of ``Watch``; a finding of severity ``stop_on`` or worse sets ``trainer.should_stop``.

    Raises:
        InputError: an argument cannot be used.
        StateError: when training begins: the folder holds another run.
    """

    def __init__(
        self,
        *,
        run: str | os.PathLike[str] | Run,
        resume: bool = False,
        loggers: str | Iterable[Logger] = TRAINER,
        **options: Any,
    ) -> None:
        super().__init__(run=run, resume=resume, loggers=loggers, **options)
        self._loaded: dict[str, Any] = {}
        self._progress: Any = None
        self._done = 0
        self._before: dict[str, Any] = {}
        self._held: list[Held] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._progress = trainer.fit_loop.epoch_loop.batch_progress
        self._done = self._progress.total.processed
        counters, self._loaded = self._loaded or self._earlier_counters(), {}
        fresh = {"step": self._done, "steps": {"train": self._done}}
        self._open(trainer, pl_module, counters or fresh, bool(counters))

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        self._done = self._progress.total.processed
        self._note_logged(trainer)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any) -> None:
        def read() -> dict[str, Any]:
            returned = _returned(outputs)
            if isinstance(returned.get("loss"), torch.Tensor) and pl_module.automatic_optimization:
                returned["loss"] = returned["loss"] * trainer.accumulate_grad_batches
            return returned | self._logged(trainer)

        self._session.step(read)
        if not trainer.global_step % max(1, getattr(trainer, "log_every_n_steps", None) or 1):
            self._pass_on(trainer)
        if self._should_stop():
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
        logged: dict[str, Any] = {}
        with self._session.guarded():
            logged = self._logged(trainer)
        if logged:
            self._session.step(lambda: logged)
        self._session.set_mode("train")

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

    def teardown(self, trainer: Trainer, *_: Any, **__: Any) -> None:
        self._session.close()
        self._pass_on(trainer)

    def state_dict(self) -> dict[str, Any]:
        watch = self._session.watch
        counters = self._session.counters if watch is None else watch.state_dict()
        if counters and self._progress is not None:
            counters = _advanced(counters, self._progress.total.processed - self._done)
        return counters

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._loaded = state_dict

    def _earlier_counters(self) -> dict[str, Any]:
        """Return the counters of an earlier call of the trainer if this fit goes on from there."""
        counters = self._session.counters
        trained = counters.get("steps", {}).get("train", 0)
        return counters if bool(trained) == bool(self._done) else {}

    def _evaluate(self, trainer: Trainer, pl_module: LightningModule, mode: str) -> None:
        if self._session.watch is None:  # not inside a fit
            counters, self._loaded = self._session.counters or self._loaded, {}
            self._open(trainer, pl_module, counters or None, bool(counters))
        self._session.set_mode(mode)
        self._note_logged(trainer)

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
            loggers=(lambda: self._loggers(trainer)) if self._of_trainer else None,
        )

    def _loggers(self, trainer: Trainer) -> list[Logger]:
        loggers = of_lightning(trainer.loggers)
        self._held = [logger for logger in loggers if isinstance(logger, Held)]
        return loggers

    def _pass_on(self, trainer: Trainer) -> None:
        for logger in self._held:
            with self._session.guarded():
                logger.pass_on(trainer.global_step)

    def _note_logged(self, trainer: Trainer) -> None:
        """Remember ``callback_metrics``: Lightning keeps a value there although later steps do not log it."""
        self._before = {}
        if self._session.saves_scalars or self._session.mode != "train":
            with self._session.guarded():
                self._before = dict(trainer.callback_metrics)

    def _logged(self, trainer: Trainer) -> dict[str, Any]:
        """Return the values that were logged since ``_note_logged``; each value only under its first name."""
        name_of: dict[Any, str] = {}
        metrics = trainer.callback_metrics
        for name, value in metrics.items():
            if name not in self._before or _identity(self._before[name]) != _identity(value):
                name_of.setdefault(_identity(value), name)
        self._before = {}
        return {name: metrics[name] for name in name_of.values()}


def _returned(outputs: Any) -> dict[str, Any]:
    """Return the output of a step of the module, by name."""
    if isinstance(outputs, torch.Tensor):
        return {"loss": outputs}
    return dict(outputs) if isinstance(outputs, Mapping) else {}


def _identity(value: Any) -> Any:
    """Return the identity of a logged value; Lightning returns a new tensor of the same memory each time."""
    return value.data_ptr() if isinstance(value, torch.Tensor) else id(value)


def _advanced(counters: Mapping[str, Any], batches: int) -> dict[str, Any]:
    """Return counters that include batches which Lightning has counted and the ``Watch`` has not seen yet."""
    steps = {**counters["steps"], "train": counters["steps"].get("train", 0) + batches}
    return {"step": counters["step"] + batches, "steps": steps}


__all__ = ["Trainer", "WatchCallback"]

"""Callback for Hugging Face's ``Trainer``; nothing else of a training script changes.

Trainer(model, args, train_dataset=dataset, callbacks=[WatchCallback(run="runs/bert", save=every(100))]).train()
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterable
from typing import Any

from torch.optim import Optimizer

from loopwise.extras import required
from loopwise.run import Run
from loopwise.wrappers import innermost

from .callback import TRAINER, WatchingCallback, numbers
from .loggers import Logger
from .loggers.trainers import of_transformers

with required("transformers", "transformers", "WatchCallback"):
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

KEY = "loopwise.debug"
"""Key of the step counters in the Trainer's state, which its checkpoints hold."""


class WatchCallback(WatchingCallback, TrainerCallback):
    """A ``Watch`` over the Trainer's model, from the begin of ``train`` to its end.

    Each update is a step, whatever the number of batches accumulated for it: step n is the one that makes
    ``global_step`` n + 1.  Values that the Trainer logs at ``global_step`` n (``loss``, ``grad_norm``,
    ``learning_rate``) belong to step n, as in its own log, so that ``logging_steps`` and ``save=every(...)`` meet;
    the last log is a step without an update.  The loss there is the mean since the log before;
    ``Collection("batch", include=r"^output\\.loss$")`` saves that of each batch.

    Each batch of an evaluation inside ``train`` is a step of mode ``eval``, and its metrics are one more.

    The Trainer's checkpoints hold the step counters; ``train(resume_from_checkpoint=...)`` goes on in the same
    folder.  The Trainer tells callbacks of no exception: a training that ended by one is closed as ``failed`` when
    the next one begins in its folder, when the callback is deleted, or when the process ends.

    Args:
        run: folder or fsspec URL of the run, or a ``Run``, which the caller closes.
        resume: go on in a folder that already holds a run, even without a checkpoint; only if ``run`` is a path.
        loggers: ``"trainer"``: what ``report_to`` names gets numbers and findings: TensorBoard, W&B and MLflow;
            or loggers of ``loopwise.debug.loggers``; ``()`` for none.
        options: options of ``Watch``; from the severity ``stop_on`` on, findings stop the training.

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
        self._scalars: dict[str, Any] = {}
        self._evaluating = False
        self._end: Any = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **objects: Any
    ) -> None:
        self._session.close("failed")
        kept = _states(state).get(KEY)
        optimizer = innermost(objects.get("optimizer"))
        optimizer = optimizer if isinstance(optimizer, Optimizer) else None
        scaler = getattr(objects.get("optimizer"), "scaler", None)
        counters = _counters_after(kept, state.global_step)
        self._session.open(
            objects["model"],
            optimizer,
            scaler=scaler,
            counters=counters,
            resume=bool(kept),
            loggers=(lambda: of_transformers(args.report_to, args.output_dir)) if self._of_trainer else None,
        )
        self._end = weakref.finalize(self, self._session.close, "failed")
        self._evaluating = False
        with self._session.guarded():
            self._scalars = _logged_at(state)
        self._save_counters(state)
        if args.eval_on_start:
            self._session.set_mode("eval")

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._evaluating = False
        self._session.set_mode("train")

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        scalars, self._scalars = self._scalars, {}
        self._session.step(lambda: scalars)
        if self._should_stop():
            control.should_training_stop = True
        self._save_counters(state)
        self._expect_evaluation(control)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._expect_evaluation(control)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        if not self._evaluating:  # on_evaluate gets the metrics of evaluations
            self._scalars |= numbers(logs or {})

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._evaluating = True
        if self._session.mode == "eval":
            self._session.step()
            self._save_counters(state)
        else:  # an unannounced evaluation; its first batch counted as a part of the next step
            self._session.set_mode("eval")

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        self._evaluating = False
        self._session.set_mode("eval")
        self._session.step(lambda: metrics or {})
        self._save_counters(state)

    on_predict = on_evaluate

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._session.set_mode("train")
        if self._scalars:
            self._session.step(lambda: self._scalars)
        self._scalars = {}
        self._session.close()
        self._end.detach()

    def _expect_evaluation(self, control: TrainerControl) -> None:
        """Set the mode before an evaluation, of whose begin the Trainer tells no callback."""
        if control.should_evaluate:
            self._session.set_mode("eval")

    def _save_counters(self, state: TrainerState) -> None:
        watch = self._session.watch
        if watch is not None:
            _states(state)[KEY] = watch.state_dict()


def _states(state: TrainerState) -> dict[str, Any]:
    """Return the states of callbacks, as they are in checkpoints."""
    states: Any = state.stateful_callbacks  # annotated as the list that it is made from
    return states  # type: ignore[no-any-return]


def _counters_after(kept: dict[str, Any] | None, done: int) -> dict[str, Any]:
    """Return the step counters after ``done`` updates."""
    counters = kept or {"step": 0, "steps": {}}
    missing = done - counters["steps"].get("train", 0)
    return {"step": counters["step"] + missing, "steps": {**counters["steps"], "train": done}}


def _logged_at(state: TrainerState) -> dict[str, Any]:
    """Return the values that the resumed training had logged right before its checkpoint."""
    logged: dict[str, Any] = {}
    for entry in state.log_history:
        if entry.get("step") == state.global_step and "loss" in entry:
            logged |= numbers(entry)
    logged.pop("step", None)
    return logged


__all__ = ["WatchCallback"]

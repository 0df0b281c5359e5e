"""Watching Hugging Face's ``Trainer``: one callback, nothing else changes.

Trainer(model, args, train_dataset=dataset, callbacks=[WatchCallback(run="runs/bert", save=every(100))]).train()
"""

from __future__ import annotations

import os
import weakref
from typing import Any

from torch.optim import Optimizer

from loopwise.run import Run

from .callback import Watching, numbers

try:
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
except ImportError:
    from loopwise.errors import MissingExtra

    raise MissingExtra.of("transformers", "transformers", "WatchCallback") from None

KEPT = "loopwise.debug"
"""Where in the Trainer's state, which its checkpoints hold, the step counters are."""


class WatchCallback(Watching, TrainerCallback):
    """A ``Watch`` over the Trainer's model, from the begin of ``train`` to its end.

    Each update is a step, whatever the number of batches accumulated for it: step n is the one that makes
    ``global_step`` n + 1.  What the Trainer logs at ``global_step`` n (``loss``, ``grad_norm``,
    ``learning_rate``) belongs to step n, where it stands in its own log too, so that ``logging_steps`` and
    ``save=every(...)`` meet; the last log is a step without an update.  The loss there is the mean
    since the log before; that of each batch is saved by ``Collection("batch", include=r"^output\\.loss$")``.

    Each batch of an evaluation inside ``train`` is a step of mode ``eval``, and its metrics are one more.

    The step counters travel in the Trainer's checkpoints; ``train(resume_from_checkpoint=...)`` goes on in
    the same folder.  A training that ended by an exception, which the Trainer tells no callback, is closed
    as ``failed`` when the next one begins, when the callback is deleted, or when the process ends.

    Args:
        run: folder or fsspec URL of the run, or a ``Run``, which the caller closes.
        stop_on: severity of findings (``warning``, ``critical``) from which on training is stopped.
        options: those of ``Watch``.

    Raises:
        InputError: when training begins, for options that ``Watch`` refuses.
        StateError: when training begins, where the folder holds another run.
    """

    def __init__(
        self, *, run: str | os.PathLike[str] | Run, stop_on: str | None = None, **options: Any
    ) -> None:
        super().__init__(run=run, stop_on=stop_on, **options)
        self._scalars: dict[str, Any] = {}
        self._evaluating = False
        self._end: Any = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **objects: Any
    ) -> None:
        self._session.close("failed")
        kept = _states(state).get(KEPT)
        optimizer = _bare(objects.get("optimizer"))
        scaler = getattr(objects.get("optimizer"), "scaler", None)
        counters = _counted(kept, state.global_step)
        self._session.open(objects["model"], optimizer, scaler=scaler, counters=counters, resume=bool(kept))
        self._end = weakref.finalize(self, self._session.close, "failed")
        self._evaluating = False
        with self._session.guarded():
            self._scalars = _logged_at(state)
        self._keep(state)
        if args.eval_on_start:
            self._session.turn("eval")

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._evaluating = False
        self._session.turn("train")

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        scalars, self._scalars = self._scalars, {}
        self._session.step(lambda: scalars)
        if self._stops():
            control.should_training_stop = True
        self._keep(state)
        self._expect(control)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._expect(control)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        if not self._evaluating:  # of an evaluation, on_evaluate has them
            self._scalars |= numbers(logs or {})

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._evaluating = True
        if self._session.mode == "eval":
            self._session.step()
            self._keep(state)
        else:  # an evaluation that nothing announced; its first batch was taken for a part of the next step
            self._session.turn("eval")

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        self._evaluating = False
        self._session.turn("eval")
        self._session.step(lambda: metrics or {})
        self._keep(state)

    on_predict = on_evaluate

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._session.turn("train")
        if self._scalars:
            self._session.step(lambda: self._scalars)
        self._scalars = {}
        self._session.close()
        self._end.detach()

    def _expect(self, control: TrainerControl) -> None:
        """Before an evaluation, which begins without telling."""
        if control.should_evaluate:
            self._session.turn("eval")

    def _keep(self, state: TrainerState) -> None:
        watch = self._session.watch
        if watch is not None:
            _states(state)[KEPT] = watch.state_dict()


def _bare(optimizer: Any) -> Optimizer | None:
    """The optimizer inside Accelerate's."""
    while isinstance(getattr(optimizer, "optimizer", None), Optimizer):
        optimizer = optimizer.optimizer
    return optimizer if isinstance(optimizer, Optimizer) else None


def _states(state: TrainerState) -> dict[str, Any]:
    """States of callbacks, as they are in checkpoints."""
    found: Any = state.stateful_callbacks  # annotated as what it is made from
    return found  # type: ignore[no-any-return]


def _counted(kept: dict[str, Any] | None, done: int) -> dict[str, Any]:
    """Step counters after ``done`` updates."""
    counters = kept or {"step": 0, "steps": {}}
    more = done - counters["steps"].get("train", 0)
    return {"step": counters["step"] + more, "steps": {**counters["steps"], "train": done}}


def _logged_at(state: TrainerState) -> dict[str, Any]:
    """What the training that goes on had logged right before its checkpoint."""
    found: dict[str, Any] = {}
    for entry in state.log_history:
        if entry.get("step") == state.global_step and "loss" in entry:
            found |= numbers(entry)
    found.pop("step", None)
    return found


__all__ = ["WatchCallback"]

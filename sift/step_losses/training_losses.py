"""Losses of the training steps: where they come from, and whether they go on coming."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from loopwise.errors import InputError, StateError
from loopwise.loss import takes_model

from ..buffer import Samples
from ..loss_history import LossHistory
from ..source import NO_INDEX
from .criterion import WITH_A_STEP, Recorder
from .forward import StepLosses
from .settling import PATIENCE, settle


class TrainingLosses:
    """Way in which the losses of the training steps reach the history.

    There are three: a hook on the model's forward pass (``loss`` is a criterion), the loop's own criterion
    (``record_by``), or the user's calls of ``record_losses`` (``leave``).  The first batches decide whether it holds.
    If samples are scored instead, a hook only verifies in the first batches that training uses the batches' inputs.

    Args:
        model: the model in training.
        loss: the loader's argument.
        history: receives the losses.
        score_every: 1: samples are scored, and the losses are not remembered; 0: there are no other losses.

    Attributes:
        stale: the losses of the last epoch could not be read, so the remembered ones tell nothing about the next.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[..., torch.Tensor] | None,
        history: LossHistory,
        score_every: int,
    ) -> None:
        criterion, reads = loss is not None and not takes_model(loss), score_every != 1
        self._hook = (
            StepLosses(model, loss, history if reads else LossHistory()) if criterion and loss else None
        )
        self._history, self._reads = history, reads
        self._recorder: Recorder | None = None
        self._without_loss = loss is None
        self._told = criterion or (loss is not None and score_every != 0)
        self._steps = 0
        self._watched: Samples | None = None
        self.stale = False

    def record_by(self, recorder: Recorder) -> None:
        """Take the losses from a recorder from now on.

        Raises:
            StateError: another criterion records already.
        """
        if self._recorder is not None:
            raise StateError(
                "a second call of loader.criterion()",
                "one criterion that records",
                "the loop has a loss for each of several tasks",
                "record their sum: loader.record_losses(losses), one for each sample",
            )
        recorder.cancel()
        self._recorder, recorder.history = recorder, self._history
        self.leave()

    def leave(self) -> None:
        """Read no losses by the hook from now on: somebody else passes them."""
        self.cancel()
        self._hook, self._told = None, True

    def expect(self, samples: Samples) -> None:
        """Wait for the losses of a batch that is about to be yielded."""
        indices = samples.columns.get("index")
        self._steps += 1
        if self._recorder is not None:
            if indices is None:
                raise InputError(
                    "loader.criterion(...) without indices of the samples", "known indices", *NO_INDEX
                )
            self._recorder.expect(indices, samples.batch)
        if self._hook is None:
            return
        if indices is None and not self._reads:
            indices = torch.arange(samples.size)
        if indices is not None:
            self._hook.expect(indices, samples.batch)
            self._watched = samples

    def after_step(self, probe: Callable[[Samples], Any] | None, last: bool = False) -> str:
        """Return why samples have to be scored from now on; an empty text: they have not, or it is not known yet.

        Args:
            probe: function that scores samples; ``None``: the arguments exclude scoring passes.
            last: it was the last batch of the first epoch.

        Raises:
            InputError: the losses cannot be had.
        """
        watched, self._watched = self._watched, None
        if self._recorder is not None:
            self._recorder.validate_recorded(last)
        elif not self._told and (last or self._steps >= PATIENCE):
            raise self._unrecorded()
        hook = self._hook
        if hook is None or hook.settled or watched is None:
            if hook is not None and hook.error is not None:
                raise hook.error
            return ""
        score = (lambda: probe(watched)) if probe is not None else None
        reason = settle(hook, score if self._reads else lambda: None, watched.batch, last)
        if reason is None:
            return ""
        hook.settled = True
        if reason or not self._reads:
            self.leave()
        return reason if self._reads else ""

    def _unrecorded(self) -> InputError:
        """Return the error for training steps whose losses nobody told."""
        if self._without_loss:
            seen = f"loss=None, and no loss was recorded in {self._steps} training steps"
            fix = f"pass loss=; or use criterion = loader.criterion(nn.CrossEntropyLoss()) in the loop; {WITH_A_STEP}"
        else:
            seen = f"loss=function, and no loss was recorded in {self._steps} training steps"
            fix = "drop score_every=0, so that samples are scored; or call loader.record_losses(losses) after each batch"
        expected = "losses of every training step"
        return InputError(
            seen, expected, "the loop neither calls loader.criterion(...) nor loader.record_losses(...)", fix
        )

    def end_pass(self, complete: bool) -> str:
        """Fetch the losses of a pass; return a warning if most of a complete pass could not be read."""
        self.fetch()
        hook = self._hook
        if not complete:
            self.cancel()
        if hook is None or not self._reads:
            self.stale = False
            return ""
        observed, expected, trained = hook.observed, hook.expected, hook.forwards or hook.compiled
        hook.observed = hook.expected = hook.forwards = 0
        if not complete or not trained:  # a pass without a forward pass is no training
            return ""
        self.stale = 2 * observed < expected
        return f"the losses of {observed} of {expected} training steps could be read" if self.stale else ""

    def fetch(self) -> None:
        """Add to the history what still waits on an accelerator."""
        for part in (self._hook, self._recorder):
            if part is not None:
                part.fetch()

    def cancel(self) -> None:
        """Wait for no batch, and remove the hook."""
        for part in (self._hook, self._recorder):
            if part is not None:
                part.cancel()
        self._watched = None

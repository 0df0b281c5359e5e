"""Loader that yields only informative samples to the training step."""

from __future__ import annotations

import copy
import inspect
import os
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from loopwise import batch as batches
from loopwise.loss import takes_model
from loopwise.ranks import rank
from loopwise.warnings import warn

from . import options as checks
from .buffer import Concatenate, Samples
from .frameworks.epochs import FilledEpochs, validate_pass
from .frameworks.gradient_state import GradientState
from .loss_history import LossHistory
from .pipeline import Pipeline
from .policies import Policy, as_policy
from .policies.policy import check_keep
from .reader import ALL, FRESH, REMEMBERED
from .report import EpochLog, Report
from .scoring import Scorer
from .selection import PLANNABLE, Selector
from .sharded import ShardedPipeline
from .source import Source, WrappedAttributes
from .state import Resumable
from .step_losses import Recorder, TrainingLosses

if TYPE_CHECKING:
    from loopwise.run import Run


class SiftingDataLoader(Resumable, WrappedAttributes):
    """Loader that wraps another one and yields full batches of the samples that are worth a training step.

    The batches keep the structure and size of the wrapped loader's.  Kept samples that fill no batch come first in the
    next epoch; a short batch comes only if nothing is left out, or too few samples are kept for one.  With ``keep=1.0``
    the wrapped loader's own batches are yielded.

    Losses come from the training steps themselves if the wrapped loader is a plain ``DataLoader`` over a map-style
    dataset and ``loss`` is a criterion: each sample's last loss is remembered, each epoch is planned by the remembered
    losses, and samples left out are not even loaded.  Otherwise, and with ``score_every=1``, each sample is scored by a
    forward pass without gradient after it was loaded and augmented.

    Under ``torch.distributed`` all ranks yield the same number of batches, whatever their data.

    Args:
        loader: any iterable of batches; its ``batch_size`` and ``drop_last`` apply here too.
        model: the model in training.  It is scored in evaluation mode and restored: mode, BatchNorm statistics, random
            state.
        loss: a per-sample criterion for ``(input, target)`` batches, such as
            ``nn.CrossEntropyLoss(reduction="none")``; or ``def loss(model, batch) -> Tensor[B]`` (its first parameter is
            named ``model``) for batches of any other form; or ``None`` with ``criterion()`` or ``record_losses()``.
        keep: share of samples to train on, a fraction in (0, 1], or a function from the epoch to it; the policy is then
            ``RelativeLoss(keep, floor=keep / 4)``.
        policy: rule that selects samples (see ``loopwise.sift.policies``), or any function from losses to keep
            probabilities; default, without ``keep``: ``ProportionalLoss()``, by which the share is a result.
        delay: number of the wrapped loader's batches that are yielded unscored at the start of training, while losses
            tell little yet.
        delay_every_epoch: begin every epoch with that many unscored batches.
        epochs: number of epochs of the whole training, for ``anneal``; with 1, samples are scored at once.
        anneal: last share of ``epochs`` that trains on all data, a fraction in [0, 1).
        score_every: 1: score every sample in every epoch.  k: score in every k-th epoch, and use remembered losses in
            between.  0: score never, and use losses of training steps (pass them to ``record_losses`` if ``loss`` is
            no criterion).  ``"auto"``: score never if the losses of training steps can be read, else in every epoch.
        weights: add importance weights to the batches, float32 of shape (batch,), 1 on average: expected share of kept
            samples / keep probability.  They are the last element of tuples and lists, and ``"weights"`` of dicts.
            ``(losses * weights).mean()``, over an epoch, has the full data's gradient in expectation, whatever the
            order of the data.  The policy must give every sample a keep probability above 0.
        classes: function from a batch to its class labels, int64 of shape (batch,); default: integer targets of
            ``(input, target)`` batches.
        scorer: a cheaper module that scores in place of ``model`` and takes the same input.
        auto: let go where selection does not pay.  Scoring passes are made only while they pay, and take at most about
            2 % of the time.  Planned epochs of a policy without a set share have as many batches as the wrapped loader: what a
            pass over the data saves, the next passes fill, and ``epoch`` counts passes.  And no sample is left out where
            the policy would keep more than 0.8 of them.
        pool: number of batches scored in one forward pass; ``"auto"``: up to 4 within 64 MiB.  The loader reads the
            batches of a pool before training asks for them.
        dtype: autocast dtype of the scoring pass; ``"auto"``: the fastest one of the hardware.
        compile: compile the scoring pass: some seconds once, then less time for each sample.  ``"auto"`` compiles
            after 30 s of scoring, times both and keeps the faster one.
        batch_size: samples per yielded batch; default: the wrapped loader's.
        drop_last: yield no short batch; default: as the wrapped loader does.
        concatenate: joins a list of batches (and the list of their sizes) into one; for batches padded to different
            lengths.
        seed: seed of the keep draws; default: torch's initial seed.
        run: folder, fsspec URL or ``Run`` that receives one record per epoch.
        resume: go on in a folder that already holds a run.

    Attributes:
        loader, epochs, anneal, score_every: the arguments in use.
        model, keep, policy, batch_size, drop_last: those that cannot be set later.
        dataset, sampler, batch_sampler, num_workers, ...: those of the wrapped loader, read-only.
        epoch: number of the present epoch, from 0.

    Raises:
        InputError: invalid arguments or batches.
        StateError: the folder of ``run`` cannot be written to, or, with several ranks, it already holds a run.
    """

    _last_indices: torch.Tensor | None = None
    _recorded = False
    """``record_losses`` was called for the batch yielded last."""
    _resume_state: dict[str, Any] | None = None
    _random_state: dict[str, Any] | None = None
    _iterating = False
    _step_end: float | None = None
    _set_epoch: int | None = None
    """Epoch that ``set_epoch`` was last called with."""
    batches_per_epoch: int | None = None
    """Number of batches that a framework counts as an epoch; ``None``: a pass over the data is one."""
    _warned_of_no_batch = False
    _entry: GradientState | None = None
    _pass = 0
    _batches_of_pass = 0

    def __init__(
        self,
        loader: Iterable[Any],
        model: nn.Module,
        loss: Callable[..., torch.Tensor] | None = None,
        *,
        keep: float | Callable[[int], float] | None = None,
        policy: Policy | Callable[[torch.Tensor], torch.Tensor] | None = None,
        delay: int = 0,
        delay_every_epoch: bool = False,
        epochs: int | None = None,
        anneal: float = 0.0,
        score_every: int | str = "auto",
        weights: bool = False,
        classes: Callable[[Any], torch.Tensor] | None = None,
        scorer: nn.Module | None = None,
        auto: bool = False,
        pool: int | str = "auto",
        dtype: torch.dtype | str = "auto",
        compile: bool | str = False,
        batch_size: int | None = None,
        drop_last: bool | None = None,
        concatenate: Concatenate = batches.concatenate,
        seed: int | None = None,
        run: str | os.PathLike[str] | Run | None = None,
        resume: bool = False,
    ) -> None:
        arguments = locals()
        checks.validate_arguments(loader, model, loss, score_every)
        options = SimpleNamespace(**{name: arguments[name] for name in DEFAULTS})
        checks.validate_options(vars(options), DEFAULTS)
        self.loader, self.model, self._loss = loader, model, loss
        self.keep = keep
        self.policy = checks.default_policy(keep) if policy is None else as_policy(policy)
        self.epoch, self.epochs, self.anneal = 0, epochs, anneal
        source = Source(loader, batch_size, drop_last)
        self.batch_size, self.drop_last = source.batch_size, source.drop_last
        criterion = loss is not None and not takes_model(loss)
        plannable = source.plans and criterion and set(self.policy.needs) <= PLANNABLE
        self._auto_score = score_every == "auto"
        planned = plannable and self.keep != 1.0 and epochs != 1  # the first epoch has no losses to plan by
        automatic = 0 if loss is None or planned else 1
        self.score_every = automatic if self._auto_score else int(score_every)
        checks.validate_needs(self.policy, self.score_every, criterion)
        if weights:
            checks.validate_weights(self.policy)
        scored = model if scorer is None else scorer
        sharded = checks.validate_sharded(scored, self.score_every, auto)
        self._history, self._report = LossHistory(), Report()
        self._losses = TrainingLosses(model, loss, self._history, self.score_every)
        seed = torch.initial_seed() if seed is None else seed
        self._draws = torch.Generator().manual_seed((seed + rank()) % 2**63)
        scores = Scorer(scored, loss, dtype, compile, self.policy.needs)  # type: ignore[arg-type]  # loss=None: no scoring
        remember = self.score_every != 1 or "last_trained" in self.policy.needs
        selector = Selector(
            self.policy, scores, self._history, self._draws, self._report, remember, weights, classes
        )
        self._pipeline = (ShardedPipeline if sharded else Pipeline)(options, source, selector)
        self._filled = FilledEpochs(self) if auto and planned and self._pipeline.share_is_a_result else None
        self._log = EpochLog(self._report, run, resume)
        weakref.finalize(self, self._log.end, False)
        self._start: dict[str, Any] = {}
        self._yielded: deque[Samples] = deque(maxlen=0)

    # -- iteration ------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Any]:
        filled = self._filled is not None and self._filled.fills(self.score_every == 0)
        yield from self._filled if filled else self.one_pass()  # type: ignore[misc]  # not None

    def one_pass(self) -> Iterator[Any]:
        """Yield the batches of one pass over the data, which is an epoch but with ``auto``."""
        if self._iterating:
            self._close_pass(False)
        self._pass += 1
        number, complete = self._pass, False
        self._log.begin(self.epoch)
        entry = self._entry = GradientState.of(self.loader)
        self._pipeline.look_ahead = entry is not None and entry.accumulates
        try:
            self._begin_pass()
            while (samples := self._pipeline.take()) is not None:
                if entry is not None:
                    entry.show(last=self._pipeline.look_ahead and self._pipeline.last())
                yield from self._train_on(samples)
            complete = True
        finally:
            if number == self._pass:
                self._close_pass(complete)

    def _close_pass(self, complete: bool) -> None:
        """End the pass: after its last batch, or earlier."""
        if self._entry is not None:
            self._entry.hide()
        begun = self._batches_of_pass > 1
        self._iterating = False
        self._report.epochs += complete
        self._pipeline.stop()
        if not complete:
            self._yielded.clear()  # a pass that was given up is not resumed
        self._log.end(complete)
        self._end_pass(complete)
        self.epoch += complete or begun
        if complete and not self._pipeline.taken and not self._warned_of_no_batch:
            self._warned_of_no_batch = True
            advice = "; with drop_last=False they come as a short batch" if self.drop_last else ""
            warn(
                f"loopwise.sift: epoch {self.epoch - 1} gave no batch: the chosen samples are fewer than batch_size="
                f"{self.batch_size} and wait for the next epochs{advice}"
            )

    def _mode(self) -> str:
        if self.keep == 1.0 or self._losses.stale:
            return ALL
        if self.epochs and self._progress() >= self.epochs * (1 - self.anneal) - 1e-9:
            return ALL
        if self.score_every == 1 or (self.score_every and self.epoch % self.score_every == 0):
            return FRESH
        return REMEMBERED

    def _train_on(self, samples: Samples) -> Iterator[Any]:
        """Yield one batch, and time its training step."""
        report, indices = self._report, samples.columns.get("index")
        report.batches += 1
        self._batches_of_pass += 1
        report.trained += samples.size
        self._yielded.append(samples)
        self._last_indices, self._recorded = indices, False
        if indices is not None and self._pipeline.selector.remember:
            self._history.set(indices, last_trained=self.epoch)
        if self._reads_losses:
            self._losses.expect(samples)
        batch, size = samples.with_weights(), samples.size
        del samples  # the training step may free the batch
        start, self._step_end, number = time.perf_counter(), None, self._pass
        yield batch
        validate_pass(number == self._pass)
        report.add_step((self._step_end or time.perf_counter()) - start, size)
        if self._reads_losses:
            self._settle()

    @property
    def _reads_losses(self) -> bool:
        return self.keep != 1.0

    def _settle(self, last: bool = False) -> None:
        """Turn to scoring passes if the losses of the training steps cannot be read."""
        scorer = self._pipeline.selector.scorer
        probe = (lambda samples: scorer(samples.batch, samples.size)) if self._auto_score else None
        if reason := self._losses.after_step(probe, last):
            self.score_every = 1
            warn(
                f"loopwise.sift: no losses from the training step: {reason}; samples are scored by forward passes instead"
            )

    def _end_pass(self, complete: bool) -> None:
        """Fetch the losses of the training steps."""
        if complete and self._reads_losses:
            self._settle(last=True)
        warning = self._losses.end_pass(complete)
        if warning:
            warn(f"loopwise.sift: {warning} in epoch {self.epoch}; the next one trains on all samples")
        if not self._pipeline.selector.remember:
            return
        self._history.flush()
        if self._pipeline.mode != FRESH:
            self._pipeline.selector.count_not_finite(self._history.not_finite, self._history.fetched)
        self._history.not_finite = self._history.fetched = 0

    # -- public methods -------------------------------------------------------------------------

    def __len__(self) -> int:
        """Return the number of batches of the open epoch, or of the next one.

        It is exact with ``keep=1.0``, and for epochs that are planned by remembered losses; asking for it plans the next
        epoch.  Otherwise (scored epochs; before the epoch under ``torch.distributed``, with ``delay``, or with a sampler
        whose indices are not known in advance) it is the number without selection: never less than what comes.

        Raises:
            TypeError: the wrapped loader has no length.
        """
        self._set_scheduled_keep()
        if self._filled is not None and self.score_every == 0 and self._filled.length is not None:
            return self._filled.length
        if self._resume_state is not None and (length := self._resume_state["pipeline"]["length_of_pass"]):
            return int(length)
        return self._pipeline.length(self._mode(), self.epoch)

    def report(self) -> Report:
        """Return counts and times since this loader was made."""
        self._report.policies = self.policy.tally()
        return copy.deepcopy(self._report)

    def criterion(
        self, criterion: Callable[..., Any], per_sample: Callable[..., torch.Tensor] | None = None
    ) -> Callable[..., Any]:
        """Return the loop's own criterion in a form that records each sample's loss; its results stay the same.

        The target of a call must be a tensor of the batch that the loader yielded, with all rows in order; flattened
        and shifted tokens are recognised.  Batches that the loop reorders, mixes or splits are refused.

        Args:
            criterion: one of torch's criteria, or a function with a parameter ``reduction``.
            per_sample: for any other criterion: called with the same arguments, it returns the loss of each sample,
                shape (batch,), or of each token or pixel.

        Raises:
            InputError: no way to a loss for each sample, ``score_every`` other than 0, or a policy that needs scores.
        """
        return self.record_by(Recorder(criterion, per_sample, self._history))

    def record_by(self, recorder: Recorder) -> Callable[..., Any]:
        """Take the losses of the training steps from a recorder, and return its criterion, as ``criterion`` does."""
        checks.validate_recording(self.policy, self.score_every, self._auto_score)
        self.score_every, self._pipeline.selector.remember = 0, True
        self._losses.record_by(recorder)
        return recorder.recording()

    def record_losses(self, losses: torch.Tensor) -> None:
        """Remember the losses of the batch yielded last, by sample index, instead of reading them by a hook.

        With ``loss=None`` the batch's one loss will do, for losses that cannot be split by sample: each sample's score
        is then a moving average of the losses of its batches (Batch Loss Score, CVPR 2026), which a policy that ranks
        samples can use, such as ``PrunedHistory()``.

        Args:
            losses: one loss per sample, shape (batch,) or (batch, 1), or the batch's loss, 0-dimensional; any
                floating-point dtype and device.

        Raises:
            InputError: losses of another shape, or samples without an index.
            StateError: the loop fetches a batch ahead, which shows at the end of the first epoch.
        """
        checks.validate_recorded_in_time(self._recorded and not self._iterating)
        if self._loss is None and isinstance(losses, torch.Tensor) and not losses.ndim:
            checks.validate_batch_score(self._last_indices, self.policy)
            self._history.add_batch_score(self._last_indices, losses)  # type: ignore[arg-type]
        else:
            indices = checks.validate_recorded(losses, self._last_indices)
            self._history.add_losses(indices, losses.reshape(-1))
        self._recorded = True
        self._losses.leave()

    def end_step(self) -> None:
        """Note that the training step of the last batch is over, if other work follows before the next batch is asked for."""
        self._step_end = time.perf_counter()

    def close(self, state: str = "finished") -> None:
        """Release the run; ``state`` is ``finished`` or ``failed``.

        The garbage collector does the same when it frees the loader.
        """
        self._log.release(state)

    def _set_scheduled_keep(self) -> None:
        if callable(self.keep) and hasattr(self.policy, "keep"):
            self.policy.keep = check_keep(self.keep(int(self._progress())))

    def _progress(self) -> float:
        """Return the number of epochs since the start of training, as the training counts them."""
        if self.batches_per_epoch is None:
            return self.epoch
        return self._report.batches / self.batches_per_epoch


DEFAULTS = {
    name: parameter.default
    for name, parameter in inspect.signature(SiftingDataLoader).parameters.items()
    if parameter.kind is parameter.KEYWORD_ONLY
}
"""Options of ``SiftingDataLoader`` and their defaults."""

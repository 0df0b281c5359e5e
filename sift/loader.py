"""The loader that hands only informative samples to the training step."""

from __future__ import annotations

import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import nn

from loopwise import batch as batches
from loopwise import random_state
from loopwise.errors import InputError, StateError
from loopwise.loss import takes_model
from loopwise.ranks import rank, world_size
from loopwise.run import Run

from . import options
from .buffer import Concatenate, Part
from .loss_history import Memory
from .pipeline import ALL, FRESH, REMEMBERED, Settings, Sieve
from .policies import Function, Policy, RelativeLoss
from .policies.policy import check_keep
from .report import Report
from .scoring import Scorer
from .selection import PLANNABLE, Chooser
from .sharded import InStep
from .source import Source, batching
from .step_losses import Reuse

FLOOR = 0.25
"""Least keep probability by the default policy, as a part of ``keep``."""


class SiftingDataLoader:
    """Wraps a loader: yields full batches of the samples that are worth a training step.

    The batches keep the structure and size of the wrapped loader's.  The last of an epoch may be
    short, unless ``drop_last``.  With ``keep=1.0`` the wrapped loader's own batches come through.

    Losses come from the training steps themselves where the wrapped loader is a plain
    ``DataLoader`` over a map-style dataset and ``loss`` is a criterion: each sample's last loss is
    remembered, each epoch is decided ahead from the remembered losses, and samples left out are not
    even loaded.  Elsewhere, and with ``score_every=1``, each sample is scored by a forward pass
    without gradient after it was loaded and augmented.

    Under ``torch.distributed`` all ranks yield the same number of batches, whatever their data.

    Args:
        loader: any iterable of batches; its ``batch_size`` and ``drop_last`` are honoured.
        model: the model in training.  It is scored in evaluation mode and left as it was: mode,
            BatchNorm statistics, random state.
        loss: a per-sample criterion for ``(input, target)`` batches, such as
            ``nn.CrossEntropyLoss(reduction="none")``; or ``def loss(model, batch) -> Tensor[B]``
            (its first parameter is named ``model``) for batches of any other form.
        keep: share of samples to train on, a fraction in (0, 1], or a function from the epoch to
            it; default 0.5.
        policy: which samples to keep (see ``loopwise.sift.policies``), or any function from losses
            to keep probabilities; default
            ``RelativeLoss(keep, floor=keep / 4)``.
        delay: number of the wrapped loader's batches that come through unscored at the start of
            training, while losses say little yet.
        delay_every_epoch: begin every epoch with that many unscored batches.
        epochs: number of epochs of the whole training, for ``anneal``.
        anneal: last share of ``epochs`` that trains on all data, a fraction in [0, 1).
        score_every: 1: score every sample in every epoch; k: in every k-th epoch, remembered losses
            between; 0: never, only losses of training steps (``loader.record`` gives them where
            ``loss`` is no criterion); ``"auto"``: 0 where that works, else 1.
        weights: add importance weights to the batches, float32 of shape (batch,), 1 on average:
            expected share kept / keep probability.  As a last element of tuples and lists, as
            ``"weights"`` of dicts.  ``(losses * weights).mean()`` has the full data's gradient in
            expectation.
        classes: function from a batch to its class labels, int64 of shape (batch,); default: integer
            targets of ``(input, target)`` batches.
        scorer: a cheaper module that scores in place of ``model`` and takes the same input.
        auto: score only as long as that pays: training never takes more than about 2 % longer than
            by a plain loop.
        pool: number of batches scored in one forward pass; ``"auto"``: up to 4 within 64 MiB.
            A pool is read ahead, as a prefetching worker would.
        dtype: autocast dtype of the scoring pass; ``"auto"``: what the hardware multiplies fastest.
        compile: score through ``torch.compile``: faster a sample, after seconds of compiling; ``"auto"``:
            try it when scoring has taken as long as compiling would, and keep the faster.
        batch_size: samples per yielded batch; default: the wrapped loader's.
        drop_last: whether a short last batch is dropped; default: the wrapped loader's.
        concatenate: joins a list of batches (and the list of their sizes) into one; for batches
            padded to different lengths.
        seed: of the keep draws; default: torch's initial seed.
        run: a ``Run`` that receives one record an epoch.

    Raises:
        InputError: arguments or batches that cannot be used, each with its cause and fix.
    """

    _last: torch.Tensor | None = None
    _resume: dict[str, Any] | None = None
    _open_pass = False

    def __init__(
        self,
        loader: Iterable[Any],
        model: nn.Module,
        *,
        loss: Callable[..., torch.Tensor],
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
        run: Run | None = None,
    ) -> None:
        options.arguments(keep, policy, delay, epochs, anneal, score_every, pool, compile)
        self.loader, self.model = loader, model
        self.keep = 0.5 if keep is None and policy is None else keep
        self.policy = _policy(policy, self._keep_of(0))
        self.epoch, self.epochs, self.anneal = 0, epochs, anneal
        own_size, own_last = batching(loader)
        self.batch_size = size = batch_size or own_size
        self.drop_last = own_last if drop_last is None else bool(drop_last)
        source = Source(loader, size, self.drop_last)
        self._memory, self._report, self._told = Memory(), Report(), set[str]()
        criterion = not takes_model(loss)
        options.criterion(loss)
        plannable = self.keep != 1.0 and source.plans and criterion and set(self.policy.needs) <= PLANNABLE
        self._auto_score = score_every == "auto"
        self.score_every = (0 if plannable else 1) if score_every == "auto" else int(score_every)
        options.needs(self.policy, self.score_every, criterion)
        in_step = options.sharded(model if scorer is None else scorer, self.score_every, auto)
        self._reuse = Reuse(model, loss, self._memory) if criterion and self.score_every != 1 else None
        start = torch.initial_seed() if seed is None else seed
        self._draws = torch.Generator().manual_seed((start + rank()) % 2**63)
        scoring = Scorer(model if scorer is None else scorer, loss, dtype, compile, self.policy.needs)
        regroup = not source.plans and (batch_size is not None or drop_last is not None)
        settings = Settings(
            size,
            self.drop_last,
            regroup,
            delay,
            delay_every_epoch,
            None if pool == "auto" else int(pool),
            auto,
            weights,
            self.score_every != 1 or "last_trained" in self.policy.needs,
            concatenate,
            classes,
        )
        chooser = Chooser(
            self.policy, scoring, self._memory, self._draws, self._report, self._tell, settings.remembers
        )
        sieve = InStep if in_step else Sieve
        self._sieve = sieve(settings, source, chooser, self._memory, self._report)
        self._run = run
        self._start: dict[str, Any] = {}
        self._handed: deque[Part] = deque(maxlen=0)

    # -- iteration ------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Any]:
        before, complete = self._report.copy(), False
        try:
            self._open()
            while (part := self._sieve.take()) is not None:
                yield from self._hand_out(part)
            complete = True
        finally:
            if self._reuse is not None and not complete:
                self._reuse.forget()
            self._open_pass = False
            self._report.epochs += complete
            self._log(before, complete)
            self._settle(complete)
            self.epoch += complete

    def _open(self) -> None:
        resume, self._resume, self._open_pass = self._resume, None, True
        self._follow_schedule()
        generators = self._sieve.source.generators()
        if resume is None:
            self._start = random_state.get(generators)
            self._sieve.begin(self._mode(), self.epoch)
        else:
            self._start = resume["start"]
            random_state.set(self._start, generators)
            self._sieve.load_state_dict(resume["sieve"])
            random_state.set(resume["now"], generators)

    def _mode(self) -> str:
        if self.keep == 1.0 or (self.epochs and self.epoch >= self.epochs * (1 - self.anneal) - 1e-9):
            return ALL
        if self.score_every == 1 or (self.score_every and self.epoch % self.score_every == 0):
            return FRESH
        return REMEMBERED

    def _hand_out(self, part: Part) -> Iterator[Any]:
        report, indices = self._report, part.along.get("index")
        report.batches += 1
        report.trained += part.size
        self._handed.append(part)
        self._last = indices
        if indices is not None and self._sieve.settings.remembers:
            self._memory.note_trained(indices, self.epoch)
            if self._reuse is not None:
                self._reuse.expect(indices, part.batch)
        batch, size = part.batch, part.size
        if self._sieve.settings.weights:
            batch = _with_weights(batch, part.along["weight"])
        del part
        start = time.perf_counter()
        yield batch
        report.time_step(time.perf_counter() - start, size)
        if self._reuse is not None and self._reuse.wrong is not None:
            raise self._reuse.wrong  # the criterion gave no losses a sample: a mistake at the door

    def _settle(self, complete: bool) -> None:
        """After an epoch: fetch losses, and score by forward passes if the training step gave none."""
        reuse = self._reuse
        if not self._sieve.settings.remembers:
            return
        self._memory.flush()
        if self._sieve.mode != FRESH:
            self._sieve.chooser.count_wild(self._memory.wild, len(self._memory))
        self._memory.wild = 0
        if reuse is None or not complete or 2 * reuse.fired >= reuse.expected:
            return
        why = reuse.trouble or "its forward pass was not seen (a compiled model? pass the compiled one)"
        self._reuse = None
        if self._auto_score:
            self.score_every = 1
            self._tell("reuse", f"no losses from the training step: {why}; scoring by forward passes instead")
        else:
            self._tell(
                "reuse", f"no losses from the training step: {why}; loader.record(losses) can give them"
            )

    # -- what the user calls --------------------------------------------------------------------

    def __len__(self) -> int:
        """Batches in an epoch: exact with ``keep=1.0``, else an estimate from the share kept so far."""
        total = len(self.loader)  # type: ignore[arg-type]  # a TypeError of the user's loader passes
        if self.keep == 1.0:
            return total
        expected = self.keep if isinstance(self.keep, float) else getattr(self.policy, "keep", 1.0)
        share = self._report.share if self._report.epochs else expected
        return max(1, round(total * share))

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch here and on the wrapped loader's sampler or dataset, where they have one."""
        self.epoch = epoch
        parts: list[Any] = [
            self.loader,
            *(getattr(self.loader, name, None) for name in ("sampler", "dataset")),
        ]
        for part in parts:
            if hasattr(part, "set_epoch"):
                part.set_epoch(epoch)

    @property
    def running(self) -> bool:
        """Whether a pass over the data is open."""
        return self._open_pass or self._resume is not None

    def report(self) -> Report:
        """Counts and seconds since this loader was made."""
        self._report.policies = self.policy.tally()
        return self._report.copy()

    def record(self, losses: torch.Tensor) -> None:
        """Give the per-sample losses of the batch handed out last, shape (batch,), of any device.

        They are remembered by sample index, and no forward pass of ours is needed for them.
        """
        if self._last is None or losses.shape != self._last.shape:
            raise InputError(
                f"record() of losses of shape {tuple(losses.shape)}",
                f"losses of shape {tuple(self._last.shape)}, those of the last batch"
                if self._last is not None
                else "a batch whose samples have known indices",
                "losses of another batch or averaged ones, or a loader that hides the samples' indices",
                "call it after each batch with reduction='none'; wrap the dataset in Indexed where it is hidden",
            )
        self._reuse = None
        self._memory.note_losses(self._last, losses)

    def fetched_ahead(self, most: int) -> None:
        """Hold the last ``most`` batches, for ``state_dict(untrained)``: a framework fetches ahead."""
        self._handed = deque(maxlen=most)

    def state_dict(self, untrained: int = 0) -> dict[str, Any]:
        """Everything that the batches to come depend on; between any two batches or epochs.

        Holds the random states of Python, NumPy and torch, so that the resumed training goes on to the bit.

        Args:
            untrained: number of batches handed out last that no training step has seen yet; they
                come again after ``load_state_dict``.  Needs ``fetched_ahead``.
        """
        again = list(self._handed)[len(self._handed) - untrained :]
        generators = self._sieve.source.generators()
        return {
            "epoch": self._sieve.epoch if again else self.epoch,
            "open": self._open_pass or bool(again),
            "world": world_size(),
            "rank": rank(),
            "sieve": self._sieve.state_dict(again),
            "policy": self.policy.state_dict(),
            "memory": self._memory.state_dict(),
            "report": self._report.state_dict(),
            "draws": self._draws.get_state(),
            "score_every": self.score_every,
            "start": self._start,
            "now": random_state.get(generators),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where ``state`` was taken: the next iteration yields the batches that were to come.

        The wrapped loader is gone through again up to there, without loading where its dataset is
        map-style and it has no workers.
        """
        if (state.get("world"), state.get("rank")) != (world_size(), rank()):
            raise StateError(
                f"the state of rank {state.get('rank')} of {state.get('world')}",
                f"the state of rank {rank()} of {world_size()}",
                "each rank has its own state, and samples are spread differently over another number of ranks",
                "save and load one state a rank, with the same number of ranks",
            )
        self.set_epoch(state["epoch"])
        self._follow_schedule()
        self.policy.load_state_dict(state["policy"])
        self._memory.load_state_dict(state["memory"])
        self._report.load_state_dict(state["report"])
        self._draws.set_state(state["draws"])
        self.score_every = state["score_every"]
        self._sieve.given = state["sieve"]["given"]
        self._resume = state if state["open"] else None

    def _follow_schedule(self) -> None:
        if callable(self.keep) and hasattr(self.policy, "keep"):
            self.policy.keep = self._keep_of(self.epoch)

    def _keep_of(self, epoch: int) -> float:
        if self.keep is None:
            return 1.0
        return check_keep(self.keep(epoch) if callable(self.keep) else self.keep)

    def _log(self, before: Report, complete: bool) -> None:
        if self._run is None:
            return
        then = before.record()
        record = {
            name: value - then[name] for name, value in self._report.record().items() if name != "epochs"
        }
        try:
            self._run.append("sift", "epochs", {"epoch": self.epoch, "complete": complete, **record})
            self._run.flush()
        except Exception as error:  # a full disk must not end the training
            self._tell("run", f"sift's record could not be written and is left out: {error!r}")

    def _tell(self, topic: str, text: str) -> None:
        if topic not in self._told:
            self._told.add(topic)
            warnings.warn(f"loopwise.sift: {text}", RuntimeWarning, stacklevel=2)


def _policy(policy: Policy | Callable[[torch.Tensor], torch.Tensor] | None, keep: float) -> Policy:
    if policy is None:
        return RelativeLoss(keep, floor=FLOOR * keep)
    return policy if isinstance(policy, Policy) else Function(policy)


def _with_weights(batch: Any, weights: torch.Tensor) -> Any:
    if isinstance(batch, dict):
        return {**batch, "weights": weights}
    if isinstance(batch, (list, tuple)) and not hasattr(batch, "_fields"):
        return type(batch)([*batch, weights])
    return batch, weights

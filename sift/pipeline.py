"""Path of the samples from the wrapped loader to the training step: read, select, join, look ahead."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch

from loopwise import ranks
from loopwise.errors import InputError

from .buffer import Buffer, LeftOver, Samples, join, restored, saved
from .coordination import Coordination, OtherRankFailed
from .reader import ALL, FRESH, REMEMBERED, Reader
from .selection import Selector
from .source import NO_INDEX, Source, length_of, number_of_batches

SAVED = [
    "read_in_training",
    "read_in_pass",
    "samples_read",
    "counted_skipped",
    "exhausted",
    "batch_size",
    "pool_size",
]
SAVED += ["length_of_pass", "planned_epoch", "thinned"]
"""Attributes that ``state_dict`` copies without conversion."""


class Pipeline(Reader):
    """Pipeline that reads batches, selects samples and joins them into full batches, in passes over the data.

    Args:
        options: all options of the loader, as attributes.
        source: batches of the wrapped loader.
        selector: selector of samples, whose history and report the pipeline uses too.
    """

    _buffer: Buffer
    length_of_pass: int | None
    """Number of batches in this pass, as ``length`` gives it; ``None`` if the wrapped loader has no length."""
    _stream: Iterator[Samples]
    _ahead: Samples | None
    _trouble: BaseException | None
    _follows: bool | None
    look_ahead = False
    """Whether to make each batch one step early, so that ``last`` can tell that none follows."""

    def __init__(self, options: SimpleNamespace, source: Source, selector: Selector) -> None:
        self.options, self.source, self.selector = options, source, selector
        self.report = selector.report
        self.coordination = Coordination()
        self.read_in_training = 0
        """Number of batches read from the wrapped loader since the start of training."""
        self.batch_size = source.batch_size
        self.pool_size: int | None = None if options.pool == "auto" else options.pool
        selector.endless = length_of(source.loader) is None
        self.share_is_a_result = not hasattr(selector.policy, "keep")
        # ranks with data of their own would decide differently
        selector.lets_go = options.auto and self.share_is_a_result and ranks.world_size() == 1
        self._regroup = not source.plans and (options.batch_size, options.drop_last) != (None, None)
        self._auto = (
            options.auto and not selector.scorer.sharded
        )  # ranks would decide differently by their clocks
        self.left_over = LeftOver()
        self.planned_epoch: int | None = None
        """Epoch that was planned before its pass was opened."""
        self._reset(ALL, 0)
        self._over = True

    def at_end(self, state: dict[str, Any] | None = None) -> bool:
        """Return whether the last batch of the open pass, or of a saved one, was taken, as far as that is certain."""
        names = ("mode", "taken", "length_of_pass")
        mode, taken, length = (getattr(self, name) if state is None else state[name] for name in names)
        # a planned pass has its length, and a sampler of torch keeps to it
        certain = mode == REMEMBERED or self.source.next_indices() is not None
        return bool(certain and length == -(-taken // (self.batch_size or 1)))

    # -- a pass ---------------------------------------------------------------------------------

    def begin(self, mode: str, epoch: int) -> None:
        """Open a pass over the wrapped loader."""
        self._reset(mode, epoch)
        if not self.coordination.active:  # the loader was perhaps made before the process group
            self.coordination = Coordination()
        if self.coordination.active and self.options.keep != 1.0:
            mode, self.planned_epoch = (
                self._exchange(),
                None,
            )  # a plan of before lacks the losses of the others
        self.mode, self._plans = mode, self._plannable(mode)
        self.plan_epoch(mode, epoch)
        self.planned_epoch = None
        if mode == FRESH:
            self.selector.begin_scored()
        length = None if self._plans else self._length_if_known(mode, epoch)
        self.left_over.begin(self._plans)
        self._stream = self.source.open(self._plan if self._plans else None, 0)
        if self._plans:
            length, self.thinned = self.source.planned.length, self.source.planned.thinned
            length = min(ranks.gather(length)) if self.coordination.active else length
        elif mode != ALL:
            self._refill(self.left_over.take_loaded())
            self.thinned = bool(self._buffer.waiting)
        self.length_of_pass = length
        self._start_coordination()

    def plan_epoch(self, mode: str, epoch: int) -> None:
        """Compute the keep probabilities of the epoch by the remembered losses, unless that was done before."""
        if mode == REMEMBERED and self.planned_epoch != epoch:
            self.selector.plan_epoch(epoch)
            self.planned_epoch = epoch

    def length(self, mode: str, epoch: int) -> int:
        """Return the number of batches of the pass that is open, else of the next one, which is planned if possible.

        It is exact if the pass is planned or selects nothing, else the number without selection, which none exceeds.
        """
        source, size, drop_last = self.source, self.batch_size or 1, self.source.drop_last
        if not self._over and self.length_of_pass is not None:
            return self.length_of_pass
        if mode == ALL and not self._regroup and not source.plans:
            return len(source.loader)
        samples, waiting = source.samples(size), 0
        most = samples
        if self._plannable(mode):
            waiting = len(self.left_over.indices)
            indices = None if self.coordination.active else source.next_indices()
            if indices is not None and not self._delay_left():
                self.plan_epoch(mode, epoch)
                samples = self.selector.count_planned(indices)
        elif mode != ALL and self.left_over.loaded is not None:
            waiting = self.left_over.loaded.size
        return number_of_batches(samples + waiting, size, drop_last, samples + waiting != most)

    def length_of_all(self) -> int | None:
        """Return the number of batches of a pass without selection; ``None`` if the wrapped loader has no length."""
        if not self._regroup and not self.source.plans:
            return length_of(self.source.loader)
        size = self.batch_size or 1
        try:
            return number_of_batches(self.source.samples(size), size, self.source.drop_last, False)
        except (TypeError, NotImplementedError):
            return None

    def take(self) -> Samples | None:
        """Return the next batch for the training step, or ``None`` if the pass is over, on all ranks."""
        if self._over:
            return None
        if not self._reads_ahead:
            batch = self._make_batch()
        else:
            if self._trouble is not None:
                raise self._trouble
            batch = None if self.last() else self._ahead
        if batch is None:
            self._finish()
            return None
        self.taken += batch.size
        if self._reads_ahead:
            self._look_ahead()
        return batch

    def stop(self) -> None:
        """Give up the rest of an open pass, with the samples that wait in it."""
        if not self._over:
            self.report.add_cut(self._buffer.waiting + (self._ahead.size if self._ahead else 0))
        self._over, self._ahead, self._stream = True, None, iter(())
        self._buffer = Buffer(self.options.concatenate)

    def _finish(self) -> None:
        """Let the chosen samples that filled no batch wait for the next pass: fewer than a batch.

        A whole batch could be yielded in the next pass before the wrapped loader is asked for its first one.  If only one
        rank begins so, and the wrapped loader begins with a collective, as Accelerate's does, the ranks wait for each other.
        """
        ahead, rest, most = self._ahead, self._buffer.drain(), (self.batch_size or 1) - 1
        self._over, self._ahead = True, None
        parts = list(filter(None, [ahead, rest]))
        chosen, plain = self.source.planned.chosen, not self.thinned and self.source.drop_last
        if self._plans and chosen is not None and not plain:
            self.report.uncount(sum(part.size for part in parts))  # the next pass loads them again
            indices = chosen[self.taken : self.taken + most]
            self.left_over.weights = self._planned_weights(indices, self.taken)
            self.left_over.indices = indices
        elif parts:
            samples = join(parts, self.options.concatenate)
            waiting = 0 if self.mode == ALL or plain else min(most, samples.size)
            self.report.add_cut(samples.size - waiting)
            if waiting:
                self.left_over.loaded = samples.select(torch.arange(waiting))

    def last(self) -> bool:
        """Return whether no batch follows on some rank, after waiting for the slowest one; it needs ``look_ahead``."""
        if self._follows is None:
            self._follows = (
                self.coordination.all_have_batch() if self.coordination.active else self._has_next()
            )
        return not self._follows

    def _has_next(self) -> bool:
        return self._ahead is not None or self._trouble is not None

    @property
    def _reads_ahead(self) -> bool:
        return self.look_ahead or self.coordination.active

    def _reset(self, mode: str, epoch: int) -> None:
        self.mode, self.epoch = mode, epoch
        self._plans = self._plannable(mode)
        self.read_in_pass = self.samples_read = 0
        """Number of batches and of samples read from the wrapped loader in this pass."""
        self.taken = 0
        """Number of samples handed to the training step in this pass."""
        self.thinned = False
        """True if the pass leaves samples out, or began with some of the last pass: then its batches are full."""
        self.length_of_pass = None
        self._over = self.exhausted = self.counted_skipped = False
        self._stream, self._buffer = iter(()), Buffer(self.options.concatenate)
        self._ahead = self._trouble = self._follows = None

    def _start_coordination(self) -> None:
        self.coordination.start()
        if self._reads_ahead:
            self._look_ahead()

    def _look_ahead(self) -> None:
        self._ahead, self._follows, text = None, None, ""
        try:
            self._ahead = self._make_batch()
        except OtherRankFailed:
            return
        except Exception as error:  # raised when the turn of this batch comes, on every rank
            self._trouble, text = error, f"{type(error).__name__}: {error}"
        if self.coordination.active:
            self.coordination.post(self._ahead is not None, text)

    def _make_batch(self) -> Samples | None:
        """Return the next full batch, the short last batch, or ``None`` at the end of the wrapped loader."""
        while True:
            with self.report.timed("selecting"):
                batch = self._buffer.take(self.batch_size or 0)
            if batch is not None:
                return batch
            pool = self._read_pool()
            if pool is None:
                return self._take_rest()
            batch = self._select(*pool)
            if batch is not None:
                return batch

    def _take_rest(self) -> Samples | None:
        """Return the samples in the buffer if they may be a short batch: without selection, or for want of a full one."""
        if self.thinned and self.taken:
            return None
        size, drop_last = self.batch_size or 1, self.source.drop_last
        short = number_of_batches(self._buffer.waiting, size, drop_last, self.thinned)
        return self._buffer.drain() if short else None

    # -- selecting ------------------------------------------------------------------------------

    def _select(self, pool: list[Samples], score: bool) -> Samples | None:
        """Put the kept samples of a pool into the buffer; return them if they are a batch that needs no buffer."""
        with self.report.timed("selecting"):
            sizes, samples = [loaded.size for loaded in pool], join(pool, self.options.concatenate)
            pool.clear()  # joined copies replace the batches
            if self.options.weights:
                samples.columns["weight"] = torch.ones(samples.size)
        if score:
            with self.report.timed("scoring"):
                kept = self.selector.select(samples, sizes, self.epoch)
        with self.report.timed("selecting"):
            if not score:
                kept = self._keep_unscored(samples)
            self.report.kept += len(kept)
            self.report.dropped += samples.size - len(kept)
            unchanged = not score and not self._regroup and len(kept) == samples.size
            if unchanged and self.mode != FRESH and not self._buffer.waiting:
                return samples
            self.thinned |= len(kept) < samples.size
            self._buffer.put(samples, kept)
        return None

    def _keep_unscored(self, samples: Samples) -> torch.Tensor:
        """Return the kept positions of a batch that is not scored: all of them, or a selection by remembered losses."""
        selector, indices = self.selector, samples.columns.get("index")
        selector.remember_classes(samples)
        kept = torch.arange(samples.size)
        if self.mode == ALL:
            return kept
        if self.mode == FRESH:
            if self.options.weights:
                samples.columns["weight"] = selector.weigh(torch.ones(samples.size))
            return kept
        if indices is None:
            raise InputError(
                "score_every other than 1 without indices of the samples",
                "the index of every sample in its dataset",
                *NO_INDEX,
            )
        if not self.source.plans:
            kept = selector.draw_planned(indices, self._in_delay())
        if self.options.weights:
            position = self.samples_read - samples.size
            samples.columns["weight"] = self._planned_weights(indices, position)
        return kept

    def _planned_weights(self, indices: torch.Tensor, position: int) -> torch.Tensor:
        """Return the importance weights of samples from ``position`` on of a planned pass."""
        return self.left_over.weighted(self.selector.planned_weights(indices), position)

    def _plan(self, order: torch.Tensor) -> torch.Tensor:
        """Return the indices of the samples to load in an epoch: the first samples, of the delay, and the selected ones."""
        chosen = self.selector.plan_order(order, self._delay_left() * (self.batch_size or 1))
        return torch.cat([self.left_over.first_indices, chosen])

    def _plannable(self, mode: str) -> bool:
        return mode == REMEMBERED and self.source.plans

    def _length_if_known(self, mode: str, epoch: int) -> int | None:
        try:
            return self.length(mode, epoch)
        except Exception:  # a loader without a length, which says so by an error of its choice
            return None

    def _exchange(self) -> str:
        """Share losses and percentiles of the last epoch with all ranks; return the mode in which all begin the next.

        Losses are shared by index only where an index means the same sample on all ranks.  A rank that could not read
        its losses, or has to score, makes all ranks train on everything, or score.
        """
        none = torch.empty(0, dtype=torch.int64), torch.empty(0), torch.empty(0, dtype=torch.int64)
        updates = self.selector.history.take_updates() if self.selector.remember else none
        own = self.mode, self.source.shared_samples(), *updates, self.selector.policy.losses_to_share()
        gathered = ranks.gather(own)
        others = [values for rank, values in enumerate(gathered) if rank != ranks.rank()]
        if own[1] and all(count == own[1] for _, count, *_ in others):
            for _, _, indices, losses, classes, _ in others:
                last = self.epoch - 1
                self.selector.history.set(indices, losses=losses, classes=classes, last_trained=last)
        self.selector.policy.receive_losses(torch.cat([past for *_, past in others]))
        return min((mode for mode, *_ in gathered), key=(ALL, FRESH, REMEMBERED).index)

    # -- state ----------------------------------------------------------------------------------

    def state_dict(self, untrained: list[Samples]) -> dict[str, Any]:
        """Return the state between two batches, including the samples read ahead, after those of ``untrained``."""
        waiting = list(filter(None, [*untrained, self._ahead, self._buffer.peek()]))
        samples = join(waiting, self.options.concatenate) if waiting else None
        chosen = self.source.planned.chosen
        return {
            **{name: getattr(self, name) for name in SAVED},
            "mode": self.mode,
            "epoch": self.epoch,
            "over": self._over and not untrained,
            "chosen": None if chosen is None or self._over else chosen.clone(),
            "source": None if self.exhausted or self._over else self.source.state_dict(),
            "selector": self.selector.state_dict(),
            "waiting": saved(samples),
            "left_over": self.left_over.state_dict(),
            "lists": dict(self.source.form.lists),
            "taken": self.taken - sum(batch.size for batch in untrained),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on between two passes, or in the middle of one, in place of ``begin``."""
        self._reset(state["mode"], state["epoch"])
        for name in [*SAVED, "taken"]:
            setattr(self, name, state[name])
        self.selector.load_state_dict(state["selector"])
        self.left_over.load_state_dict(state["left_over"])
        self.source.form.lists.update(state["lists"])
        self._over = state["over"]
        if self._over:  # the last batch was yielded, and none comes after it
            return
        if not self.exhausted:
            chosen = state["chosen"]
            choose = None if chosen is None else lambda order: chosen
            self._stream = self.source.open(choose, self.read_in_pass, state["source"])
        self._refill(restored(state["waiting"]))
        self._start_coordination()

    def _refill(self, samples: Samples | None) -> None:
        if samples is not None:
            self._buffer.put(samples, torch.arange(samples.size))

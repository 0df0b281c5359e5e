"""Path of the samples from the wrapped loader to the training step: read, select, join, look ahead."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch

from loopwise import batch as batches
from loopwise import ranks
from loopwise.errors import InputError

from .buffer import Buffer, Samples, join
from .coordination import Coordination, OtherRankFailed
from .selection import Selector
from .source import NO_INDEX, Source

POOL_BYTES = 64 * 2**20  # a pool is read ahead, and the activations of its scoring pass are far larger
POOL_BATCHES = 4  # more batches gain under 2 % per scored sample (ResNet-18 at 64x64, two CPU cores)
SLACK = 0.02  # with auto: share of the time of a plain loop that scoring may cost before it has saved time

ALL, FRESH, REMEMBERED = "all", "fresh", "remembered"
"""Modes of an epoch: no selection, selection by scoring passes, selection by remembered losses."""
SAVED = ["read_in_training", "read_in_pass", "counted_skipped", "exhausted", "batch_size", "pool_size"]
"""Attributes that ``state_dict`` copies without conversion."""


class Pipeline:
    """Pipeline that reads batches, selects samples and joins them into full batches, in passes over the data.

    Args:
        options: all options of the loader, as attributes.
        source: batches of the wrapped loader.
        selector: selector of samples, whose history and report the pipeline uses too.
    """

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
        selector.endless = not _has_length(source.loader)
        self._regroup = not source.plans and (options.batch_size, options.drop_last) != (None, None)
        self._auto = (
            options.auto and not selector.scorer.sharded
        )  # ranks would decide differently by their clocks
        self._reset(ALL, 0)
        self._over = True

    # -- a pass ---------------------------------------------------------------------------------

    def begin(self, mode: str, epoch: int) -> None:
        """Open a pass over the wrapped loader."""
        self._reset(mode, epoch)
        if not self.coordination.active:  # the loader was perhaps made before the process group
            self.coordination = Coordination()
        if self.coordination.active and self.options.keep != 1.0:
            self.mode = mode = self._exchange()
        if mode == REMEMBERED:
            self.selector.plan_epoch(epoch)
        elif mode == FRESH:
            self.selector.begin_scored()
        plans = mode == REMEMBERED and self.source.plans
        self._stream = self.source.open(self._plan if plans else None, 0)
        self._start_coordination()

    def take(self) -> Samples | None:
        """Return the next batch for the training step, or ``None`` if the pass is over, on all ranks."""
        if self._over:
            return None
        if not self._reads_ahead:
            return self._make_batch()
        ahead, trouble = self._ahead, self._trouble
        if trouble is not None:
            raise trouble
        if self.last():
            self._over, self._ahead = True, None
            self.report.add_cut(self._buffer.waiting + (ahead.size if ahead else 0))
            return None
        self._look_ahead()
        return ahead

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
        self.read_in_pass = 0
        """Number of batches read from the wrapped loader in this pass."""
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
        self._over = not self._reads_ahead
        rest = self._buffer.drain()
        if rest is not None and self.source.drop_last and rest.size < (self.batch_size or 0):
            self.report.add_cut(rest.size)
            return None
        return rest

    # -- reading --------------------------------------------------------------------------------

    def _read_pool(self) -> tuple[list[Samples], bool] | None:
        """Return batches and whether they are to be scored, or ``None`` at the end of the wrapped loader."""
        pool: list[Samples] = []
        while True:
            loaded = self._read()
            if loaded is None:
                return (pool, True) if pool else None
            pool.append(loaded)
            if self.mode != FRESH or self._in_delay():
                return pool, False
            if self.pool_size is None:
                nbytes = max(batches.nbytes(loaded.batch), 1)
                self.pool_size = max(1, min(POOL_BATCHES, POOL_BYTES // nbytes))
            first_score = self._auto and not self.report.scored
            limit = 1 if first_score or self.selector.single_batches else self.pool_size
            if self._auto and len(pool) == 1 and not self.report.scoring_pays(loaded.size * limit, SLACK):
                return pool, False
            if len(pool) >= limit:
                return pool, True

    def _read(self) -> Samples | None:
        with self.report.timed("loading"):
            loaded = next(self._stream, None)
        total, chosen = self.source.planned.total, self.source.planned.chosen
        if chosen is not None and not self.counted_skipped:
            self.counted_skipped = True
            self.report.add_skipped(total - len(chosen))
        if loaded is None:
            self.exhausted = True
            if not self.read_in_pass and not total:
                raise InputError(
                    "a loader that yields no batch",
                    "at least one batch an epoch",
                    "an empty dataset, fewer samples than batch_size with drop_last=True, or an iterator "
                    "that an earlier epoch used up",
                    "check len(dataset), or give a loader that can be iterated again",
                )
            return None
        self.read_in_training += 1
        self.read_in_pass += 1
        self.report.seen += loaded.size
        self.batch_size = self.batch_size or loaded.size
        return loaded

    def _in_delay(self) -> bool:
        count = self.read_in_pass if self.options.delay_every_epoch else self.read_in_training
        return bool(count <= self.options.delay)

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
            samples.columns["weight"] = selector.planned_weights(indices)
        return kept

    def _plan(self, order: torch.Tensor) -> torch.Tensor:
        """Return the indices of the samples to load in an epoch: the first samples, of the delay, and the selected ones."""
        read = 0 if self.options.delay_every_epoch else self.read_in_training
        return self.selector.plan_order(order, max(0, self.options.delay - read) * (self.batch_size or 1))

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
                columns = {"losses": losses, "classes": classes, "last_trained": self.epoch - 1}
                self.selector.history.set(indices, **columns)
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
            "chosen": None if chosen is None else chosen.clone(),
            "source": None if self.exhausted or self._over else self.source.state_dict(),
            "selector": self.selector.state_dict(),
            "waiting": None if samples is None else (samples.batch, samples.size, samples.columns),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on in the middle of a pass, in place of ``begin``."""
        self._reset(state["mode"], state["epoch"])
        for name in SAVED:
            setattr(self, name, state[name])
        self.selector.load_state_dict(state["selector"])
        self._over = state["over"]
        if self._over:  # the last batch was yielded, and none comes after it
            return
        if not self.exhausted:
            chosen = state["chosen"]
            choose = None if chosen is None else lambda order: chosen
            self._stream = self.source.open(choose, self.read_in_pass, state["source"])
        if state["waiting"] is not None:
            samples = Samples(*state["waiting"])
            self._buffer.put(samples, torch.arange(samples.size))
        self._start_coordination()


def _has_length(loader: Any) -> bool:
    try:
        return len(loader) >= 0
    except TypeError:
        return False

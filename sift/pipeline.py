"""The way of a sample from the wrapped loader to the training step."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from loopwise import batch as batches
from loopwise.errors import InputError

from .buffer import Buffer, Concatenate, Part, join
from .coordination import Agreement, Elsewhere
from .loss_history import Memory
from .report import Report
from .selection import Chooser
from .source import HIDDEN, Given, Source

POOL_BYTES = 64 * 2**20  # read ahead at most this much: activations of a scoring pass are far larger
POOL_BATCHES = 4  # more gains under 2 % per scored sample (ResNet-18 at 64x64, two CPU cores)
SLACK = 0.02  # with auto: the share of a plain loop's time that scoring may cost without having paid

ALL, FRESH, REMEMBERED = "all", "fresh", "remembered"


@dataclass(frozen=True, slots=True)
class Settings:
    """What the loader was asked for, checked."""

    batch_size: int | None
    drop_last: bool
    regroup: bool
    delay: int
    delay_every_epoch: bool
    pool: int | None
    auto: bool
    weights: bool
    remembers: bool
    concatenate: Concatenate
    classes: Callable[[Any], torch.Tensor] | None


class Sieve:
    """Pulls batches, decides which samples stay and joins them to full batches, one pass at a time."""

    def __init__(
        self, settings: Settings, source: Source, chooser: Chooser, memory: Memory, report: Report
    ) -> None:
        self.settings, self.source, self.chooser = settings, source, chooser
        self.memory, self.report = memory, report
        self.agreement = Agreement()
        self.mode = ALL
        self.epoch = 0
        self.given = 0
        """Batches of the wrapped loader since the start of training."""
        self.pulled = 0
        """Batches of the wrapped loader in this pass."""
        self._batch_size = settings.batch_size
        self._pool_size = settings.pool
        self._buffer: Buffer | None = None
        self._stream: Iterator[Given] = iter(())
        self._ahead: Part | None = None
        self._trouble: BaseException | None = None
        self._over = True
        self._exhausted = False
        self._counted = 0

    # -- a pass ---------------------------------------------------------------------------------

    def begin(self, mode: str, epoch: int) -> None:
        """Open a pass over the wrapped loader."""
        self._reset(mode, epoch)
        if self.agreement.live and mode != ALL:
            self._exchange()
        if mode == REMEMBERED:
            self.chooser.foresee(epoch)
        plans = mode == REMEMBERED and self.source.plans
        self._stream = self.source.open(self._plan if plans else None, 0)
        self.agreement.start()
        if self.agreement.live:
            self._look_ahead()

    def _reset(self, mode: str, epoch: int) -> None:
        self.mode, self.epoch, self.pulled = mode, epoch, 0
        self._over, self._exhausted, self._counted = False, False, 0
        self._buffer, self._ahead, self._trouble = None, None, None

    def take(self) -> Part | None:
        """The next batch for the training step; ``None`` when the pass is over, on all ranks."""
        if not self.agreement.live:
            return None if self._over else self._made()
        if self._over:
            return None
        ahead, trouble = self._ahead, self._trouble
        if trouble is not None:
            raise trouble
        if not self.agreement.go():
            self._over, self._ahead = True, None
            left = (ahead.size if ahead else 0) + (self._buffer.waiting if self._buffer else 0)
            self._cut(left)
            return None
        self._look_ahead()
        return ahead

    def _look_ahead(self) -> None:
        self._ahead, text = None, ""
        try:
            self._ahead = self._made()
        except Elsewhere:
            return
        except Exception as error:  # raised when this batch's turn comes, on every rank
            self._trouble, text = error, f"{type(error).__name__}: {error}"
        self.agreement.post(self._ahead is not None, text)

    def _made(self) -> Part | None:
        """The next full batch, or the short last one, made from what the loader gives."""
        while True:
            start = time.perf_counter()
            part = self._buffer.take() if self._buffer else None
            self.report.selecting_seconds += time.perf_counter() - start
            if part is not None:
                return part
            given = self._pull()
            if given is None:
                return self._last()
            direct = self._sift(*given)
            if direct is not None:
                return direct

    def _last(self) -> Part | None:
        self._over = not self.agreement.live
        rest = self._buffer.drain() if self._buffer else None
        if rest is not None and self.settings.drop_last and rest.size < (self._batch_size or 0):
            self._cut(rest.size)
            return None
        return rest

    def _cut(self, samples: int) -> None:
        self.report.cut += samples
        self.report.dropped += samples
        self.report.kept -= samples

    # -- what the loader gives ------------------------------------------------------------------

    def _pull(self) -> tuple[list[Given], bool] | None:
        """A pool of batches to score together, or one batch that is not scored."""
        pool: list[Given] = []
        while True:
            start = time.perf_counter()
            given = next(self._stream, None)
            self.report.loading_seconds += time.perf_counter() - start
            self._count_skipped()
            if given is None:
                self._exhausted = True
                if not pool and not self.pulled:
                    self._check_empty()
                return (pool, True) if pool else None
            self.given += 1
            self.pulled += 1
            self.report.seen += given.size
            self._batch_size = self._batch_size or given.size
            pool.append(given)
            if self.mode != FRESH or self._delayed():
                return pool, False
            if self._pool_size is None:
                nbytes = max(batches.nbytes(given.batch), 1)
                self._pool_size = max(1, min(POOL_BATCHES, POOL_BYTES // nbytes))
            probe = self.settings.auto and not self.report.scored
            limit = 1 if probe or self.chooser.one_by_one else self._pool_size
            if self.settings.auto and len(pool) == 1 and not self._pays(given.size * limit):
                return pool, False
            if len(pool) >= limit:
                return pool, True

    def _delayed(self) -> bool:
        count = self.pulled if self.settings.delay_every_epoch else self.given
        return count <= self.settings.delay

    def _pays(self, size: int) -> bool:
        """Whether a pool may be scored so that training stays within ``SLACK`` of a plain loop's time."""
        report = self.report
        if not report.seconds_a_sample:
            return False
        spent = report.scoring_seconds + report.selecting_seconds
        each = spent / report.scored if report.scored else report.seconds_a_sample
        plain = report.loading_seconds + report.training_seconds + report.dropped * report.seconds_a_sample
        return report.saved_seconds - each * size >= -SLACK * plain

    def _count_skipped(self) -> None:
        total, chosen = self.source.total, self.source.chosen
        if total is not None and chosen is not None and not self._counted:
            self._counted = total - len(chosen)
            self.report.seen += self._counted
            self.report.skipped += self._counted
            self.report.dropped += self._counted

    def _check_empty(self) -> None:
        if not self.source.total:
            raise InputError(
                "a loader that yields no batch",
                "at least one batch an epoch",
                "an empty dataset, fewer samples than batch_size with drop_last=True, or an iterator "
                "that an earlier epoch used up",
                "check len(dataset), or give a loader that can be gone through again",
            )

    # -- what stays -----------------------------------------------------------------------------

    def _sift(self, pool: list[Given], scored: bool) -> Part | None:
        """Decide about a pool; returns a batch that goes to the training step as it is, if it does."""
        start = time.perf_counter()
        sizes, part = [given.size for given in pool], self._joined(pool)
        scoring = 0.0
        if scored:
            before = self.report.scoring_seconds
            kept = self._score(part, sizes)
            scoring = self.report.scoring_seconds - before
        elif self.mode == REMEMBERED and not self.source.plans and not self._delayed():
            kept = self._recall(part)
        else:
            kept = torch.arange(part.size)
            if self.mode == REMEMBERED and self.settings.weights and self.source.plans:
                part.along["weight"] = self.chooser.weights[part.along["index"]]
        self.report.kept += len(kept)
        self.report.dropped += part.size - len(kept)
        direct = not scored and not self.settings.regroup and len(kept) == part.size
        if direct and self.mode != FRESH and (self._buffer is None or not self._buffer.waiting):
            self.report.selecting_seconds += time.perf_counter() - start
            return part
        self._buffer = self._buffer or Buffer(self._batch_size or part.size, self.settings.concatenate)
        self._buffer.offer(part, kept)
        self.report.selecting_seconds += time.perf_counter() - start - scoring
        return None

    def _joined(self, pool: list[Given]) -> Part:
        parts = []
        for given in pool:
            along = {}
            if given.indices is not None:
                along["index"] = given.indices
            if self.settings.weights:
                along["weight"] = torch.ones(given.size)
            parts.append(Part(given.batch, given.size, along))
        pool.clear()
        return join(parts, self.settings.concatenate)

    def _score(self, part: Part, sizes: list[int]) -> torch.Tensor:
        start, report = time.perf_counter(), self.report
        indices, classes = part.along.get("index"), self._classes(part)
        if indices is not None and classes is not None:
            self.memory.note_classes(indices, classes)
        kept, weights = self.chooser.pool(part.batch, sizes, indices, classes, self.epoch)
        if self.settings.weights:
            part.along["weight"] = weights
        if classes is not None:
            report.count_classes(classes.tolist(), kept.tolist())
        report.scored += part.size
        report.scoring_seconds += time.perf_counter() - start
        return kept

    def _recall(self, part: Part) -> torch.Tensor:
        if "index" not in part.along:
            raise InputError(
                "score_every other than 1 without indices of the samples",
                "the index of every sample in its dataset",
                *HIDDEN,
            )
        indices = part.along["index"]
        kept = self.chooser.draw(indices)
        if self.settings.weights:
            part.along["weight"] = self.chooser.weights[indices]
        return kept

    def _classes(self, part: Part) -> torch.Tensor | None:
        """Class labels on the CPU, by the user's function, or integer targets of (input, target) pairs."""
        if self.settings.classes is not None:
            return self.settings.classes(part.batch).to("cpu", torch.int64)
        batch = part.batch
        if isinstance(batch, (list, tuple)) and len(batch) == 2 and isinstance(batch[1], torch.Tensor):
            target = batch[1]
            if target.shape == (part.size,) and not target.dtype.is_floating_point:
                return target.to("cpu", torch.int64)
        return None

    def _plan(self, order: torch.Tensor) -> torch.Tensor:
        kept = self.chooser.draw(order)
        done = 0 if self.settings.delay_every_epoch else self.given
        free = max(0, self.settings.delay - done) * (self._batch_size or 1)
        if free:
            kept = torch.cat([torch.arange(min(free, len(order))), kept[kept >= free]])
            self.chooser.weights[order[:free]] = 1.0
        return order[kept]

    def _exchange(self) -> None:
        """What the ranks have learnt since the last epoch becomes known to all."""
        none = torch.empty(0, dtype=torch.int64), torch.empty(0)
        news = (*(self.memory.news() if self.settings.remembers else none), self.chooser.policy.tell())
        told = self.agreement.share(news)
        others = [item for rank, item in enumerate(told) if rank != torch.distributed.get_rank()]
        for indices, losses, _ in others:
            self.memory.hear(indices, losses, self.epoch - 1)
        self.chooser.policy.hear(torch.cat([past for _, _, past in others]))

    # -- state ----------------------------------------------------------------------------------

    def state_dict(self, again: list[Part]) -> dict[str, Any]:
        """The state at a batch boundary: the samples on their way, after those of ``again``."""
        waiting = [*again, *([self._ahead] if self._ahead is not None else [])]
        if self._buffer is not None and (rest := self._buffer.peek()) is not None:
            waiting.append(rest)
        part = join(waiting, self.settings.concatenate) if waiting else None
        return {
            "mode": self.mode,
            "epoch": self.epoch,
            "given": self.given,
            "pulled": self.pulled,
            "counted": self._counted,
            "over": self._over and not again,
            "chosen": None if self.source.chosen is None else self.source.chosen.clone(),
            "exhausted": self._exhausted,
            "source": None if self._exhausted or self._over else self.source.state_dict(),
            "foreseen": self.chooser.foreseen(),
            "waiting": None if part is None else (part.batch, part.size, part.along),
            "batch_size": self._batch_size,
            "pool": self._pool_size,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on in the middle of a pass, in place of ``begin``."""
        self.given, self._batch_size, self._pool_size = state["given"], state["batch_size"], state["pool"]
        if state["over"]:  # the last batch was handed out, and nothing came after it
            self._over = True
            return
        self._reset(state["mode"], state["epoch"])
        self.chooser.recall(state["foreseen"])
        self.pulled, self._counted, self._exhausted = state["pulled"], state["counted"], state["exhausted"]
        if self._exhausted:
            self._stream = iter(())
        else:
            chosen = state["chosen"]
            choose = None if chosen is None else lambda order: chosen
            self._stream = self.source.open(choose, self.pulled, state["source"])
        if state["waiting"] is not None:
            part = Part(*state["waiting"])
            self._buffer = Buffer(self._batch_size or part.size, self.settings.concatenate)
            self._buffer.offer(part, torch.arange(part.size))
        self.agreement.start()
        if self.agreement.live:
            self._look_ahead()

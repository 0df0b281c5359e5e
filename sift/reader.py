"""Batches of the wrapped loader, read in pools that are scored at once."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

from torch.utils.data import BatchSampler

from loopwise import batch as batches
from loopwise.errors import InputError
from loopwise.warnings import warn

from .buffer import LeftOver, Samples
from .report import Report
from .selection import Selector
from .source import Source

POOL_BYTES = 64 * 2**20  # a pool is read ahead, and the activations of its scoring pass are far larger
POOL_BATCHES = 4  # more batches gain under 2 % per scored sample (ResNet-18 at 64x64, two CPU cores)
SLACK = 0.02  # with auto: share of the time of a plain loop that scoring may cost before it has saved time

ALL, FRESH, REMEMBERED = "all", "fresh", "remembered"
"""Modes of an epoch: no selection, selection by scoring passes, selection by remembered losses."""


FRAMEWORKS = {"torch", "torchdata", "accelerate", "transformers", "lightning", "pytorch_lightning"}
"""Packages whose batch samplers only deal out the samples to ranks."""


class Reader:
    """Reads pools of batches in a pass over the wrapped loader."""

    mode: str
    options: SimpleNamespace
    source: Source
    selector: Selector
    report: Report
    left_over: LeftOver
    batch_size: int | None
    pool_size: int | None
    read_in_training: int
    """Number of batches read from the wrapped loader since the start of training."""
    read_in_pass: int
    """Number of batches read from the wrapped loader in this pass."""
    samples_read: int
    """Number of samples in them."""
    exhausted: bool
    """True if the wrapped loader has no more batches."""
    counted_skipped: bool
    _stream: Iterator[Samples]
    _last_size: int = 0
    _groups_were_told = False
    _auto: bool
    _regroup: bool

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
            self.report.add_skipped(total - len(chosen) + len(self.left_over.first_indices))
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
        if self._cuts:
            self._validate_size(loaded.size)
            self._warn_of_groups()
            self.source.form.learn(loaded.batch, loaded.size)
        self.read_in_training += 1
        self.read_in_pass += 1
        self.samples_read += loaded.size
        self.report.seen += loaded.size
        self.batch_size = self.batch_size or loaded.size
        return loaded

    def _validate_size(self, size: int) -> None:
        """Raise an error if batches vary in size by a rule that joined batches would break.

        One batch may be short at the end of an epoch, and if it is not known who made the batches, at the end of a worker.
        """
        usual, last, self._last_size = self.batch_size, self._last_size, size
        if self.source.batch_size is not None or usual is None:
            return
        sampled = getattr(self.source.loader, "batch_sampler", None) is not None
        if size > usual or (sampled and self.read_in_pass and 0 < last < usual):
            raise InputError(
                f"batches of {usual} samples and of {size if size != usual else last} samples",
                "batches of one size, except the last one of an epoch",
                "a batch sampler that makes buckets by length, or keeps a budget of tokens",
                "pass batch_size=, the number of samples in the batches to train on (and concatenate=Padded(...) if their "
                "lengths differ)",
            )

    def _warn_of_groups(self) -> None:
        """Warn once if a batch sampler of the user's own put certain samples together, which the sifted batches are not."""
        if self._groups_were_told:
            return
        self._groups_were_told = True
        sampler = getattr(self.source.loader, "batch_sampler", None)
        kind = type(sampler)
        plain = sampler is None or getattr(kind, "__iter__", None) is BatchSampler.__iter__
        # keep=1.0 leaves nothing out, and batch_size asks for other batches
        expected = self.options.keep == 1.0 or self.options.batch_size is not None
        if not plain and not expected and kind.__module__.partition(".")[0] not in FRAMEWORKS:
            warn(
                f"loopwise.sift: the kept samples of several batches of {kind.__name__} are joined into new batches; a loss "
                "that compares the samples of a batch (triplets, contrastive pairs) then meets other ones than the batch "
                "sampler put together; keep=1.0 leaves the batches as they are"
            )

    @property
    def _cuts(self) -> bool:
        """True if batches are cut into samples and joined in this pass."""
        return self.mode == FRESH or self._regroup or (self.mode == REMEMBERED and not self.source.plans)

    def _in_delay(self) -> bool:
        count = self.read_in_pass if self.options.delay_every_epoch else self.read_in_training
        return bool(count <= self.options.delay)

    def _delay_left(self) -> int:
        """Return the number of batches of the delay that a pass begins with."""
        read = 0 if self.options.delay_every_epoch else self.read_in_training
        return int(max(0, self.options.delay - read))

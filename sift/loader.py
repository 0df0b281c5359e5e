"""The loader that hands only informative samples to the training step."""

from __future__ import annotations

import dataclasses
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import nn

from loopwise import batch as batches
from loopwise.errors import InputError, StateError
from loopwise.run import Run

from .buffer import Buffer, Concatenate
from .policies import Policy, RelativeLoss
from .policies.policy import check_keep
from .report import Report
from .scoring import Scorer

POOL_BYTES = 64 * 2**20  # read ahead at most this much: activations of a scoring pass are far larger
POOL_BATCHES = 4  # more gains under 2 % per scored sample (ResNet-18 at 64x64, two CPU cores)


class SiftingDataLoader:
    """Wraps a loader: scores samples by loss and yields full batches of the informative ones.

    The batches keep the structure and size of the wrapped loader's.  The last of an epoch may be
    short, unless ``drop_last``.  With ``keep=1.0`` nothing is scored and the wrapped loader's own
    batches come through.  A sample is scored as it will be trained on: after augmentation.

    Args:
        loader: any iterable of batches; its ``batch_size`` and ``drop_last`` are honoured.
        model: the model in training.  It is scored in evaluation mode and left as it was: mode,
            BatchNorm statistics, random state.
        loss: a per-sample criterion for ``(input, target)`` batches, such as
            ``nn.CrossEntropyLoss(reduction="none")``; or ``def loss(model, batch) -> Tensor[B]``
            (its first parameter is named ``model``) for batches of any other form.
        keep: share of samples to train on, a fraction in (0, 1]; default 0.5.
        policy: which samples to keep: ``RelativeLoss`` (default), ``TopLoss`` or any callable from
            losses to keep probabilities; instead of ``keep``.
        delay: number of the wrapped loader's batches that come through unscored at the start of
            training, while losses say little yet.
        pool: number of batches scored in one forward pass; ``"auto"``: up to 4 within 64 MiB.
            A pool is read ahead, as a prefetching worker would.
        dtype: autocast dtype of the scoring pass; ``"auto"``: what the hardware multiplies fastest.
        compile: score through ``torch.compile``: faster a sample, after seconds of compiling.
        batch_size: samples per yielded batch; default: the wrapped loader's.
        drop_last: whether a short last batch is dropped; default: the wrapped loader's.
        concatenate: joins a list of batches (and the list of their sizes) into one; for batches
            padded to different lengths.
        seed: of the keep draws; default: torch's initial seed.
        run: a ``Run`` that receives one record an epoch.

    Raises:
        InputError: arguments or batches that cannot be used, each with its cause and fix.
    """

    def __init__(
        self,
        loader: Iterable[Any],
        model: nn.Module,
        *,
        loss: Callable[..., torch.Tensor],
        keep: float | None = None,
        policy: Policy | None = None,
        delay: int = 0,
        pool: int | str = "auto",
        dtype: torch.dtype | str = "auto",
        compile: bool = False,
        batch_size: int | None = None,
        drop_last: bool | None = None,
        concatenate: Concatenate = batches.concatenate,
        seed: int | None = None,
        run: Run | None = None,
    ) -> None:
        if keep is not None and policy is not None:
            raise InputError(
                f"keep={keep!r} and policy={policy!r}",
                "one of keep and policy",
                "a policy says itself how much it keeps",
                f"drop keep, or give it to the policy: {type(policy).__name__}({keep!r})",
            )
        if pool != "auto":
            _at_least("pool", pool, 1)
        self.delay = _at_least("delay", delay, 0)
        self.loader = loader
        self.keep = check_keep(0.5 if keep is None else keep) if policy is None else None
        self.policy: Policy = policy if policy is not None else RelativeLoss(self.keep)
        self.epoch = 0
        sampler = getattr(loader, "batch_sampler", None)
        self.batch_size = (
            batch_size or getattr(loader, "batch_size", None) or getattr(sampler, "batch_size", None)
        )
        self.drop_last = bool(
            getattr(loader, "drop_last", False) or getattr(sampler, "drop_last", False)
            if drop_last is None
            else drop_last
        )
        self._pool_size: int | None = None if pool == "auto" else int(pool)
        self._scorer = Scorer(model, loss, dtype, compile)
        self._concatenate = concatenate
        self._draws = torch.Generator().manual_seed(torch.initial_seed() if seed is None else seed)
        self._run = run
        self._report = Report()
        self._told: set[str] = set()
        self._given = 0

    def __iter__(self) -> Iterator[Any]:
        before, complete = dataclasses.replace(self._report), False
        try:
            yield from self._batches()
            complete = True
        finally:
            self._report.epochs += complete
            self._log(before, complete)
            self.epoch += complete

    def __len__(self) -> int:
        """Batches in an epoch: exact with ``keep=1.0``, else an estimate from the share kept so far."""
        total = len(self.loader)  # type: ignore[arg-type]  # a TypeError of the user's loader passes
        if self.keep == 1.0:
            return total
        share = self._report.share if self._report.epochs else self.keep or 1.0
        return max(1, round(total * share))

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch here and on the wrapped loader's sampler or dataset, where they have one."""
        self.epoch = epoch
        parts: list[Any] = [
            self.loader,
            getattr(self.loader, "sampler", None),
            getattr(self.loader, "dataset", None),
        ]
        for part in parts:
            if hasattr(part, "set_epoch"):
                part.set_epoch(epoch)

    def report(self) -> Report:
        """Counts and seconds since this loader was made."""
        return dataclasses.replace(self._report)

    def _batches(self) -> Iterator[Any]:
        if self.keep == 1.0:
            for batch, size in self._source():
                self._report.kept += size
                yield from self._hand_out(batch, size)
            return
        report, buffer = self._report, None
        for pool, sizes, scored in self._pools():
            start, size = time.perf_counter(), sum(sizes)
            buffer = buffer or Buffer(self.batch_size or sizes[0], self._concatenate)
            kept, scoring = self._choose(pool, sizes) if scored else (torch.arange(size), 0.0)
            report.kept += len(kept)
            report.dropped += size - len(kept)
            report.scoring_seconds += scoring
            start += scoring
            for full, length in buffer.fill(pool, size, kept):
                report.selecting_seconds += time.perf_counter() - start
                yield from self._hand_out(full, length)
                start = time.perf_counter()
            del pool
            report.selecting_seconds += time.perf_counter() - start
        if buffer is not None and self.drop_last:
            report.dropped += buffer.waiting
            report.kept -= buffer.waiting
        elif buffer is not None:
            for full, length in buffer.drain():
                yield from self._hand_out(full, length)

    def _hand_out(self, full: Any, length: int) -> Iterator[Any]:
        self._report.batches += 1
        self._report.trained += length
        start = time.perf_counter()
        yield full
        self._report.training_seconds += time.perf_counter() - start

    def _pools(self) -> Iterator[tuple[Any, list[int], bool]]:
        """Batches to score, joined to pools, and batches of the delay as they come (not to score)."""
        pool: list[Any] = []
        sizes: list[int] = []
        for batch, size in self._source():
            if self._given <= self.delay:
                yield batch, [size], False
                continue
            if self._pool_size is None:
                self._pool_size = max(1, min(POOL_BATCHES, POOL_BYTES // max(batches.nbytes(batch), 1)))
            pool.append(batch)
            sizes.append(size)
            del batch
            if len(pool) >= self._pool_size:
                joined, lengths = self._concatenate(pool, sizes), sizes
                pool, sizes = [], []
                yield joined, lengths, True
                del joined
        if pool:
            yield self._concatenate(pool, sizes), sizes, True

    def _source(self) -> Iterator[tuple[Any, int]]:
        source, start = iter(self.loader), time.perf_counter()
        empty = True
        while True:
            try:
                batch = next(source)
            except StopIteration:
                break
            except RuntimeError as error:
                if "DataLoader worker" in str(error) and "exited unexpectedly" in str(error):
                    raise _dead_worker(error) from error
                raise
            self._report.loading_seconds += time.perf_counter() - start
            size = batches.length(batch, self.batch_size)
            self._report.seen += size
            self._given += 1
            empty = False
            yield batch, size
            del batch
            start = time.perf_counter()
        if empty:
            raise InputError(
                "a loader that yields no batch",
                "at least one batch an epoch",
                "an empty dataset, fewer samples than batch_size with drop_last=True, or an iterator "
                "that an earlier epoch used up",
                "check len(dataset), or give a loader that can be gone through again",
            )

    def _score(self, pool: Any, sizes: list[int]) -> torch.Tensor:
        """Losses of a pool; batch by batch from then on when the device has no memory for it at once."""
        try:
            return self._scorer(pool, sum(sizes))
        except torch.OutOfMemoryError:
            if len(sizes) == 1:
                raise
        self._tell(
            "memory",
            f"no memory to score {len(sizes)} batches at once; from now on one by one, as with pool=1",
        )
        self._pool_size = 1
        parts = zip(batches.split(pool, sizes), sizes, strict=True)
        return torch.cat([self._scorer(part, size) for part, size in parts])

    def _choose(self, pool: Any, sizes: list[int]) -> tuple[torch.Tensor, float]:
        """Indices of the samples to keep, and the seconds spent scoring."""
        start, size = time.perf_counter(), sum(sizes)
        losses = self._score(pool, sizes)
        scoring = time.perf_counter() - start
        self._report.scored += size
        finite = losses.isfinite()
        wild = size - int(finite.sum())
        if wild:
            self._report.not_finite += wild
            self._tell(
                "not finite",
                f"{wild} of {size} samples have a loss that is NaN or infinite; they are kept and counted in "
                "report().not_finite. Likely causes: a diverging model, or corrupt samples.",
            )
        probabilities = torch.ones(size)
        probabilities[finite] = _probabilities(self.policy, losses[finite])
        return (torch.rand(size, generator=self._draws) < probabilities).nonzero().flatten(), scoring

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


def _at_least(name: str, value: object, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InputError(
            f"{name}={value!r}",
            f"a whole number of batches, at least {least}",
            "a fraction, a negative number or a text",
            f"pass for instance {name}={max(least, 4)}",
        )
    return value


def _dead_worker(error: RuntimeError) -> StateError:
    return StateError(
        f"a worker process of the wrapped DataLoader died ({error})",
        "workers that live until the epoch ends",
        "out of memory (the kernel killed it), too little shared memory, or a crash in native code",
        "lower num_workers or batch_size, enlarge /dev/shm, or use num_workers=0 to see the crash itself",
    )


def _probabilities(policy: Policy, losses: torch.Tensor) -> torch.Tensor:
    given = policy(losses)
    valid = isinstance(given, torch.Tensor) and given.shape == losses.shape
    if not valid or not bool(((given >= 0) & (given <= 1)).all()):
        seen = f"shape {tuple(given.shape)}" if isinstance(given, torch.Tensor) else type(given).__name__
        if valid:
            seen = f"values from {float(given.min())} to {float(given.max())}"
        raise InputError(
            f"keep probabilities of {seen} from policy {policy!r}",
            f"a Tensor of shape ({len(losses)},) with values in [0, 1]",
            "the policy returns scores, indices or a mask of another length",
            "return one keep probability a loss",
        )
    return given

"""State of the sifting loader, from which a training resumes to the bit."""

from __future__ import annotations

from collections import deque
from typing import Any

import torch

from loopwise import random_state, validate
from loopwise.ranks import rank, world_size

from . import options as checks
from .buffer import Samples
from .frameworks.epochs import FilledEpochs
from .loss_history import LossHistory
from .pipeline import Pipeline
from .policies import Policy
from .report import Report
from .step_losses import TrainingLosses


class Resumable:
    """Loader that saves and loads its state at any batch."""

    epoch: int
    _set_epoch: int | None
    loader: Any
    policy: Policy
    score_every: int
    _draws: torch.Generator
    _filled: FilledEpochs | None
    """Epochs of a fixed number of batches, with ``auto``."""
    _history: LossHistory
    _iterating: bool
    _losses: TrainingLosses
    _pipeline: Pipeline
    _report: Report
    _resume_state: dict[str, Any] | None
    _random_state: dict[str, Any] | None
    """Random state to begin the next pass with, restored from a state between two passes."""
    _pass: int
    """Number of passes that were begun, by which a pass notices that another one has ended it."""
    _batches_of_pass: int
    _start: dict[str, Any]
    _yielded: deque[Samples]

    def _close_pass(self, complete: bool) -> None:
        raise NotImplementedError

    def _mode(self) -> str:
        raise NotImplementedError

    def _set_scheduled_keep(self) -> None:
        raise NotImplementedError

    def _begin_pass(self) -> None:
        state, self._resume_state, self._iterating = self._resume_state, None, True
        random, self._random_state = self._random_state, None
        self._set_scheduled_keep()
        generators = self._pipeline.source.generators()
        self._batches_of_pass = 0
        if state is None:
            if random is not None:
                random_state.set(random, generators)
            self._start = random_state.get(generators)
            self._pipeline.begin(self._mode(), self.epoch)
        else:
            self._start = state["start"]
            random_state.set(self._start, generators)
            self._pipeline.load_state_dict(state["pipeline"])
            random_state.set(state["now"], generators)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch here and in the wrapped loader, its sampler and its dataset, if they have ``set_epoch``.

        Raises:
            InputError: ``epoch`` is no whole number from 0.
        """
        epoch = validate.whole_number("epoch", epoch, 0, "epochs")
        if self._filled is not None:  # passes are counted here, and a loop counts its shorter epochs
            epoch = max(epoch, self.epoch)
        self.epoch = self._set_epoch = epoch
        parts: list[Any] = [
            self.loader,
            *(getattr(self.loader, name, None) for name in ("sampler", "dataset")),
        ]
        for part in parts:
            if hasattr(part, "set_epoch"):
                part.set_epoch(epoch)

    @property
    def running(self) -> bool:
        """True while a pass over the data is open."""
        return self._iterating or self._resume_state is not None

    @property
    def at_end_of_pass(self) -> bool:
        """True if the open pass has yielded its last batch, as far as its length is certain."""
        state = self._resume_state
        return self.running and self._pipeline.at_end(state and state["pipeline"])

    def batches_without_selection(self) -> int | None:
        """Return the number of batches of a pass that leaves no sample out; ``None`` if the wrapped loader has no length."""
        return self._pipeline.length_of_all()

    def hold_yielded(self, count: int) -> None:
        """Hold the last ``count`` batches for ``state_dict(untrained)``; frameworks that fetch batches ahead need this."""
        self._yielded = deque(maxlen=validate.whole_number("count", count, 0, "batches"))

    def state_dict(self, untrained: int = 0) -> dict[str, Any]:
        """Return the state that determines the next batches; call it between two batches or epochs.

        The state contains the random states of Python, NumPy and torch, so that a resumed training is bit-identical.

        Args:
            untrained: number of the last batches that no training step has seen yet; ``load_state_dict`` makes the
                loader yield them again.  Call ``hold_yielded`` before, with at least this number.
        """
        validate.whole_number("untrained", untrained, 0, "batches")
        self._losses.fetch()
        again = list(self._yielded)[len(self._yielded) - untrained :]
        generators = self._pipeline.source.generators()
        return {
            "epoch": self._pipeline.epoch if again else self.epoch,
            "set_epoch": self._set_epoch,
            "open": self._iterating or bool(again),
            "done": self._filled.done - untrained if self._filled is not None else 0,
            "world": world_size(),
            "rank": rank(),
            "pipeline": self._pipeline.state_dict(again),
            "policy": self.policy.state_dict(),
            "history": self._history.state_dict(),
            "report": self._report.state_dict(),
            "draws": self._draws.get_state(),
            "score_every": self.score_every,
            "start": self._start,
            "now": random_state.get(generators),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from ``state``: the next iteration yields the batches that came after it.

        The loader repeats the iteration of the wrapped loader up to that batch, without loading data if the dataset is
        map-style and has no workers.

        Raises:
            InputError: ``state`` is no state of a loader.
            StateError: the state is that of another rank or world size.
        """
        checks.validate_state(state)
        if self._iterating:
            self._close_pass(False)
        self._pass += 1  # an iterator of before gives no more batches
        if self._filled is not None:
            self._filled.go_on_after(state["done"])
            self.epoch = 0
        if state["set_epoch"] is not None:  # else the sampler is where it was made, as in the saved training
            self.set_epoch(state["set_epoch"])
        self.epoch = state["epoch"]
        self._report.load_state_dict(state["report"])
        self._set_scheduled_keep()
        self.policy.load_state_dict(state["policy"])
        self._history.load_state_dict(state["history"])
        self._draws.set_state(state["draws"])
        self.score_every = state["score_every"]
        self._resume_state = state if state["open"] else None
        self._random_state = None if state["open"] else state["now"]
        if state["open"]:
            self._pipeline.read_in_training = state["pipeline"]["read_in_training"]
        else:
            self._pipeline.load_state_dict(state["pipeline"])

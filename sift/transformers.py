"""Sifting in Hugging Face's ``Trainer``: a mixin, with its options in one argument.

class SiftingTrainer(SiftingTrainerMixin, Trainer):
    pass

SiftingTrainer(model, args, train_dataset=dataset, sift={"keep": 0.5}).train()
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from loopwise.errors import InputError
from loopwise.ranks import rank

from .loader import SiftingDataLoader
from .scorers import Padded

try:
    from transformers import Trainer
except ImportError:
    from loopwise.errors import MissingExtra

    raise MissingExtra.of("transformers", "transformers", "SiftingTrainerMixin") from None


class _Steady:
    """The loader as the Trainer wants it: the same number of batches every time.

    The Trainer plans its steps and learning rates before it starts, so one of its epochs is that
    many batches, about one pass over the data, and the next one goes on where it stopped.
    """

    def __init__(self, loader: SiftingDataLoader) -> None:
        self.loader = loader
        self.done = 0
        self._length = len(loader)
        self._batches: Iterator[Any] | None = None

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Any]:
        self.done %= self._length
        while self.done < self._length:
            fresh = self._batches is None
            batches = self._batches = self._batches or self._next_pass()
            batch = next(batches, None)
            if batch is None:
                self._batches = None
                if fresh:
                    break
                continue
            self.done += 1
            yield batch

    def _next_pass(self) -> Iterator[Any]:
        if not self.loader.running:
            self.loader.set_epoch(self.loader.epoch)
        return iter(self.loader)


class SiftingTrainerMixin:
    """Put before ``Trainer`` in a class's bases.

    Every sample is scored (``score_every=1``) and batches padded to different lengths are joined
    with the tokenizer's padding.  A checkpoint holds the loader's state, a file of each rank.

    Args:
        sift: options of ``SiftingDataLoader``; ``None`` trains without sifting.
    """

    def __init__(self, *args: Any, sift: dict[str, Any] | None = None, **options: Any) -> None:
        super().__init__(*args, **options)
        self.sift = sift
        self.sift_feed: _Steady | None = None

    def sift_loss(self, model: nn.Module, batch: Any) -> torch.Tensor:
        """Losses of a batch, shape (batch,); override it where the model's loss is another one.

        Cross-entropy over classes; over tokens, averaged over each sample's labels other than -100
        (shifted by one for causal language models); squared error for one-dimensional outputs.
        """
        logits, labels = model(**batch)["logits"], batch["labels"]
        if labels.is_floating_point():
            errors: torch.Tensor = logits.view(len(labels), -1).float() - labels.view(len(labels), -1)
            return errors.square().mean(1)
        if labels.ndim == 1:
            return nn.functional.cross_entropy(logits, labels, reduction="none")
        if "CausalLM" in type(model).__name__ or "LMHeadModel" in type(model).__name__:
            logits, labels = logits[:, :-1], labels[:, 1:]
        tokens = nn.functional.cross_entropy(logits.transpose(1, 2), labels, reduction="none")
        counted: torch.Tensor = (labels != -100).sum(1)
        return tokens.sum(1) / counted.clamp_min(1)

    def get_train_dataloader(self) -> Any:
        loader = super().get_train_dataloader()  # type: ignore[misc]
        if self.sift is None:
            return loader
        trainer: Any = self
        tokenizer = getattr(trainer, "processing_class", None)
        padding = {"labels": -100.0, "input_ids": float(getattr(tokenizer, "pad_token_id", None) or 0)}
        options: dict[str, Any] = {"score_every": 1, "concatenate": Padded(padding)} | self.sift
        if options["score_every"] != 1:
            raise InputError(
                f"score_every={options['score_every']!r} in a Hugging Face Trainer",
                "score_every=1",
                "its loader hides the samples' indices",
                "drop it, or train by a plain loop",
            )
        sifting = SiftingDataLoader(loader, trainer.model, loss=self.sift_loss, **options)
        trainer.args.ignore_data_skip = True  # our state goes on by itself
        self.sift_feed = _Steady(sifting)
        return self.sift_feed

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)  # type: ignore[misc]
        if self.sift_feed is not None:
            os.makedirs(output_dir, exist_ok=True)
            state = {"loader": self.sift_feed.loader.state_dict(), "done": self.sift_feed.done}
            torch.save(state, _file(output_dir))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        super()._load_rng_state(checkpoint)  # type: ignore[misc]
        if self.sift_feed is not None and checkpoint is not None and os.path.exists(_file(checkpoint)):
            state = torch.load(_file(checkpoint), weights_only=False)  # batches may be of any class
            self.sift_feed.loader.load_state_dict(state["loader"])
            self.sift_feed.done = state["done"]


def _file(folder: str) -> str:
    return os.path.join(folder, f"sift_{rank()}.pt")


__all__ = ["SiftingTrainerMixin", "Trainer"]

"""Sifting in Hugging Face's ``Trainer`` by a mixin, with its options in one argument.

class SiftingTrainer(SiftingTrainerMixin, Trainer):
    pass

SiftingTrainer(model, args, train_dataset=dataset, sift={"keep": 0.5}).train()
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from loopwise.errors import InputError
from loopwise.extras import required
from loopwise.ranks import rank

from .loader import DEFAULTS, SiftingDataLoader
from .options import validate_loss, validate_passed_on
from .scorers import Padded

with required("transformers", "transformers", "SiftingTrainerMixin"):
    from transformers import Trainer


class _FixedLengthLoader:
    """Loader that yields the same number of batches in every epoch of the Trainer.

    The Trainer plans its steps and learning rates before it starts.  So one of its epochs is that many batches, about
    one pass over the data, and the next epoch goes on where it stopped.
    """

    def __init__(self, loader: SiftingDataLoader) -> None:
        self.loader = loader
        self.done = 0
        self._length = len(loader)
        self._batches = self._passes()

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Any]:
        self.done %= self._length
        for batch in itertools.islice(self._batches, self._length - self.done):
            self.done += 1
            yield batch
        if self.done < self._length:  # a pass without a batch ends the epoch, and the next one tries again
            self._batches = self._passes()

    def _passes(self) -> Iterator[Any]:
        """Yield the batches of one pass after the other, until a pass has none."""
        empty = False
        while not empty:
            if not self.loader.running:
                self.loader.set_epoch(self.loader.epoch)
            empty = True
            for batch in self.loader:
                empty = False
                yield batch


class SiftingTrainerMixin:
    """Mixin that stands before ``Trainer`` in the bases of a class.

    Every sample is scored (``score_every=1``), and batches padded to different lengths are joined with the tokenizer's
    padding.  A checkpoint contains the loader's state, in a file of each rank.

    Args:
        sift: options of ``SiftingDataLoader``, and ``loss``, a function of (model, batch) that replaces ``sift_loss``;
            ``True``: their defaults; ``False``: train without sifting.

    Raises:
        InputError: invalid options.
    """

    def __init__(self, *args: Any, sift: bool | Mapping[str, Any] = False, **options: Any) -> None:
        self._sift_options = _validated(sift)
        super().__init__(*args, **options)
        self.sift_loader: _FixedLengthLoader | None = None

    def sift_loss(self, model: nn.Module, batch: Any) -> torch.Tensor:
        """Return the losses of a batch, shape (batch,); override it if the model's loss is another one.

        The loss is cross-entropy for classes, and squared error for one-dimensional outputs.  For tokens it is
        cross-entropy averaged over each sample's labels other than -100 (shifted by one for causal language models).
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
        if self._sift_options is None:
            return loader
        trainer: Any = self
        tokenizer = getattr(trainer, "processing_class", None)
        padding = {"labels": -100.0, "input_ids": float(getattr(tokenizer, "pad_token_id", None) or 0)}
        options: dict[str, Any] = {"loss": self.sift_loss, "score_every": 1, "concatenate": Padded(padding)}
        sifting = SiftingDataLoader(loader, trainer.model, **(options | self._sift_options))
        trainer.args.ignore_data_skip = True  # the loader's state goes on by itself
        self.sift_loader = _FixedLengthLoader(sifting)
        return self.sift_loader

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)  # type: ignore[misc]
        if self.sift_loader is not None:
            os.makedirs(output_dir, exist_ok=True)
            state = {"loader": self.sift_loader.loader.state_dict(), "done": self.sift_loader.done}
            torch.save(state, _state_file(output_dir))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        super()._load_rng_state(checkpoint)  # type: ignore[misc]
        file = None if checkpoint is None else _state_file(checkpoint)
        if self.sift_loader is not None and file is not None and os.path.exists(file):
            state = torch.load(file, weights_only=False)  # batches may be of any class
            self.sift_loader.loader.load_state_dict(state["loader"])
            self.sift_loader.done = state["done"]


def _validated(sift: Any) -> dict[str, Any] | None:
    """Return the options of the loader, or ``None`` for no sifting."""
    if not isinstance(sift, (bool, Mapping)):
        raise InputError(
            f"sift={sift!r}",
            "False, True, or a dict of options of SiftingDataLoader",
            "a share instead of an option with a name, or None for False",
            "pass for instance sift={'keep': 0.5}",
        )
    options = {} if isinstance(sift, bool) else dict(sift)
    if "loss" in options:
        validate_loss(options["loss"])
    validate_passed_on(
        {name: value for name, value in options.items() if name != "loss"}, DEFAULTS, "sift={...}"
    )
    if options.get("score_every", 1) not in (1, "auto"):
        raise InputError(
            f"score_every={options['score_every']!r} in a Hugging Face Trainer",
            "score_every=1",
            "its loader hides the samples' indices",
            "drop it, or train by a plain loop",
        )
    return None if sift is False else options


def _state_file(folder: str) -> str:
    return os.path.join(folder, f"sift_{rank()}.pt")


__all__ = ["SiftingTrainerMixin", "Trainer"]

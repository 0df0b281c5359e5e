"""Sifting in Hugging Face's ``Trainer`` by a mixin, with its options in one argument.

class SiftingTrainer(SiftingTrainerMixin, Trainer):
    pass

SiftingTrainer(model, args, train_dataset=dataset, sift={"keep": 0.5}).train()
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from loopwise.errors import InputError
from loopwise.extras import required
from loopwise.ranks import rank
from loopwise.run import can_resume

from .frameworks.epochs import EpochLoader
from .frameworks.loss_calls import RecordedOutputs, without_a_trace
from .frameworks.own_losses import OwnLosses
from .frameworks.plain import load, save
from .loader import DEFAULTS, SiftingDataLoader
from .options import validate_loss, validate_passed_on
from .scorers import Padded

with required("transformers", "transformers", "SiftingTrainerMixin"):
    from transformers import Trainer
    from transformers import trainer as trainer_module

_MODULE: Any = trainer_module
"""The module whose ``skip_first_batches`` the Trainer calls to go on in an epoch."""


class _SmoothedLabels:
    """Label smoothing of the Trainer, by torch's cross-entropy."""

    def __init__(self, smoother: Any) -> None:
        self.smoother = smoother

    def __call__(
        self, outputs: Any, labels: torch.Tensor, shift_labels: bool = False, **_: Any
    ) -> torch.Tensor:
        logits = outputs["logits"] if isinstance(outputs, dict) else outputs[0]
        if shift_labels:
            logits, labels = logits[..., :-1, :], labels[..., 1:]
        return nn.functional.cross_entropy(
            logits.flatten(0, -2),
            labels.flatten(),
            ignore_index=self.smoother.ignore_index,
            label_smoothing=self.smoother.epsilon,
        )


class SiftingTrainerMixin:
    """Mixin that stands before ``Trainer`` in the bases of a class.

    Every sample is scored (``score_every=1``) by the loss that the Trainer computes.  Batches padded to different lengths
    are joined with the tokenizer's padding.  An epoch of the Trainer is a fixed number of batches: the train loader's,
    times the share that is kept if the options give one; the next epoch goes on in the pass over the data where the last
    one stopped.  A checkpoint contains the loader's state, in a file of each rank, which is read without running code; a
    training that goes on from one goes on in the same run.

    Args:
        sift: options of ``SiftingDataLoader``, and ``loss``, a function of (model, batch) that replaces ``sift_loss``;
            ``True``: their defaults; ``False`` or ``None``: train without sifting.

    Attributes:
        sift_loader: loader of the present training, whose ``loader`` is the ``SiftingDataLoader``; ``None``: no sifting.

    Raises:
        InputError: invalid options; when training begins: a loss that is no average over samples; when a checkpoint is
            saved: batches of a class of your own.
    """

    def __init__(self, *args: Any, sift: bool | Mapping[str, Any] | None = False, **options: Any) -> None:
        own = type(self).sift_loss is SiftingTrainerMixin.sift_loss
        self._sift_options = _validated(sift, own)
        super().__init__(*args, **options)
        self.sift_loader: EpochLoader | None = None
        self._sift_trains = self._sift_resumes = self._sift_restored = False
        self._sift_checkpoint: str | None = None
        self._sift_losses = OwnLosses(self._sift_whole_loss, self._sift_recorded_loss)

    def sift_loss(self, model: nn.Module, batch: Any) -> torch.Tensor:
        """Return the losses of the samples of a batch, float32 of shape (batch,); override it for another loss.

        They are the shares of the samples in the loss of ``compute_loss``: the model's own loss, whatever its head, your
        ``compute_loss_func``, label smoothing, or your override of ``compute_loss``.  With tokens as labels a sample's
        loss is the mean over its labels other than -100.  A loss that one forward pass cannot tell by sample is computed
        for each sample alone, with a warning.

        Raises:
            InputError: the loss of a batch is no average over its samples.
        """
        return self._sift_losses(model, batch)

    def _sift_whole_loss(self, model: nn.Module, batch: Any) -> torch.Tensor:
        with without_a_trace(self):
            loss: torch.Tensor = self.compute_loss(model, dict(batch))  # type: ignore[attr-defined]
        return loss

    def _sift_recorded_loss(self, model: nn.Module, batch: Any) -> torch.Tensor:
        smoother = getattr(self, "label_smoother", None)
        if smoother is None:
            recorded: Any = RecordedOutputs(model)
            return self._sift_whole_loss(recorded, batch)
        self.label_smoother = _SmoothedLabels(smoother)
        try:
            return self._sift_whole_loss(model, batch)
        finally:
            self.label_smoother = smoother

    def get_train_dataloader(self) -> Any:
        loader = super().get_train_dataloader()  # type: ignore[misc]
        if self._sift_options is None:
            return loader
        trainer: Any = self
        tokenizer = getattr(trainer, "processing_class", None)
        padding = {"labels": -100.0, "input_ids": float(getattr(tokenizer, "pad_token_id", None) or 0)}
        options: dict[str, Any] = {"loss": self.sift_loss, "score_every": 1, "concatenate": Padded(padding)}
        options |= self._sift_options
        if self._sift_resumes and can_resume(options.get("run")):
            options["resume"] = True
        sifting = SiftingDataLoader(loader, trainer.model, **options)
        self.sift_loader = EpochLoader(sifting)
        # the Trainer counts the batches of an interrupted epoch, of which it accumulates gradients; a stream has no such epochs
        trainer.args.ignore_data_skip = self.sift_loader.length is None
        if self._sift_trains:
            self._sift_go_on_at_skipping()
        return self.sift_loader

    def _sift_go_on_at_skipping(self) -> None:
        """Let the Trainer, where it skips the first batches of a resumed epoch, have the loader go on in its state."""
        before = _MODULE.skip_first_batches

        def skip_first_batches(loader: Any, num_batches: int = 0) -> Any:
            if loader is not self.sift_loader:
                return before(loader, num_batches)
            self._sift_restore(num_batches)
            self._sift_restored = True
            return loader

        _MODULE.skip_first_batches = skip_first_batches

    def train(self, resume_from_checkpoint: Any = None, *args: Any, **options: Any) -> Any:
        self._sift_resumes = bool(resume_from_checkpoint)
        state, before = "failed", _MODULE.skip_first_batches
        self._sift_trains, self._sift_restored = True, False
        try:
            result = super().train(resume_from_checkpoint, *args, **options)  # type: ignore[misc]
            state = "finished"
        finally:
            self._sift_trains, _MODULE.skip_first_batches = False, before
            if self.sift_loader is not None:  # a pass over the data may be open
                self.sift_loader.close()
                self.sift_loader.loader.close(state)
        return result

    def training_step(self, *args: Any, **options: Any) -> torch.Tensor:
        loss: torch.Tensor = super().training_step(*args, **options)  # type: ignore[misc]
        if self.sift_loader is not None:
            self.sift_loader.loader.end_step()  # an evaluation may follow
        return loss

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)  # type: ignore[misc]
        if self.sift_loader is not None:
            os.makedirs(output_dir, exist_ok=True)
            state = {"loader": self.sift_loader.loader.state_dict()}
            save(state, _state_file(output_dir), "the state of the sifting loader")

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)  # type: ignore[misc]
        self._sift_checkpoint = checkpoint

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if self._sift_restored:  # the Trainer asks again once a plain loader would have skipped its batches
            self._sift_restored = False
            return
        self._sift_checkpoint = checkpoint
        self._sift_restore(0)

    def _sift_restore(self, done: int) -> None:
        """Restore random states and loader of the checkpoint, in an epoch of which ``done`` batches were trained on."""
        checkpoint = self._sift_checkpoint
        super()._load_rng_state(checkpoint)  # type: ignore[misc]
        if self.sift_loader is None or checkpoint is None:
            return
        file = _state_file(checkpoint)
        state = load(file)["loader"] if os.path.exists(file) else None  # it was perhaps saved without sifting
        self.sift_loader.load_state_dict(state, done)


def _validated(sift: Any, own: bool) -> dict[str, Any] | None:
    """Return the options of the loader, or ``None`` for no sifting; ``own``: samples are scored by the Trainer's loss."""
    if not isinstance(sift, (bool, Mapping, type(None))):
        raise InputError(
            f"sift={sift!r}",
            "False, True, or a dict of options of SiftingDataLoader",
            "a share instead of an option with a name, or None for False",
            "pass for instance sift={'keep': 0.5}",
        )
    options = dict(sift) if isinstance(sift, Mapping) else {}
    if "loss" in options:
        validate_loss(options["loss"])
    validate_passed_on(
        {name: value for name, value in options.items() if name != "loss"}, DEFAULTS, "sift={...}"
    )
    if own and "loss" not in options and options.get("compile"):
        if options["compile"] is True:
            raise InputError(
                "compile=True in a Hugging Face Trainer",
                "compile=False, or loss= as well",
                "the losses of samples are read inside the Trainer's loss, in eager mode",
                "drop it, or pass loss=, a function of (model, batch) that returns one loss per sample",
            )
        options["compile"] = False  # "auto": nothing could be compiled
    if options.get("score_every", 1) not in (1, "auto"):
        raise InputError(
            f"score_every={options['score_every']!r} in a Hugging Face Trainer",
            "score_every=1",
            "its loader hides the samples' indices",
            "drop it, or train by a plain loop",
        )
    return options if isinstance(sift, Mapping) or sift else None


def _state_file(folder: str) -> str:
    return os.path.join(folder, f"sift_{rank()}.pt")


__all__ = ["SiftingTrainerMixin", "Trainer"]

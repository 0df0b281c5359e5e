"""Sifting in a Lightning ``Trainer`` by one callback.

Trainer(callbacks=[SiftingCallback(keep=0.5)]).fit(module, datamodule)
"""

from __future__ import annotations

import contextlib
import copy
import math
import sys
import warnings
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn
from torch.nn.modules import loss as criteria

from loopwise import validate
from loopwise.errors import InputError
from loopwise.extras import required
from loopwise.ranks import gather, rank
from loopwise.run import can_resume
from loopwise.warnings import warn

from .frameworks.epochs import EpochLoader, same_data
from .frameworks.plain import from_plain, to_plain
from .loader import DEFAULTS, SiftingDataLoader
from .loss_history import LossHistory
from .options import validate_loss, validate_passed_on
from .policies import PrunedHistory
from .step_losses import Recorder

with required("lightning", "lightning", "SiftingCallback"):
    try:
        from lightning.pytorch import Callback, LightningModule, Trainer
    except ModuleNotFoundError:
        if find_spec("pytorch_lightning") is None:
            raise
        from pytorch_lightning import Callback, LightningModule, Trainer  # type: ignore[assignment]

CRITERIA = tuple(getattr(criteria, name) for name in criteria.__all__)


class SiftingCallback(Callback):
    """Callback that wraps the train loader of ``Trainer.fit`` in a ``SiftingDataLoader``.

    An epoch of the Trainer is a fixed number of batches: the train loader's, times the share that is kept if the options
    give one; the next epoch goes on in the pass over the data where the last one stopped.  Lightning applies its limits
    and intervals to these batches.  With ``overfit_batches`` nothing is sifted.

    Lightning's checkpoints contain the state of the loader on each rank; a fit that goes on from a checkpoint goes on in the
    same run.  If the Trainer reloads its loaders, the losses
    stay as long as the dataset is the same object, or one of the same class with the same attributes.  Otherwise they are
    forgotten, and from then on samples are scored by forward passes.

    Losses come from the training steps themselves, as ``SiftingDataLoader`` says.  If ``training_step`` changes the
    batch, or the batch is no pair, let the module's criterion record them: see ``criterion``.  Where the whole training
    sees each sample at most once, samples are scored by forward passes instead.

    Args:
        loss: per-sample criterion or ``loss(model, batch)``; ``"batch"``: the loss that ``training_step`` returns, if it
            cannot be split by sample (each sample's score is then a moving average of the losses of its batches, and the
            default policy is ``PrunedHistory()``); default: the module's own criterion (an attribute that is one of
            torch's losses), changed to return one loss per sample.
        model: function from the LightningModule to the network that ``training_step`` calls with the input; default:
            the LightningModule itself.
        options: options of ``SiftingDataLoader``.  Its ``epochs``, for ``anneal`` and a function ``keep``, are epochs of
            the Trainer.

    Attributes:
        loader: the ``SiftingDataLoader`` of the present or last fit; ``None``: no sifting.

    Raises:
        InputError: invalid options; when the fit begins: no or several criteria in the module, several train loaders, or
            a train loader that sifts already.
    """

    def __init__(
        self,
        loss: Callable[..., torch.Tensor] | str | None = None,
        *,
        model: Callable[[LightningModule], nn.Module] = lambda module: module,
        **options: Any,
    ) -> None:
        if loss not in (None, "batch"):
            validate_loss(loss)
        expected = "a function from the LightningModule to the network that training_step calls"
        validate.function("model", model, expected, "model=lambda module: module.net")
        validate_passed_on(options, DEFAULTS, "SiftingCallback(...)")
        if loss == "batch" and options.get("keep") is None and options.get("policy") is None:
            options["policy"] = PrunedHistory()
        self.loss, self.model, self.options = loss, model, options
        self.loader: SiftingDataLoader | None = None
        self._epochs: EpochLoader | None = None
        self._source: Any = None
        self._recorder: Recorder | None = None
        self._state: dict[str, Any] | None = None
        self._resumed = False
        self._quiet = contextlib.ExitStack()
        self._initial: dict[str, Any] | None = None

    def criterion(
        self, criterion: Callable[..., Any], per_sample: Callable[..., torch.Tensor] | None = None
    ) -> Callable[..., Any]:
        """Return the module's criterion in a form that records each sample's loss; its results stay the same.

        It is for the module's attribute, before the fit: ``module.criterion = sifting.criterion(module.criterion)``.

        Args:
            criterion: one of torch's criteria, or a function with a parameter ``reduction``.
            per_sample: for any other criterion; ``SiftingDataLoader.criterion`` explains both.

        Raises:
            InputError: no way to a loss for each sample; when the fit begins: options that exclude recorded losses.
        """
        self._recorder = Recorder(criterion, per_sample, LossHistory())
        return self._recorder.recording()

    # -- the train loader -----------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        self._release()
        self.loader = self._epochs = self._initial = None
        source: Any = trainer.fit_loop._data_source
        request = source.dataloader
        source.dataloader = lambda: self._wrapped(request(), trainer, pl_module)
        self._source = source

    def _wrapped(self, train_loader: Any, trainer: Trainer, module: LightningModule) -> Any:
        """Return the train loader as Lightning is to have it: sifted, with a length."""
        lightning: Any = sys.modules[type(self._source).__module__]
        overfit: float = trainer.overfit_batches  # type: ignore[attr-defined]
        combined = train_loader
        if not isinstance(train_loader, lightning.CombinedLoader):
            combined = lightning.CombinedLoader(train_loader, "max_size_cycle")
        if len(combined.flattened) != 1:
            raise InputError(
                f"{len(combined.flattened)} train loaders",
                "one train loader",
                "train_dataloader() returns several",
                "wrap the one to be sifted in SiftingDataLoader, in train_dataloader()",
            )
        if overfit:
            warn(
                "loopwise.sift: overfit_batches trains on the same few batches, and SiftingCallback leaves them as they are"
            )
            return train_loader
        fit, training = lightning.TrainerFn.FITTING, lightning.RunningStage.TRAINING
        plain = lightning._process_dataloader(trainer, fit, training, combined.flattened[0])
        combined.flattened = [self._sifted(plain, trainer, module)]
        return combined

    def _sifted(self, plain: Any, trainer: Trainer, module: LightningModule) -> EpochLoader:
        if isinstance(plain, SiftingDataLoader):
            raise InputError(
                "a train loader that is a SiftingDataLoader, and a SiftingCallback",
                "one of them",
                "both ways to sift in Lightning were combined",
                "return the plain loader from train_dataloader()",
            )
        before, options = self.loader, dict(self.options)
        recorded = self._recorder is not None or self.loss == "batch"
        same = before is not None and same_data(before.loader, plain)
        if before is not None and self._epochs is not None:
            self._epochs.close()
            before.close()
            options["resume"] = can_resume(options.get("run"))
            if not same and recorded:
                warn(
                    "loopwise.sift: the reloaded train loader has other data, so the recorded losses are forgotten"
                )
            elif not same and options.get("score_every", "auto") == "auto":
                options["score_every"] = 1
                warn(
                    "loopwise.sift: the reloaded train loader has other data, so samples are scored by forward passes"
                )
        elif trainer.ckpt_path and can_resume(options.get("run")):
            options["resume"] = True
        loader = self._loader(plain, trainer, module, options)
        loader.hold_yielded(2)  # Lightning fetches one batch ahead if there is no length
        self.loader, self._epochs = loader, EpochLoader(loader)
        if before is not None:
            kept = before.state_dict()
            own = (
                {}
                if same
                else {name: loader.state_dict()[name] for name in ("history", "score_every", "pipeline")}
            )
            loader.load_state_dict(kept | own | {"open": False, "epoch": kept["pipeline"]["epoch"] + 1})
        else:
            self._initial = copy.deepcopy(loader.state_dict())
        self._resume()
        return self._epochs

    def _loader(
        self, plain: Any, trainer: Trainer, module: LightningModule, options: dict[str, Any]
    ) -> SiftingDataLoader:
        model = self.model(module)
        if self._recorder is not None or isinstance(self.loss, str):
            loader = SiftingDataLoader(plain, model, None, **options)
            recording = [part for part in module.modules() if "recorder" in vars(part)]
            recorders = {id(vars(part)["recorder"]) for part in recording}
            if len(recorders) > 1:
                raise InputError(
                    f"{len(recorders)} criteria that record losses",
                    "one",
                    "the module has a loss for each of several tasks",
                    'pass SiftingCallback("batch"), which takes the loss that training_step returns',
                )
            if self._recorder is not None:
                loader.record_by(self._recorder)
                for part in recording:
                    self._recorder.follow(part)
            return loader
        loss = _criterion(module) if self.loss is None else self.loss
        if options.get("score_every", "auto") == "auto":
            probe = EpochLoader(
                SiftingDataLoader(plain, model, loss, **(options | {"run": None, "resume": False}))
            )
            if not _repeats(probe, trainer):
                options["score_every"] = 1
        return SiftingDataLoader(plain, model, loss, **options)

    def _resume(self) -> None:
        """Give the loader the state of a checkpoint, if there are both; it refuses that of another number of ranks."""
        if self._state is None or self._epochs is None:
            return
        states, self._state = self._state["ranks"], None
        self._resumed = True
        state = self._initial if states is None else states[rank() % len(states)]
        self._epochs.load_state_dict(from_plain(state))

    # -- hooks of the fit -----------------------------------------------------------------------

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._resumed:  # Lightning cannot know that the loader goes on in the epoch
            self._quiet.enter_context(warnings.catch_warnings())
            warnings.filterwarnings("ignore", "You're resuming from a checkpoint that ended before the epoch")
        self._resumed = False

    def on_train_batch_start(self, *_: Any) -> None:
        self._quiet.close()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any) -> None:
        if self._epochs is not None:
            loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
            if self.loss == "batch" and isinstance(loss, torch.Tensor) and self._epochs.untrained == 1:
                self._epochs.loader.record_losses(loss.detach().mean())
            self._epochs.untrained = max(0, self._epochs.untrained - 1)
            self._epochs.loader.end_step()  # validation may follow

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._release("failed")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._release()

    def _release(self, state: str = "finished") -> None:
        """End the pass, the run and the hold on Lightning's source of loaders."""
        self._quiet.close()
        if self._source is not None:
            del self._source.dataloader  # the method of its class is behind it
        self._source = None
        if self._epochs is not None and self.loader is not None:
            self._epochs.close()
            self.loader.close(state)

    # -- state ----------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return the states of all ranks; every rank has to call this function, as for saving a checkpoint."""
        if self.loader is None or self._epochs is None:
            return {"ranks": None}
        state = copy.deepcopy(self.loader.state_dict(self._epochs.untrained))
        return {"ranks": gather(to_plain(state, "the state of the sifting loader"))}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._state = state_dict or None
        self._resume()


def _repeats(epochs: EpochLoader, trainer: Trainer) -> bool:
    """Return whether the training makes more than one pass over the data."""
    length, limit = epochs.length, trainer.limit_train_batches
    if length is None:
        return True
    length = min(length, limit) if isinstance(limit, int) else int(length * limit)
    total = math.inf if trainer.max_epochs in (None, -1) else length * trainer.max_epochs
    if trainer.max_steps != -1:
        total = min(total, trainer.max_steps * trainer.accumulate_grad_batches)
    return total > len(epochs.loader.loader)


def _criterion(module: nn.Module) -> nn.Module:
    """Return a copy of the module's own criterion that returns one loss per sample."""
    losses = {name: part for name, part in module.named_modules() if isinstance(part, CRITERIA)}
    if len(losses) != 1:
        raise InputError(
            f"{len(losses)} criteria in {type(module).__name__}: {', '.join(losses) or 'none'}",
            "one attribute that is one of torch's losses",
            "the loss is computed by a function in training_step, or there are several",
            "pass SiftingCallback(loss=nn.CrossEntropyLoss(reduction='none')) or a function",
        )
    criterion: nn.Module = copy.deepcopy(next(iter(losses.values())))
    criterion.reduction = "none"  # type: ignore[assignment]
    return criterion

"""Compiled ``training_step`` in a Lightning ``Trainer``, by one callback.

Trainer(callbacks=[CompilingCallback(autotune="default")]).fit(module, datamodule)
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from loopwise import sample_losses
from loopwise.errors import InputError
from loopwise.extras import required
from loopwise.preserve import inside, restored
from loopwise.run import can_resume
from loopwise.torch_internals import is_compiled

from .explain import Explanation
from .losses import scalar_loss
from .step import TrainStep
from .torch_internals import is_compiled_function
from .trainer_options import validate_passed_on

with required("lightning", "lightning", "CompilingCallback"):
    try:
        import lightning.pytorch as pl
    except ModuleNotFoundError:
        import pytorch_lightning as pl  # type: ignore[no-redef]  # its older name


class CompilingCallback(pl.Callback):
    """Callback that lets a ``TrainStep`` compute ``training_step`` during ``Trainer.fit``.

    At the first batch the step chooses a plan, compares it with the eager step and measures it.  All that
    ``training_step`` calls is compiled.  Its calls of ``self.log`` and ``self.log_dict`` reach Lightning once a batch,
    after the computation.  Backward, accumulation, clipping and the update stay Lightning's, validation and test run
    as without the callback, and the module holds nothing of it between two steps: copies, checkpoints and pickles are
    unchanged.  With a ``SiftingCallback`` the step also returns what the network returns, from which the losses of the
    samples follow, and the first batch of a fit is trained on eagerly.

    Args:
        options: options of ``TrainStep``: ``precision``, ``autotune``, ``memory``, ``plan``, ``verify``, ``run``, ``resume``.

    Attributes:
        step: the ``TrainStep`` of the latest fit; ``None`` before.

    Raises:
        InputError: an unknown option or a wrong value; when training begins: manual optimization, a module that is
            compiled already, ``training_step(dataloader_iter)``, or a strategy that shards the module.
    """

    def __init__(self, **options: Any) -> None:
        options = options | ({"autotune": "off"} if options.get("autotune") is False else {})  # YAML's off
        shown = f"CompilingCallback({', '.join(f'{name}={value!r}' for name, value in options.items())})"
        validate_passed_on(options, shown, "CompilingCallback(autotune='default')")
        self.options = options
        self.step: TrainStep | None = None
        self._training_step: _CompiledTrainingStep | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        _validate(trainer, pl_module)
        current, run = self._training_step, self.options.get("run")
        if current is None or not current.fits(trainer, pl_module) or run is not None:
            goes_on = self.step is not None or trainer.ckpt_path is not None
            again = {"resume": True} if goes_on and can_resume(run) else {}
            current = self._training_step = _CompiledTrainingStep(trainer, pl_module, self.options | again)
            self.step = current.step
        current.install(trainer)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        # a search inside of the forward pass of Lightning's wrapper would confuse the wrapper
        if self._training_step is not None and trainer.strategy.model is not pl_module:
            self._training_step.prepare(batch, batch_idx)

    def on_train_end(self, *_: Any) -> None:
        self._end()

    def on_exception(self, *_: Any) -> None:
        self._end()

    def _end(self) -> None:
        if self._training_step is not None:
            self._training_step.uninstall()
        if self.step is not None:
            self.step.close()

    def explain(self) -> Explanation | None:
        """Return the explanation of the plan; ``None`` before the first fit."""
        return None if self.step is None else self.step.explain()


class _Step(TrainStep):
    """Step whose loss for a whole batch tells nothing of its samples."""

    def _give(self, batch: Any, losses: torch.Tensor) -> None:
        if losses.ndim:
            super()._give(batch, losses)


class _CompiledTrainingStep:
    """``training_step`` of a module, computed by a ``TrainStep``.

    The module's attributes ``training_step``, ``log`` and ``log_dict`` are replaced only while Lightning calls the
    strategy's ``training_step``.

    Args:
        trainer: the trainer.
        module: its module.
        options: options of ``TrainStep``.
    """

    def __init__(self, trainer: pl.Trainer, module: pl.LightningModule, options: dict[str, Any]) -> None:
        self._module, self._trainer = module, trainer
        # a plain dict and list: the step restores them after each trial, as all state that the loss reaches
        self._record: dict[str, Any] = {}
        # apart from the record: the loss changes that, and Dynamo would compile anew when the index of the batch differs
        self._rest: dict[str, tuple[Any, ...]] = {}
        self._clear()
        self._autocast = _autocast(trainer)
        self.step = _Step(
            module, _loss(_function(module), self._rest, self._record, self._autocast), **options
        )
        self._replacements = {"training_step": self._run, **_collectors(self._record)}
        self._installed: Any = None
        self._prepared = False
        self._networks: dict[nn.Module, Callable[..., Any]] = {}
        """Parts of the module whose outputs a sifting loader needs -> their forward passes, which record them."""
        self._asked = self._looked = False
        """In this fit, the networks are known; a batch was trained on eagerly for them."""

    def fits(self, trainer: pl.Trainer, module: pl.LightningModule) -> bool:
        """Return whether this object can serve another fit."""
        return module is self._module and _autocast(trainer) == self._autocast

    def install(self, trainer: pl.Trainer) -> None:
        """Let the trainer's strategy call the compiled step."""
        self.uninstall()
        self._trainer, strategy = trainer, trainer.strategy
        self._asked = self._looked = False
        for part in self._module.modules():
            sample_losses.announce(part, self.step)
        self._loggers: list[Any] = [_Logger(logger) for logger in trainer.loggers]
        original = strategy.training_step
        if strategy.model is not self._module:  # as Lightning leaves it after the first step under a wrapper
            self._module.forward = self._module.forward  # type: ignore[method-assign]

        def training_step(*args: Any, **kwargs: Any) -> Any:
            self._clear()
            with self._in_place():
                output = original(*args, **kwargs)
            for name, values, settings in self._record["logged"]:
                getattr(self._module, name)(*values, **settings)
            self._clear()
            return output

        vars(strategy)["training_step"] = training_step
        self._installed = strategy

    def uninstall(self) -> None:
        """Let the strategy call the module's own step again; a second call does nothing."""
        if self._installed is not None:
            vars(self._installed).pop("training_step", None)
            for part in self._module.modules():  # another fit may be without the callback
                sample_losses.withdraw(part, self.step)
        self._installed = None

    def prepare(self, batch: Any, batch_idx: int) -> None:
        """Choose the plan outside of ``training_step``, at the first batch."""
        if self._prepared:
            return
        takes_index = pl.utilities.signature_utils.is_param_in_hook_signature(
            _function(self._module), "batch_idx", min_args=2
        )
        self._rest["arguments"] = (batch_idx,) if takes_index else ()
        with self._in_place(), self._trainer.precision_plugin.train_step_context(), self._context():
            self.step.prepare(batch)
        self._prepared = True

    def _run(self, batch: Any, *rest: Any) -> Any:
        """Return the output of ``training_step``, computed by the plan."""
        self._rest["arguments"] = rest
        with self._context():
            loss = self._look(batch) if self._networks and not self._looked else self.step.forward(batch)
        self._prepared = True
        for network, args, kwargs, output in self._record["passes"]:
            sample_losses.give_output(network, args, kwargs, output)
        if self._record["skipped"]:
            return None
        extra = self._record["extra"]
        return loss if extra is None else {"loss": loss, **extra}

    def _look(self, batch: Any) -> torch.Tensor:
        """Return the loss of the eager step, which shows the gradient that its backward pass gives the networks."""
        self._looked = True
        self.step.prepare(batch)
        with contextlib.ExitStack() as stack:
            for network in self._networks:
                stack.enter_context(
                    _replaced(network, {"forward": _followed(network, sample_losses.give_output)})
                )
            loss = scalar_loss(self.step.spec.eager(batch))
        self._record["passes"] = []  # they were shown
        return loss

    @contextlib.contextmanager
    def _in_place(self) -> Iterator[None]:
        """Put the compiled step into the module and silent loggers into the trainer; restore both on leaving."""
        if not self._asked:  # a sifting loader subscribed when it yielded the batch
            self._asked = True
            for part in self._module.modules():
                if sample_losses.receives(part) and part not in self._networks:
                    self._networks[part] = _followed(part, _recorder(self._record))
        with contextlib.ExitStack() as stack:
            stack.enter_context(_replaced(self._module, self._replacements))
            for network, forward in self._networks.items():
                stack.enter_context(_replaced(network, {"forward": forward}))
            stack.enter_context(restored("loggers", [self._trainer]))
            self._trainer.loggers = self._loggers
            yield

    def _context(self) -> contextlib.AbstractContextManager[Any]:
        """Leave autocast to the loss, since backward passes of trials must be outside of it, as Lightning's are."""
        if self._autocast is None:
            return contextlib.nullcontext()
        return torch.autocast(self._autocast[0], enabled=False)

    def _clear(self) -> None:
        self._rest["arguments"] = ()
        self._record.update(logged=[], passes=[], extra=None, skipped=False)


def _loss(
    function: Callable[..., Any],
    rest: dict[str, tuple[Any, ...]],
    record: dict[str, Any],
    autocast: tuple[str, torch.dtype] | None,
) -> Callable[[nn.Module, Any], torch.Tensor]:
    """Return a loss of (model, batch) that calls ``training_step`` and records what it returns beside the loss.

    Args:
        function: ``training_step`` as a function.
        rest: its ``arguments`` after the batch.
        record: what it leaves beside the loss.
        autocast: device type and dtype, or ``None``.
    """

    def loss(model: nn.Module, batch: Any) -> torch.Tensor:
        record["logged"], record["passes"], record["extra"], record["skipped"] = [], [], None, False
        if autocast is None:
            output = function(model, batch, *rest["arguments"])
        else:
            with torch.autocast(autocast[0], dtype=autocast[1], cache_enabled=False):
                output = function(model, batch, *rest["arguments"])
        if isinstance(output, torch.Tensor):
            return output
        if output is None:  # the batch is left out
            record["skipped"] = True
            return next(p for p in model.parameters() if p.requires_grad).sum() * 0.0
        record["extra"] = {name: _detached(value) for name, value in output.items() if name != "loss"}
        return output["loss"]  # type: ignore[no-any-return]

    return loss


def _collectors(record: dict[str, Any]) -> dict[str, Callable[..., None]]:
    """Return functions that collect calls of ``log`` and ``log_dict`` of a module."""

    def log(*values: Any, **settings: Any) -> None:
        record["logged"].append(("log", _detached(values), _detached(settings)))

    def log_dict(*values: Any, **settings: Any) -> None:
        record["logged"].append(("log_dict", _detached(values), _detached(settings)))

    return {"log": log, "log_dict": log_dict}


def _recorder(record: dict[str, Any]) -> Callable[..., None]:
    """Return a function that records a forward pass, apart from the graph of autograd."""

    def take(network: nn.Module, *of_pass: Any) -> None:
        record["passes"].append((network, *_detached(of_pass)))

    return take


def _followed(network: nn.Module, take: Callable[..., None]) -> Callable[..., Any]:
    """Return the forward pass of a network that passes the network, its arguments and its output to ``take``."""
    original = network.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        output = original(*args, **kwargs)
        take(network, args, kwargs, output)
        return output

    return forward


def _detached(value: Any) -> Any:
    """Return a value with its tensors, also those in dicts, lists and tuples, apart from the graph of autograd."""
    if isinstance(value, torch.Tensor):
        return value.detach() if value.requires_grad else value
    if type(value) is dict:
        return {name: _detached(entry) for name, entry in value.items()}
    if type(value) in (list, tuple):
        return type(value)([_detached(entry) for entry in value])
    return value


class _Logger:
    """Logger of the trainer that writes nothing in trial passes, for a ``training_step`` that uses ``self.logger``."""

    def __init__(self, logger: Any) -> None:
        self._logger = logger

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return type(self._logger)

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._logger, name)
        if not inside():
            return value
        if name == "experiment":
            return pl.loggers.logger.DummyLogger().experiment
        return (lambda *_, **__: None) if callable(value) else value


def _function(module: pl.LightningModule) -> Callable[..., Any]:
    """Return ``training_step`` as a function of the module and its arguments."""
    own = vars(module).get("training_step")
    if own is None:
        return type(module).training_step
    return lambda model, *arguments: own(*arguments)


def _autocast(trainer: pl.Trainer) -> tuple[str, torch.dtype] | None:
    """Return device type and dtype of the trainer's mixed precision, or ``None``."""
    plugin = trainer.precision_plugin
    if not isinstance(plugin, pl.plugins.MixedPrecision):
        return None
    return plugin.device, torch.bfloat16 if plugin.precision == "bf16-mixed" else torch.float16


@contextlib.contextmanager
def _replaced(owner: Any, entries: dict[str, Any]) -> Iterator[None]:
    """Replace attributes of an object; restore them on leaving."""
    own = vars(owner)
    before = {name: own[name] for name in entries if name in own}
    own.update(entries)
    try:
        yield
    finally:
        for name in entries:
            own.pop(name, None)
        own.update(before)


def _validate(trainer: pl.Trainer, module: pl.LightningModule) -> None:
    """Refuse a training that cannot be compiled."""
    if not module.automatic_optimization:
        raise InputError(
            f"CompilingCallback with manual optimization in {type(module).__name__}",
            "automatic optimization: a training_step that returns the loss",
            "a manual training_step runs backward passes and updates itself, which cannot be compiled as one loss",
            "drop the callback or optimize(), and call TrainStep(network, loss, self.optimizers()) inside of training_step",
        )
    if is_compiled(module) or is_compiled_function(vars(module).get("training_step")):
        raise InputError(
            f"{type(module).__name__}, which is compiled already, with CompilingCallback",
            "a module as it was built",
            "torch.compile, compile() or optimize() was called on it or on a part of it",
            "drop one of both",
        )
    if pl.utilities.signature_utils.is_param_in_hook_signature(
        _function(module), "dataloader_iter", explicit=True
    ):
        raise InputError(
            "training_step(dataloader_iter) with CompilingCallback",
            "training_step(batch) or training_step(batch, batch_idx)",
            "a trial of the step would take batches from the iterator",
            "take the batch as argument",
        )
    if not isinstance(trainer.strategy, (pl.strategies.SingleDeviceStrategy, pl.strategies.DDPStrategy)):
        raise InputError(
            f"CompilingCallback with {type(trainer.strategy).__name__}",
            "one device, or strategy='ddp'",
            "the step compares whole gradients, and other strategies split them",
            "compile the module's blocks by optimize() instead",
        )


__all__ = ["CompilingCallback"]

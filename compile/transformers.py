"""Compilation in Hugging Face's ``Trainer`` and its subclasses, as those of TRL: a mixin, with its options in one argument.

class CompilingTrainer(CompilingTrainerMixin, Trainer):
    pass

CompilingTrainer(model, args, train_dataset=dataset, compile={"autotune": "default"}).train()
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from loopwise.errors import InputError
from loopwise.extras import required
from loopwise.run import can_resume
from loopwise.wrappers import unwrap

from .explain import Explanation
from .outputs import CompiledOutputs
from .outputs import validate_options as validate_without_loss
from .step import TrainStep
from .trainer_options import validate_passed_on

with required("transformers", "transformers", "CompilingTrainerMixin"):
    from transformers import Trainer

OF_OUTPUTS = ("label_smoother", "compute_loss_func")
"""Attributes of a Trainer that compute the loss from the model's outputs."""


class CompilingTrainerMixin:
    """Mixin to be put before ``Trainer`` in a class's bases; it computes the training loss by a ``TrainStep``.

    At the first batch the step chooses a plan, compares it with the eager step and measures it.  Backward,
    accumulation, clipping and the update stay the Trainer's.  Evaluation is as without the mixin.

    A Trainer that computes its loss from the model's outputs (its own ``compute_loss``, as TRL's trainers have,
    ``compute_loss_func``, label smoothing) gets the outputs that it asks for: the model is compiled without its loss,
    compared at the first batch, and used where it was faster in the first training steps.  If ``compile_loss`` is
    overridden, the loss that it returns is compiled instead.

    Args:
        compile: ``True``, or options of ``TrainStep`` as a dict (``precision``, ``autotune``, ``memory``,
            ``max_seconds``, ``plan``, ``verify``, ``run``, ``resume``); without the loss ``autotune``, ``plan``, ``run``
            and ``resume``.  ``False`` trains without compiling.

    Attributes:
        compile_step: the ``TrainStep``, or ``None`` before the first batch and without the loss.

    Raises:
        InputError: an unknown option or a wrong value; ``torch_compile`` beside ``compile``; an overridden
            ``compile_loss`` beside label smoothing or ``compute_loss_func``.
    """

    def __init__(self, *args: Any, compile: bool | dict[str, Any] = False, **options: Any) -> None:
        validate_options(compile)
        super().__init__(*args, **options)
        self.compile = compile
        self.compile_step: TrainStep | None = None
        self._outputs: CompiledOutputs | None = None
        self._resumes = False
        trainer: Any = self
        requested = ["torch_compile"] * bool(trainer.args.torch_compile)
        own = [name for name in OF_OUTPUTS if getattr(trainer, name, None) is not None]
        if self._overrides_compile_loss():
            requested += own
            own = []
        else:
            own += _own_compute_loss(type(self))
        self._without_loss = bool(own)
        if own and isinstance(compile, dict):
            validate_without_loss(compile, f"the Trainer computes its loss from outputs ({', '.join(own)})")
        if compile is not False and requested:
            raise InputError(
                f"compile={compile!r} with {', '.join(requested)}",
                "a loss that the model computes itself, compiled once",
                "the Trainer would compute the loss from outputs, or compile the model a second time",
                "drop one of them, or train by a plain loop with TrainStep",
            )

    def compile_loss(self, model: nn.Module, batch: dict[str, Any]) -> torch.Tensor:
        """Return the loss of a batch, shape () or (batch,); override it if the loss is not the model's own."""
        return model(**batch)["loss"]  # type: ignore[no-any-return]

    def compute_loss(self, model: nn.Module, inputs: Any, return_outputs: bool = False, **rest: Any) -> Any:
        """Return the loss, shape (), of a training batch by the plan, and any other loss from the Trainer itself."""
        trainer: Any = super()
        if self.compile is False or return_outputs or not model.training:
            return trainer.compute_loss(model, inputs, return_outputs=return_outputs, **rest)
        if self._without_loss:
            with self._compiled_outputs().forward_passes():
                return trainer.compute_loss(model, inputs, **rest)
        if self.compile_step is None or self.compile_step.spec.model is not model:
            self.compile_step = TrainStep(model, self._loss_to_compile(), **self._step_options())
        step = self.compile_step

        def planned(**batch: Any) -> dict[str, torch.Tensor]:
            device = step.spec.device
            numbers = {k: torch.as_tensor(v, device=device) for k, v in batch.items() if isinstance(v, int)}
            return _LossAlone(loss=step.forward(batch | numbers))

        return trainer.compute_loss(planned, inputs, **rest)  # it scales the loss as it always does

    def train(self, resume_from_checkpoint: Any = None, *args: Any, **options: Any) -> Any:
        """Train as the Trainer does; a run that the mixin writes ends with it, and the next training begins another one."""
        trainer: Any = super()
        self._resumes = bool(resume_from_checkpoint)
        writes = isinstance(self.compile, dict) and self.compile.get("run") is not None
        if writes:  # the run of an earlier training has ended
            self.compile_step = self._outputs = None
        try:
            return trainer.train(resume_from_checkpoint, *args, **options)
        finally:
            for part in (self.compile_step, self._outputs):
                if writes and part is not None:
                    part.close()

    def training_step(self, model: nn.Module, inputs: Any, *rest: Any, **options: Any) -> torch.Tensor:
        """Train on a batch as the Trainer does, timed as long as the plan of a model without its loss is not chosen."""
        timed: Any = contextlib.nullcontext()
        if self.compile is not False and self._without_loss:
            timed = self._compiled_outputs().training_step(inputs)
        trainer: Any = super()
        with timed:
            return trainer.training_step(model, inputs, *rest, **options)  # type: ignore[no-any-return]

    def _compiled_outputs(self) -> CompiledOutputs:
        """Return the compiled forward passes of the Trainer's model, made at the first batch."""
        model: nn.Module = unwrap(self.model)  # type: ignore[attr-defined]
        if self._outputs is None or self._outputs.model is not model:
            self._outputs = CompiledOutputs(model, **self._step_options())
        return self._outputs

    def _step_options(self) -> dict[str, Any]:
        """Return the options of the step; a training that goes on from a checkpoint goes on in the same run."""
        options = self.compile if isinstance(self.compile, dict) else {}
        return options | ({"resume": True} if self._resumes and can_resume(options.get("run")) else {})

    def _overrides_compile_loss(self) -> bool:
        return type(self).compile_loss is not CompilingTrainerMixin.compile_loss

    def _loss_to_compile(self) -> Callable[..., torch.Tensor]:
        """Return ``compile_loss``, as a function apart from the Trainer if the user has not replaced it.

        The step keeps and restores all state that its loss can reach; the Trainer's would include the datasets.
        """
        if self._overrides_compile_loss():
            return self.compile_loss
        return lambda model, batch: model(**batch)["loss"]

    def explain(self) -> Explanation | None:
        """Return the explanation of the plan; ``None`` before the first batch."""
        if self._outputs is not None:
            return self._outputs.explain()
        return None if self.compile_step is None else self.compile_step.explain()


def _own_compute_loss(kind: type) -> list[str]:
    """Return "compute_loss of <class>" if a subclass of ``Trainer`` has one of its own; Loopwise's mixins pass it on."""
    for base in kind.__mro__:
        if "compute_loss" in vars(base) and not base.__module__.startswith("loopwise."):
            return [] if base is Trainer else [f"compute_loss of {base.__name__}"]
    return []


class _MissingOutput(InputError, AttributeError, KeyError):
    """Error for an output that a compiled loss does not return, of which ``hasattr`` says that it is missing."""


class _LossAlone(dict[str, torch.Tensor]):
    """Outputs of the model in a compiled step: the loss alone, as an item or as an attribute."""

    def __missing__(self, name: Any) -> Any:
        if name == 0:  # outputs[0], as of the tuple that a model returns
            return self["loss"]
        raise _MissingOutput(
            f"outputs[{name!r}] in compute_loss",
            "outputs.loss, the one that the compiled loss returns",
            "the Trainer computes its loss or its metrics from other outputs of the model beside compile_loss",
            "leave compile_loss as it is: the model is then compiled without its loss, and gives all its outputs",
        )

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self[name]


def validate_options(compile: Any) -> None:
    """Refuse a wrong ``compile`` argument, in the words of the Trainer's argument."""
    if not isinstance(compile, bool):
        validate_passed_on(compile, f"compile={compile!r}", "compile={'autotune': 'default'}")


__all__ = ["CompilingTrainerMixin", "Trainer"]

"""Compiled loss in Hugging Face's ``Trainer``: a mixin, with its options in one argument.

class CompilingTrainer(CompilingTrainerMixin, Trainer):
    pass

CompilingTrainer(model, args, train_dataset=dataset, compile={"autotune": "default"}).train()
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from loopwise.errors import InputError
from loopwise.extras import required

from .explain import Explanation
from .step import TrainStep
from .trainer_options import validate_passed_on

with required("transformers", "transformers", "CompilingTrainerMixin"):
    from transformers import Trainer

INCOMPATIBLE = ("label_smoother", "compute_loss_func")
"""Attributes of a Trainer that compute the loss from the model's outputs, which a compiled loss does not give."""


class CompilingTrainerMixin:
    """Mixin to be put before ``Trainer`` in a class's bases; it computes the training loss by a ``TrainStep``.

    At the first batch the step chooses a plan, compares it with the eager step and measures it.  Backward,
    accumulation, clipping and the update stay the Trainer's.  Evaluation is as without the mixin.

    Args:
        compile: ``True``, or options of ``TrainStep`` as a dict (``precision``, ``autotune``, ``memory``, ``plan``,
            ``verify``, ``run``, ``resume``); ``False`` trains without compiling.

    Raises:
        InputError: an unknown option or a wrong value; label smoothing, ``compute_loss_func`` or ``torch_compile``
            beside ``compile``.
    """

    def __init__(self, *args: Any, compile: bool | dict[str, Any] = False, **options: Any) -> None:
        validate_options(compile)
        super().__init__(*args, **options)
        self.compile = compile
        self.compile_step: TrainStep | None = None
        trainer: Any = self
        requested = [name for name in INCOMPATIBLE if getattr(trainer, name, None) is not None]
        requested += ["torch_compile"] * bool(trainer.args.torch_compile)
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
        if self.compile_step is None or self.compile_step.spec.model is not model:
            step_options = self.compile if isinstance(self.compile, dict) else {}
            self.compile_step = TrainStep(model, self._loss_to_compile(), **step_options)
        step = self.compile_step

        def planned(**batch: Any) -> dict[str, torch.Tensor]:
            device = step.spec.device
            numbers = {k: torch.as_tensor(v, device=device) for k, v in batch.items() if isinstance(v, int)}
            return _LossAlone(loss=step.forward(batch | numbers))

        return trainer.compute_loss(planned, inputs, **rest)  # it scales the loss as it always does

    def _loss_to_compile(self) -> Callable[..., torch.Tensor]:
        """Return ``compile_loss``, as a function apart from the Trainer if the user has not replaced it.

        The step keeps and restores all state that its loss can reach; the Trainer's would include the datasets.
        """
        if type(self).compile_loss is not CompilingTrainerMixin.compile_loss:
            return self.compile_loss
        return lambda model, batch: model(**batch)["loss"]

    def explain(self) -> Explanation | None:
        """Return the explanation of the plan; ``None`` before the first batch."""
        return None if self.compile_step is None else self.compile_step.explain()


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
            "the Trainer computes its loss or its metrics from other outputs of the model, as TRL's trainers do",
            "train with compile=False, and compile the model's blocks: optimize(block) for each; "
            "or override compile_loss with that loss, and return it from compute_loss",
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

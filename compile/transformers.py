"""The measured and verified form of the loss in Hugging Face's ``Trainer``: a mixin.

class CompilingTrainer(CompilingTrainerMixin, Trainer):
    pass

CompilingTrainer(model, args, train_dataset=dataset, compile={"autotune": "default"}).train()
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from loopwise.errors import InputError

from .explain import Explanation
from .step import TrainStep

try:
    from transformers import Trainer
except ImportError:
    from loopwise.errors import MissingExtra

    raise MissingExtra.of("transformers", "transformers", "CompilingTrainerMixin") from None

WITHOUT = ("label_smoother", "compute_loss_func")
"""What of a Trainer computes the loss from the model's outputs, which are not there in the compiled form."""


class CompilingTrainerMixin:
    """Put before ``Trainer`` in a class's bases.

    The loss of a training batch is computed by a ``TrainStep``: at the first batch a plan is found,
    compared with the eager step and measured; backward, accumulation, clipping and the update stay the
    Trainer's.  Evaluation is as without.

    Args:
        compile: options of ``TrainStep`` (``precision``, ``autotune``, ``memory``, ``plan``, ``verify``); ``None`` trains
            without compiling.

    Raises:
        InputError: label smoothing, ``compute_loss_func`` or ``torch_compile`` beside it.
    """

    def __init__(self, *args: Any, compile: dict[str, Any] | None = None, **options: Any) -> None:
        super().__init__(*args, **options)
        self.compile = compile
        self.compile_step: TrainStep | None = None
        trainer: Any = self
        asked = [name for name in WITHOUT if getattr(trainer, name, None) is not None]
        asked += ["torch_compile"] * bool(trainer.args.torch_compile)
        if compile is not None and asked:
            raise InputError(
                f"compile={compile!r} with {', '.join(asked)}",
                "a loss that the model computes itself, compiled once",
                "the Trainer would compute the loss from outputs, or compile the model a second time",
                "drop one of them, or train by a plain loop with TrainStep",
            )

    def compile_loss(self, model: nn.Module, batch: dict[str, Any]) -> torch.Tensor:
        """The loss of a batch; override it where the model's own is another one."""
        loss: torch.Tensor = model(**batch)["loss"]
        return loss

    def compute_loss(
        self, model: nn.Module, inputs: Any, return_outputs: bool = False, **options: Any
    ) -> Any:
        trainer: Any = super()
        if self.compile is None or return_outputs or not model.training:
            return trainer.compute_loss(model, inputs, return_outputs=return_outputs, **options)
        if self.compile_step is None or self.compile_step.model is not model:
            self.compile_step = TrainStep(model, self.compile_loss, **self.compile)
        step = self.compile_step

        def planned(**batch: Any) -> dict[str, torch.Tensor]:
            device = step.device
            numbers = {k: torch.as_tensor(v, device=device) for k, v in batch.items() if isinstance(v, int)}
            return {"loss": step.forward(batch | numbers)}

        return trainer.compute_loss(planned, inputs, **options)  # it scales the loss as it always does

    def explain(self) -> Explanation | None:
        """What the plan does and what each piece gained; ``None`` before the first batch."""
        return None if self.compile_step is None else self.compile_step.explain()


__all__ = ["CompilingTrainerMixin", "Trainer"]

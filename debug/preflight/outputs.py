"""Checks of a model's outputs in evaluation mode: for the same input, for other input, and for other samples."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import nn

from loopwise import batch as batches
from loopwise.errors import InputError

from ..hooks.forward import on_return
from ..model import names
from ..rules.history import some
from .copies import SEED, RecordedCall
from .report import Result, faulty, left_out

PLACES = 32
"""Smallest difference that counts, in last places of the largest element: kernels may sum in another order."""
Outputs = list[torch.Tensor]


class Evaluation:
    """Calls of a model in evaluation mode.

    Args:
        model: a copy of the model; the checks leave it in evaluation mode.
        call: the call that is repeated.
        samples: number of samples by the targets; ``None`` if that is unknown.
    """

    def __init__(self, model: nn.Module, call: RecordedCall, samples: int | None) -> None:
        self.model, self.call, self._targets = model.eval(), call, samples
        self.outputs = self._outputs(call)

    def _outputs(self, call: RecordedCall, seed: int = SEED) -> Outputs:
        """Return the floating-point tensors that the model returns."""
        torch.manual_seed(seed)
        args, kwargs = batches.map_tensors(torch.clone, (call.args, dict(call.kwargs)))
        with torch.no_grad():
            output = self.model(*args, **kwargs)
        leaves = batches.leaves(output)
        return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor) and leaf.is_floating_point()]

    @property
    def unusable(self) -> str:
        """Reason why the outputs cannot be compared; empty if they can be compared."""
        if not self.outputs:
            return "the model returns no floating-point tensors"
        if not all(bool(output.isfinite().all()) for output in self.outputs):
            return "outputs are not finite in evaluation mode"
        return ""

    # -- the same input -------------------------------------------------------------------------

    def repeats(self) -> Result:
        """Check that the same input gives the same output."""
        name = "evaluation"
        if not _differ(self.outputs, self._outputs(self.call, SEED + 1)):
            return Result(name, "the same input gives the same output")
        in_training = tuple(names.plain(path) for path, m in self.model.named_modules() if m.training)
        places = in_training or self._first_random()
        cause = "which stays in training mode" if in_training else "which draws random numbers"
        what = (
            f"in evaluation mode the same input gives different outputs, because of {some(places)}, {cause}"
        )
        return faulty(name, "output_not_repeatable", what, places)

    def _first_random(self) -> tuple[str, ...]:
        """Return the innermost module whose output is the first to differ between two seeds."""
        runs: list[list[tuple[str, float]]] = []
        for seed in (SEED, SEED + 1):
            sums: list[tuple[str, float]] = []
            hooks = [
                on_return(module, functools.partial(_add_sum, sums, names.plain(path) or "the model"))
                for path, module in self.model.named_modules()
            ]
            try:
                self._outputs(self.call, seed)
            finally:
                for hook in hooks:
                    hook.remove()
            runs.append(sums)
        first, second = runs
        return next(
            ((before[0],) for before, after in zip(first, second, strict=False) if before != after),
            ("the model",),
        )

    # -- other input ----------------------------------------------------------------------------

    def depends(self) -> Result:
        """Check that the output depends on the input."""
        name, error_text, tried = "dependence", "", []
        for key, value in self.call.fields.items():
            other = batches.map_tensors(_drawn, value)
            if not _differ(_tensors(value), _tensors(other)):
                continue
            try:
                outputs = self._outputs(self.call.changed({key: other}))
            except Exception as error:
                error_text = repr(error)
                continue
            if _differ(self.outputs, outputs):
                return Result(name, f"other values of input {key} change the output")
            tried.append(key)
        if error_text or not tried:
            return left_out(name, error_text or "the inputs are constant, or contain no tensors")
        what = f"the output stays the same for any values of input {some(tried)}"
        inputs = tuple(f"input {key}" for key in tried)
        return faulty(name, "output_ignores_input", what, inputs)

    # -- other samples --------------------------------------------------------------------------

    def apart(self) -> Result:
        """Check that the output of a sample does not depend on the other samples of its batch."""
        name = "samples"
        size = self._size()
        if isinstance(size, str):
            return left_out(name, size)
        at = self._unlike(size)
        if at is None:
            return left_out(name, "all samples of the batch are equal")
        changed = {
            key: batches.map_tensors(lambda t: _with_copied_sample(t, at, size), value)
            for key, value in self.call.fields.items()
        }
        outputs = self._outputs(self.call.changed(changed))
        others = torch.arange(size) != at
        pairs = [
            (before[others], after[others])
            for before, after in zip(self.outputs, outputs, strict=True)
            if before.shape[:1] == after.shape[:1] == (size,) and before.shape != (size, size)
        ]
        if not pairs:
            return left_out(name, f"no output has the {size} samples of the batch in its first dimension")
        if not any(_differ([before], [after]) for before, after in pairs):
            return Result(name, f"replacing sample {at} changes no other sample's output")
        what = f"replacing sample {at} of the batch changes the outputs of other samples in evaluation mode"
        return faulty(name, "samples_mixed", what)

    def _size(self) -> int | str:
        """Return the number of samples in the batch, or why that is unknown."""
        try:
            size = batches.length(list(self.call.fields.values()))
        except InputError:
            return "the inputs have no first dimension in common"
        if self._targets is not None and self._targets != size:
            return f"{size} entries in the inputs' first dimension, but {self._targets} targets"
        return size if size > 1 else "the batch has one sample only"

    def _unlike(self, size: int) -> int | None:
        """Return the place of the first sample that differs from the one before it."""
        rows = [t for t in _tensors(list(self.call.fields.values())) if t.shape[:1] == (size,)]
        return next((i for i in range(1, size) if any(not torch.equal(t[i], t[i - 1]) for t in rows)), None)


def _tensors(value: Any) -> list[torch.Tensor]:
    return [leaf for leaf in batches.leaves(value) if isinstance(leaf, torch.Tensor)]


def _drawn(tensor: torch.Tensor) -> torch.Tensor:
    """Return as many of the tensor's own values, drawn at random, so that tokens stay valid tokens."""
    if not tensor.numel():
        return tensor
    draws = torch.Generator().manual_seed(SEED)
    places = torch.randint(tensor.numel(), (tensor.numel(),), generator=draws)
    return tensor.reshape(-1)[places.to(tensor.device)].view(tensor.shape)


def _with_copied_sample(tensor: torch.Tensor, at: int, size: int) -> torch.Tensor:
    """Return the tensor with the sample before ``at`` also at ``at``, so that sorted lengths stay sorted."""
    if tensor.shape[:1] != (size,):
        return tensor
    changed = tensor.clone()
    changed[at] = tensor[at - 1]
    return changed


def _differ(tensors: list[torch.Tensor], others: list[torch.Tensor]) -> bool:
    """Return whether the tensors differ by more than rounding."""
    if [t.shape for t in tensors] != [t.shape for t in others]:
        return True
    for tensor, other in zip(tensors, others, strict=True):
        rounding = 0.0
        if tensor.is_floating_point() and tensor.numel():
            rounding = PLACES * torch.finfo(tensor.dtype).eps * float(tensor.abs().amax())
        if not torch.equal(tensor, other) and not (
            rounding and float((tensor - other).abs().amax()) <= rounding
        ):
            return True
    return False


def _add_sum(sums: list[tuple[str, float]], path: str, module: nn.Module, args: Any, output: Any) -> None:
    """Append the sum of a module's output to ``sums``."""
    parts = [float(t.double().sum()) for t in _tensors(output) if t.is_floating_point()]
    sums.append((path, sum(parts)))

"""Checks of a model's outputs in evaluation mode: for the same input, for other samples, and by what is expected."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from loopwise import batch as batches
from loopwise.errors import InputError

from ..hooks.forward import on_return
from ..model import names
from ..rules.history import some
from .copies import SEED, RecordedCall, seed_all
from .report import Result, faulty, left_out

PLACES = 32
"""Smallest difference that counts, in last places of the largest element: kernels may sum in another order."""
Outputs = list[torch.Tensor]
Trained = Callable[[], "Evaluation | None"]
"""Function that returns the evaluation of a copy that was trained for a few steps; ``None`` if it cannot be trained."""


class Evaluation:
    """Calls of a model in evaluation mode.

    Args:
        model: a copy of the model; the checks leave it in evaluation mode.
        call: the call that is repeated.
        samples: number of samples by the targets; ``None`` if that is unknown.
        batch_dim: dimension of the samples; ``None`` if inputs have none.
    """

    def __init__(
        self, model: nn.Module, call: RecordedCall, samples: int | None, batch_dim: int | None = 0
    ) -> None:
        self.model, self.call, self._targets, self.batch_dim = model.eval(), call, samples, batch_dim
        self.outputs = self.outputs_of(call)

    def outputs_of(self, call: RecordedCall, seed: int = SEED, training: bool = False) -> Outputs:
        """Return the floating-point tensors that the model returns for a call, without gradients."""
        args, kwargs = batches.map_tensors(torch.clone, (call.args, dict(call.kwargs)))
        with torch.no_grad(), self._mode(training):
            seed_all(seed)
            return floats(self.model(*args, **kwargs))

    @contextlib.contextmanager
    def _mode(self, training: bool) -> Any:
        """Set the model to training mode, with its buffers put back afterwards, if ``training``."""
        kept = [(b, b.clone()) for b in self.model.buffers()] if training else []
        if training:
            self.model.train()
        try:
            yield
        finally:
            if training:
                self.model.eval()
            for buffer, value in kept:
                buffer.data.copy_(value)

    def gradient(self, leaf: torch.Tensor) -> torch.Tensor | None:
        """Return the gradient of a random projection of the outputs with respect to one input tensor, if it has one."""
        source = leaf.detach().clone().requires_grad_()
        given = self.call.exchanged(leaf, source)
        args, kwargs = batches.map_tensors(torch.clone, (given.args, dict(given.kwargs)))
        draws = torch.Generator().manual_seed(SEED)
        seed_all(SEED)
        with torch.enable_grad(), torch.backends.cudnn.flags(enabled=False):  # RNNs need it off in evaluation
            total: Any = 0.0
            for output in floats(self.model(*args, **kwargs)):
                weights = torch.randn(output.shape, generator=draws).to(output)
                total = total + (output * weights).sum()
            if not isinstance(total, torch.Tensor) or not total.requires_grad:
                return None
            return torch.autograd.grad(total, source, allow_unused=True)[0]

    @property
    def unusable(self) -> str:
        """Reason why the outputs cannot be compared; empty if they can be compared."""
        if not self.outputs:
            return "the model returns no floating-point tensors"
        if not all(bool(output.isfinite().all()) for output in self.outputs):
            return "outputs are not finite in evaluation mode"
        return ""

    @property
    def alike(self) -> bool:
        """True if all samples have the same outputs, which hides whether samples are mixed."""
        size = self.size()
        if isinstance(size, str):
            return False
        rows = [row for output in self.outputs if (row := self._rows(output, size)) is not None]
        return bool(rows) and not any(differ([row], [row[:1].expand_as(row)]) for row in rows)

    # -- the same input -------------------------------------------------------------------------

    def repeats(self) -> Result:
        """Check that the same input gives the same output."""
        name = "evaluation"
        if not differ(self.outputs, self.outputs_of(self.call, SEED + 1)):
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
                self.outputs_of(self.call, seed)
            finally:
                for hook in hooks:
                    hook.remove()
            runs.append(sums)
        first, second = runs
        return next(
            ((before[0],) for before, after in zip(first, second, strict=False) if before != after),
            ("the model",),
        )

    # -- other samples --------------------------------------------------------------------------

    def apart(self, trained: Trained) -> Result:
        """Check that the output of a sample does not depend on the other samples of its batch."""
        if self.alike and (later := trained()) is not None and not later.unusable and not later.alike:
            return later.apart(lambda: None)
        name = "samples"
        size = self.size()
        if isinstance(size, str):
            return left_out(name, size)
        places = self._unlike(size)
        if not places:
            return left_out(name, "all samples of the batch are equal")
        mixed = [self._mixes(at, size) for at in (places[0], places[-1])]
        if mixed[0] is None:
            return left_out(
                name, f"no output has the {size} samples of the batch in dimension {self.batch_dim}"
            )
        if not all(mixed):
            return Result(name, f"replacing sample {places[0]} changes no other sample's output")
        what = f"replacing sample {places[0]} of the batch changes the outputs of other samples in evaluation mode"
        return faulty(name, "samples_mixed", what)

    def _mixes(self, at: int, size: int) -> bool | None:
        """Return whether replacing sample ``at`` by its neighbour changes the others; ``None`` if no output tells."""

        def replaced(tensor: torch.Tensor) -> torch.Tensor:
            changed = tensor.clone()  # the neighbour before it, so that sorted lengths stay sorted
            rows = self._rows(changed, size)
            if rows is None:
                return tensor
            rows[at] = rows[at - 1].clone()
            return changed

        values = {key: batches.map_tensors(replaced, value) for key, value in self.call.fields.items()}
        outputs = self.outputs_of(self.call.changed(values))
        others, found = torch.arange(size) != at, None
        for before, after in zip(self.outputs, outputs, strict=True):
            first, second = self._rows(before, size), self._rows(after, size)
            if first is None or second is None or first.shape == (size, size):
                continue
            found = bool(found) or differ([first[others]], [second[others]])
        return found

    def _rows(self, tensor: torch.Tensor, size: int) -> torch.Tensor | None:
        """Return the tensor with its samples in the first dimension, as a view; ``None`` if it has no such dimension."""
        assert self.batch_dim is not None
        for dim in (self.batch_dim, 0):
            if -tensor.ndim <= dim < tensor.ndim and tensor.shape[dim] == size:
                return tensor.movedim(dim, 0)
        return None

    def size(self) -> int | str:
        """Return the number of samples in the batch, or why that is unknown."""
        if self.batch_dim is None:
            return "batch_dim=None: inputs have no dimension of samples"
        fields = list(self.call.fields.values())
        try:
            size = batches.length(fields) if self.batch_dim == 0 else 0
        except InputError:
            return "the inputs have no first dimension in common"
        if self.batch_dim:
            with_it = [t for t in tensors(fields) if -t.ndim <= self.batch_dim < t.ndim]
            if not with_it:
                return f"no input has a dimension {self.batch_dim}"
            size = with_it[0].shape[self.batch_dim]
        elif self._targets is not None and self._targets != size:
            return f"{size} entries in the inputs' first dimension, but {self._targets} targets"
        return size if size > 1 else "the batch has one sample only"

    def _unlike(self, size: int) -> list[int]:
        """Return the places of the samples that differ from the one before them."""
        views = [self._rows(t, size) for t in tensors(list(self.call.fields.values()))]
        rows = [view for view in views if view is not None]
        return [i for i in range(1, size) if any(not torch.equal(t[i], t[i - 1]) for t in rows)]

    # -- what is expected -----------------------------------------------------------------------

    def expected(
        self, shape: Sequence[int | None] | None, limits: tuple[float | None, float | None] | None
    ) -> Result:
        """Check the first output by the shape and the range that the user expects."""
        name, output = "output", self.outputs[0]
        seen = tuple(output.shape)
        if shape is not None:
            fits = len(shape) == len(seen) and all(a in (None, b) for a, b in zip(shape, seen, strict=True))
            if not fits:
                return faulty(name, "unexpected_output", f"an output of shape {seen}, not {tuple(shape)}")
        if limits is not None and output.numel():
            low, high = float(output.amin()), float(output.amax())
            least, most = (
                default if limit is None else limit
                for limit, default in zip(limits, (low, high), strict=True)
            )
            if low < least or high > most:
                what = f"outputs from {low:.4g} to {high:.4g}, not within {limits[0]} to {limits[1]}"
                return faulty(name, "unexpected_output", what)
        return Result(name, f"the output of shape {seen} is as expected")


def floats(output: Any) -> Outputs:
    """Return the floating-point tensors of a structure."""
    return [leaf for leaf in tensors(output) if leaf.is_floating_point()]


def tensors(value: Any) -> list[torch.Tensor]:
    """Return all tensors of a structure."""
    return [leaf for leaf in batches.leaves(value) if isinstance(leaf, torch.Tensor)]


def differ(first: Outputs, second: Outputs) -> bool:
    """Return whether the tensors differ by more than rounding."""
    if [t.shape for t in first] != [t.shape for t in second]:
        return True
    for tensor, other in zip(first, second, strict=True):
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
    parts = [float(t.double().sum()) for t in floats(output)]
    sums.append((path, sum(parts)))

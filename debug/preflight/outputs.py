"""What a model in evaluation mode gives for the same input, for other input, and for other samples beside it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from loopwise import batch as batches
from loopwise.errors import InputError

from ..hooks.forward import on_return
from ..model import names
from ..rules.history import some
from .copies import SEED, Taken
from .report import Result, found, left_out

PLACES = 32
"""Last places of the largest element that a difference has to have: kernels may sum in another order."""
Outputs = list[torch.Tensor]


class Evaluated:
    """Calls a model in evaluation mode.

    Args:
        model: a copy; it stays in that mode.
        taken: what it is called with.
        size: samples in the batch, as far as the targets tell; ``None``: they do not.
    """

    def __init__(self, model: nn.Module, taken: Taken, size: int | None) -> None:
        self.model, self.taken, self._targets = model.eval(), taken, size
        self.before = self()

    def __call__(self, taken: Taken | None = None, seed: int = SEED) -> Outputs:
        """The floating-point tensors that it gives."""
        torch.manual_seed(seed)
        taken = self.taken if taken is None else taken
        args, kwargs = batches.map_tensors(torch.clone, (taken.args, dict(taken.kwargs)))
        with torch.no_grad():
            output = self.model(*args, **kwargs)
        leaves = batches.leaves(output)
        return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor) and leaf.is_floating_point()]

    @property
    def usable(self) -> str:
        """Why nothing can be told from its outputs; empty where something can."""
        if not self.before:
            return "the model gives no floating-point tensors"
        if not all(bool(output.isfinite().all()) for output in self.before):
            return "outputs are not finite in evaluation mode"
        return ""

    # -- the same input -------------------------------------------------------------------------

    def repeats(self) -> Result:
        """Is the output for the same input the same?"""
        name = "evaluation"
        if not _differ(self.before, self(seed=SEED + 1)):
            return Result(name, "the same input gives the same output")
        on = tuple(names.plain(path) for path, module in self.model.named_modules() if module.training)
        where = on or self._where_random()
        cause = "which stay in training mode" if on else "where random numbers are drawn"
        finding = found(
            "output_not_repeatable",
            "warning",
            f"the same input gives another output each time in evaluation mode, from {some(where)} on, {cause}",
            "use nn.Dropout, or F.dropout(x, training=self.training); do not override train() or eval() without "
            "calling the parent's",
            where,
        )
        return Result(name, "", (finding,))

    def _where_random(self) -> tuple[str, ...]:
        """The innermost module that first gives something else."""
        runs: list[list[tuple[str, float]]] = []
        for seed in (SEED, SEED + 1):
            found: list[tuple[str, float]] = []
            hooks = [
                on_return(module, _noting(names.plain(path) or "the model", found))
                for path, module in self.model.named_modules()
            ]
            try:
                self(seed=seed)
            finally:
                for hook in hooks:
                    hook.remove()
            runs.append(found)
        return next(((one[0],) for one, two in zip(*runs, strict=False) if one != two), ("the model",))

    # -- other input ----------------------------------------------------------------------------

    def depends(self) -> Result:
        """Does the output depend on the input?"""
        name, refused, tried = "dependence", "", []
        for key, value in self.taken.fields.items():
            other = batches.map_tensors(_drawn, value)
            if not _differ(_tensors(value), _tensors(other)):
                continue
            try:
                outputs = self(self.taken.changed(key, other))
            except Exception as error:
                refused = repr(error)
                continue
            if _differ(self.before, outputs):
                return Result(name, f"other values of input {key} change the output")
            tried.append(key)
        if refused or not tried:
            return left_out(name, refused or "the inputs are constant, or no tensors")
        finding = found(
            "output_ignores_input",
            "critical",
            f"the output stays the same whatever the values of input {some(tried)} are",
            "look for an overwritten variable in forward(), dead activations, a product with zero, or a mask that "
            "hides everything",
            tuple(f"input {key}" for key in tried),
        )
        return Result(name, "", (finding,))

    # -- other samples --------------------------------------------------------------------------

    def apart(self) -> Result:
        """Does what a sample gives depend on the others in its batch?"""
        name = "samples"
        size = self._size()
        if isinstance(size, str):
            return left_out(name, size)
        at = self._unlike(size)
        if at is None:
            return left_out(name, "all samples of the batch are alike")
        changed = {
            key: batches.map_tensors(lambda t: _copied(t, at, size), value)
            for key, value in self.taken.fields.items()
        }
        outputs = self(self.taken.changed_all(changed))
        others = torch.arange(size) != at
        pairs = [
            (one[others], two[others])
            for one, two in zip(self.before, outputs, strict=True)
            if one.shape[:1] == two.shape[:1] == (size,) and one.shape != (size, size)
        ]
        if not pairs:
            return left_out(name, f"no output has the {size} samples of the batch in its first dimension")
        if not any(_differ([one], [two]) for one, two in pairs):
            return Result(name, f"another sample {at} changes no other sample's output")
        finding = found(
            "samples_mixed",
            "warning",
            f"another sample {at} in the batch changes the outputs of other samples in evaluation mode",
            "pass batch_first=True where the first dimension is the batch, and look for view(), mean(0), softmax(0) or "
            "BatchNorm without running statistics; ignore it where samples are meant to see each other",
        )
        return Result(name, "", (finding,))

    def _size(self) -> int | str:
        """Samples in the batch, or why that is not known."""
        try:
            size = batches.length(list(self.taken.fields.values()))
        except InputError:
            return "the inputs have no first dimension in common"
        if self._targets is not None and self._targets != size:
            return f"{size} entries in the inputs' first dimension, but {self._targets} targets"
        return size if size > 1 else "one sample only"

    def _unlike(self, size: int) -> int | None:
        """The first sample that differs from the one before it."""
        rows = [t for t in _tensors(list(self.taken.fields.values())) if t.shape[:1] == (size,)]
        return next((i for i in range(1, size) if any(not torch.equal(t[i], t[i - 1]) for t in rows)), None)


def _tensors(value: Any) -> list[torch.Tensor]:
    return [leaf for leaf in batches.leaves(value) if isinstance(leaf, torch.Tensor)]


def _drawn(tensor: torch.Tensor) -> torch.Tensor:
    """As many of a tensor's own values, drawn at random: tokens stay tokens."""
    if not tensor.numel():
        return tensor
    draws = torch.Generator().manual_seed(SEED)
    places = torch.randint(tensor.numel(), (tensor.numel(),), generator=draws)
    return tensor.reshape(-1)[places.to(tensor.device)].view(tensor.shape)


def _copied(tensor: torch.Tensor, at: int, size: int) -> torch.Tensor:
    """With the sample ``at`` like the one before it, so that sorted lengths stay sorted."""
    if tensor.shape[:1] != (size,):
        return tensor
    changed = tensor.clone()
    changed[at] = tensor[at - 1]
    return changed


def _differ(before: list[torch.Tensor], after: list[torch.Tensor]) -> bool:
    """Whether they differ by more than rounding."""
    if [t.shape for t in before] != [t.shape for t in after]:
        return True
    for one, two in zip(before, after, strict=True):
        if not one.is_floating_point():
            if not torch.equal(one, two):
                return True
            continue
        if one.numel():
            least = PLACES * torch.finfo(one.dtype).eps * float(one.abs().amax())
            if not float((one - two).abs().amax()) <= least:
                return True
    return False


def _noting(path: str, found: list[tuple[str, float]]) -> Callable[..., None]:
    def note(_: Any, __: Any, output: Any) -> None:
        sums = [float(t.double().sum()) for t in _tensors(output) if t.is_floating_point()]
        found.append((path, sum(sums)))

    return note

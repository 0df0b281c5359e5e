"""Copy of the weights from the beginning of a step, for a replay after the update."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch.optim import Optimizer

from ..torch_internals import copy_all

SHARE = 0.1
"""Largest share of an accelerator's memory that the copy may take."""


class WeightCopy:
    """Copy of all parameters of the optimizers.

    Args:
        optimizers: optimizers by key.
    """

    def __init__(self, optimizers: Mapping[str, Optimizer]) -> None:
        self._optimizers = optimizers
        self._copies: list[torch.Tensor] = []
        self._step = -1

    def fits(self, device: torch.device) -> bool:
        """Return whether the device is an accelerator with enough memory for the copy."""
        if device.type != "cuda":
            return False
        size = sum(parameter.nbytes for parameter in self._parameters())
        return size <= SHARE * torch.cuda.get_device_properties(device).total_memory

    def save(self, step: int) -> None:
        """Copy the parameters before the first update of a step."""
        if self._step == step:
            return
        self._step = step
        parameters = self._parameters()
        if len(self._copies) != len(parameters):
            self._copies = [torch.empty_like(p) for p in parameters]
        copy_all(self._copies, parameters)

    @contextlib.contextmanager
    def restored(self, step: int) -> Iterator[None]:
        """Restore the copy inside the ``with`` block, if it was made in this step."""
        parameters = self._parameters()
        if self._step != step or len(self._copies) != len(parameters):
            yield
            return
        current = [parameter.clone() for parameter in parameters]
        copy_all(parameters, self._copies)
        try:
            yield
        finally:
            copy_all(parameters, current)

    def clear(self) -> None:
        """Free the memory of the copy."""
        self._copies.clear()

    def _parameters(self) -> list[torch.Tensor]:
        groups = [group for optimizer in self._optimizers.values() for group in optimizer.param_groups]
        # .data leaves the version counter alone, on which graphs that saved the parameter depend
        return [parameter.data for group in groups for parameter in group["params"]]

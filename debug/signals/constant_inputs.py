"""Channels and features of a model's input that had one value in all batches so far."""

from __future__ import annotations

import math
from typing import Any

import torch

CHANNELS = 16
"""Largest number of channels of an image; more of them are planes of a board game, or rows of pixels."""
ELEMENTS = 2**18
"""Largest number of elements of a batch among which constant channels and features are searched."""
NAMED = 20
"""Largest number of constant channels or features; with more, the input is sparse."""


class ConstantInputs:
    """Inspection of the inputs of models; it ends for a model once none of its channels or features is constant."""

    def __init__(self) -> None:
        self._inputs: dict[str, _Input | None] = {}

    def add(self, key: str, x: torch.Tensor) -> None:
        """Inspect the input of a call.

        Args:
            key: key of the model.
            x: its first input, with samples in the first dimension.
        """
        if key not in self._inputs:
            self._inputs[key] = _Input(x) if _is_known_form(x) else None
        known = self._inputs[key]
        if known is not None and not known.add(x.detach()):
            self._inputs[key] = None

    def facts(self) -> dict[str, dict[str, Any]]:
        """Return the facts of each model's input that has constant channels or features, by the model's key."""
        return {
            key: facts
            for key, known in self._inputs.items()
            if known is not None and (facts := known.facts())
        }


class _Input:
    """Channels or features of the input of one model that had one value so far.

    Args:
        x: the first input.
    """

    def __init__(self, x: torch.Tensor) -> None:
        self._first = x.detach()[0].reshape(x.shape[1], -1)[:, 0].clone()
        self._constant = torch.ones_like(self._first, dtype=torch.bool)
        self._is_table, self._form = x.ndim == 2, (x.ndim, x.shape[1], x.dtype)
        self._sums: set[float] = set()
        self._places: list[int] = []
        self._samples = 0

    def add(self, x: torch.Tensor) -> bool:
        """Inspect a batch; return whether the next one has to be inspected."""
        if (x.ndim, x.shape[1], x.dtype) != self._form:
            return False
        some = _some_rows(x)
        self._constant &= (some == self._first).all(0)
        places = self._constant.nonzero().flatten().tolist()
        if len(places) == len(self._first):  # nothing varies yet
            return True
        if len(places) > NAMED:
            return False
        places = [place for place in places if bool((x.select(1, place) == self._first[place]).all())]
        if self._is_table and places:
            places = self._alone(some[:, ~self._constant], places)
        self._constant = torch.zeros_like(self._constant)
        self._constant[places] = True
        self._places = places
        total = float(some.double().sum()) if places else 0.0
        if total not in self._sums:  # one batch, again and again, is one batch
            self._sums.add(total)
            self._samples += len(x)
        return bool(places)

    def _alone(self, others: torch.Tensor, places: list[int]) -> list[int]:
        """Return the places of features whose value occurs in no feature that varies; none if there are classes.

        A value that occurs elsewhere is a background, a padding, or the zero of rare words and classes.  Features of two
        values are classes, perhaps scaled; a rare class looks constant.
        """
        if bool(((others == others.amin(0)) | (others == others.amax(0))).all(0).any()):
            return []
        return [place for place in places if not bool((others == self._first[place]).any())]

    def facts(self) -> dict[str, Any]:
        """Return kind, places and values of constant columns, their number, and the numbers of batches and samples."""
        values = self._first[self._places].tolist() if self._places else []
        constant = {place: value for place, value in zip(self._places, values, strict=True) if value != 1.0}
        return {} if not constant else {
            "kind": "feature" if self._is_table else "channel",
            "places": list(constant),
            "values": list(constant.values()),
            "of": len(self._first),
            "batches": len(self._sums),
            "samples": self._samples,
        }  # fmt: skip


def _is_known_form(x: torch.Tensor) -> bool:
    """Return whether an input is a table of numbers, or images with channels in the second dimension."""
    is_image = x.ndim == 4 and 1 < x.shape[1] <= CHANNELS and x.shape[1] < min(x.shape[2:])
    is_table = x.ndim == 2 and 1 < x.shape[1] <= ELEMENTS
    return x.is_floating_point() and (is_image or is_table)


def _some_rows(x: torch.Tensor) -> torch.Tensor:
    """Return some rows of channels or features, spread over the batch."""
    if x.ndim == 2:
        return x[:: -(-x.numel() // ELEMENTS)]
    samples = x[:: -(-len(x) // 32)]
    step = math.ceil(math.sqrt(samples.numel() / ELEMENTS))
    return samples[:, :, ::step, ::step].movedim(1, -1).reshape(-1, x.shape[1])

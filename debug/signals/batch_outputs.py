"""Outputs of whole models: spread between samples, and the scale of the loss as its gradient shows it."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn

from loopwise.wrappers import is_shard

from ..hooks import calls
from ..hooks.guards import is_observable
from ..hooks.tensors import on_gradient
from ..model import names
from ..model.tensors import tensors
from .constant_inputs import ConstantInputs

HEADS = ("spread", "varied", "scale", "over_batch", "target", "residual", "low", "high", "copied")
"""Columns of the table of outputs.  ``spread``: distance between the outputs of a batch, in units of float32's (or a
finer dtype's) last place at the largest output.  ``varied``: 1 if the inputs differ, else 0.  ``scale``: the factor
between a mean cross-entropy and the loss that backward was called on; NaN for other losses, or if the factor is unknown.  ``over_batch``: largest distance from 1 of the
sums of probabilities over the batch; NaN if the output has no probabilities.  ``target``, ``residual``: root mean squares of
the targets, and of their distance from the output, if the loss is a mean squared error, which the caller has to check:
the residual's square is the loss then; ``low`` and ``high``: the smallest and the largest target.  ``copied``: 1 if the
targets of a cross-entropy are the model's own input tokens, at the same positions, else 0; NaN if the input has no tokens of
the outputs' positions."""
DIFFERENT = 0.05
"""Distance from 1 beyond which the probabilities of a sample do not sum up to it."""
CLASSES = 50
"""Largest number of classes whose targets are counted."""
SAMPLES, ELEMENTS = 32, 32
"""Largest number of inspected samples, and of elements along any other dimension."""
TOKENS = 16
"""Positions that are needed to say that targets are the input."""
POSITIONS = 4
"""Positions of a sequence whose predictions are inspected."""
MOST = 2**20
"""Largest number of inspected elements of all samples: if the vocabulary is large, fewer samples are inspected."""
FIT = 0.02
"""Largest relative distance of a gradient from the gradient of a cross-entropy: bfloat16 has 0.004."""


class Outputs:
    """Inspection of the inputs and outputs of models while ``open``.

    Args:
        guard: context that the inspections run in.

    Attributes:
        constant: constant channels and features of the inputs of training steps.
    """

    def __init__(self, guard: Callable[[], AbstractContextManager[Any]]) -> None:
        self.open = False
        self._guard = guard
        self.constant = ConstantInputs()
        self._inputs: dict[str, tuple[int, torch.Tensor]] = {}
        self._tokens: dict[str, torch.Tensor] = {}
        self._rows: dict[str, dict[str, torch.Tensor]] = {}
        self._counts: dict[str, torch.Tensor] = {}
        self._subscribers: list[tuple[nn.Module, _Subscriber]] = []

    def attach(self, models: Mapping[str, nn.Module]) -> None:
        for key, model in models.items():
            subscriber = _Subscriber(weakref.ref(self), key or "model")
            inner = names.root(model)
            calls.subscribe(inner, subscriber)
            self._subscribers.append((inner, subscriber))

    def begin(self) -> None:
        """Begin a step that is saved."""
        self.rest()
        self.open = True
        for module, _ in self._subscribers:
            calls.refresh(module)

    def rest(self) -> None:
        """Discard the step's facts and inspect nothing until ``begin``."""
        self.open = False
        self._inputs.clear()
        self._tokens.clear()
        self._rows.clear()
        self._counts.clear()

    def take(self) -> tuple[tuple[str, ...], torch.Tensor] | None:
        """Finish a step.

        Returns:
            Names of the models that were called, and float64 of shape (models, `HEADS`) on one device; ``None`` if none
            were called.
        """
        rows, self._rows = self._rows, {}
        self.rest()
        if not rows:
            return None
        device = next(iter(rows.values()))["spread"].device
        unknown = torch.full((), torch.nan, dtype=torch.float64, device=device)
        values = [torch.stack([row.get(head, unknown).to(device) for head in HEADS]) for row in rows.values()]
        return tuple(f"samples/{key}" for key in rows), torch.stack(values)

    def targets(self) -> dict[str, list[int]]:
        """Return the number of targets of each class in the step, by model, before `take`; waits for the device."""
        return {key: counts.tolist() for key, counts in self._counts.items() if int(counts.sum())}

    def close(self) -> None:
        self.rest()
        for module, subscriber in self._subscribers:
            calls.unsubscribe(module, subscriber)
        self._subscribers.clear()

    def called(self, key: str, args: Any, kwargs: Any) -> None:
        """Remember the number of samples and whether they differ."""
        is_training = torch.is_grad_enabled()
        with self._guard():
            self._inputs.pop(key, None)
            inputs = [t for _, t in [*tensors("", args), *tensors("", kwargs)] if _has_samples(t, 1)]
            if inputs:
                x = _some_elements(inputs[0].detach())
                self._inputs[key] = len(inputs[0]), (x != x[:1]).any().double()
                if inputs[0].ndim == 2 and inputs[0].dtype in (torch.int32, torch.int64):
                    self._tokens[key] = inputs[0][:POSITIONS].clone()
                if is_training:
                    self.constant.add(key, inputs[0])

    def returned(self, key: str, output: Any) -> None:
        """Compute the spread of the outputs, and follow their gradient."""
        with self._guard():
            count, varied = self._inputs.pop(key, (0, None))
            outputs = [t for _, t in tensors("", output) if _has_samples(t, 2) and t.is_floating_point()]
            if varied is None or not outputs or len(outputs[0]) != count:
                return
            y = _some_elements(outputs[0].detach()).double()
            last_place = min(torch.finfo(outputs[0].dtype).eps, torch.finfo(torch.float32).eps)
            size = y.abs().amax().clamp_min(torch.finfo(torch.float32).tiny)
            spread = (y.amax(0) - y.amin(0)).amax() / size / last_place
            row = self._rows[key] = {"spread": spread, "varied": varied.to(spread.device)}
            row["over_batch"] = _over_batch(outputs[0].detach())
            self._follow_gradient(key, outputs[0], row)

    def _follow_gradient(self, key: str, logits: torch.Tensor, row: dict[str, torch.Tensor]) -> None:
        if logits.grad_fn is None:  # a parameter, on which the hook would stay
            return
        class_dims = {1, logits.ndim - 1}
        is_plain = logits.ndim == 2 and logits.shape[1] <= CLASSES
        kept = logits.detach().clone() if logits.numel() <= MOST else None
        tokens = self._tokens.pop(key, None)
        by_dim = {d: _predictions(logits.detach(), d).clone() for d in class_dims if logits.shape[d] > 1}

        def come(gradient: torch.Tensor) -> None:
            with self._guard():
                scales = [scale(predictions, gradient, dim) for dim, predictions in by_dim.items()]
                if scales:
                    best = torch.stack(scales).nan_to_num(-1.0).amax().double()
                    row["scale"] = torch.where(best > 0, best, torch.nan)
                    if tokens is not None:
                        copied = _are_targets(tokens, gradient, best > 0)
                        if copied is not None:
                            row["copied"] = copied
                    if is_plain and logits.shape[1] > 1:
                        self._counts[key] = _class_counts(gradient, best > 0)
                if kept is not None:
                    distance = gradient.double() * (kept.numel() / 2)
                    targets = kept.double() - distance
                    row["target"] = targets.square().mean().sqrt()
                    row["low"], row["high"] = targets.amin(), targets.amax()
                    row["residual"] = distance.square().mean().sqrt()

        on_gradient(logits, come)


class _Subscriber(calls.CallSubscriber):
    """Subscriber to the calls of one model that holds ``Outputs`` by a weak reference."""

    def __init__(self, outputs: Callable[[], Outputs | None], key: str) -> None:
        self._outputs, self._key = outputs, key

    def called(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        outputs = self._outputs()
        if outputs is not None and outputs.open and is_observable():
            outputs.called(self._key, args, kwargs)

    def returned(self, module: nn.Module, output: Any) -> None:
        outputs = self._outputs()
        if outputs is not None and outputs.open and is_observable():
            outputs.returned(self._key, output)


def scale(logits: torch.Tensor, gradient: torch.Tensor, dim: int) -> torch.Tensor:
    """Return the factor between the mean cross-entropy of all predictions and the loss; NaN for another loss.

    The gradient of a prediction is its softmax, minus 1 at the target, times that factor over the number of
    predictions.

    Args:
        logits: some predictions, chosen by `_predictions`; (predictions, classes).
        gradient: gradient of all predictions, with the classes in ``dim``.
        dim: dimension of the classes.
    """
    g, p = _predictions(gradient, dim).float(), logits.float().softmax(-1)
    counted = (gradient.select(dim, 0) != 0) | (gradient.select(dim, 1) != 0)
    others = torch.ones_like(g).scatter_(1, g.argmin(1, keepdim=True), 0.0)
    factor = (g * p * others).sum(1) / (p * p * others).sum(1)
    largest = g.abs().amax(1)
    wrong = ((g - factor[:, None] * p) * others).abs().amax(1) + g.sum(1).abs()
    used = largest > 0
    fits = (wrong <= FIT * largest).logical_or(~used).all()
    middle = factor.where(used, torch.nan).nanmedian()
    return torch.where(fits, middle * counted.sum(), torch.nan)


def _over_batch(values: torch.Tensor) -> torch.Tensor:
    """Return the largest distance from 1 of the sums over the batch; NaN if the values are no probabilities of it.

    Logarithms of probabilities count as well.  Sums over another dimension that are 1, too, are no evidence.
    """
    columns = values.flatten(1)
    columns = _probabilities(columns[:, :: -(-columns.shape[1] // ELEMENTS)])
    rows = _probabilities(values[0].reshape(-1, values.shape[-1])[:POSITIONS])
    distance = (columns.sum(0) - 1).abs().amax()
    differs = (rows.sum(-1) - 1).abs().amax() > DIFFERENT
    is_probability = (columns >= 0).all() & (columns <= 1).all() & differs
    return torch.where(is_probability, distance, torch.nan)


def _probabilities(values: torch.Tensor) -> torch.Tensor:
    """Return values, or their exponentials if none is positive, in float64."""
    values = values.double()
    return torch.where((values <= 0).all(), values.clamp(max=0).exp(), values)


def _are_targets(
    tokens: torch.Tensor, gradient: torch.Tensor, is_cross_entropy: torch.Tensor
) -> torch.Tensor | None:
    """Return 1 if the targets of the first samples are these tokens, (samples, positions), else 0.

    NaN for another loss, or if too few positions have targets; ``None`` if the outputs have other positions.
    """
    for dim in (2, 1) if gradient.ndim == 3 else ():
        g = gradient[: len(tokens)].movedim(dim, -1)
        if g.shape[:2] != tokens.shape:
            continue
        some = max(-(-TOKENS // len(tokens)), MOST // (len(tokens) * g.shape[2]))  # a vocabulary may be large
        places = slice(None, None, -(-tokens.shape[1] // some))
        g = g[:, places]
        used = (g != 0).any(-1)
        same = ((g.argmin(-1) == tokens[:, places]) | ~used).all().double()
        return torch.where(is_cross_entropy & (used.sum() >= TOKENS), same, torch.nan)
    return None


def _class_counts(gradient: torch.Tensor, is_cross_entropy: torch.Tensor) -> torch.Tensor:
    """Return the number of targets of each class: the gradient of a cross-entropy is negative at the target alone."""
    targets = gradient.argmin(1)
    counted = (gradient != 0).any(1) & is_cross_entropy
    counts = torch.zeros(gradient.shape[1], dtype=torch.int64, device=gradient.device)
    return counts.index_add_(0, targets, counted.long())


def _predictions(values: torch.Tensor, dim: int) -> torch.Tensor:
    """Return some predictions, (predictions, classes): a view of a tensor with two dimensions."""
    index = [slice(None, None, -(-size // POSITIONS)) for size in values.shape]
    samples = MOST // (values.shape[dim] * POSITIONS ** (values.ndim - 2))
    index[0] = slice(None, None, -(-len(values) // max(1, min(SAMPLES, samples))))
    index[dim] = slice(None)
    return values[tuple(index)].movedim(dim, -1).reshape(-1, values.shape[dim])


def _some_elements(values: torch.Tensor) -> torch.Tensor:
    """Return some elements of some samples, spread over the tensor."""
    steps = [-(-len(values) // SAMPLES), *(-(-size // ELEMENTS) for size in values.shape[1:])]
    return values[tuple(slice(None, None, step) for step in steps)]


def _has_samples(tensor: torch.Tensor, dims: int) -> bool:
    plain = tensor.layout is torch.strided and not is_shard(tensor)
    return plain and tensor.ndim >= dims and len(tensor) > 3 and tensor.numel() > 0

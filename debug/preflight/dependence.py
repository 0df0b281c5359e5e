"""Checks that the outputs depend on each input, mask and feature, before and after a few training steps."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from loopwise import batch as batches

from ..rules import Finding, Observation
from ..rules.engine import make_finding
from ..rules.history import some
from .copies import SEED
from .outputs import Evaluation, Trained, differ
from .report import Result, left_out

COLUMNS = 16
"""Largest number of columns of an integer input that are exchanged one by one, such as categories of a table."""
BORDER = 4
"""A border of unused pixels is at most this part of a dimension: what the strides of a convolution do not reach."""


def dependence(first: Evaluation, trained: Trained) -> Result:
    """Check that every input influences the outputs, by two looks: as the model is, and after a few training steps.

    Args:
        first: the model as it is.
        trained: returns the same call of a copy after a few steps of training.
    """
    name, refused = "dependence", ""
    findings: list[Finding] = []
    used: list[str] = []
    ignored: list[str] = []
    for path, leaf in named_tensors(first.call.fields):
        if not any(differ([leaf], [other]) for other in _others(leaf)):
            continue
        depends = _depends(first, leaf)
        if depends is False and (later := trained()) is not None:
            depends = _depends(later, leaf) or _depends(later, leaf, training=True)
        if depends is None:
            refused = f"the model refuses other values of input {path}"
            continue
        (used if depends else ignored).append(path)
        if depends and (what := _features(first, trained, path, leaf)):
            findings.append(_ignored(what, (path,)))
    if not used and not ignored:
        return left_out(name, refused or "the inputs are constant, or contain no tensors")
    if not used and not refused:
        what = f"the output stays the same for any values of input {some(ignored)}"
        seen = Observation(what, tuple(f"input {path}" for path in ignored))
        return Result(name, "", (make_finding("output_ignores_input", seen, 0),))
    if ignored:
        what = (
            f"the output stays the same for any values of input {some(ignored)}, but depends on {some(used)}"
        )
        findings.insert(0, _ignored(what, tuple(ignored)))
    return Result(name, f"other values of input {some(used)} change the output", tuple(findings))


def named_tensors(fields: Any, path: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """Yield path and tensor for each tensor in nested containers."""
    if isinstance(fields, torch.Tensor):
        yield path, fields
        return
    for name, child in (batches.children(fields) or {}).items():
        yield from named_tensors(child, f"{path}.{name}" if path else name)


def _ignored(what: str, paths: tuple[str, ...]) -> Finding:
    return make_finding("ignored_input", Observation(what, tuple(f"input {path}" for path in paths)), 0)


def _depends(evaluation: Evaluation, leaf: torch.Tensor, training: bool = False) -> bool | None:
    """Return whether other values of an input tensor change the outputs; ``None`` if the model refuses all of them."""
    before = evaluation.outputs_of(evaluation.call, training=True) if training else evaluation.outputs
    answers = []
    for other in _others(leaf):
        try:
            after = evaluation.outputs_of(evaluation.call.exchanged(leaf, other), training=training)
        except Exception:
            continue
        answers.append(differ(before, after))
        if answers[-1]:
            return True
    return False if answers else None


def _others(leaf: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yield tensors of the same values in another order, so that tokens stay valid tokens."""
    if leaf.numel() < 2:
        return
    draws = torch.Generator().manual_seed(SEED)
    places = torch.randint(leaf.numel(), (leaf.numel(),), generator=draws)
    yield leaf.reshape(-1)[places.to(leaf.device)].view(leaf.shape)
    if leaf.ndim and len(leaf) > 1:
        yield leaf.roll(1, 0)


# -- features ---------------------------------------------------------------------------------------


def _features(first: Evaluation, trained: Trained, path: str, leaf: torch.Tensor) -> str:
    """Return the sentence about features of an input that have no influence; empty if there are none."""
    size = first.size()
    rows = leaf if first.batch_dim in (None, 0) else leaf.movedim(first.batch_dim, 0)
    if isinstance(size, str) or leaf.ndim < 2 or len(rows) != size or not leaf.numel():
        return ""
    dead = (rows != rows[:1]).any(0)  # equal values in all samples cannot be told from padding
    if not leaf.is_floating_point() and (leaf.ndim != 2 or dead.numel() > COLUMNS):
        return ""
    dead = _without_influence(first, leaf, dead)
    if dead.any() and (later := trained()) is not None:
        dead = _without_influence(later, leaf, dead)
    if not dead.any() or _is_border(dead):
        return ""
    examples = ", ".join(
        str(place[0] if len(place) == 1 else tuple(place)) for place in dead.nonzero()[:3].tolist()
    )
    more = " and others" if int(dead.sum()) > 3 else ""
    return f"{int(dead.sum())} of {dead.numel()} features of input {path} do not influence the output: {examples}{more}"


def _without_influence(evaluation: Evaluation, leaf: torch.Tensor, candidates: torch.Tensor) -> torch.Tensor:
    """Return the mask of those features without a gradient whose exchange changes no output either."""
    dim = evaluation.batch_dim or 0
    if not leaf.is_floating_point():
        dead = candidates.clone()
        for column in candidates.nonzero().flatten().tolist():
            only = torch.zeros_like(candidates)
            only[column] = True
            dead[column] = not _changes(evaluation, leaf, only, dim)
        return dead
    try:
        gradient = evaluation.gradient(leaf)
    except Exception:
        return torch.zeros_like(candidates)
    if gradient is None:  # no output passes a gradient to the input
        dead = candidates
    else:
        dead = candidates & (gradient.movedim(dim, 0) == 0).all(0)
    if not dead.any() or _changes(evaluation, leaf, dead, dim):
        return torch.zeros_like(dead)
    return dead


def _changes(evaluation: Evaluation, leaf: torch.Tensor, features: torch.Tensor, dim: int) -> bool:
    """Return whether other values of some features change the outputs; also if the model refuses all of them."""
    mask = features.unsqueeze(0).expand_as(leaf.movedim(dim, 0)).movedim(0, dim)
    others = [leaf.roll(1, dim)]
    if leaf.is_floating_point():
        far = 10 * leaf.std() + 1
        others += [leaf + far, leaf - far]
    answers = []
    for other in others:
        try:
            outputs = evaluation.outputs_of(evaluation.call.exchanged(leaf, torch.where(mask, other, leaf)))
        except Exception:
            continue
        answers.append(differ(evaluation.outputs, outputs))
    return any(answers) or not answers


def _is_border(dead: torch.Tensor) -> bool:
    """Return whether all features lie at the end of one of the last two dimensions, as strides leave them out."""
    if dead.ndim < 3:
        return False
    border = torch.zeros_like(dead)
    for dim in (-2, -1):
        size = dead.shape[dim]
        border.narrow(dim, size - size // BORDER, size // BORDER).fill_(True)
    return not bool((dead & ~border).any())

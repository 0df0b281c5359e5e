"""Cut a captured graph into segments that save only their inputs and are computed again in the backward pass.

This is activation checkpointing (``torch.utils.checkpoint``) without changes to the model.  The sizes of the values in
the graph decide where to cut: a long segment holds many activations at once, and short ones save many inputs.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import torch
from torch import fx
from torch.utils.checkpoint import checkpoint

from ..torch_internals import compiles_for_buckets
from .passes.rewriting import called_name
from .regions import VIEWS, Region, assemble, extract

MODES = ("_enter_autocast", "_exit_autocast", "_set_grad_enabled")
"""Calls that change a mode for what follows; each stays between two segments."""
STATEFUL = ("batch_norm", "instance_norm", "setitem", "iadd", "isub", "imul", "itruediv")
"""Functions that change a tensor which they get; a second run would change it twice."""
SPLITS = ("chunk", "split", "unbind", "tensor_split")
"""Functions whose results are views, beside those in ``VIEWS``."""
MOST_PARTS = 64
"""Largest number of parts into which the longest range of operations is cut for a comparison."""


@dataclass
class Segment:
    """Consecutive operations of a graph, by their positions."""

    first: int
    last: int
    """Position after the last operation."""
    again: bool = False
    """Whether the operations are computed again in the backward pass."""


@dataclass
class Sizes:
    """Bytes of a graph's values, by the position of the operation that makes them."""

    nodes: list[fx.Node]
    """Operations in the order in which they run."""
    made: list[int] = field(init=False)
    """Bytes that each operation makes; a view takes none."""
    last_use: list[int] = field(init=False)
    """Position of the last operation that uses the memory which an operation makes, through views as well."""
    crossing: list[int] = field(init=False)
    """Bytes that are made before a position and used at it or later."""
    before: list[int] = field(init=False)
    """Bytes that are made before a position."""

    def __post_init__(self) -> None:
        nodes = self.nodes
        position = {node: number for number, node in enumerate(nodes)}
        self.made = [_bytes_made(node) for node in nodes]
        self.last_use = list(range(len(nodes)))
        owners: list[set[int]] = []  # the operations whose memory a value may be in
        for number, node in enumerate(nodes):
            inputs = {
                owner for one in node.all_input_nodes if one in position for owner in owners[position[one]]
            }
            owners.append({number} if self.made[number] else inputs)
            for owner in inputs:
                self.last_use[owner] = number
        changes = [0] * (len(nodes) + 1)
        for number, size in enumerate(self.made):
            if self.last_use[number] > number:
                changes[number + 1] += size
                changes[self.last_use[number] + 1] -= size if self.last_use[number] < len(nodes) else 0
        self.crossing = list(accumulate(changes))
        self.before = list(accumulate(self.made, initial=0))

    def inside(self, segment: Segment) -> int:
        """Return the bytes that the operations of a segment make."""
        return self.before[segment.last] - self.before[segment.first]

    def peak(self, segments: list[Segment]) -> int:
        """Return the bytes that are held at the largest point of the backward pass, according to the sizes.

        Segments that were left already in the backward pass hold nothing; one that is computed again holds everything
        that it makes.
        """
        kept = list(self.made)
        for segment in segments:
            if segment.again:
                for number in range(segment.first, segment.last):
                    kept[number] *= self.last_use[number] >= segment.last
        sums = list(accumulate(kept, initial=0))
        again = (sums[s.first] + self.inside(s) for s in segments if s.again)
        return max(sums[-1], *again, 0)


def _bytes_made(node: fx.Node) -> int:
    """Return the bytes of an operation's result; 0 for a view, and for a result of unknown size."""
    if called_name(node) in VIEWS or called_name(node) in SPLITS:
        return 0
    value = node.meta.get("example_value")
    tensors = [
        one
        for one in (value if isinstance(value, (tuple, list)) else [value])
        if isinstance(one, torch.Tensor)
    ]
    known = [tensor for tensor in tensors if all(isinstance(size, int) for size in tensor.shape)]
    return sum(tensor.numel() * tensor.element_size() for tensor in known)


def runs_once(node: fx.Node) -> bool:
    """Return whether an operation must not be computed again: it changes a tensor or a mode, or is a graph of its own."""
    name = called_name(node)
    if name in MODES or name in STATEFUL or node.op == "call_module":
        return True
    if any(one.op == "get_attr" for one in node.all_input_nodes):
        return True  # an inner graph, such as one that is checkpointed already
    in_place = name.endswith("_") and not name.endswith("__")
    return in_place or "out" in node.kwargs or _asks_for_inplace(node)


def _asks_for_inplace(node: fx.Node) -> bool:
    """Return whether the argument ``inplace`` of a function, as of ``relu``, is on."""
    if callable(node.target):
        try:
            return bool(
                inspect.signature(node.target).bind(*node.args, **node.kwargs).arguments.get("inplace")
            )
        except (TypeError, ValueError):  # a built-in function without a signature has no such argument
            pass
    return bool(node.kwargs.get("inplace"))


def choose_segments(sizes: Sizes, budget: float) -> list[Segment]:
    """Choose the segments that are computed again.

    Args:
        sizes: sizes of the graph's values.
        budget: share of the activations that may be held, in [0, 1]; 0: as few as the cuts that are compared reach.
    """
    runs = _repeatable(sizes.nodes)
    full = sizes.peak([])
    largest = max((sizes.before[b] - sizes.before[a] for a, b in runs), default=0)
    best: list[Segment] = []
    least = full
    for parts in range(2, MOST_PARTS):
        segments = [one for a, b in runs for one in _divided(sizes, a, b, largest // parts)]
        for segment in segments[:-1]:  # the last one would be computed again at once
            segment.again = True
        if (peak := sizes.peak(segments)) < least:
            best, least = segments, peak
    for segment in reversed(best):  # the last ones cost the same time, and are held for the shortest time
        if segment.again:
            segment.again = False
            if sizes.peak(best) > max(least, budget * full):
                segment.again = True
                break
    return best


def _repeatable(nodes: list[fx.Node]) -> list[tuple[int, int]]:
    """Return the ranges of consecutive operations that may be computed again, each as first and last + 1."""
    ranges, start = [], 0
    for number, node in enumerate(nodes):
        if runs_once(node):
            ranges.append((start, number))
            start = number + 1
    ranges.append((start, len(nodes)))
    return [(a, b) for a, b in ranges if b > a]


def _divided(sizes: Sizes, first: int, last: int, most: int) -> list[Segment]:
    """Cut a range of operations into segments that make between half of ``most`` bytes and ``most``, if possible.

    Of the places for a cut the one is taken where the fewest bytes cross.
    """
    segments = []
    while first < last:
        end = first + 1
        while end < last and sizes.before[end + 1] - sizes.before[first] <= most:
            end += 1
        cut = end
        if end < last:
            late = [
                p for p in range(first + 1, end + 1) if 2 * (sizes.before[p] - sizes.before[first]) > most
            ]
            cut = min(late, key=lambda place: (sizes.crossing[place], -place), default=end)
        segments.append(Segment(first, cut))
        first = cut
    return segments


def checkpointed(gm: fx.GraphModule, budget: float) -> Callable[..., Any] | None:
    """Return a function that computes a graph by segments; ``None`` if that saves no memory.

    Args:
        gm: Dynamo's captured graph.
        budget: share of the activations that may be held for the backward pass, in [0, 1].
    """
    if compiles_for_buckets():
        return None  # DDP's optimizer cuts the graph itself
    nodes = [node for node in gm.graph.nodes if node.op.startswith("call_")]
    parts: list[tuple[Region, Callable[..., Any] | None]] = []
    done = 0
    for segment in choose_segments(Sizes(nodes), budget):
        if segment.again:
            parts.append((Region(nodes[done : segment.first]), None))
            region = Region(nodes[segment.first : segment.last])
            parts.append((region, _again(extract(gm, region).forward)))
            done = segment.last
    if not parts:
        return None
    return assemble(gm, [*parts, (Region(nodes[done:]), None)]).forward


def _again(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that saves its arguments and computes all else again in the backward pass, draws included."""
    return lambda *inputs: checkpoint(function, *inputs, use_reentrant=False)

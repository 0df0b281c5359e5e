"""Repeated blocks of a captured graph, each kind compiled once.

A model of twelve equal layers is one graph of twelve times the same operations, and a compiler works
on all of them.  Here the graph is cut where the layers are, equal pieces are found by their operations
and by shape, stride and dtype of what they take, and one compiled form serves them all.  What is
between and beside them (embeddings, head and loss) is compiled, too, where there is something to fuse.
"""

from __future__ import annotations

import operator
import re
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from ..torch_internals import compiles_for_buckets, fake_mode_of, fresh_tracing, tracing_fake_mode
from .passes.rewriting import called_name

SMALLEST = 6
"""Operations of a piece worth compiling by itself: a smaller repeated one is better fused with what
surrounds it, and a smaller other one is left to eager kernels."""
FUSED = 3
"""Operations, beside those of ``VIEWS``, from which on there is something to fuse: not in a norm and the loss head."""
_SHAPES = ("view", "reshape", "flatten", "unflatten", "expand", "squeeze", "unsqueeze", "size")
VIEWS = {*_SHAPES, "transpose", "permute", "t", "getitem", "contiguous", "detach"}
SHARE = 1 / 3
"""Of the graph's operations, this share at least must not have to be compiled for cutting to pay."""
_NUMBERED = re.compile(r"(\.\d+|\[\d+\])$")

Compiled = Callable[..., Any]
Compiler = Callable[[fx.GraphModule, Sequence[Any]], Compiled]


@dataclass
class Region:
    """Consecutive operations of a graph."""

    nodes: list[fx.Node]
    inputs: list[fx.Node] = field(init=False)
    """What they take from outside, in the order of use."""
    outputs: list[fx.Node] = field(init=False)
    """What is used outside."""
    key: Hashable = field(init=False)
    """Equal for pieces that one compiled form can serve."""
    repeated: bool = False

    def __post_init__(self) -> None:
        own, steps = {node: number for number, node in enumerate(self.nodes)}, []
        seen: dict[fx.Node, int] = {}

        def name(node: fx.Node) -> str:
            return f"%{own[node]}" if node in own else f"<{seen.setdefault(node, len(seen))}"

        for node in self.nodes:
            steps.append((node.op, node.target, repr(fx.node.map_arg((node.args, node.kwargs), name))))
        self.inputs = list(seen)
        self.outputs = [node for node in self.nodes if any(user not in own for user in node.users)]
        self.key = (*steps, *map(_kind, self.inputs), *(own[node] for node in self.outputs))

    @property
    def small(self) -> bool:
        """Left to eager kernels."""
        made = sum(called_name(node) not in VIEWS for node in self.nodes)
        return not self.repeated and (len(self.nodes) < SMALLEST or made < FUSED)

    @property
    def closed(self) -> bool:
        """Whether only tensors go in and out, and it leaves grad mode and autocast as it found them."""
        grad, casts = True, 0
        for node in self.nodes:
            name = called_name(node)
            grad = bool(node.args[0]) if name == "_set_grad_enabled" else grad
            casts += (name == "_enter_autocast") - (name == "_exit_autocast")
        return grad and not casts and all(_tensor(node) is not None for node in (*self.inputs, *self.outputs))


def _tensor(node: fx.Node) -> torch.Tensor | None:
    """The tensor that a node gives, if its sizes are numbers."""
    value = node.meta.get("example_value")
    fixed = isinstance(value, torch.Tensor) and all(isinstance(size, int) for size in value.shape)
    return value if fixed else None


def _kind(node: fx.Node) -> Hashable:
    value = _tensor(node)
    if value is None:
        return node.name
    return (tuple(value.shape), value.stride(), value.dtype, value.device, value.requires_grad, type(value))


def _path(node: fx.Node) -> tuple[str, ...]:
    """The numbered modules (of a ``Sequential`` or ``ModuleList``) that a node belongs to, outermost first."""
    stack = node.meta.get("nn_module_stack") or {}
    return tuple(str(path) for path, *_ in stack.values() if _NUMBERED.search(str(path)))


def split(gm: fx.GraphModule) -> list[Region]:
    """Cut a captured graph into pieces; empty where that does not pay or cannot be done."""
    nodes = [node for node in gm.graph.nodes if node.op.startswith("call_")]
    if compiles_for_buckets():
        return []  # DDP's optimizer asks the compiler about each bucket's graph, as one piece
    if any(node.op == "call_module" for node in nodes) or not nodes:
        return []
    regions, depth = [Region(nodes)], 0
    deepest = max(len(_path(node)) for node in nodes)
    while depth < deepest:
        pieces = [piece for region in regions for piece in _divided(region, depth)]
        counts = Counter(piece.key for piece in pieces)
        for piece in pieces:
            piece.repeated = counts[piece.key] > 1 and len(piece.nodes) >= SMALLEST
        regions, depth = pieces, depth + 1
    regions = _joined(regions)
    if not any(region.repeated for region in regions):
        return []
    once = {region.key: len(region.nodes) for region in regions if not region.small}
    if sum(once.values()) > (1 - SHARE) * len(nodes) or not all(region.closed for region in regions):
        return []
    return regions


def _divided(region: Region, depth: int) -> list[Region]:
    """A piece that is not repeated, cut where the numbered module at ``depth`` changes."""
    if region.repeated:
        return [region]
    runs: list[list[fx.Node]] = []
    before: object = runs  # not a path
    for node in region.nodes:
        path = _path(node)[: depth + 1]
        here = path[depth] if len(path) > depth else None
        if here != before:
            runs.append([])
        runs[-1].append(node)
        before = here
    return [Region(run) for run in runs]


def _joined(regions: list[Region]) -> list[Region]:
    """Neighbours that are not repeated become one piece."""
    found: list[Region] = []
    for region in regions:
        if found and not found[-1].repeated and not region.repeated:
            found[-1] = Region(found[-1].nodes + region.nodes)
        else:
            found.append(region)
    return found


def summary(regions: list[Region]) -> str:
    """What was found, for a person."""
    kinds = Counter(region.key for region in regions if region.repeated)
    operations = sum(len(region.nodes) for region in regions)
    once = sum({region.key: len(region.nodes) for region in regions if not region.small}.values())
    return f"{kinds.total()} repeated blocks, {len(kinds)} compiled: {once} of {operations} operations"


def compile_regions(
    gm: fx.GraphModule, example_inputs: Sequence[Any], regions: list[Region], compiler: Compiler
) -> Compiled:
    """``gm`` as a sequence of ``regions``, each kind of which ``compiler`` compiled once."""
    mode = tracing_fake_mode(example_inputs)
    forms: dict[Hashable, Compiled] = {}
    for region in regions:
        if region.key not in forms and not region.small:
            with fresh_tracing(mode):
                forms[region.key] = compiler(_extracted(gm, region), [_fake(node) for node in region.inputs])
    return _assembled(gm, regions, forms).forward


def _fake(node: fx.Node) -> torch.Tensor:
    """A fake tensor like what the node gives, as a leaf."""
    value = _tensor(node)
    assert value is not None
    with fake_mode_of(value):
        leaf = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=value.device)
    return leaf.requires_grad_(value.requires_grad)


def _extracted(gm: fx.GraphModule, region: Region) -> fx.GraphModule:
    graph, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    for number, node in enumerate(region.inputs):
        copies[node] = graph.placeholder(f"input_{number}")
        copies[node].meta = dict(node.meta)
    for node in region.nodes:
        copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output(tuple(copies[node] for node in region.outputs))
    return fx.GraphModule(gm, graph)


class _Form(torch.nn.Module):
    """Holds a compiled form as a submodule of the graph that calls it."""

    def __init__(self, run: Compiled) -> None:
        super().__init__()
        self.forward = run


def _assembled(gm: fx.GraphModule, regions: list[Region], forms: dict[Hashable, Compiled]) -> fx.GraphModule:
    """A graph that calls the compiled form of each region, one after another."""
    graph, values = fx.Graph(), dict[fx.Node, fx.Node]()
    outer = fx.GraphModule(gm, graph)
    for node in gm.graph.nodes:
        if node.op in ("placeholder", "get_attr"):
            values[node] = graph.node_copy(node)
    for number, region in enumerate(regions):
        if region.small:
            for node in region.nodes:
                values[node] = graph.node_copy(node, values.__getitem__)
            continue
        outer.add_submodule(f"region_{number}", _Form(forms[region.key]))
        call = graph.call_module(f"region_{number}", tuple(values[node] for node in region.inputs))
        for place, node in enumerate(region.outputs):
            values[node] = graph.call_function(operator.getitem, (call, place))
    graph.output(fx.node.map_arg(gm.graph.output_node().args[0], values.__getitem__))
    outer.graph = graph
    return outer

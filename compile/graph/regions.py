"""Cut a captured graph at its repeated blocks and compile each kind of block once.

A model of twelve equal layers is one graph with twelve times the same operations, and a compiler works on all of them.
``split`` cuts the graph at the layers.  Regions are equal if they have the same operations and inputs of the same
shape, stride and dtype; one compiled function serves all equal regions.  The rest of the graph (embeddings, head and
loss) is compiled as well if it has something to fuse.
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
"""Least operations of a region that is compiled by itself.  A smaller repeated region is better fused with its
neighbours; another smaller region is left to eager kernels."""
FUSED = 3
"""Least operations, not counting ``VIEWS``, of a region with something to fuse: a norm and the loss head have fewer."""
_SHAPES = ("view", "reshape", "flatten", "unflatten", "expand", "squeeze", "unsqueeze", "size")
VIEWS = {*_SHAPES, "transpose", "permute", "t", "getitem", "contiguous", "detach"}
SHARE = 1 / 3
"""Least share of the graph's operations that cutting must spare the compiler, or else it does not pay."""
_NUMBERED = re.compile(r"(\.\d+|\[\d+\])$")

Compiled = Callable[..., Any]
Compiler = Callable[[fx.GraphModule, Sequence[Any]], Compiled]


@dataclass
class Region:
    """Consecutive operations of a graph."""

    nodes: list[fx.Node]
    inputs: list[fx.Node] = field(init=False)
    """Values from outside that the operations take, in the order of use."""
    outputs: list[fx.Node] = field(init=False)
    """Operations whose results are used outside."""
    key: Hashable = field(init=False)
    """Equal for regions that one compiled function can serve."""
    repeated: bool = False
    """Whether another region has the same key."""

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
        """Return whether the region is left to eager kernels."""
        computing = sum(called_name(node) not in VIEWS for node in self.nodes)
        return not self.repeated and (len(self.nodes) < SMALLEST or computing < FUSED)

    @property
    def closed(self) -> bool:
        """Return whether only tensors go in and out, and grad mode and autocast are the same before and after."""
        grad, casts = True, 0
        for node in self.nodes:
            name = called_name(node)
            grad = bool(node.args[0]) if name == "_set_grad_enabled" else grad
            casts += (name == "_enter_autocast") - (name == "_exit_autocast")
        return grad and not casts and all(_tensor(node) is not None for node in (*self.inputs, *self.outputs))


def _tensor(node: fx.Node) -> torch.Tensor | None:
    """Return the fake tensor of a node, or None if it is no tensor or has symbolic sizes."""
    value = node.meta.get("example_value")
    fixed = isinstance(value, torch.Tensor) and all(isinstance(size, int) for size in value.shape)
    return value if fixed else None


def _kind(node: fx.Node) -> Hashable:
    """Return the properties of an input that compiled code depends on."""
    value = _tensor(node)
    if value is None:
        return node.name
    return (tuple(value.shape), value.stride(), value.dtype, value.device, value.requires_grad, type(value))


def _path(node: fx.Node) -> tuple[str, ...]:
    """Return the numbered modules (of a ``Sequential`` or ``ModuleList``) that a node belongs to, outermost first."""
    stack = node.meta.get("nn_module_stack") or {}
    return tuple(str(path) for path, *_ in stack.values() if _NUMBERED.search(str(path)))


def split(gm: fx.GraphModule) -> list[Region]:
    """Cut a captured graph into regions.

    Args:
        gm: Dynamo's captured graph.

    Returns:
        The regions in the order of the graph; none if cutting does not pay or is not possible.
    """
    nodes = [node for node in gm.graph.nodes if node.op.startswith("call_")]
    if compiles_for_buckets():
        return []  # DDP's optimizer asks the compiler about each bucket's graph, as one piece
    if any(node.op == "call_module" for node in nodes) or not nodes:
        return []
    regions = [Region(nodes)]
    for depth in range(max(len(_path(node)) for node in nodes)):
        regions = [part for region in regions for part in _divided(region, depth)]
        counts = Counter(region.key for region in regions)
        for region in regions:
            region.repeated = counts[region.key] > 1 and len(region.nodes) >= SMALLEST
    regions = _joined(regions)
    if not any(region.repeated for region in regions):
        return []
    if operations(regions) > (1 - SHARE) * len(nodes) or not all(region.closed for region in regions):
        return []
    return regions


def _divided(region: Region, depth: int) -> list[Region]:
    """Cut a region at each change of the numbered module at ``depth``; a repeated region stays whole."""
    if region.repeated:
        return [region]
    runs: list[list[fx.Node]] = []
    before: object = runs  # differs from every path
    for node in region.nodes:
        path = _path(node)[: depth + 1]
        module = path[depth] if len(path) > depth else None
        if module != before:
            runs.append([])
        runs[-1].append(node)
        before = module
    return [Region(run) for run in runs]


def _joined(regions: list[Region]) -> list[Region]:
    """Join neighbours that are not repeated."""
    joined: list[Region] = []
    for region in regions:
        if joined and not joined[-1].repeated and not region.repeated:
            joined[-1] = Region(joined[-1].nodes + region.nodes)
        else:
            joined.append(region)
    return joined


def summary(regions: list[Region]) -> str:
    """Return a line for people: the repeated blocks, and the operations that the compiler works on."""
    kinds = Counter(region.key for region in regions if region.repeated)
    total = sum(len(region.nodes) for region in regions)
    return (
        f"{kinds.total()} repeated blocks, {len(kinds)} compiled: {operations(regions)} of {total} operations"
    )


def operations(regions: list[Region]) -> int:
    """Return the number of operations that the compiler works on."""
    return sum({region.key: len(region.nodes) for region in regions if not region.small}.values())


def compile_regions(
    gm: fx.GraphModule, example_inputs: Sequence[Any], regions: list[Region], compiler: Compiler
) -> Compiled:
    """Compile each kind of region once and return a function that runs the regions one after another.

    Args:
        gm: Dynamo's captured graph.
        example_inputs: its inputs.
        regions: the result of ``split``.
        compiler: compiles a graph for example inputs.
    """
    mode = tracing_fake_mode(example_inputs)
    functions: dict[Hashable, Compiled] = {}
    for region in regions:
        if region.key not in functions and not region.small:
            with fresh_tracing(mode):
                inputs = [_fake(node) for node in region.inputs]
                functions[region.key] = compiler(extract(gm, region), inputs)
    parts = [(region, None if region.small else functions[region.key]) for region in regions]
    return assemble(gm, parts).forward


def _fake(node: fx.Node) -> torch.Tensor:
    """Return a fake tensor like the node's value, as a leaf of autograd."""
    value = _tensor(node)
    assert value is not None
    with fake_mode_of(value):
        leaf = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=value.device)
    return leaf.requires_grad_(value.requires_grad)


def extract(gm: fx.GraphModule, region: Region) -> fx.GraphModule:
    """Return the region as a graph of its own."""
    graph, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    for number, node in enumerate(region.inputs):
        copies[node] = graph.placeholder(f"input_{number}")
        copies[node].meta = dict(node.meta)
    for node in region.nodes:
        copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output(tuple(copies[node] for node in region.outputs))
    return fx.GraphModule(gm, graph)


class _Compiled(torch.nn.Module):
    """Module that holds a compiled region for the graph that calls it."""

    def __init__(self, run: Compiled) -> None:
        super().__init__()
        self.forward = run


def assemble(gm: fx.GraphModule, parts: Sequence[tuple[Region, Compiled | None]]) -> fx.GraphModule:
    """Return the graph with calls of functions in the place of some of its parts.

    Args:
        gm: Dynamo's captured graph.
        parts: all operations of the graph in their order, each with the function that computes them; ``None``: they
            stay in the graph.
    """
    graph, values = fx.Graph(), dict[fx.Node, fx.Node]()
    root = fx.GraphModule(gm, gm.graph)
    for node in gm.graph.nodes:
        if node.op in ("placeholder", "get_attr"):
            values[node] = graph.node_copy(node)
    for number, (region, function) in enumerate(parts):
        if function is None:
            for node in region.nodes:
                values[node] = graph.node_copy(node, values.__getitem__)
            continue
        name = f"part_{number}"
        while hasattr(root, name):  # a part of a graph that was assembled before
            name += "_"
        root.add_submodule(name, _Compiled(function))
        call = graph.call_module(name, tuple(values[node] for node in region.inputs))
        for place, node in enumerate(region.outputs):
            values[node] = graph.call_function(operator.getitem, (call, place))
            values[node].meta = dict(node.meta)
    graph.output(fx.node.map_arg(gm.graph.output_node().args[0], values.__getitem__))
    return fx.GraphModule(root, graph)

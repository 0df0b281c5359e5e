"""Pass that turns on the Triton kernel of the loss head on GPUs; the search measures if it is faster."""

from __future__ import annotations

import torch
from torch import fx

from ...loss_head.kernels import is_interpreted, runs_kernels
from ...torch_internals import argument_position
from .rewriting import Outcome, require, rewrite, value_of


def loss_kernel(gm: fx.GraphModule) -> list[Outcome]:
    """Switch the kernel on in each ``linear_cross_entropy`` that the pass ``loss_head`` put on a GPU.

    Args:
        gm: Dynamo's captured graph, before AOTAutograd, with ``example_value`` in its nodes' meta.

    Returns:
        One outcome for each of these operators; none on a CPU, which has no such kernel.
    """
    return rewrite(gm, _matches, _switch, "loss_kernel")


def _matches(node: fx.Node) -> bool:
    from ...loss_head.op import OPERATOR  # registers the operator

    return node.target is OPERATOR and (is_interpreted() or value_of(node.args[0]).device.type != "cpu")


def _switch(node: fx.Node) -> int:
    """Set the operator's argument ``kernel``."""
    x = value_of(node.args[0])
    require(x.dtype != torch.float64, "float64 stays with torch's operations")
    require(runs_kernels(x.device), f"Triton compiles nothing for {x.device} here")
    node.update_arg(argument_position(node.target, "kernel"), True)
    return 0

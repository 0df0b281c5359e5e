"""The loss head's pass over its logits by one Triton kernel, on GPUs; which is faster is measured."""

from __future__ import annotations

import torch
from torch import fx

from ...linear_cross_entropy.kernels import interpreted, runs_kernels
from ...linear_cross_entropy.op import linear_cross_entropy_op
from .rewriting import Outcome, require, rewrite, value_of

OPERATOR = linear_cross_entropy_op._opoverload
KERNEL = [argument.name for argument in OPERATOR._schema.arguments].index("kernel")


def loss_kernel(gm: fx.GraphModule) -> list[Outcome]:
    """Switch the kernel on in each ``linear_cross_entropy`` that the pass ``loss_head`` put on a GPU.

    Args:
        gm: Dynamo's captured graph, before AOTAutograd, with ``example_value`` in its nodes' meta.

    Returns:
        One outcome for each of them; none on a CPU, where there is no such kernel.
    """
    return rewrite(gm, _found, _switch, "loss kernel")


def _found(node: fx.Node) -> bool:
    return node.target is OPERATOR and (interpreted() or value_of(node.args[0]).device.type != "cpu")


def _switch(node: fx.Node) -> int:
    x = value_of(node.args[0])
    require(x.dtype != torch.float64, "float64 stays with torch's operations")
    require(runs_kernels(x.device), f"Triton compiles nothing for {x.device} here")
    node.update_arg(KERNEL, True)
    return 0

"""Activation checkpointing in captured graphs that run by eager kernels.

Dynamo puts an operator in the place of ``torch.utils.checkpoint`` that is meant for Inductor.  Run by eager kernels, it does not
keep the random state: dropout draws another mask in the backward pass than in the forward pass.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx
from torch.utils.checkpoint import checkpoint


def keep_random_states(gm: fx.GraphModule) -> None:
    """Let a graph and its inner graphs call ``torch.utils.checkpoint`` as the captured function did."""
    for graph in gm.modules():
        if not isinstance(graph, fx.GraphModule):
            continue
        nodes = [n for n in graph.graph.nodes if n.target is torch.ops.higher_order.tag_activation_checkpoint]
        for node in nodes:
            node.target = _checkpoint
        if nodes:
            graph.recompile()


def _checkpoint(graph: fx.GraphModule, *inputs: Any, **options: Any) -> Any:
    """Run an inner graph under activation checkpointing, with the options of the captured call."""
    if "_checkpoint_context_fn" in graph.meta:  # selective checkpointing
        options["context_fn"] = graph.meta["_checkpoint_context_fn"]
    return checkpoint(graph.forward, *inputs, **options)

"""Pass that runs attention over short sequences in bfloat16 on a CPU by torch's float32 kernel, which is faster.

The backward pass of torch's kernel in bfloat16 costs twice that in float32 if sequences are short (8 x 4 heads of
128 x 64: 23 and 13 ms, 16 x 3 heads of 64 x 64: 11 and 5 ms; from a length of 512 on the two are even; AMD EPYC, one
core, AVX512 with its bfloat16 products).  Processors with AMX have another kernel, and the pass leaves them alone.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import fx

from ...torch_internals import autocast_calls
from .rewriting import Inserter, Outcome, require, rewrite, value_of

LONGEST = 256
"""Largest number of queries and keys of a short sequence."""
NAMES = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
"""Positional arguments of ``scaled_dot_product_attention``."""


def short_attention(gm: fx.GraphModule) -> list[Outcome]:
    """Run each ``scaled_dot_product_attention`` in float32 if that is faster; its result is bfloat16 again.

    Args:
        gm: Dynamo's captured graph, before AOTAutograd, with ``example_value`` in its nodes' meta.

    Returns:
        One outcome for each attention in bfloat16 on a CPU.
    """
    return rewrite(gm, _is_low, _rewrite, "short_attention")


def _is_low(node: fx.Node) -> bool:
    """Return whether the node is an attention in bfloat16 on a CPU without AMX."""
    if node.target is not F.scaled_dot_product_attention:
        return False
    result = node.meta.get("example_value")
    low = isinstance(result, torch.Tensor) and result.dtype == torch.bfloat16 and result.device.type == "cpu"
    return low and not torch.cpu.get_capabilities().get("amx_bf16", False)


def _rewrite(node: fx.Node) -> int:
    """Put casts around the attention, and turn autocast off between them, which would undo the casts."""
    arguments = dict(zip(NAMES, node.args, strict=False)) | node.kwargs
    inputs, mask = [arguments.pop(name) for name in NAMES[:3]], arguments.get("attn_mask")
    lengths = [value_of(tensor).shape[-2] for tensor in inputs[:2]]
    short = all(isinstance(length, int) and length <= LONGEST for length in lengths)
    require(short, "the sequences are long, or their length changes")
    require(mask is None or value_of(mask).dtype == torch.bool, "its mask is of numbers")
    require(bool(arguments.get("dropout_p", 0.0) == 0.0), "its dropout would draw other masks")
    graph, insert = node.graph, Inserter(node, value_of(node))
    enter, leave = autocast_calls()
    with graph.inserting_before(node):
        wide = [insert("float", tensor) for tensor in inputs]
        off = graph.call_function(enter, ("cpu", None, False, None))
        with torch.autocast("cpu", enabled=False):
            result = insert(F.scaled_dot_product_attention, *wide, **arguments)
        graph.call_function(leave, (off,))
        low = insert("to", result, torch.bfloat16)
    node.replace_all_uses_with(low)
    graph.erase_node(node)
    return 0

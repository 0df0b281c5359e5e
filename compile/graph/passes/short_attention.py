"""Attention over short sequences in bfloat16 on a CPU: torch's kernel is run in float32, which is faster.

Its backward pass in bfloat16 costs twice that in float32 where sequences are short (8 x 4 heads of 128 x 64: 23 and
13 ms, 16 x 3 heads of 64 x 64: 11 and 5 ms; from 512 on the two are even; AMD EPYC, one core, AVX512 with its bfloat16
products).  Processors with AMX have another kernel and are left alone.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import fx

from .rewriting import Outcome, Put, require, rewrite, value_of

LONGEST = 256
"""Queries and keys."""
NAMES = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
"""Arguments that may come by position."""


def short_attention(gm: fx.GraphModule) -> list[Outcome]:
    """Run in float32 each ``scaled_dot_product_attention`` for which that is faster; the result is bfloat16 again.

    Args:
        gm: Dynamo's captured graph, before AOTAutograd, with ``example_value`` in its nodes' meta.

    Returns:
        One outcome for each attention in bfloat16 on a CPU.
    """
    return rewrite(gm, _is_low, _rewrite, "short attention")


def _is_low(node: fx.Node) -> bool:
    if node.target is not F.scaled_dot_product_attention:
        return False
    made = node.meta.get("example_value")
    low = isinstance(made, torch.Tensor) and made.dtype == torch.bfloat16 and made.device.type == "cpu"
    return low and not torch.cpu.get_capabilities().get("amx_bf16", False)


def _rewrite(node: fx.Node) -> int:
    """Put casts around the attention, which autocast must not take back."""
    given = dict(zip(NAMES, node.args, strict=False)) | node.kwargs
    parts, mask = [given.pop(name) for name in NAMES[:3]], given.get("attn_mask")
    lengths = [value_of(part).shape[-2] for part in parts[:2]]
    short = all(isinstance(length, int) and length <= LONGEST for length in lengths)
    require(short, "sequences are long, or of changing length")
    require(mask is None or value_of(mask).dtype == torch.bool, "its mask is of numbers")
    require(bool(given.get("dropout_p", 0.0) == 0.0), "its dropout would draw other masks")
    graph, put = node.graph, Put(node, value_of(node))
    with graph.inserting_before(node):
        wide = [put("float", part) for part in parts]
        off = graph.call_function(torch.amp.autocast_mode._enter_autocast, ("cpu", None, False, None))
        with torch.autocast("cpu", enabled=False):
            made = put(F.scaled_dot_product_attention, *wide, **given)
        graph.call_function(torch.amp.autocast_mode._exit_autocast, (off,))
        low = put("to", made, torch.bfloat16)
    node.replace_all_uses_with(low)
    graph.erase_node(node)
    return 0

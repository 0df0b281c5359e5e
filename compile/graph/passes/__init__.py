"""Graph passes, one a file.  Each rewrites Dynamo's captured graph in place, before AOTAutograd."""

from .attention import attention
from .loss_head import loss_head
from .loss_kernel import loss_kernel
from .rewriting import Outcome
from .short_attention import short_attention

PASSES = {
    "loss_head": loss_head,
    "loss_kernel": loss_kernel,
    "attention": attention,
    "short_attention": short_attention,
}
"""Name -> pass, in the order in which the passes run; the names are those of ``Plan.passes``."""
USUAL = tuple(name for name in PASSES if name != "loss_kernel")
"""Passes of the search's first candidate, and of steps and models that are compiled without a search."""

__all__ = ["PASSES", "USUAL", "Outcome"]

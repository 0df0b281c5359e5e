"""Rewrites of the training graph, one a file.  Each takes Dynamo's captured graph and changes it in place."""

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
"""Name -> pass, in the order in which they run."""
USUAL = tuple(name for name in PASSES if name != "loss_kernel")
"""Those that are on where nothing is measured."""

__all__ = ["PASSES", "USUAL", "Outcome"]

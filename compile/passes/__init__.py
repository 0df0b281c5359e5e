"""Rewrites of the training graph, one a file.  Each takes Dynamo's captured graph and changes it in place."""

from .attention import attention
from .loss_head import loss_head
from .rewriting import Outcome
from .short_attention import short_attention

PASSES = {"loss_head": loss_head, "attention": attention, "short_attention": short_attention}
"""Name -> pass, in the order in which they run."""

__all__ = ["PASSES", "Outcome"]

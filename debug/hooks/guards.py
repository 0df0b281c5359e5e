"""Tell whether a hook runs outside the training loop's own eager pass."""

from __future__ import annotations

import torch

from loopwise import preserve


def captures() -> bool:
    """Whether a CUDA graph is being captured, in which nothing may be waited for."""
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


def absent() -> bool:
    """Whether this forward pass is none of the training loop's: one that measures, or a recomputation."""
    return preserve.inside() or torch._C._current_graph_task_id() >= 0

"""Models that the compile benchmarks train, each with a batch made from a seed."""

from collections.abc import Callable
from typing import Any

from . import images, plain, speech, unet
from .language import language_models, written_out
from .vision import vision_models

MODELS: dict[str, Callable[[], tuple[Any, Any, Any]]] = {
    **language_models(),
    **vision_models(),
    **images.MODELS,
    **speech.MODELS,
    **unet.MODELS,
    **plain.MODELS,
}
"""Name -> function that makes (model, loss, batch)."""

OTHERS = {
    "gpt2 (eager attention)": written_out("gpt2"),
    "llama (eager attention)": written_out("llama"),
    "bert (eager attention)": written_out("bert"),
}
"""Models whose attention is written out; only looked at for what the passes find in them."""

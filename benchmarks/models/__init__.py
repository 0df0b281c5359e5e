"""Models that the compile benchmarks train, each with a batch made from a seed."""

from .language import language_models, written_out
from .vision import swin, vision_models

MODELS = {**language_models(), **vision_models()}
"""Name -> function that makes (model, loss, batch)."""

OTHERS = {
    "swin_t": swin,
    "gpt2 (eager attention)": written_out("gpt2"),
    "llama (eager attention)": written_out("llama"),
    "bert (eager attention)": written_out("bert"),
}
"""Models whose attention is written out; only looked at for what the passes find in them."""

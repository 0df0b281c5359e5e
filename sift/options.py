"""Checks of the loader's arguments, at the door."""

from __future__ import annotations

from typing import Any

from torch import nn

from loopwise.errors import InputError
from loopwise.wrappers import is_sharded

from .policies import Policy
from .selection import PLANNABLE


def whole(name: str, value: object, least: int, unit: str = "batches") -> None:
    """``value`` must be an int of at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InputError(
            f"{name}={value!r}",
            f"a whole number of {unit}, at least {least}",
            "a fraction, a negative number or a text",
            f"pass for instance {name}={max(least, 4)}",
        )


def arguments(
    keep: Any,
    policy: Any,
    delay: Any,
    epochs: Any,
    anneal: Any,
    score_every: Any,
    pool: Any,
    compile: Any,
) -> None:
    """Check what does not depend on the wrapped loader."""
    if keep is not None and policy is not None and not callable(keep):
        raise InputError(
            f"keep={keep!r} and policy={policy!r}",
            "one of keep and policy",
            "a policy says itself how much it keeps",
            "drop keep, and give the share to the policy where it takes one",
        )
    whole("delay", delay, 0)
    if pool != "auto":
        whole("pool", pool, 1)
    if score_every != "auto":
        whole("score_every", score_every, 0, "epochs")
    if epochs is not None:
        whole("epochs", epochs, 1, "epochs")
    if isinstance(anneal, bool) or not isinstance(anneal, (int, float)) or not 0 <= anneal < 1:
        raise InputError(
            f"anneal={anneal!r}",
            "the last share of training that uses all data, a number in [0, 1)",
            "a percentage or a number of epochs instead of a fraction",
            "pass a fraction, for instance anneal=0.125",
        )
    if compile not in (True, False, "auto"):
        raise InputError(
            f"compile={compile!r}",
            "True, False or 'auto'",
            "a mode or options of torch.compile",
            "pass compile='auto' to have it tried and measured",
        )
    if anneal and epochs is None:
        raise InputError(
            f"anneal={anneal!r} without epochs",
            "epochs, the number of epochs of the whole training",
            "the end of training is not known to the loader",
            "pass epochs= as well",
        )


def needs(policy: Policy, score_every: int, criterion: bool) -> None:
    """Check that what a policy needs can be had."""
    inside = set(policy.needs) & {"gradients", "features"}
    if inside and not criterion:
        raise InputError(
            f"policy {policy!r} with a loss of (model, batch)",
            "a per-sample criterion for (input, target) batches",
            f"it needs {' and '.join(sorted(inside))}, which a function of (model, batch) hides",
            "pass loss=nn.CrossEntropyLoss(reduction='none') or the like, or another policy",
        )
    late = set(policy.needs) - PLANNABLE
    if late and score_every != 1:
        raise InputError(
            f"policy {policy!r} with score_every={score_every}",
            "score_every=1",
            f"it needs {' and '.join(sorted(late))}, which only a scoring pass gives",
            "leave score_every at 'auto' or set it to 1",
        )


def sharded(model: nn.Module, score_every: int, auto: bool) -> bool:
    """Whether ``model`` is sharded by FSDP; then nothing that a rank decides by itself may stop a scoring pass."""
    found = is_sharded(model)
    if found and score_every and auto:
        raise InputError(
            f"a model sharded by fully_shard with auto=True and score_every={score_every}",
            "auto=False, or score_every=0: losses of the training steps",
            "each rank would decide by its own clock whether to score, and scoring takes all ranks",
            "drop auto; report() tells whether scoring pays",
        )
    return found


def criterion(loss: Any) -> None:
    """Check that torch's own criteria do not reduce."""
    reduction = getattr(loss, "reduction", "none")
    if reduction in ("mean", "sum"):
        raise InputError(
            f"a criterion with reduction={reduction!r}",
            "one loss a sample: reduction='none'",
            "the criterion of the training step was passed, which averages over the batch",
            f"pass loss={type(loss).__name__}(reduction='none'); the one in the training step stays as it is",
        )

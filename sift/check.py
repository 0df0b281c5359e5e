"""Checks of the loader's arguments, at the door."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.distributed.fsdp import FSDPModule

from loopwise.errors import InputError

from .choose import PLANNABLE
from .policies import Policy


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
    keep: Any, policy: Any, delay: Any, epochs: Any, anneal: Any, score_every: Any, pool: Any
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


def sharded(model: nn.Module, score_every: int) -> None:
    """Check that a model sharded by FSDP needs no scoring pass."""
    if score_every and any(isinstance(module, FSDPModule) for module in model.modules()):
        raise InputError(
            f"a model sharded by fully_shard with score_every={score_every}",
            "score_every=0: losses of the training steps",
            "a scoring pass would gather weights on one rank while another trains, and both would wait for ever",
            "give a plain DataLoader over a map-style dataset and a criterion, or pass an unsharded scorer=",
        )


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

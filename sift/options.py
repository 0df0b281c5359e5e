"""Validation of the loader's arguments, which the callbacks share."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from loopwise import validate
from loopwise.errors import InputError, StateError
from loopwise.ranks import rank, world_size
from loopwise.wrappers import is_sharded

from .policies import Policy, ProportionalLoss, RelativeLoss, as_policy
from .policies.policy import check_keep
from .selection import PLANNABLE, refuse_weights
from .source import NO_INDEX

SWITCH = validate.one_of, (False, True)
RULES: dict[str, tuple[Any, ...]] = {
    "delay": (validate.whole_number, 0, "batches", 4),
    "delay_every_epoch": SWITCH,
    "epochs": (validate.whole_number, 1, "epochs", 10),
    "anneal": (validate.fraction, "the last share of training that uses all data", 0.125, True),
    "score_every": (validate.whole_number, 0, "epochs", 1),
    "weights": SWITCH,
    "classes": (
        validate.function,
        "a function from a batch to its class labels, int64 of shape (batch,)",
        "classes=lambda batch: batch[1]",
    ),
    "scorer": (
        validate.instance,
        nn.Module,
        "a module that takes the model's input",
        "pass for instance scorer=LowResolution(model)",
    ),
    "auto": SWITCH,
    "pool": (validate.whole_number, 1, "batches", 4),
    "dtype": (
        validate.one_of,
        ("auto", torch.float32, torch.bfloat16, torch.float16),
        "the name of a dtype, or one of integers",
    ),
    "compile": (
        validate.one_of,
        (False, True, "auto"),
        "a mode or options of torch.compile",
        "pass compile='auto' to have it tried and measured",
    ),
    "batch_size": (validate.whole_number, 1, "samples", 32),
    "drop_last": SWITCH,
    "concatenate": (
        validate.function,
        "a function from a list of batches and the list of their sizes to one batch",
        "concatenate=Padded({'labels': -100})",
    ),
    "seed": (validate.whole_number, 0, "", 0),
    "resume": SWITCH,
}
"""Option -> function that validates its name and value, and the function's further arguments."""

FLOOR = 0.25
"""Least keep probability by the policy of ``keep``, as a fraction of it."""


def default_policy(keep: Any) -> Policy:
    """Return the policy of a loader that was given none."""
    if keep is None:
        return ProportionalLoss()
    share = check_keep(keep(0) if callable(keep) else keep)
    return RelativeLoss(share, floor=FLOOR * share)


def validate_option(name: str, value: Any) -> None:
    """Raise an error if the value of an option breaks the rule for it; options without a rule pass."""
    if name in RULES:
        rule, *arguments = RULES[name]
        rule(name, value, *arguments)


def validate_options(options: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """Raise an error if an option that is not at its default is invalid or does not fit another one."""
    changed = {name: value for name, value in options.items() if value is not defaults[name]}
    for name, value in changed.items():
        validate_option(name, value)
    keep, policy = changed.get("keep"), changed.get("policy")
    if policy is not None:
        as_policy(policy)
    if keep is not None and not callable(keep):
        check_keep(keep)
        if policy is not None:
            raise InputError(
                f"keep={keep!r} and policy={policy!r}",
                "one of keep and policy",
                "a policy itself defines how much it keeps",
                "drop keep, and give the share to the policy if it takes one",
            )
    if changed.get("anneal") and "epochs" not in changed:
        raise InputError(
            f"anneal={changed['anneal']!r} without epochs",
            "epochs, the number of epochs of the whole training",
            "the loader does not know the end of training",
            "pass epochs= as well",
        )
    run, resume = changed.get("run"), changed.get("resume", False)
    if run is None and resume:
        raise InputError(
            "resume=True without run",
            "run=, the folder of the run to go on in",
            "run= was forgotten, or resume= is meant for load_state_dict",
            "pass run= as well, or leave resume out",
        )
    if run is not None and not isinstance(run, (str, os.PathLike)):
        from loopwise.run import as_run  # the import of fsspec takes 20 ms

        as_run(run, "sift", resume)  # it validates a Run, and opens nothing


def validate_passed_on(options: Mapping[str, Any], defaults: Mapping[str, Any], place: str) -> None:
    """Validate options of the loader that a callback or a Trainer will pass on to it when training begins.

    Args:
        options: names and values.
        defaults: all options of the loader and their defaults.
        place: call or argument in the user's code, such as ``SiftingCallback(...)``.

    Raises:
        InputError: an unknown name or an invalid value; the message names ``place``.
    """
    if unknown := [name for name in options if name not in defaults]:
        raise InputError(
            f"{', '.join(unknown)} in {place}",
            f"options of SiftingDataLoader: {', '.join(defaults)}",
            "a typo",
            "use one of these names",
        )
    try:
        validate_options(options, defaults)
    except InputError as error:
        seen, expected, cause, fix = error.args
        raise InputError(f"{seen} in {place}", expected, cause, f"{fix} in {place}") from None


def validate_arguments(loader: Any, model: Any, loss: Any, score_every: Any = 0) -> None:
    """Raise an error unless the arguments are an iterable of batches, a module, and a loss with one value per sample."""
    fix = "pass the arguments in the order loader, model, loss, or by name"
    validate.instance("loader", loader, Iterable, "an iterable of batches, such as a DataLoader", fix)
    validate.instance("model", model, nn.Module, "an nn.Module", fix)
    if loss is not None:
        validate_loss(loss)
    elif score_every not in (0, "auto"):
        raise InputError(
            f"loss=None with score_every={score_every!r}",
            "a loss, which a scoring pass needs",
            "losses from the training loop, by criterion() or record_losses(), need no scoring",
            "pass loss=, or drop score_every",
        )


def validate_loss(loss: Any) -> None:
    """Raise an error if ``loss`` is no function, or one of torch's criteria that averages or sums."""
    expected = "a criterion that returns one loss per sample, or a function of (model, batch)"
    validate.function("loss", loss, expected, "loss=nn.CrossEntropyLoss(reduction='none')")
    if (reduction := getattr(loss, "reduction", "none")) in ("mean", "sum"):
        raise InputError(
            f"a criterion with reduction={reduction!r}",
            "one loss per sample: reduction='none'",
            "the criterion of the training step was passed, which reduces over the batch",
            f"pass loss={type(loss).__name__}(reduction='none'); the one in the training step stays as it is",
        )


def validate_recording(policy: Policy, score_every: int, automatic: bool) -> None:
    """Raise an error if losses that the loop records do not fit the loader's other arguments."""
    if score_every and not automatic:
        raise InputError(
            f"criterion() of a loader with score_every={score_every}",
            "score_every=0 or 'auto': losses of the training steps",
            "samples would be scored by forward passes as well",
            "drop score_every",
        )
    validate_needs(policy, 0, True)


def validate_batch_score(indices: torch.Tensor | None, policy: Policy) -> None:
    """Raise an error if the batch's one loss cannot be a score of its samples."""
    if indices is None:
        raise InputError("the loss of a batch without indices of the samples", "known indices", *NO_INDEX)
    if any(isinstance(part, ProportionalLoss) for part in (policy, *getattr(policy, "parts", ()))):
        raise InputError(
            f"the loss of a whole batch for policy {policy!r}",
            "a policy that ranks samples, or compares them with their mean",
            "averages of batch losses are nearly equal, so that a rule on their scale would keep every sample",
            "pass policy=PrunedHistory(), or record one loss for each sample",
        )


def validate_needs(policy: Policy, score_every: int, criterion: bool) -> None:
    """Raise an error if the loader cannot provide the needs of the policy."""
    of_output = set(policy.needs) & {"gradients", "features"}
    if of_output and not criterion:
        raise InputError(
            f"policy {policy!r} with a loss of (model, batch)",
            "a per-sample criterion for (input, target) batches",
            f"it needs {' and '.join(sorted(of_output))}, which a function of (model, batch) hides",
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


def validate_weights(policy: Policy) -> None:
    """Raise an error if the policy leaves some samples no chance, which no importance weights make up for."""
    if not policy.reaches_all:
        refuse_weights(f"weights=True with policy {policy!r}")


def validate_sharded(model: nn.Module, score_every: int, auto: bool) -> bool:
    """Return whether FSDP2 shards ``model``; refuse options by which a single rank could skip a scoring pass."""
    sharded = is_sharded(model)
    if sharded and score_every and auto:
        raise InputError(
            f"a model sharded by fully_shard with auto=True and score_every={score_every}",
            "auto=False, or score_every=0: losses of the training steps",
            "each rank would decide by its own clock whether to score, and scoring takes all ranks",
            "drop auto; report() tells whether scoring pays",
        )
    return sharded


def validate_recorded(losses: Any, indices: torch.Tensor | None) -> torch.Tensor:
    """Return the indices of the last batch's samples if they are known and ``losses`` has one loss for each."""
    shapes = () if indices is None else (indices.shape, (len(indices), 1))  # (batch, 1): regression
    if isinstance(losses, torch.Tensor) and losses.shape in shapes and indices is not None:
        return indices
    shape = f" of shape {tuple(losses.shape)}" if isinstance(losses, torch.Tensor) else ""
    raise InputError(
        f"record_losses() of a {type(losses).__name__}{shape}",
        "a batch whose samples have known indices"
        if indices is None
        else f"a Tensor of shape {tuple(indices.shape)}: the losses of the last batch",
        "losses of another batch or averaged ones, or a loader that hides the samples' indices",
        "call it after each batch with reduction='none'; wrap the dataset in Indexed if the indices are hidden",
    )


def validate_recorded_in_time(late: bool) -> None:
    """Raise an error if losses came after the epoch although its last batch had them: they were one batch late."""
    if late:
        raise StateError(
            "record_losses() after the epoch, for a last batch whose losses were recorded before",
            "one call for each batch, before the next one is fetched",
            "the loop fetches a batch ahead, so that losses were remembered for the samples of the batch after theirs",
            "fetch no batch ahead; or use criterion = loader.criterion(nn.CrossEntropyLoss()), or its like, in the loop",
        )


def validate_state(state: Any) -> None:
    """Raise an error if ``state`` is no state of a loader on this rank and of this world size.

    Raises:
        InputError: ``state`` is no state of a loader.
        StateError: the state is that of another rank or world size.
    """
    if not isinstance(state, Mapping) or "pipeline" not in state:
        raise InputError(
            f"a state of type {type(state).__name__}",
            "the dict that state_dict() of a SiftingDataLoader returned",
            "the state of another object, or a file name",
            "pass the state that was saved from the loader",
        )
    if (state["world"], state["rank"]) != (world_size(), rank()):
        raise StateError(
            f"the state of rank {state['rank']} of {state['world']}",
            f"the state of rank {rank()} of {world_size()}",
            "each rank has its own state, and another number of ranks divides samples differently",
            "save and load one state per rank, with the same number of ranks",
        )

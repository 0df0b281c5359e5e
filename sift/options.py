"""Options of the loader and the validation of its arguments, which the callbacks share."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from loopwise import batch as batches
from loopwise import validate
from loopwise.errors import InputError, StateError
from loopwise.ranks import rank, world_size
from loopwise.wrappers import is_sharded

from .buffer import Concatenate
from .policies import Policy, RelativeLoss, as_policy
from .policies.policy import check_keep
from .selection import PLANNABLE

if TYPE_CHECKING:
    from loopwise.run import Run, RunHandle

FLOOR = 0.25
"""Least keep probability by the default policy, as a fraction of ``keep``."""
SWITCH = (False, True)
WHOLE_NUMBERS = {
    "delay": (0, "batches", 4),
    "pool": (1, "batches", 4),
    "score_every": (0, "epochs", 1),
    "epochs": (1, "epochs", 10),
    "batch_size": (1, "samples", 32),
    "seed": (0, "", 0),
}
"""Option -> least value, unit and example."""
CHOICES: dict[str, Any] = {
    **dict.fromkeys(("delay_every_epoch", "weights", "auto", "drop_last", "resume"), (SWITCH,)),
    "compile": (
        (*SWITCH, "auto"),
        "a mode or options of torch.compile",
        "pass compile='auto' to have it tried and measured",
    ),
    "dtype": (
        ("auto", torch.float32, torch.bfloat16, torch.float16),
        "the name of a dtype, or one of integers",
    ),
}
"""Option -> valid values, likely cause of another one, and fix."""
FUNCTIONS = {
    "classes": (
        "a function from a batch to its class labels, int64 of shape (batch,)",
        "classes=lambda batch: batch[1]",
    ),
    "concatenate": (
        "a function from a list of batches and the list of their sizes to one batch",
        "concatenate=Padded({'labels': -100})",
    ),
}
"""Option -> arguments and result of the function, and an example."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """Validated options of ``SiftingDataLoader``, which documents them."""

    keep: float | Callable[[int], float] | None = None
    policy: Policy | Callable[[torch.Tensor], torch.Tensor] | None = None
    delay: int = 0
    delay_every_epoch: bool = False
    epochs: int | None = None
    anneal: float = 0.0
    score_every: int | str = "auto"
    weights: bool = False
    classes: Callable[[Any], torch.Tensor] | None = None
    scorer: nn.Module | None = None
    auto: bool = False
    pool: int | str = "auto"
    dtype: torch.dtype | str = "auto"
    compile: bool | str = False
    batch_size: int | None = None
    drop_last: bool | None = None
    concatenate: Concatenate = batches.concatenate
    seed: int | None = None
    run: str | os.PathLike[str] | Run | None = None
    resume: bool = False

    def __post_init__(self) -> None:
        changed = {f.name: value for f in fields(self) if (value := getattr(self, f.name)) is not f.default}
        for name, value in changed.items():
            if name in WHOLE_NUMBERS:
                least, unit, example = WHOLE_NUMBERS[name]
                validate.whole_number(name, value, least, unit, example)
            elif name in CHOICES:
                validate.one_of(name, value, *CHOICES[name])
            elif name in FUNCTIONS:
                validate.function(name, value, *FUNCTIONS[name])
        if self.scorer is not None:
            expected, fix = (
                "a module that takes the model's input",
                "pass for instance scorer=LowResolution(model)",
            )
            validate_type("scorer", self.scorer, nn.Module, expected, fix)
        self._validate_selection()
        validate_run(self.run, self.resume)

    @property
    def share(self) -> float | Callable[[int], float] | None:
        """Share of samples to keep; ``None``: the policy defines it."""
        return 0.5 if self.keep is None and self.policy is None else self.keep

    def made_policy(self) -> Policy:
        """Return the policy, by default ``RelativeLoss`` with a floor."""
        if self.policy is not None:
            return as_policy(self.policy)
        share = check_keep(self.share(0) if callable(self.share) else self.share)  # type: ignore[arg-type]
        return RelativeLoss(share, floor=FLOOR * share)

    def opened_run(self) -> RunHandle | None:
        """Open the run, if there is one."""
        if self.run is None:
            return None
        from loopwise.run import as_run  # it imports fsspec, which takes 20 ms

        return as_run(self.run, "sift", self.resume)

    def _validate_selection(self) -> None:
        if self.keep is not None and not callable(self.keep):
            check_keep(self.keep)
            if self.policy is not None:
                raise InputError(
                    f"keep={self.keep!r} and policy={self.policy!r}",
                    "one of keep and policy",
                    "a policy itself defines how much it keeps",
                    "drop keep, and give the share to the policy if it takes one",
                )
        if self.policy is not None:
            as_policy(self.policy)
        validate.fraction(
            "anneal", self.anneal, "the last share of training that uses all data", 0.125, zero=True
        )
        if self.anneal and self.epochs is None:
            raise InputError(
                f"anneal={self.anneal!r} without epochs",
                "epochs, the number of epochs of the whole training",
                "the loader does not know the end of training",
                "pass epochs= as well",
            )


OPTION_NAMES = tuple(field.name for field in fields(Options))


def validate_passed_on(options: Mapping[str, Any], place: str) -> None:
    """Validate options of the loader that a callback or a Trainer will pass on to it when training begins.

    Args:
        options: names and values.
        place: the call or argument that the user wrote them in, such as ``SiftingCallback(...)``.

    Raises:
        InputError: an unknown name or an invalid value; the message names ``place``.
    """
    if unknown := [name for name in options if name not in OPTION_NAMES]:
        raise InputError(
            f"{', '.join(unknown)} in {place}",
            f"options of SiftingDataLoader: {', '.join(OPTION_NAMES)}",
            "a typo",
            "use one of these names",
        )
    try:
        Options(**options)
    except InputError as error:
        seen, expected, cause, fix = error.args
        raise InputError(f"{seen} in {place}", expected, cause, f"{fix} in {place}") from None


def validate_arguments(loader: Any, model: Any, loss: Any) -> None:
    """Raise an error if there is no iterable of batches, no module, or no loss that returns one value per sample."""
    fix = "pass the arguments in the order loader, model, loss, or by name"
    validate_type("loader", loader, Iterable, "an iterable of batches, such as a DataLoader", fix)
    validate_type("model", model, nn.Module, "an nn.Module", fix)
    validate_loss(loss)


def validate_type(name: str, value: Any, kind: type, expected: str, fix: str) -> None:
    """Raise an error if ``value`` is not of the type ``kind``."""
    if not isinstance(value, kind):
        is_class = isinstance(value, type)
        raise InputError(
            f"{name}={value.__name__}, a class" if is_class else f"{name} of type {type(value).__name__}",
            expected,
            "the class was passed, not an instance" if is_class else "arguments changed places",
            fix,
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


def validate_run(run: Any, resume: bool) -> None:
    """Raise an error if ``run`` and ``resume`` name no run; a path is not opened."""
    if run is None and resume:
        raise InputError(
            "resume=True without run",
            "run=, the folder of the run to go on in",
            "run= was forgotten, or resume= is meant for load_state_dict",
            "pass run= as well, or leave resume out",
        )
    if run is not None and not isinstance(run, (str, os.PathLike)):
        from loopwise.run import as_run

        as_run(run, "sift", resume)


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
    if indices is not None and isinstance(losses, torch.Tensor) and losses.shape == indices.shape:
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


def validate_state(state: Any) -> None:
    """Raise an error if ``state`` is not that of a loader on this rank of as many ranks."""
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

"""Check of the user's own training step: a copy is trained by it, and the rules of training loops are applied."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import torch
from torch.optim import Optimizer

from loopwise.errors import InputError
from loopwise.ranks import is_main
from loopwise.validate import function

from ..model import names
from ..rules.history import some
from ..watch import Watch
from .copies import SEED, Setup, cloned, needs_closure, seed_all
from .held_state import restored
from .report import Result, faulty, left_out
from .training import UNWATCHED, watched

RULES = (
    "gradient_not_zeroed",
    "accumulation_not_divided",
    "scheduler_order",
    "clipping_order",
    "detached_loss",
    "missing_update",
    "wrong_mode",
    "frozen_batchnorm",
)
"""Rules whose findings are faults of a training loop."""
LEAST = 6
"""Steps that are tried; rules need up to four with an update."""
MOST = 17
"""Steps that are tried if none changes a parameter: ``missing_update`` waits for 16 after the first."""
LOOP = "loop"
"""Name of the check; ``step`` is that of the training without the user's function."""
EXAMPLE = "def step(model, batch, optimizer)"


def validate_step(step: Any, optimizer: Optimizer | None) -> None:
    """Check the arguments.

    Raises:
        InputError: ``step`` takes other arguments, or there is no optimizer.
    """
    expected = f"a function of a whole training step: {EXAMPLE}"
    function("step", step, expected, "the function that your loop calls for each batch")
    try:
        signature = inspect.signature(step)
    except ValueError:  # functions in C have none
        signature = inspect.signature(lambda model, batch, optimizer: None)
    try:
        signature.bind(None, None, None)
    except TypeError as error:
        raise InputError(
            f"step{signature}: {error}",
            expected,
            "the step takes other arguments, or uses a model and an optimizer of its own",
            "wrap it: step=lambda model, batch, optimizer: train_step(...)",
        ) from None
    if optimizer is None:
        raise InputError(
            "step= without an optimizer",
            "the optimizer of which the step gets a copy",
            "optimizer was left out",
            "pass preflight(model, batch, loss, optimizer, step=step)",
        )


def step_result(setup: Setup, step: Callable[..., Any], known: set[str]) -> Result:
    """Train a copy by the user's step, and return the findings of the rules of training loops.

    Args:
        setup: what is copied.
        step: called with the model, a batch and the optimizer, all copies.
        known: rules that have findings without the step as well; they are not reported again.

    Raises:
        InputError: the step uses the original model or optimizer, or holds what cannot be restored.
    """
    copy = setup.copy()
    if not is_main() or (copy.optimizer is not None and needs_closure(copy.optimizer)):
        return left_out(LOOP, UNWATCHED)
    seed_all(SEED)
    with restored(step, setup, copy), _refused(setup), watched(copy, RULES) as watch:
        done, changed, failed = _train(setup, copy, step, watch)
    if failed:
        return faulty(LOOP, "step_fails", failed)
    if findings := [finding for finding in watch.findings if finding.rule not in known]:
        return Result(LOOP, "", tuple(findings))
    if not changed:
        return left_out(LOOP, f"no parameter changed in {done} calls of the step")
    return Result(
        LOOP, f"{done} calls of the step change {some(changed)}, as the rules of training loops ask"
    )


def _train(setup: Setup, copy: Setup, step: Callable[..., Any], watch: Watch) -> tuple[int, list[str], str]:
    """Call the step, and return the number of calls, the changed parameters, and how it failed."""
    original = dict(setup.model.named_parameters())
    changed: list[str] = []
    for number in range(MOST):
        try:
            loss = step(copy.model, cloned(copy.batch), copy.optimizer)
        except InputError:
            raise
        except Exception as error:
            return number, changed, f"call {number} of the step on the same batch raises {error!r}"
        watch.step(**({"loss": loss} if isinstance(loss, torch.Tensor) and loss.numel() == 1 else {}))
        if number + 1 >= LEAST:
            changed = [
                names.plain(name)
                for name, parameter in copy.model.named_parameters()
                if name not in original or not torch.equal(parameter, original[name])
            ]
            if changed:
                break
    return number + 1, changed, ""


@contextlib.contextmanager
def _refused(setup: Setup) -> Iterator[None]:
    """Raise an error if the original model or optimizer is used inside the ``with`` block."""
    owners: tuple[tuple[Any, str], ...] = ((setup.model, "forward"), (setup.model, "zero_grad"))
    owners += ((setup.optimizer, "zero_grad"), (setup.optimizer, "step"))
    before = [vars(owner).get(name) for owner, name in owners]
    for owner, name in owners:
        vars(owner)[name] = _refusal("model" if owner is setup.model else "optimizer", name)
    try:
        yield
    finally:
        for (owner, name), value in zip(owners, before, strict=True):
            if value is None:
                del vars(owner)[name]
            else:
                vars(owner)[name] = value


def _refusal(what: str, name: str) -> Callable[..., NoReturn]:
    def refuse(*_: Any, **__: Any) -> NoReturn:
        raise InputError(
            f"a step that calls {name} of the original {what}",
            f"a step that uses the {what} that it is called with, which is a copy",
            "the function uses a variable of the script, or an attribute, in place of its argument",
            f"{EXAMPLE}: use these three names inside of it",
        )

    return refuse

"""One-off checks in seconds, before hours of training."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from loopwise import batch as batches
from loopwise.errors import InputError
from loopwise.loss import pair, takes_model
from loopwise.wrappers import is_sharded

from ..rules import RULES, Finding
from .copies import Original, Taken, recorded
from .outputs import Evaluated
from .report import Checked, Result, found, left_out
from .targets import Refused, Targets
from .training import STEPS, TRAPPED, Training, learns, watched

BY_RULES = {
    "inputs": ("", ("input_not_normalized",)),
    "dependence": ("", ("loss_not_depending_on_input",)),
    "optimizer": ("it holds every parameter that gets a gradient", ("unheld_parameter",)),
    "loss": (
        "it gets what it wants, and begins as it should",
        ("detached_loss", "loss_input", "initial_loss"),
    ),
    "gradients": ("every parameter held gets one that counts", ("missing_gradient", "vanishing_gradient")),
    "updates": (
        "they change weights, and not too much",
        ("unchanged_tensor", "missing_update", "weight_update_ratio"),
    ),
    "layers": (
        "no weights, activations or outputs are dead",
        ("poor_weight_initialization", "dead_relu", "saturated_activation", "all_zero"),
    ),
    "numbers": ("weights, gradients, outputs and losses are finite", ("exploding_tensor", TRAPPED)),
}
"""What is looked at -> what it is where nothing is found, and the rules that speak of it."""


def check(
    model: nn.Module,
    batch: Any,
    loss: Callable[..., Any],
    optimizer: Optimizer | None = None,
    *,
    steps: int = 100,
    seconds: float = 30.0,
) -> Checked:
    """Try out model, loss and optimizer on one batch, on copies: nothing of them, and no random state, changes.

    Looked at are inputs and targets; whether outputs in evaluation mode repeat, depend on the input, and keep samples
    apart; whether the loss of this batch falls when it is trained on again and again; and on the way all that rules find:
    parameters that no optimizer holds or that get no gradient, wrong inputs of the loss, dead layers, updates that change
    nothing.  Call it before ``Watch`` and before training; a scheduler's warmup is left out of the learning rate.

    Args:
        model: in the wrappers of DDP or torch.compile, too; needs twice its memory, and that of the optimizer.
        batch: as the training loop has it, on the model's device.
        loss: a criterion for ``(input, target)`` batches, such as ``nn.CrossEntropyLoss()``, or
            ``def loss(model, batch)`` (its first parameter named ``model``) for batches of any other form.
        optimizer: of the model's parameters; without one, Adam trains, and nothing is said of optimizers.
        steps: of training at most, 20 at least.
        seconds: after which training ends.

    Raises:
        InputError: arguments that cannot be used, a model in shards or one that cannot be copied.
    """
    _door(model, batch, loss, optimizer, steps, seconds)
    start = time.monotonic()
    original = Original.of(model, loss, optimizer, batch)
    with original.untouched():
        results = _results(original, steps, start + seconds)
    return Checked(tuple(results), time.monotonic() - start)


def _results(original: Original, steps: int, deadline: float) -> list[Result]:
    copy, targets = original.copy(), Targets()
    broken, value = "", None
    with recorded(copy.model) as taken:
        try:
            with targets:
                value = copy.compute()
        except Refused as refused:
            broken = str(refused)
        except InputError:
            raise
        except Exception as error:
            broken = f"the forward pass or the loss raises {error!r}"
    results = [_inputs(original.batch), _targets(targets, broken)]
    results += _evaluated(copy.model, taken, original)
    training, depends = Training(failed=broken), value is not None and value.requires_grad
    computed = value is not None
    bounds = None if value is None else targets.bounds_of(value)
    del copy, taken, value  # what trains is another copy
    if depends:
        training = watched(original, steps, deadline, bounds)
    elif computed:
        training.failed = "the loss depends on no parameter that is trained"
        results.append(_detached(training.failed))
    if not training.losses:
        results.append(left_out("one batch", training.failed))
    else:
        results.append(learns(original, training, steps, deadline, bounds))
    if training.failed and not any(
        result.findings for result in results if result.name in ("targets", "loss")
    ):
        results.append(Result("step", "", (_fails(training.failed),)))
    return _with_rules(results, training, original.optimizer is not None)


def _inputs(batch: Any) -> Result:
    floats = [t for t in batches.leaves(batch) if isinstance(t, torch.Tensor) and t.is_floating_point()]
    bad = sum(int((~t.isfinite()).sum()) for t in floats)
    if bad:
        what = f"the batch has {bad} NaN or infinite values"
        advice = "look for empty fields in the data and for divisions by zero in its preparation"
        return Result("inputs", "", (found("input_not_finite", "critical", what, advice),))
    return Result("inputs", f"{batches.describe(batch)}, finite and of usual size")


def _targets(targets: Targets, broken: str) -> Result:
    if targets.findings:
        return Result("targets", "", tuple(targets.findings))
    if not targets.seen:
        return left_out("targets", broken or "no loss of torch's is called")
    return Result("targets", "; ".join(dict.fromkeys(targets.seen)))


def _evaluated(model: nn.Module, taken: Taken, original: Original) -> list[Result]:
    """What is looked at in evaluation mode."""
    checks = {"evaluation": Evaluated.repeats, "dependence": Evaluated.depends, "samples": Evaluated.apart}
    if taken.output is None:
        why = "the model failed" if taken.called else "the loss does not call the model itself"
        return [left_out(name, why) for name in checks]
    results: list[Result] = []
    try:
        evaluated = Evaluated(model, taken, _samples(original))
        if evaluated.usable:
            return [left_out(name, evaluated.usable) for name in checks]
        for each in checks.values():
            results.append(each(evaluated))
    except Exception as error:
        why = f"the model fails in evaluation mode: {error!r}"
        results += [left_out(name, why) for name in list(checks)[len(results) :]]
    return results


def _samples(original: Original) -> int | None:
    """Samples in the batch by its targets."""
    if takes_model(original.loss):
        return None
    try:
        return batches.length(pair(original.batch)[1])
    except InputError:
        return None


def _detached(what: str) -> Result:
    return Result("loss", "", (found("detached_loss", "critical", what, RULES["detached_loss"].advice),))


def _fails(what: str) -> Finding:
    return found(
        "step_fails", "critical", what, "make one step of forward, backward and update work on this batch"
    )


def _with_rules(results: list[Result], training: Training, held: bool) -> list[Result]:
    """The results, and what rules found while the copy trained, beside what they belong to."""
    own = {result.name: result for result in results}
    of = {rule: name for name, (_, rules) in BY_RULES.items() for rule in rules}
    by: dict[str, list[Finding]] = {name: [] for name in BY_RULES}
    for finding in training.findings:
        by.setdefault(of.get(finding.rule, "rules"), []).append(finding)
    for name, findings in by.items():
        before = own.get(name)
        if findings or (before is not None and before.findings):
            own[name] = Result(name, "", (*(before.findings if before else ()), *findings))
        elif name == "optimizer" and not held:
            own[name] = left_out(name, "none was given")
        elif not training.watched:
            why = training.failed or "rules look on rank 0 only, and at no optimizer that calls a closure"
            own[name] = before or left_out(name, why)
        elif before is None:
            own[name] = Result(name, BY_RULES[name][0])
    last = own.pop("one batch")
    return [*own.values(), last]


def _door(model: Any, batch: Any, loss: Any, optimizer: Any, steps: Any, seconds: Any) -> None:
    if not isinstance(model, nn.Module) or not callable(loss):
        raise InputError(
            f"a model of type {type(model).__name__} and a loss of type {type(loss).__name__}",
            "check(model, batch, loss, optimizer), with an nn.Module and something that is called",
            "arguments in another order, or the loss's value in its place",
            "check(model, next(iter(loader)), nn.CrossEntropyLoss(), optimizer)",
        )
    if not isinstance(optimizer, Optimizer | None):
        raise InputError(
            f"an optimizer of type {type(optimizer).__name__}",
            "a torch.optim.Optimizer, or None",
            "its class, or a learning-rate scheduler, was passed",
            "pass for instance torch.optim.AdamW(model.parameters(), lr=1e-3)",
        )
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < STEPS or not seconds > 0:
        raise InputError(
            f"steps={steps!r}, seconds={seconds!r}",
            f"a whole number of steps, {STEPS} at least, and seconds above 0",
            "rules look at several steps, and one batch is not learnt in a few",
            "leave them out for 100 steps in at most 30 seconds",
        )
    if is_sharded(model):
        raise InputError(
            "a model sharded by fully_shard",
            "a model that this process holds whole",
            "a shard cannot be copied and trained alone",
            "call check before fully_shard",
        )
    if not takes_model(loss):
        pair(batch)

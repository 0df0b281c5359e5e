"""Checks of a few seconds before hours of training, which ``preflight`` runs."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from loopwise import batch as batches
from loopwise.errors import InputError
from loopwise.loss import pair, takes_model
from loopwise.validate import function, instance
from loopwise.wrappers import is_sharded

from ..model.names import root
from ..rules import Finding
from .bounds import Bounds
from .causality import causality
from .copies import RecordedCall, Setup, recorded
from .dependence import dependence
from .gradients import frozen_result, gradcheck, looked_at_again
from .learning import one_batch, trained_for_a_few_steps
from .options import PreflightOptions, options_of
from .outputs import Evaluation, Trained
from .report import PreflightReport, Result, faulty, left_out
from .step import LOOP, step_result, validate_step
from .targets import LossRefused, Targets
from .training import FALL, UNWATCHED, Training, train_under_watch

BY_RULES = {
    "inputs": ("", ("input_not_normalized",)),
    "dependence": ("", ("loss_not_depending_on_input",)),
    "optimizer": ("the optimizer holds every parameter that gets a gradient", ("unheld_parameter",)),
    "loss": (
        "the loss gets the outputs that it expects, and its first value is plausible",
        (
            "detached_loss",
            "loss_not_scalar",
            "loss_input",
            "initial_loss",
            "low_initial_loss",
            "output_scale",
        ),
    ),
    "targets": ("", ("one_class_batch",)),
    "gradients": (
        "every parameter of the optimizer gets a gradient that is not too small",
        ("missing_gradient", "vanishing_gradient"),
    ),
    "updates": (
        "updates change the weights, and not too much",
        ("unchanged_tensor", "missing_update", "weight_update_ratio"),
    ),
    "layers": (
        "no weights, activations or outputs are dead",
        ("poor_weight_initialization", "dead_relu", "saturated_activation", "all_zero"),
    ),
    "numbers": ("weights, gradients, outputs and losses are finite", ("exploding_tensor", "non_finite")),
}
"""Check -> its text if there is no finding, and the rules whose findings belong to it."""


def run_checks(
    model: nn.Module,
    batch: Any,
    loss: Callable[..., Any],
    optimizer: Optimizer | None,
    step: Callable[..., Any] | None,
    **how: Any,
) -> PreflightReport:
    """Validate the arguments of ``preflight``, run all checks on copies and return the report."""
    _validate(model, batch, loss, optimizer)
    if step is not None:
        validate_step(step, optimizer)
    options = options_of(root(model), **how)
    start = time.monotonic()
    setup = Setup(root(model), loss, optimizer, batch)
    with setup.untouched():
        results = _results(setup, options, step)
    results, suppressed = _without_known(results, options)
    return PreflightReport(tuple(results), time.monotonic() - start, tuple(suppressed))


def _results(setup: Setup, options: PreflightOptions, step: Callable[..., Any] | None) -> list[Result]:
    copy, targets = setup.copy(), Targets()
    broken, value = "", None
    with recorded(copy.model) as call:
        try:
            with targets:
                value = copy.compute()
        except LossRefused as refused:
            broken = str(refused)
        except InputError:
            raise
        except Exception as error:
            broken = f"the forward pass or the loss raises {error!r}"
    results = [_inputs(setup.batch), _targets(targets, broken)]
    trained = functools.cache(functools.partial(_trained, setup, call, options, value is not None))
    results += _in_evaluation_mode(copy.model, call, setup, options, trained)
    training, depends = Training(failed=broken), value is not None and value.requires_grad
    bounds = None if value is None else targets.bounds_of(value)
    if value is not None and copy.shape not in ((), (1,)):
        what = f"the loss has the shape {copy.shape}; it must be a single number"
        results.append(faulty("loss", "loss_not_scalar", what))
    computed = value is not None
    del copy, call, value  # frees memory: another copy is trained
    trained.cache_clear()
    if depends:
        training = train_under_watch(setup, options.steps, bounds, options.is_frozen)
        training.findings = _looked_at_twice(setup, training, bounds, options)
    elif computed:
        training.failed = "the loss depends on no parameter that is trained"
        results.append(faulty("loss", "detached_loss", training.failed))
    training.findings += [
        doubt for doubt in targets.doubts if doubt.rule not in {f.rule for f in training.findings}
    ]
    if (frozen := frozen_result(setup, training, options.is_frozen)) is not None:
        results.append(frozen)
    if options.gradcheck:
        results.append(gradcheck(setup) if depends else left_out("gradcheck", training.failed))
    if step is not None:
        known = {finding.rule for finding in training.findings}
        results.append(step_result(setup, step, known) if depends else left_out(LOOP, training.failed))
    if not training.losses:
        results.append(left_out("one batch", training.failed))
    else:
        results.append(one_batch(setup, training, options.steps, bounds))
    explained = any(result.findings for result in results if result.name in ("targets", "loss"))
    if training.failed and not explained:
        results.append(faulty("step", "step_fails", training.failed))
    return _with_rules(results, training, setup.optimizer is not None)


def _looked_at_twice(
    setup: Setup, training: Training, bounds: Bounds | None, options: PreflightOptions
) -> list[Finding]:
    """Return the findings of the rules that hold after a second look."""
    findings = looked_at_again(setup, training.findings)
    first = training.losses[0]
    scale = abs(first - (bounds.floor if bounds else 0.0))
    harmless = training.fall(bounds) > FALL and max(training.losses) <= first + FALL * scale
    meant = set(options.frozen)

    def holds(finding: Finding) -> bool:
        if finding.rule == "weight_update_ratio" and "more than" in finding.what:
            return not harmless  # large updates that reduce the loss do no harm
        return not (finding.rule == "frozen_parameter" and meant)

    return [finding for finding in findings if holds(finding)]


def _inputs(batch: Any) -> Result:
    floats = [t for t in batches.leaves(batch) if isinstance(t, torch.Tensor) and t.is_floating_point()]
    bad = sum(int((~t.isfinite()).sum()) for t in floats)
    if bad:
        return faulty("inputs", "input_not_finite", f"the batch has {bad} NaN or infinite values")
    return Result("inputs", f"{batches.describe(batch)}, finite and of usual size")


def _targets(targets: Targets, broken: str) -> Result:
    if targets.findings:
        return Result("targets", "", tuple(targets.findings))
    if not targets.calls:
        return left_out("targets", broken or "no loss of torch is called")
    return Result("targets", "; ".join(dict.fromkeys(targets.calls)))


def _trained(
    setup: Setup, call: RecordedCall, options: PreflightOptions, computed: bool
) -> Evaluation | None:
    """Return the evaluation of a copy after a few steps of training; ``None`` if it cannot be trained or evaluated."""
    copy = trained_for_a_few_steps(setup) if computed else None
    if copy is None:
        return None
    evaluation = Evaluation(copy.model, call, _samples(setup), options.batch_dim)
    return None if evaluation.unusable else evaluation


def _in_evaluation_mode(
    model: nn.Module, call: RecordedCall, setup: Setup, options: PreflightOptions, trained: Trained
) -> list[Result]:
    checks: dict[str, Callable[[Evaluation], Result]] = {"evaluation": Evaluation.repeats}
    checks["dependence"] = functools.partial(dependence, trained=trained)
    checks["samples"] = functools.partial(Evaluation.apart, trained=trained)
    if options.output_shape is not None or options.output_range is not None:
        checks["output"] = functools.partial(
            Evaluation.expected, shape=options.output_shape, limits=options.output_range
        )
    if call.output is None:
        why = "the model failed" if call.called else "the loss does not call the model itself"
        return [left_out(name, why) for name in checks]
    results: list[Result] = []
    try:
        evaluation = Evaluation(model, call, _samples(setup), options.batch_dim)
        if evaluation.unusable:
            return [left_out(name, evaluation.unusable) for name in checks]
        for check in checks.values():
            results.append(check(evaluation))
        if (later := causality(evaluation, setup.batch)) is not None:
            results.append(later)
    except Exception as error:
        why = f"the model fails in evaluation mode: {error!r}"
        results += [left_out(name, why) for name in list(checks)[len(results) :]]
    return results


def _samples(setup: Setup) -> int | None:
    """Return the number of samples by the targets of the batch; ``None`` if the targets are unknown."""
    if takes_model(setup.loss):
        return None
    try:
        return batches.length(pair(setup.batch)[1])
    except InputError:
        return None


def _with_rules(results: list[Result], training: Training, has_optimizer: bool) -> list[Result]:
    """Add the findings of rules during the training to the checks that they belong to."""
    by_name = {result.name: result for result in results}
    check_of = {rule: name for name, (_, rules) in BY_RULES.items() for rule in rules}
    findings_of: dict[str, list[Finding]] = {name: [] for name in BY_RULES}
    for finding in training.findings:
        findings_of.setdefault(check_of.get(finding.rule, "rules"), []).append(finding)
    for name, findings in findings_of.items():
        before = by_name.get(name)
        if findings or (before is not None and before.findings):
            by_name[name] = Result(name, "", (*(before.findings if before else ()), *findings))
        elif name == "optimizer" and not has_optimizer:
            by_name[name] = left_out(name, "no optimizer was passed")
        elif not training.watched:
            by_name[name] = before or left_out(name, training.failed or UNWATCHED)
        elif before is None:
            by_name[name] = Result(name, BY_RULES[name][0])
    last = by_name.pop("one batch")
    return [*by_name.values(), last]


def _without_known(results: list[Result], options: PreflightOptions) -> tuple[list[Result], list[Finding]]:
    """Return the results without known findings, and these findings."""
    suppressed: list[Finding] = []
    kept = []
    for result in results:
        known = [finding for finding in result.findings if options.known(finding)]
        if known:
            suppressed += known
            rest = tuple(finding for finding in result.findings if finding not in known)
            rules = ", ".join(dict.fromkeys(finding.rule for finding in known))
            result = dataclasses.replace(result, findings=rest, text=f"known findings: {rules}")
        kept.append(result)
    return kept, suppressed


def _validate(model: Any, batch: Any, loss: Any, optimizer: Any) -> None:
    example = "preflight(model, next(iter(loader)), nn.CrossEntropyLoss(), optimizer)"
    instance("model", model, nn.Module, "an nn.Module, as the first argument", example)
    function("loss", loss, "a criterion of (output, target), or a function of (model, batch)", example)
    if optimizer is not None:
        expected, fix = (
            "a torch.optim.Optimizer, or None",
            "pass torch.optim.AdamW(model.parameters(), lr=1e-3)",
        )
        instance("optimizer", optimizer, Optimizer, expected, fix, "a scheduler was passed")
    if is_sharded(model):
        raise InputError(
            "a model sharded by fully_shard",
            "a model that this process holds as a whole",
            "a shard cannot be copied and trained alone",
            "call preflight before fully_shard",
        )
    if not takes_model(loss):
        pair(batch)

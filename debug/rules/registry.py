"""Registry of all rules.  To add a rule, write a file with ``RULE = Rule(...)`` and add its name here."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from typing import NamedTuple

from .finding import Rule

MODULES = (
    # gradients and updates
    *("exploding_tensor", "detached_loss", "unheld_parameter", "frozen_parameter"),
    *("missing_gradient", "missing_update"),
    *(
        "gradient_not_zeroed",
        "accumulation_not_divided",
        "scheduler_order",
        "new_optimizers",
        "clipping_order",
        "unchanged_tensor",
    ),
    # the model, its input and its loss
    *("loss_input", "initial_loss", "wrong_mode", "active_in_evaluation", "frozen_batchnorm"),
    *(
        "loss_not_depending_on_input",
        "softmax_axis",
        "target_scale",
        "targets_are_inputs",
        "input_not_normalized",
        "constant_input",
        "repeated_batch",
        "poor_weight_initialization",
    ),
    *(
        "vanishing_gradient",
        "dead_relu",
        "saturated_activation",
        "all_zero",
        "weight_update_ratio",
        "over_regularization",
    ),
    # the course of the training
    *("loss_not_decreasing", "loss_spike", "overfit", "overtraining", "shuffled_targets", "stalled_training"),
    "unlike_healthy_run",
    # tensors that users save by hand
    *("class_imbalance", "confusion", "token_ratio", "tensor_variance", "tree_depth", "feature_importance"),
    # other sources than saved steps
    *("replicas_differ", "same_batch_on_ranks", "unfinished_schedule", "non_finite"),
    *(
        "profile.max_initialization_time",
        "profile.dataloader",
        "profile.io_bottleneck",
        "profile.step_outlier",
    ),
    *("profile.cpu_bottleneck", "profile.low_gpu_utilization", "profile.batch_size"),
    *("profile.gpu_memory_increase", "profile.load_balancing"),
    *("preflight.input_not_finite", "preflight.bad_targets", "preflight.step_fails"),
    *("preflight.output_not_repeatable", "preflight.output_ignores_input", "preflight.samples_mixed"),
    *("preflight.ignored_input", "preflight.unexpected_output", "preflight.loss_not_scalar"),
    *("preflight.output_scale", "preflight.low_initial_loss", "preflight.one_class_batch"),
    "preflight.output_sees_target",
    *("preflight.frozen_parameter_changes", "preflight.wrong_gradient"),
    *("preflight.unsuitable_learning_rate", "preflight.optimizer_does_not_learn"),
    "preflight.cannot_overfit_one_batch",
)
"""Modules of the rules, relative to this package, in the order in which rules are applied."""
_LOADED = {
    name.rpartition(".")[2]: importlib.import_module(f"{__package__}.{name}", __package__) for name in MODULES
}
RULES: dict[str, Rule] = {name: module.RULE for name, module in _LOADED.items()}
"""All rules by name."""
_LABEL = re.compile(r"^(Statistic|Default|Why|False alarms): ", re.MULTILINE)


class Documentation(NamedTuple):
    """Documentation of one rule."""

    name: str
    rule: Rule
    summary: str
    texts: dict[str, str]
    """Paragraphs of the rule's file without line breaks, by label: ``Statistic``, ``Default``, ``Why``, ``False alarms``."""


def documentation() -> Iterator[Documentation]:
    """Yield the documentation of every rule, from its file's docstring and its ``RULE``."""
    for name, rule in RULES.items():
        summary, *parts = _LABEL.split((_LOADED[name].__doc__ or "").strip())
        texts = {label: " ".join(text.split()) for label, text in zip(parts[::2], parts[1::2], strict=True)}
        yield Documentation(name, rule, summary.strip().partition("\n")[0], texts)

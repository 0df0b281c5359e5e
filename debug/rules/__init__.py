"""Rules over saved steps: what is wrong with a training run, and what is usually done about it."""

from __future__ import annotations

from . import (
    accumulation_not_divided,
    active_in_evaluation,
    all_zero,
    class_imbalance,
    clipping_order,
    confusion,
    dead_relu,
    detached_loss,
    exploding_tensor,
    feature_importance,
    frozen_batchnorm,
    gradient_not_zeroed,
    initial_loss,
    input_not_normalized,
    loss_input,
    loss_not_decreasing,
    loss_not_depending_on_input,
    loss_spike,
    missing_gradient,
    missing_update,
    overfit,
    overtraining,
    poor_weight_initialization,
    repeated_batch,
    saturated_activation,
    scheduler_order,
    shuffled_targets,
    stalled_training,
    tensor_variance,
    token_ratio,
    tree_depth,
    unchanged_tensor,
    unheld_parameter,
    vanishing_gradient,
    weight_update_ratio,
    wrong_mode,
)
from .finding import SEVERITIES as SEVERITIES
from .finding import Finding as Finding
from .finding import Rule as Rule
from .finding import Seen as Seen
from .finding import at_least as at_least
from .finding import named
from .history import History as History

RULES: dict[str, Rule] = named(
    exploding_tensor,
    detached_loss,
    unheld_parameter,
    missing_gradient,
    missing_update,
    gradient_not_zeroed,
    accumulation_not_divided,
    scheduler_order,
    clipping_order,
    unchanged_tensor,
    loss_input,
    initial_loss,
    wrong_mode,
    active_in_evaluation,
    frozen_batchnorm,
    loss_not_depending_on_input,
    input_not_normalized,
    repeated_batch,
    poor_weight_initialization,
    vanishing_gradient,
    dead_relu,
    saturated_activation,
    all_zero,
    weight_update_ratio,
    loss_not_decreasing,
    loss_spike,
    overfit,
    overtraining,
    shuffled_targets,
    stalled_training,
    class_imbalance,
    confusion,
    token_ratio,
    tensor_variance,
    tree_depth,
    feature_importance,
)
"""Name -> rule."""

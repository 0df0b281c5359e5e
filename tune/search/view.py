"""Copy a study into memory for the sampler: to draw from it many times, or to compare jobs on other data."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence

import optuna
from optuna.trial import FrozenTrial, TrialState, create_trial

from .warm_start import SOURCE


def in_memory(study: optuna.Study, ranks: bool) -> optuna.Study:
    """Return a copy of a study in memory, whose trials have the same numbers.

    Args:
        study: the study.
        ranks: put ranks in place of objectives.  The rank of a finished trial, in [0, 1], is its place among the finished
            trials of its own job.  So the good trials of each job count as good, whatever the objective's scale on its data
            is.  Stopped trials of parents are left out then.
    """
    trials = study.get_trials(deepcopy=False)
    ranked = _ranks(trials, len(study.directions)) if ranks else {}
    view = optuna.create_study(directions=study.directions)
    view.add_trials(_copy(trial, ranked.get(trial.number), ranks) for trial in trials)
    return view


def _copy(trial: FrozenTrial, ranked: list[float] | None, ranks: bool) -> FrozenTrial:
    foreign = ranks and trial.state == TrialState.PRUNED and SOURCE in trial.user_attrs
    return create_trial(
        state=TrialState.FAIL if foreign else trial.state,
        values=None if foreign else ranked or trial.values,
        params=trial.params,
        distributions=trial.distributions,
        intermediate_values=trial.intermediate_values,
    )


def _ranks(trials: Sequence[FrozenTrial], objectives: int) -> dict[int, list[float]]:
    """Return the ranks of all finished trials by their numbers."""
    groups: dict[str, list[FrozenTrial]] = {}
    for trial in trials:
        if trial.state == TrialState.COMPLETE:
            groups.setdefault(trial.user_attrs.get(SOURCE, ""), []).append(trial)
    ranks: dict[int, list[float]] = {}
    for group in groups.values():
        columns = [ranks_of([trial.values[place] for trial in group]) for place in range(objectives)]
        ranks |= {
            trial.number: list(row) for trial, row in zip(group, zip(*columns, strict=True), strict=True)
        }
    return ranks


def ranks_of(values: Sequence[float]) -> list[float]:
    """Return the share of the others that is below each value; equal values share the middle."""
    ordered, last = sorted(values), max(1, len(values) - 1)
    return [(bisect_left(ordered, v) + bisect_right(ordered, v) - 1) / 2 / last for v in values]

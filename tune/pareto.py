"""Find the Pareto front: the trials of which no other one is better."""

from __future__ import annotations

from collections.abc import Sequence


def pareto_front(scores: Sequence[Sequence[float]]) -> list[int]:
    """Return the places of the scores of which no other one is better, the best by the first objective first.

    One is better than another if it is smaller in one objective and larger in none; of equal ones there is the first.

    Args:
        scores: one value for each objective, smaller ones better.
    """
    front: list[int] = []
    for place in sorted(range(len(scores)), key=lambda place: (tuple(scores[place]), place)):
        # no later one is better by the first objective where this one is equal
        if not any(all(a <= b for a, b in zip(scores[f], scores[place], strict=True)) for f in front):
            front.append(place)
    return front

"""A model that decides by a few of its features.

Statistic: share of the three largest of the numbers that are saved as ``feature_importance``, one a feature, none below zero:
``Collection("arrays", include="^feature_importance$")`` among the collections and
``watch.save("feature_importance", torch.tensor(model.feature_importances_))`` before ``watch.step``.
Default: more than 0.8 of all, of ten features at least.
Why: three of ten features that say nothing more than others have 0.3; a feature that gives the target away has 0.9.
False alarms: data of which few features matter.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from .arrays import recent
from .finding import Observation, Rule
from .history import History

LEAST = 10
"""Features from which on three are few."""


def detect(history: History, share: float = 0.8, features: float = 3) -> Iterator[Observation]:
    for (numbers,) in recent(history, "feature_importance")[-1:]:
        weights = np.abs(numbers.reshape(-1).astype(np.float64))
        order = np.argsort(-weights, kind="stable")[: int(features)]
        if len(weights) >= LEAST and weights[order].sum() > share * weights.sum():
            names = tuple(f"feature {place}" for place in order)
            part = weights[order].sum() / weights.sum()
            yield Observation(
                f"{', '.join(names)} have {part:.0%} of the importance of {len(weights)} features", names
            )


RULE = Rule(
    detect,
    "warning",
    "see whether they give the target away, or would not be there when the model is used; leave them out and compare",
)

"""A model that decides by a few of its features.

Statistic: the share of the three largest numbers in the tensor that is saved as ``feature_importance``, one number for each
feature.  To save it, pass ``Collection("arrays", include="^feature_importance$")`` among the collections, and call
``watch.save("feature_importance", torch.tensor(model.feature_importances_))`` before ``watch.step``.
Default: more than 0.8 of the sum, with at least ten features.
Why: three of ten equally important features have 0.3, and one feature that reveals the target has 0.9.
False alarms: data with only a few features that matter.
"""

import numpy as np

from .arrays import recent
from .finding import Observation, Observations, Rule
from .history import History

LEAST = 10
"""Smallest number of features; three of fewer are no minority."""


def detect(history: History, share: float = 0.8, features: float = 3) -> Observations:
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
    "check whether they reveal the target or will be missing when the model is used; leave them out and compare",
)

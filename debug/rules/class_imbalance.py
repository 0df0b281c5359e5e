"""Classes with so few labels that the model does not learn them.

Statistic: counts of the classes among the targets of a cross-entropy of 50 classes at most, which the gradient of the
output shows: it is negative at the target alone.  Or counts of the tensors that are saved as ``labels``, over the last 20
saved training steps.  If
``predictions`` are saved too, also the share of wrong predictions of each class.  To save them, pass
``Collection("arrays", include="^(labels|predictions)$")`` among the collections, and call ``watch.save("labels", y)`` and
``watch.save("predictions", logits)`` before ``watch.step``.  Both are class indices, or have one number for each class in
the second dimension, whose largest number counts.
Default: among at least 500 labels, a class has less than a tenth as many as the most frequent class.  Targets that are not
saved have to be so few of a class, or none, that chance gives it to one balanced training in 1,000, and are looked at once, at the
20th saved step or the first one with 100 targets of the most frequent class.  With predictions,
also at least 70 % of the class are predicted wrongly, and at least twice the share of all classes.
Why: from a tenth on, the large classes dominate the loss; rare classes that are learned all the same are no fault.
False alarms: without predictions, data whose classes are rare by nature.
"""

import math

import numpy as np

from .arrays import class_indices, memory
from .finding import Observation, Observations, Rule
from .history import WINDOW, History, some

ENOUGH = 100
"""Targets of the most frequent class that are enough to judge."""
CHANCE = 0.001
"""Probability of a false alarm, for all classes together."""


def detect(
    history: History, ratio: float = 10.0, samples: float = 500, misprediction: float = 0.7
) -> Observations:
    yield from _of_targets(history, ratio)
    (all_labels,) = class_indices(history, "labels")
    labels, predictions = class_indices(history, "labels", "predictions")
    if not len(labels):
        labels = all_labels
    if len(labels) < samples:
        return
    counts = np.bincount(labels)
    rare = [int(c) for c in np.flatnonzero((counts > 0) & (ratio * counts < counts.max()))]
    if len(predictions):
        least = max(misprediction, 2 * float((predictions != labels).mean()))
        rare = [c for c in rare if (predictions[labels == c] != c).mean() > least]
    if rare:
        names = tuple(f"class {c}" for c in rare)
        wrong = ", and most samples of the rare classes are predicted wrongly" if len(predictions) else ""
        yield Observation(
            f"{counts[rare].sum()} of {len(labels)} labels are of {some(names)}, and {counts.max()} are of class "
            f"{int(counts.argmax())}{wrong}",
            names,
        )


def _of_targets(history: History, ratio: float) -> Observations:
    kept = memory(history, "class_imbalance")
    for model, now in history.now.facts.get("targets", {}).items():
        counts, steps, is_done = kept.get(model, (np.zeros(len(now), np.int64), 0, False))
        if is_done or len(counts) != len(now):
            continue
        counts = counts + np.array(now, dtype=np.int64)
        is_done = counts.max() >= ENOUGH or steps + 1 >= WINDOW
        kept[model] = counts, steps + 1, is_done
        if not is_done:
            continue
        most = int(counts.max())
        rare = [c for c, n in enumerate(counts.tolist()) if _chance(n, most, ratio) * len(counts) < CHANCE]
        if rare:
            names = tuple(f"class {c}" for c in rare)
            yield Observation(
                f"{counts[rare].sum()} of {counts.sum()} targets are of {some(names)}, and {most} are of class "
                f"{int(counts.argmax())}",
                names,
            )


def _chance(count: int, most: int, ratio: float) -> float:
    """Return the chance of so few targets of a class beside ``most`` of another that is ``ratio`` times as frequent."""
    total, share = count + most, 1 / (1 + ratio)
    return sum(math.comb(total, k) * share**k * (1 - share) ** (total - k) for k in range(count + 1))


RULE = Rule(
    detect, "warning", "draw rare classes more often (WeightedRandomSampler), or give the loss class weights"
)

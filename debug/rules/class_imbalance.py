"""Classes of which the labels have far fewer than of others, and which the model therefore does not learn.

Statistic: counts of the classes in the tensors that are saved as ``labels``, over the last 20 saved training steps, and the
share of each class that ``predictions`` have wrong where those are saved, too:
``Watch(..., collections=["losses", "health", Collection("arrays", include="^(labels|predictions)$")])``, and
``watch.save("labels", y)``, ``watch.save("predictions", logits)`` before ``watch.step``.  Class indices, or one number a class in the
second dimension, of which the largest counts.
Default: from 500 labels on, a class has less than a tenth of the most frequent one's; with predictions it is said only of
classes of which 70 % and twice the share of all are wrong.
Why: a tenth is where losses begin to be about the large classes; long tails that are learnt all the same are no fault.
False alarms: without predictions, data whose classes are meant to be so rare.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from . import arrays
from .finding import Observation, Rule
from .history import History, some


def detect(
    history: History, ratio: float = 10.0, samples: float = 500, misprediction: float = 0.7
) -> Iterator[Observation]:
    steps = arrays.labels(history)
    if not steps:
        return
    labels, predictions = arrays.labels_and_predictions(history)
    if not len(labels):
        labels = np.concatenate(steps)
        labels = labels[labels >= 0]
    if len(labels) < samples:
        return
    counts = np.bincount(labels)
    rare = [int(c) for c in np.flatnonzero((counts > 0) & (ratio * counts < counts.max()))]
    if len(predictions):
        least = max(misprediction, 2 * float((predictions != labels).mean()))
        rare = [c for c in rare if (predictions[labels == c] != c).mean() > least]
    if rare:
        names = tuple(f"class {c}" for c in rare)
        wrong = ", and most of them are predicted wrongly" if len(predictions) else ""
        yield Observation(
            f"of {len(labels)} labels {counts[rare].sum()} are of {some(names)}, and {counts.max()} of class "
            f"{int(counts.argmax())}{wrong}",
            names,
        )


RULE = Rule(
    detect,
    "warning",
    "draw rare classes more often (WeightedRandomSampler), or give the loss class weights",
)

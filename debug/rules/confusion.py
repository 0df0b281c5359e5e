"""A class that the model takes for one other class, although it knows the remaining classes.

Statistic: the confusion matrix of the tensors that are saved as ``labels`` and ``predictions`` in mode ``eval``, over the
last 20 saved steps.  To save them, pass ``Collection("arrays", include="^(labels|predictions)$")`` among the collections,
and inside ``with watch.mode("eval")`` call ``watch.save("labels", y)`` and ``watch.save("predictions", logits)`` before
``watch.step``.  Both are class indices, or have one number for each class in the second dimension, of which the largest
counts.
Default: more than half of a class with at least 20 labels is predicted as one other class, and the model makes less than
half as many mistakes as the constant guess of the most frequent class.
Why: a model that has learned little confuses all classes, which the loss shows already.
False alarms: classes that cannot be distinguished.
"""

import numpy as np

from .arrays import class_indices
from .finding import Observation, Observations, Rule
from .history import History


def detect(history: History, share: float = 0.5, samples: float = 20) -> Observations:
    labels, predictions = class_indices(history, "labels", "predictions")
    counts = np.bincount(labels)
    if not len(labels) or predictions.min() < 0:
        return
    if (predictions != labels).mean() > 0.5 * (1 - counts.max() / len(labels)):
        return
    matrix = np.zeros((len(counts), int(max(labels.max(), predictions.max())) + 1), np.int64)
    np.add.at(matrix, (labels, predictions), 1)
    for of in np.flatnonzero(counts >= samples):
        taken = matrix[of].copy()
        taken[of] = 0
        other = int(taken.argmax())
        if taken[other] > share * counts[of]:
            yield Observation(
                f"{taken[other]} of {counts[of]} samples of class {of} are predicted as class {other}",
                (f"class {of}",),
            )


RULE = Rule(
    detect,
    "warning",
    "look at samples and labels of both classes, and at how classes are numbered in training and evaluation",
    mode="eval",
)

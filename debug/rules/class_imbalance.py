"""Classes with so few labels that the model does not learn them.

Statistic: counts of the classes in the tensors that are saved as ``labels``, over the last 20 saved training steps.  If
``predictions`` are saved too, also the share of wrong predictions of each class.  To save them, pass
``Collection("arrays", include="^(labels|predictions)$")`` among the collections, and call ``watch.save("labels", y)`` and
``watch.save("predictions", logits)`` before ``watch.step``.  Both are class indices, or have one number for each class in
the second dimension, whose largest number counts.
Default: among at least 500 labels, a class has less than a tenth as many as the most frequent class.  With predictions,
also at least 70 % of the class are predicted wrongly, and at least twice the share of all classes.
Why: from a tenth on, the large classes dominate the loss; rare classes that are learned all the same are no fault.
False alarms: without predictions, data whose classes are rare by nature.
"""

import numpy as np

from .arrays import class_indices
from .finding import Observation, Observations, Rule
from .history import History, some


def detect(
    history: History, ratio: float = 10.0, samples: float = 500, misprediction: float = 0.7
) -> Observations:
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


RULE = Rule(
    detect, "warning", "draw rare classes more often (WeightedRandomSampler), or give the loss class weights"
)

"""Trees of an ensemble that are so deep that they learn single samples.

Statistic: the largest depth in the tensor that is saved as ``tree_depths``, one number for each tree, for instance from
``model.trees_to_dataframe()``.  To save it, pass ``Collection("arrays", include="^tree_depths$")`` among the collections,
and call ``watch.save("tree_depths", depths)`` before ``watch.step``.
Default: more than 10 levels.
Why: libraries of boosted trees use 3 to 6 levels; a tree of 10 levels can distinguish a thousand cases.
False alarms: random forests, whose trees are meant to be deep; trees that grow leaf by leaf, with few leaves.
"""

from .arrays import recent
from .finding import Observation, Observations, Rule
from .history import History


def detect(history: History, depth: float = 10) -> Observations:
    for (depths,) in recent(history, "tree_depths")[-1:]:
        deep = depths.reshape(-1) > depth
        if deep.any():
            yield Observation(
                f"{deep.sum()} of {deep.size} trees are deeper than {depth:g} levels; the deepest has {depths.max():g}"
            )


RULE = Rule(detect, "warning", "set a smaller max_depth, or prune")

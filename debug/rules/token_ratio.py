"""Batches of tokens that are mostly padding.

Statistic: the share of the value 0 (or ``value``) in the integer tensor that is saved as ``tokens``, or in the model's own
input of two dimensions.  To save it, pass ``Collection("arrays", include="^tokens$")`` among the collections and call
``watch.save("tokens", batch["input_ids"])`` before ``watch.step``; or save the raw input with
``Collection("arrays", include=r"^input\\.(0|input_ids)$")``.
Default: more than half, in each of the last three saved batches.
Why: sorted or packed batches have less than a tenth, and padding costs as much time as tokens.
False alarms: vocabularies in which token 0 is a word; pass another ``value``, or leave the rule out.
"""

from .arrays import recent
from .finding import Observation, Observations, Rule
from .history import History

NAMES = ("tokens", "input.0", "input.input_ids")


def detect(history: History, share: float = 0.5, value: float = 0.0, steps: float = 3) -> Observations:
    for name in NAMES:
        entry = history.now.layout.tensors.get(name)
        if entry is None or "int" not in entry[1] or len(entry[2]) < 2:
            continue
        last = [arrays[0] for arrays in recent(history, name)][-int(steps) :]
        shares = [float((array == value).mean()) for array in last if array.size]
        if len(shares) >= steps and min(shares) > share:
            yield Observation(f"{shares[-1]:.0%} of the tokens of a batch are {value:g}", (name,))
        return


RULE = Rule(
    detect,
    "warning",
    "make batches of samples of similar length, pad to the longest of the batch, or pack several into one row",
)

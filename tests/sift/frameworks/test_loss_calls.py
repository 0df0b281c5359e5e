"""Scores by a trainer's ``compute_loss``: what it counts, collects and logs is that of the training alone."""

from collections import defaultdict, deque
from types import SimpleNamespace

import pytest

from loopwise.sift.frameworks.loss_calls import MOST, without_a_trace


class Trainer:
    def __init__(self):
        self.calls = 0
        self.metrics = {"train": defaultdict(list), "eval": defaultdict(list)}
        self.recent = deque([1, 2], maxlen=2)
        self.seen = {"a"}
        self.long = list(range(MOST + 1))
        self.nested = [[1], {"x": [2]}]
        self.logged = []
        self.other = SimpleNamespace(value=1)

    def log(self, values):
        self.logged.append(values)

    def compute_loss(self):
        self.calls += 1
        self.metrics["eval"]["loss"].append(1.0)
        self.metrics["new"] = 3
        self.recent.append(3)
        self.seen.add("b")
        self.long.append(0)
        self.nested[1]["x"].append(3)
        self.log({"loss": 1.0})
        self.made = True
        return 1.0


@pytest.mark.parametrize("fails", [False, True])
def test_a_call_leaves_no_trace_in_the_trainer(fails):
    trainer, same = Trainer(), Trainer()
    held = trainer.metrics["eval"]
    with pytest.raises(RuntimeError) if fails else without_a_trace(trainer):
        if fails:
            with without_a_trace(trainer):
                trainer.compute_loss()
                raise RuntimeError
        trainer.compute_loss()
    assert vars(trainer) == vars(same)
    assert trainer.metrics["eval"] is held
    trainer.compute_loss()
    assert (trainer.calls, held["loss"], trainer.logged) == (1, [1.0], [{"loss": 1.0}])
    assert trainer.recent.maxlen == 2


def test_attributes_that_were_replaced_are_the_old_ones_again():
    trainer = Trainer()
    before = trainer.metrics
    with without_a_trace(trainer):
        trainer.metrics = {}
        del trainer.seen
    assert trainer.metrics is before
    assert trainer.seen == {"a"}

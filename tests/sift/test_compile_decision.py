"""Choice between plain and compiled scoring: the rule, and its use in a real scoring pass."""

import pytest
import torch
from torch import nn

from loopwise.sift.compile_decision import AFTER, TIMED, WARM_UP, CompileDecision
from loopwise.sift.scoring import Scorer


def decide(plain_seconds, compiled_seconds, compiling=10.0):
    def plain():
        return "plain"

    def compiled():
        return "compiled"

    decision, spent = CompileDecision(plain, lambda _: compiled), 0.0
    for _ in range(1000):
        name = decision.run()
        seconds = plain_seconds if name == "plain" else compiled_seconds + compiling
        compiling = compiling if name == "plain" else 0.0
        spent += seconds
        decision.add_time(seconds, 10)
    return decision, spent


def test_the_faster_one_stays():
    decision, _ = decide(1.0, 0.6)
    assert (decision.decided, decision.run()) == (True, "compiled")
    decision, spent = decide(1.0, 1.4)
    assert (decision.decided, decision.run()) == (True, "plain")
    assert spent == pytest.approx(1000 + 10 + 0.4 * (WARM_UP + TIMED))


def test_nothing_is_compiled_in_a_short_training():
    decision = CompileDecision(lambda: None, None)
    for _ in range(9):
        decision.add_time(AFTER / 10, 32)
    assert decision.run is decision.plain


def test_auto_starts_plain_and_gives_the_same_losses():
    model = nn.Linear(6, 3)
    batch = torch.randn(8, 6), torch.arange(8) % 3
    criterion = nn.CrossEntropyLoss(reduction="none")
    scorer = Scorer(model, criterion, torch.float32, compiled="auto")
    assert torch.equal(scorer(batch, 8).losses, criterion(model(batch[0]), batch[1]))
    assert not scorer._decision.decided
    with_gradients = Scorer(model, criterion, "auto", compiled="auto", needs=frozenset({"gradients"}))
    assert with_gradients._decision.decided

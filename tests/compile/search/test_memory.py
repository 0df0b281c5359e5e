"""Memory budgets: met by the variants that hold the least, or refused with what is known."""

import pytest
import torch
from torch import nn

from loopwise.compile import TrainStep
from loopwise.compile.search import attempts, candidates, memory, search
from loopwise.errors import InputError

BATCH = torch.randn(256, 64), torch.arange(256) % 10


@pytest.fixture(autouse=True)
def _without_inductor(monkeypatch):
    """Let Inductor's candidates be left out, which take long."""
    monkeypatch.setattr(attempts, "_by_inductor", lambda *_: [])
    monkeypatch.setattr(memory, "COMPILED", ())


def deep(layers=8):
    kinds = ((nn.Linear(64, 64), nn.LayerNorm(64), nn.GELU()) for _ in range(layers))
    return nn.Sequential(*(layer for three in kinds for layer in three), nn.Linear(64, 10))


def step_of(net, budget, **options):
    optimizer = torch.optim.AdamW(net.parameters())
    options = {"max_seconds": 1e6} | options  # a search that is cut off by a busy machine tries less
    return TrainStep(net, nn.CrossEntropyLoss(), optimizer, memory=budget, **options)


def test_a_budget_below_the_gradients_is_refused_before_anything_is_compiled(monkeypatch):
    def compiled(*_):
        raise AssertionError("a plan was tried")

    monkeypatch.setattr(candidates, "try_plan", compiled)
    net = deep()
    held = sum(p.nbytes for p in net.parameters())
    with pytest.raises(InputError) as raised:
        step_of(net, held - 4).prepare(BATCH)
    seen, expected, cause, fix = raised.value.args
    assert seen == f"a memory budget of {(held - 4) / 2**20:,.2f} MiB"
    assert expected == f"at least {held / 2**20:,.2f} MiB"
    assert "gradients of the parameters alone" in cause
    assert fix == "raise the budget, or train fewer parameters"


def test_gradients_that_are_sparse_count_as_what_they_hold():
    net = nn.Sequential(nn.Embedding(1000, 64, sparse=True), nn.Flatten(), nn.Linear(64, 3))
    step = TrainStep(net, nn.CrossEntropyLoss(), torch.optim.SGD(net.parameters(), 0.1), memory="60kB")
    step.prepare((torch.arange(8).view(8, 1), torch.arange(8) % 3))
    assert step._search.best.peak < 60_000 < 1000 * 64 * 4


def test_a_budget_is_met_by_segments_that_are_computed_again():
    net = deep()
    plain = TrainStep(net, nn.CrossEntropyLoss(), torch.optim.AdamW(net.parameters()), max_seconds=1e-9)
    plain.prepare(BATCH)
    eager = plain._search.best.peak
    step = step_of(net, int(0.45 * eager))
    step.prepare(BATCH)
    assert step.plan.graph == "captured"
    assert step.plan.budget < 1
    assert step._search.best.peak <= step.spec.memory
    rows = {row["form"]: row["verdict"] for row in step.explain().rows}
    assert rows["eager"] == "too much memory"
    assert rows[str(step._search.best.plan)] == "chosen"


def test_the_least_that_was_found_is_said_without_a_claim():
    net = deep()
    held = sum(p.nbytes for p in net.parameters())
    with pytest.raises(InputError) as raised:
        step_of(net, held + 1000).prepare(BATCH)
    _, expected, cause, fix = raised.value.args
    assert expected.startswith("more for a batch of this size: the least that was found is ")
    assert ", by captured + " in expected
    assert cause.endswith("variants were measured, among them some that compute activations again")
    assert fix == "raise the budget, or take a smaller batch"
    least = float(expected.split("found is ")[1].split()[0])
    step = step_of(net, f"{least * 1.01}MiB")
    step.prepare(BATCH)
    assert step._search.best.peak <= step.spec.memory


def test_budgets_are_tried_with_the_passes_and_without(monkeypatch):
    """For few classes the loss head holds more than the logits that it saves."""
    tried = []
    original = search.Trials.attempt

    def attempt(self, **changes):
        tried.append((changes.get("graph"), bool(changes.get("passes")), changes.get("budget")))
        return original(self, **changes)

    monkeypatch.setattr(search.Trials, "attempt", attempt)
    net = deep()
    with pytest.raises(InputError):
        step_of(net, sum(p.nbytes for p in net.parameters()) + 1).prepare(BATCH)
    assert {("captured", True, 0.0), ("captured", False, 0.0)} <= set(tried)


def test_a_budget_that_was_not_exhausted_names_the_limit_in_time():
    net = deep()
    with pytest.raises(InputError, match="or raise max_seconds"):
        step_of(net, sum(p.nbytes for p in net.parameters()) + 1, max_seconds=1e-9).prepare(BATCH)

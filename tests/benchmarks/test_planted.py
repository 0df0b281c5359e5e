"""Planted passes: wrong ones change a result, right ones do not, and a step that accepts a wrong one is counted."""

import random

import pytest
import torch

from benchmarks.compile import planted
from benchmarks.compile.planting import HARMLESS, REWRITES, F, Planted, batch, effect, moved, network, right
from loopwise.compile import Plan
from loopwise.compile.graph.passes import PASSES

PLAN = Plan(graph="captured", passes=(planted.PASS,))


@pytest.mark.parametrize("seed", range(3))
def test_right_passes_change_nothing(seed):
    draws = random.Random(seed)
    _, model = network(draws)
    own = PASSES[planted.PASS]
    assert effect(model, batch(16, draws), PLAN, Planted(right(draws)[1], draws.random())) < HARMLESS
    assert PASSES[planted.PASS] is own


def test_operations_that_are_written_out_compute_the_same():
    torch.manual_seed(0)
    x, weight, bias = torch.randn(4, 6), torch.randn(3, 6), torch.randn(3)
    norm, y = (torch.randn(6), torch.randn(6)), torch.arange(4) % 3
    calls = {
        F.linear: (x, weight, bias),
        F.layer_norm: (x, (6,), *norm, 1e-5),
        F.cross_entropy: (x[:, :3], y),
        F.gelu: (x,),
        F.silu: (x,),
    }
    assert calls.keys() == REWRITES.keys()
    for function, arguments in calls.items():
        torch.testing.assert_close(REWRITES[function](*arguments), function(*arguments))


def test_a_pass_that_is_armed_later_changes_later_graphs_only():
    form = Planted(lambda t: 2 * t, 0.5, armed=False)
    model = torch.nn.Linear(4, 4)

    def graph():
        torch._dynamo.reset()
        captured = []

        def backend(gm, inputs):
            form(gm)
            captured.append(gm)
            return gm.forward

        torch.compile(model, backend=backend)(torch.randn(2, 4))
        return len(captured[0].graph.nodes)

    before = graph()
    form.armed = True
    assert graph() == before + 1
    assert form.changed == 1


def test_wrong_passes_behind_weights_that_begin_at_zero_show_nothing_at_first(monkeypatch):
    monkeypatch.setattr(planted, "SITUATIONS", {"first": planted.no_change})
    monkeypatch.setattr("benchmarks.compile.planting.KINDS", ("zero",))
    draws = random.Random(1)
    _, text, model, form = planted.drawn(draws, "wrong")
    assert text.startswith("zero, first, gradient")
    assert effect(model, batch(16, draws), PLAN, form) == 0
    assert effect(moved(model, 5), batch(16, draws), PLAN, form) > HARMLESS


def test_a_step_that_accepts_a_wrong_pass_is_counted(monkeypatch):
    monkeypatch.setattr(planted, "SITUATIONS", {"first": planted.no_change})
    assert planted.planted(0, 2) == {"wrong, share": 1.0, "right, share": 1.0}
    monkeypatch.setattr("loopwise.compile.verify.numerics.Comparison.difference", lambda *_: None)
    assert planted.planted(0, 2)["wrong, share"] < 1

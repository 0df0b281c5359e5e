"""Captured graphs whose segments are computed again: the results of the eager step, in less memory."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from loopwise.compile import Plan, TrainStep, optimize
from loopwise.compile.graph.segments import Segment, Sizes, choose_segments, runs_once
from loopwise.compile.search.measure import peak_bytes
from loopwise.compile.verify.sandbox import Sandbox


def chain(layers=8, width=64, extra=()):
    kinds = (nn.Linear(width, width), nn.LayerNorm(width), nn.GELU(), *extra)
    return nn.Sequential(*(copy.deepcopy(kind) for _ in range(layers) for kind in kinds), nn.Linear(width, 5))


BATCH = torch.randn(256, 64), torch.arange(256) % 5


def stepped(model, budget, batch=BATCH, **options):
    plan = Plan(graph="captured", budget=budget)
    step = TrainStep(
        model, nn.CrossEntropyLoss(), torch.optim.SGD(model.parameters(), lr=0.1), plan=plan, **options
    )
    step.prepare(batch)
    assert step.plan == plan, step.explain()
    return step


def peak_of(step, batch=BATCH):
    candidate = step._search.candidates[-1]
    with Sandbox(step.spec, batch) as sandbox:
        return peak_bytes(sandbox.training_pass(candidate.compute), torch.device("cpu"))


def test_a_smaller_budget_holds_less_and_the_least_is_below_even_segments():
    model = chain()
    peaks = [peak_of(stepped(model, budget)) for budget in (1.0, 0.6, 0.0)]
    assert peaks == sorted(peaks, reverse=True)
    assert len(set(peaks)) == 3
    gradients = sum(p.nbytes for p in model.parameters())
    activations = [peak - gradients for peak in peaks]
    assert activations[1] < 0.8 * activations[0]
    assert activations[2] < 0.4 * activations[0]


@pytest.mark.parametrize(
    "extra", [(nn.Dropout(0.3),), (nn.BatchNorm1d(64),), (nn.ReLU(inplace=True),)], ids=str
)
def test_segments_train_as_the_eager_step(extra):
    model = chain(6, extra=extra)
    other = copy.deepcopy(model)
    step = stepped(model, 0.0)
    optimizer = torch.optim.SGD(other.parameters(), lr=0.1)
    for number in range(3):
        torch.manual_seed(number)
        loss = step(BATCH)
        torch.manual_seed(number)
        expected = F.cross_entropy(other(BATCH[0]), BATCH[1])
        expected.backward()
        optimizer.step()
        optimizer.zero_grad()
        assert loss == expected.detach()
    for ours, theirs in zip(model.state_dict().values(), other.state_dict().values(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_mixed_step_computes_segments_again_under_autocast(monkeypatch):
    from loopwise.compile import spec

    monkeypatch.setattr(spec, "native_dtype", lambda device: torch.bfloat16)
    model = chain(6)
    plan = Plan(graph="captured", budget=0.0, precision="mixed")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    step = TrainStep(model, nn.CrossEntropyLoss(), optimizer, plan=plan, precision="mixed")
    step.prepare(BATCH)
    assert step.plan == plan
    assert peak_of(step) < 0.7 * peak_of_eager(step)


def peak_of_eager(step):
    with Sandbox(step.spec, BATCH) as sandbox:
        return peak_bytes(sandbox.training_pass(step.spec.eager), torch.device("cpu"))


def test_optimize_with_a_budget():
    model = chain(6)
    other = copy.deepcopy(model)
    optimize(model, plan=Plan(graph="captured", budget=0.0))
    for one in (model, other):
        F.cross_entropy(one(BATCH[0]), BATCH[1]).backward()
    for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


def graph_of(function, *inputs):
    """Return the operations of a captured function."""
    captured = []

    def backend(gm, example_inputs):
        captured.append(gm)
        return gm.forward

    torch.compile(function, backend=backend)(*inputs)
    return [node for node in captured[0].graph.nodes if node.op.startswith("call_")]


def test_sizes_follow_views_and_last_uses():
    def function(x):
        a = x + 1  # 1 KiB, used at the end through a view
        view = a.view(-1)
        b = a * 2
        c = b.exp()
        return c.sum() + view.sum()

    sizes = Sizes(graph_of(function, torch.ones(16, 16)))
    assert sizes.made[:4] == [1024, 0, 1024, 1024]
    assert sizes.last_use[0] == 5  # the sum of the view
    assert sizes.crossing[1] == 1024
    assert sizes.crossing[3] == 2048
    assert sizes.peak([]) == sum(sizes.made)
    # as b and c are computed again, the three numbers at the end are held no more
    assert sizes.peak([Segment(2, 4, again=True)]) == 3 * 1024


def test_operations_that_change_something_run_once():
    def function(x, mean, var):
        x = F.relu(x, inplace=True)
        x = F.dropout(x, 0.5, True, True)
        x = F.batch_norm(x, mean, var, training=True)
        x = x.mul_(2)
        x[0] = 1
        return F.gelu(x).sum()

    nodes = graph_of(function, torch.ones(4, 3), torch.zeros(3), torch.ones(3))
    once = [getattr(node.target, "__name__", node.target) for node in nodes if runs_once(node)]
    assert once == ["relu", "dropout", "batch_norm", "mul_", "setitem"]
    assert not any(segment.again for segment in choose_segments(Sizes(nodes), 0.0))


def test_a_graph_without_operations_has_no_segments():
    assert choose_segments(Sizes([]), 0.0) == []

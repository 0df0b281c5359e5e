"""Verdicts about training situations: what counts as equal, refused, silent, wrong and a crash."""

import operator

import pytest
import torch

from benchmarks.situations import SITUATIONS, judge
from benchmarks.situations.judge import compare
from benchmarks.situations.parts import cross_entropy, mlp, rows, sgd, train
from benchmarks.situations.situation import EAGER, NUDGED, Run, situation
from loopwise.compile import Plan
from loopwise.compile.graph.passes import PASSES
from loopwise.errors import InputError


@pytest.fixture
def one(monkeypatch):
    """Return a function that registers a training under the name ``one`` and judges it."""
    monkeypatch.setattr("benchmarks.situations.situation.SITUATIONS", SITUATIONS)

    def judged(do, plan="captured"):
        monkeypatch.delitem(SITUATIONS, "one", raising=False)
        situation(plan, name="one")(do)
        try:
            return judge("one")
        finally:
            SITUATIONS.pop("one", None)

    return judged


def test_a_right_step_is_equal(one):
    verdict = one(lambda run: train(run, mlp(), rows(4)))
    assert (verdict.verdict, verdict.good) == ("equal", True)
    assert verdict.distance <= verdict.budget < 1e-4
    assert verdict.plan.startswith("captured")


def test_another_training_is_wrong_and_named(one):
    def do(run):
        train(run, mlp(), rows(4, seed=1 + run.ours))

    verdict = one(do)
    assert (verdict.verdict, verdict.good) == ("WRONG", False)
    assert verdict.distance > 100 * verdict.budget
    assert verdict.message


@pytest.mark.parametrize("by", [1.001, 1.1, float("nan")])
def test_a_wrong_form_that_passes_the_gate_is_wrong(one, monkeypatch, by):
    def wrong(gm):
        node = next(n for n in gm.graph.nodes if "gelu" in str(n.target))
        with gm.graph.inserting_after(node):
            new = gm.graph.call_function(operator.mul, (node, by))
        node.replace_all_uses_with(new, delete_user_cb=lambda user: user is not new)
        gm.recompile()
        return []

    monkeypatch.setitem(PASSES, "attention", wrong)
    monkeypatch.setattr("loopwise.compile.verify.numerics.Comparison.difference", lambda *_: None)
    verdict = one(
        lambda run: train(run, mlp(), rows(4), verify=False) if run.ours else train(run, mlp(), rows(4))
    )
    assert verdict.verdict == "WRONG"


def test_a_number_that_differs_is_wrong(one):
    def do(run):
        train(run, mlp(), rows(2))
        run.keep(calls=2 + run.ours)

    verdict = one(do)
    assert verdict.verdict == "WRONG"
    assert verdict.message.startswith("kept calls is 3 instead of 2")


def test_an_error_before_training_is_a_refusal_if_it_is_an_input_error(one):
    def do(run):
        if run.ours:
            raise InputError("this", "that", "a cause", "a fix")
        train(run, mlp(), rows(2))

    verdict = one(do)
    assert (verdict.verdict, verdict.good) == ("refused", True)
    assert "this" in verdict.message


def test_an_input_error_in_the_middle_is_a_crash(one):
    def do(run):
        train(run, mlp(), rows(2))
        if run.ours:
            raise InputError("this", "that", "a cause", "a fix")

    assert one(do).verdict == "CRASH"


def test_another_error_is_a_crash(one):
    def do(run):
        train(run, mlp(), rows(2))
        if run.ours:
            raise KeyError("lost")

    verdict = one(do)
    assert (verdict.verdict, verdict.good) == ("CRASH", False)
    assert "KeyError" in verdict.message


def test_an_eager_step_needs_a_message(one):
    def says(run):
        train(run, mlp(), rows(2))
        for step in run.steps:
            step.step_back("a reason")

    def says_nothing(run):
        train(run, mlp(), rows(2), **({"plan": Plan()} if run.ours else {}))

    verdict = one(says)
    assert (verdict.verdict, verdict.good) == ("eager", True)
    assert "a reason" in verdict.message
    verdict = one(says_nothing)
    assert (verdict.verdict, verdict.good) == ("SILENT", False)


def test_budgets_come_from_nudged_runs():
    def result(run, by):
        run.model(torch.nn.Linear(2, 2))
        run.keep(value=torch.ones(4) * by)
        return run

    usual = result(Run(EAGER), 1.0)
    nudged = [result(Run(NUDGED, seed=seed), 1 + by).result() for seed, by in enumerate((0.01, -0.02))]
    nudged = [{**usual.result(), "kept value": other["kept value"]} for other in nudged]
    for by, near in ((0.079, True), (0.081, False)):
        ours = {**usual.result(), "kept value": torch.ones(4) * (1 + by)}
        name, distance, budget = compare(ours, usual, nudged)
        assert name == "kept value"
        assert budget == pytest.approx(0.08, rel=1e-3)
        assert (distance <= budget) == near


def test_a_nudge_moves_weights_by_last_places_only():
    plain, moved = Run(EAGER).model(mlp()), Run(NUDGED).model(mlp())
    for a, b in zip(plain.parameters(), moved.parameters(), strict=True):
        assert not torch.equal(a, b) or not a.any()
        assert torch.allclose(a, b, rtol=6e-7, atol=0)


def test_the_usual_step_is_the_usual_loop():
    runs = [Run(EAGER) for _ in range(2)]
    models = [Run(EAGER).model(mlp()) for _ in runs]
    step = runs[0].step(models[0], cross_entropy(), sgd(models[0]), accumulate=2, clip=0.5)
    optimizer = sgd(models[1])
    for number, (x, y) in enumerate(rows(4)):
        step((x, y))
        (cross_entropy()(models[1](x), y) / 2).backward()
        if number % 2:
            torch.nn.utils.clip_grad_norm_(models[1].parameters(), 0.5)
            optimizer.step()
            optimizer.zero_grad()
    assert all(map(torch.equal, models[0].parameters(), models[1].parameters()))


def test_each_situation_has_one_line():
    for name, case in SITUATIONS.items():
        assert case.description.endswith("."), name
        assert len(case.description) < 120, name
    assert len(SITUATIONS) >= 80

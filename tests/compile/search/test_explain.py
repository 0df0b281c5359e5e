"""Explanations: where a plan comes from, what the search took, and rows that do not contradict the plan in use."""

import pytest
import torch
from torch import nn

from loopwise.compile import Plan, TrainStep
from loopwise.compile.explain import Explanation, Origin
from loopwise.compile.graph.passes import PASSES, Outcome
from loopwise.compile.plan import StoredPlan
from loopwise.compile.search import attempts
from loopwise.compile.search.candidates import Candidate
from loopwise.compile.search.optimizers import choose_implementation, compared_implementation, implementations
from loopwise.compile.search.search import SearchResult
from loopwise.warnings import LoopwiseWarning

CAPTURED = Plan(graph="captured", passes=("loss_head",))
BATCH = torch.randn(8, 6), torch.arange(8) % 3
LEFT = Origin(left="slower")


@pytest.fixture(autouse=True)
def _without_inductor(monkeypatch):
    monkeypatch.setattr(attempts, "_by_inductor", lambda *_: [])


def step_of(**options):
    net = nn.Sequential(nn.Linear(6, 16), nn.GELU(), nn.Linear(16, 3))
    return TrainStep(net, nn.CrossEntropyLoss(), torch.optim.SGD(net.parameters(), 0.1), **options)


def prepared(**options):
    step = step_of(**options)
    step.prepare(BATCH)
    return step


def wrong_pass(gm):
    (output,) = gm.graph.find_nodes(op="output")
    with gm.graph.inserting_before(output):
        output.args = ((gm.graph.call_function(torch.mul, (output.args[0][0], 2)),),)
    gm.recompile()
    return [Outcome(True, "here", name="loss_head")]


def test_a_measured_plan_and_the_same_plan_remembered(tmp_path, monkeypatch):
    monkeypatch.setitem(PASSES, "loss_head", wrong_pass)
    first = prepared().explain()
    assert first.source == "measured now"
    (file,) = (tmp_path / "cache" / "plans").iterdir()
    again = prepared()
    told = again.explain()
    assert told.source.startswith(f"remembered from {file}, measured 2")
    assert told.source.endswith("; replan(batch) measures anew")
    assert f"source: {told.source}" in str(told)
    refused = [line for line in told.remarks if line.startswith("when it was measured, captured + loss head")]
    assert "was left out: wrong: " in refused[0]
    again.replan(BATCH)
    assert again.explain().source == "measured now"


def test_a_given_plan_and_one_that_is_refused(monkeypatch):
    assert prepared(plan=CAPTURED).explain().source == "given as plan="
    monkeypatch.setitem(PASSES, "loss_head", wrong_pass)
    told = prepared(plan=CAPTURED).explain()
    assert told.source == "eager, because the plan given as plan= was refused"
    assert told.rows[0]["verdict"] == "chosen"
    assert told.rows[1]["verdict"].startswith("wrong: ")


def test_the_time_of_the_search_and_the_limit_are_said():
    remarks = prepared(max_seconds=123.0).explain().remarks
    assert remarks[0].startswith("finding it took ")
    assert remarks[0].endswith(" s of processor time; max_seconds was 123")
    given = prepared(plan=CAPTURED).explain().remarks
    assert given[0].endswith(" s of processor time")


def test_rows_agree_with_the_plan_after_a_step_back():
    step = prepared(plan=CAPTURED)
    with pytest.warns(LoopwiseWarning, match="back to the eager step: a reason"):
        step.step_back("a reason")
    told = step.explain()
    assert told.plan == Plan()
    assert told.source == "stepped back to eager: a reason"
    verdicts = {row["form"]: row["verdict"] for row in told.rows}
    assert verdicts == {"eager": "in use", "captured + loss head": "was chosen, left later: a reason"}


def result_of(eager, other, **options):
    both = [
        Candidate(Plan(), compute=abs, times=eager, peak=2**20),
        Candidate(CAPTURED, compute=abs, times=other, peak=2**21),
    ]
    return SearchResult(both, min(both, key=lambda one: one.seconds), **options)


def told(result, origin=None):
    return Explanation.of(result.best.plan, result, None, [], origin)


def test_times_that_overlap_are_no_proof():
    near = told(result_of([0.9, 1.0, 1.1], [0.8, 0.95, 0.96]))
    noise = "the times of captured + loss head and of eager overlap: the difference may be noise"
    assert noise in near.remarks
    assert "captured + loss head instead of eager: -50.0 ms (times overlap), +1.0 MiB" in near.remarks
    assert near.rows[0]["verdict"] == "not faster; times overlap"
    apart = told(result_of([0.9, 1.0, 1.1], [0.7, 0.8, 0.85]))
    assert "overlap" not in str(apart)
    assert apart.rows[0]["verdict"] == "not faster"


def test_a_variant_over_the_memory_budget_is_named_as_such():
    result = result_of([1.0], [0.5], memory=2**20)
    result.best = result.candidates[0]
    verdicts = [row["verdict"] for row in told(result).rows]
    assert verdicts == ["chosen", "too much memory"]


def test_other_origins_in_words():
    result = result_of([1.0], [0.5])
    assert told(result).source == "measured now"
    result.known = True
    assert told(result).source == "compiled without timing"
    result.candidates = result.candidates[:1]
    assert told(result).source == "not measured"
    assert told(result, LEFT).source == "stepped back to eager: slower"
    stored = StoredPlan(CAPTURED, "/plans/a.json", "2026-11-29T10:00:00+00:00", [])
    source = "remembered from /plans/a.json, measured 2026-11-29T10:00:00+00:00; replan(batch) measures anew"
    assert told(result, Origin(stored=stored)).source == source


def test_hooks_of_a_watch_keep_no_implementation_from_being_chosen():
    parameter, calls = torch.nn.Parameter(torch.ones(2)), []
    parameter.grad = torch.ones(2)
    optimizer = torch.optim.AdamW([parameter])
    optimizer.register_step_post_hook(lambda *_: calls.append("after"))
    optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
    assert implementations(optimizer) == ["as_is", "foreach", "fused"]
    assert compared_implementation(optimizer, "fused").name == "fused"
    assert set(choose_implementation(optimizer, torch.device("cpu")).seconds) == {"as_is", "foreach", "fused"}
    assert not calls

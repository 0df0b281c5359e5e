"""Plans and events in the run folder."""

import gc

import pytest
import torch
from torch import nn

from loopwise.compile import Plan, TrainStep, plan
from loopwise.errors import InputError
from loopwise.run import Run, as_run, read
from loopwise.warnings import LoopwiseWarning

PLAN = Plan(graph="captured", passes=("loss_head",))
BATCH = torch.randn(8, 6), torch.arange(8) % 3


def step_of(**options):
    net = nn.Sequential(nn.Linear(6, 16), nn.GELU(), nn.Linear(16, 3))
    return TrainStep(net, nn.CrossEntropyLoss(), torch.optim.SGD(net.parameters(), 0.1), plan=PLAN, **options)


def state_of(path):
    return Run.existing(path).info()["state"]


def test_the_plan_and_later_events_are_recorded(tmp_path):
    with Run(str(tmp_path / "run")) as run:
        step = step_of(run=run)
        step(BATCH)
        with pytest.warns(LoopwiseWarning, match="back to the eager step: a reason"):
            step.step_back("a reason")
    (record, later), torn = read(run.path, "compile", "plans")
    assert record["plan"]["graph"] == "captured"
    assert record["source"] == "given as plan="
    assert [variant["verdict"] for variant in record["forms"]] == ["not timed", "chosen"]
    assert [variant["MiB"] for variant in record["forms"]] == [None, None]  # not measured
    assert later["plan"]["graph"] == "eager"
    assert later["source"] == "stepped back to eager: a reason"
    verdicts = [variant["verdict"] for variant in later["forms"]]
    assert verdicts == ["in use", "was chosen, left later: a reason"]
    assert any("not materialised" in remark for remark in record["remarks"])
    assert read(run.path, "compile", "events") == ([{"batch": 1, "text": "stepped back: a reason"}], 0)
    assert torn == 0


@pytest.mark.parametrize("kind", [str, lambda path: path], ids=["text", "path"])
def test_a_path_opens_a_run_that_ends_with_the_step(tmp_path, kind):
    step = step_of(run=kind(tmp_path / "run"))
    step(BATCH)
    assert state_of(str(tmp_path / "run")) == "running"
    del step
    gc.collect()
    assert state_of(str(tmp_path / "run")) == "finished"
    step_of(run=kind(tmp_path / "run")).close()
    assert state_of(str(tmp_path / "run-2")) == "finished"
    step_of(run=kind(tmp_path / "run"), resume=True)(BATCH)
    assert len(read(str(tmp_path / "run"), "compile", "plans")[0]) == 2


def test_another_type_of_run_is_refused():
    with pytest.raises(InputError, match="run= of type int"):
        step_of(run=3)


def test_a_run_that_cannot_be_written_is_reported_once(tmp_path):
    run = Run(str(tmp_path / "run"))
    run.append = None
    step = step_of(run=run)
    with pytest.warns(LoopwiseWarning, match="could not be written") as warned:
        step(BATCH)
        step._events.add("more")
    assert len(warned) == 1


def test_a_step_that_is_closed_ends_its_run_and_trains_on(tmp_path):
    step = step_of(run=tmp_path / "run")
    step(BATCH)
    step.close()
    assert state_of(str(tmp_path / "run")) == "finished"
    step.close()
    with pytest.warns(LoopwiseWarning, match="back to the eager step: a reason"):
        step.step_back("a reason")
    step(BATCH)
    assert "stepped back: a reason" in step.explain().remarks
    assert read(str(tmp_path / "run"), "compile", "events") == ([], 0)
    step_of(run=tmp_path / "run", resume=True).close()
    assert state_of(str(tmp_path / "run")) == "finished"


def test_a_run_that_parts_share_ends_when_the_last_one_is_closed(tmp_path):
    step, other = step_of(run=tmp_path / "run"), as_run(tmp_path / "run", "debug")
    other.release()
    assert state_of(str(tmp_path / "run")) == "running"
    step.close()
    assert state_of(str(tmp_path / "run")) == "finished"


def test_a_new_pass_makes_kept_plans_invalid(monkeypatch):
    net = nn.Linear(2, 2)
    before = plan.cache_key(net, None, (), ())
    assert plan.cache_key(net, None, (), ()) == before
    monkeypatch.setitem(plan.PASSES, "new", "a rewrite that was added")
    assert plan.cache_key(net, None, (), ()) != before

"""Plans as text, and the measured plans that are kept for later runs."""

import json
import os

import pytest
import torch
from torch import nn

from loopwise.compile import Plan, TrainStep
from loopwise.compile import plan as plans
from loopwise.compile.graph.passes import PASSES, Outcome
from loopwise.compile.search.trials import Trials
from loopwise.errors import InputError

CRITERION = nn.CrossEntropyLoss()
PLAN = Plan(graph="inductor", passes=("loss_head",), budget=0.5, optimizer="fused")
REFUSED = [{"plan": "captured + attention", "reason": "wrong: 0.weight"}]


def test_a_plan_is_json():
    plan = Plan(graph="inductor", budget=0.5, optimizer="fused")
    assert Plan.from_json(plan.to_json()) == plan
    assert json.loads(plan.to_json())["graph"] == "inductor"
    assert str(plan) == "inductor + budget 0.5 + fused optimizer"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "3",
        "[1]",
        "null",
        None,
        3,
        b"\xff\xfe",
        "[" * 100_000,
        '{"passes": ' + "[" * 900 + "]" * 900 + "}",
        '{"level": "exact"}',
        '{"graph": []}',
        '{"passes": 5}',
        '{"passes": null}',
        '{"passes": [[]]}',
        '{"passes": {"loss_head": 1}}',
        '{"budget": null}',
        '{"budget": 1e999}',
        '{"budget": NaN}',
        '{"budget": ' + "9" * 400 + "}",
        '{"budget": ' + "9" * 5000 + "}",
        '{"max_autotune": "no"}',
        '{"regions": 2}',
        '{"cuda_graph": null}',
    ],
    ids=lambda text: str(text)[:20],
)
def test_a_text_that_is_no_plan_is_refused(text):
    with pytest.raises(InputError, match="seen: "):
        Plan.from_json(text)


def test_the_error_names_text_and_cause():
    with pytest.raises(InputError) as error:
        Plan.from_json('{"graph": "inductor"')
    assert str(error.value) == (
        'seen: \'{"graph": "inductor"\' for a plan\n'
        "expected: a JSON object\n"
        "likely cause: another text, or a cut one: Expecting ',' delimiter: line 1 column 21 (char 20)\n"
        "fix: let the step choose a plan, and print step.plan.to_json()"
    )


def test_a_plan_is_remembered_with_its_time_and_the_refused_ones(tmp_path):
    assert plans.recall("key") is None
    plans.remember("key", PLAN, REFUSED)
    stored = plans.recall("key")
    assert (stored.plan, stored.refused) == (PLAN, REFUSED)
    assert stored.path == str(tmp_path / "cache" / "plans" / "key.json")
    assert stored.measured_at.startswith("20")
    assert stored.measured_at.endswith("+00:00")
    plans.remember("key", PLAN, [], stored.measured_at)
    assert plans.recall("key").measured_at == stored.measured_at


def test_nothing_of_another_training_is_kept():
    plans.remember("key", PLAN, REFUSED)
    with open(plans.recall("key").path) as file:
        assert set(json.load(file)) == {"plan", "measured_at", "refused", "checksum"}


def test_a_damaged_file_counts_as_absent():
    plans.remember("key", PLAN, REFUSED)
    path = plans.recall("key").path
    with open(path, "rb") as file:
        whole = file.read()
    for place in range(0, len(whole), 3):
        for damaged in (whole[:place], whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]):
            with open(path, "wb") as file:
                file.write(damaged)
            assert plans.recall("key") is None, damaged
    for other in (b"", b"null", b"[]", b"3", b'{"checksum": 1}', b"[" * 100_000, b"\xff"):
        with open(path, "wb") as file:
            file.write(other)
        assert plans.recall("key") is None, other


def test_a_file_of_another_key_or_a_folder_counts_as_absent():
    plans.remember("key", PLAN, REFUSED)
    path = plans.recall("key").path
    os.rename(path, path.replace("key.json", "other.json"))
    assert plans.recall("other") is None
    os.mkdir(path)
    assert plans.recall("key") is None
    plans.remember("key", PLAN, REFUSED)  # a folder is in the way: nothing happens
    assert plans.recall("key") is None
    assert sorted(os.listdir(os.path.dirname(path))) == ["key.json", "other.json"]


def test_a_folder_that_cannot_be_made_is_no_error(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LOOPWISE_CACHE", str(tmp_path / "file"))
    plans.remember("key", PLAN, REFUSED)
    assert plans.recall("key") is None


def test_the_step_stores_why_other_plans_were_refused(monkeypatch, tmp_path):
    def doubled(gm):
        (output,) = gm.graph.find_nodes(op="output")
        with gm.graph.inserting_before(output):
            output.args = ((gm.graph.call_function(torch.mul, (output.args[0][0], 2)),),)
        gm.recompile()
        return [Outcome(True, "here")]

    attempt = Trials.attempt

    def without_compiler(self, **_):
        return attempt(self, graph="captured", passes=("loss_head",))

    def prepared():
        net = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 3))
        step = TrainStep(net, CRITERION, torch.optim.SGD(net.parameters(), lr=0.1), autotune="off")
        step.prepare((torch.randn(4, 6), torch.arange(4) % 3))
        (file,) = (tmp_path / "cache" / "plans").iterdir()
        return plans.recall(file.stem)

    monkeypatch.setitem(PASSES, "loss_head", doubled)
    monkeypatch.setattr(Trials, "attempt", without_compiler)
    stored = prepared()
    assert stored.plan == Plan()
    assert [entry["plan"] for entry in stored.refused] == ["captured + loss head"]
    assert stored.refused[0]["reason"].startswith("wrong: ")
    assert prepared() == stored

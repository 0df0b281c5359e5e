"""Jobs that start from the trials of others."""

import json
import shutil

import optuna
import pytest
from tune_kit import call, described, job, program

from loopwise.errors import InputError
from loopwise.tune import Tuner, job_of, run
from loopwise.tune.page import sections
from loopwise.tune.search.storage import open_storage
from loopwise.tune.search.study import Study
from loopwise.tune.search.view import in_memory, ranks_of
from loopwise.tune.search.warm_start import inherited
from loopwise.tune.trials import Trial, recorded
from loopwise.warnings import LoopwiseWarning

TEXT = """
import os, sys
x, steps = float(sys.argv[1]), int(sys.argv[2])
if x > 0.9:
    sys.exit(1)
for step in range(steps):
    print(f" loss={(x - 0.3) ** 2 + 1 / (step + 1):.6f}")
"""


@pytest.fixture(scope="module")
def parent(tmp_path_factory):
    """Return the folder and the command of a job of eight trials."""
    folder = tmp_path_factory.mktemp("parent")
    command = program(folder, TEXT) + " {x} {steps}"
    run(job(command, static={"steps": 2}, limits={"trials": 8, "parallel": 2}), str(folder / "run"))
    return str(folder / "run"), command


def child(parent, **changes):
    folder, command = parent
    warm_start = {"parents": [folder]} | changes.pop("warm_start", {})
    return described(command, **({"static": {"steps": 2}} | changes), warm_start=warm_start)


def test_the_best_trial_is_that_of_parents_and_child(parent, tmp_path):
    content = child(parent, limits={"trials": 2, "parallel": 1})
    best = run(job_of(content, "job"), str(tmp_path / "run"))
    ended, own = recorded(parent[0]), recorded(str(tmp_path / "run"))
    finished = [trial.objective for trial in (*ended, *own) if trial.state == "finished"]
    assert best.objective == min(finished)
    assert [trial.number for trial in own] == [0, 1]
    assert {trial.values["x"] for trial in own}.isdisjoint(trial.values["x"] for trial in ended)
    taken = inherited(str(tmp_path / "run"))
    assert [(trial.number, trial.job) for trial in taken] == sorted(
        (trial.number, parent[0]) for trial in ended if trial.state == "finished"
    )
    study = optuna.load_study(
        study_name="job",
        storage=optuna.storages.JournalStorage(
            optuna.storages.journal.JournalFileBackend(str(tmp_path / "run/tune/journal.log"))
        ),
    )
    assert study.best_value == pytest.approx(best.objective)
    assert len(study.trials) == len(taken) + 2


def test_a_parents_trial_is_shown_as_such(parent, tmp_path):
    content = child(  # one step leaves a loss of 1 or more, the parent's two steps leave 0.86 at most
        parent,
        static={"steps": 1},
        limits={"trials": 1},
        parameters={"x": {"type": "continuous", "low": 0.0, "high": 2.0}},
    )
    content["command"] = parent[1]
    (tmp_path / "job.json").write_text(json.dumps(content))
    path, folder = tmp_path / "job.json", tmp_path / "run"
    call("run", path, "--folder", folder)
    ended = [trial for trial in recorded(parent[0]) if trial.state == "finished"]
    first = min(ended, key=lambda trial: trial.objective)
    best = json.loads(call("best", folder))
    assert best == {"trial": first.number, "job": parent[0], "loss": first.objective, "values": first.values}
    assert f"{parent[0]}:{first.number} *" in call("show", folder).replace("\n", "")
    call("export", folder, tmp_path / "all.json")
    rows = json.loads((tmp_path / "all.json").read_text())
    assert [row["job"] for row in rows] == [parent[0]] * len(ended) + [str(folder)]
    assert [row["trial"] for row in rows if row["best"]] == [first.number]
    assert f"The best is trial {parent[0]}:{first.number}" in json.dumps(sections(str(folder)))


def test_ranges_may_change_and_parameters_may_be_static(parent, tmp_path):
    parameters = {
        "x": {"type": "continuous", "low": 0.2, "high": 0.8},
        "steps": {"type": "integer", "low": 1, "high": 3},
    }
    content = child(parent, parameters=parameters, static={}, constraints=["x < 0.7"])
    values = [trial.values["x"] for trial in recorded(parent[0]) if trial.state == "finished"]
    fitting = sorted(x for x in values if 0.2 <= x < 0.7)
    assert 0 < len(fitting) < len(values)
    left = len(values) - len(fitting)
    with pytest.warns(
        LoopwiseWarning, match=f"^{left} of {len(values)} trials of the parents are outside of the ranges"
    ):
        tuner = Tuner(job_of(content, "job"), str(tmp_path / "run"))
    assert sorted(frozen.params["x"] for frozen in tuner.study.study.trials) == fitting
    assert {frozen.params["steps"] for frozen in tuner.study.study.trials} == {2}
    swapped = child(parent, parameters={"steps": {"type": "integer", "low": 1, "high": 3}}, static={"x": 0.5})
    tuner = Tuner(job_of(swapped, "job"), str(tmp_path / "swapped"))
    assert len(tuner.inherited) == len(values)


def test_a_resumed_job_goes_on_with_the_same_trials(parent, tmp_path):
    folder, command = parent
    shutil.copytree(folder, tmp_path / "parent")
    content = child((str(tmp_path / "parent"), command), limits={"trials": 2, "parallel": 1})
    run(job_of(content, "job"), str(tmp_path / "whole"))
    run(job_of(content | {"limits": {"trials": 1}}, "job"), str(tmp_path / "run"))
    shutil.rmtree(tmp_path / "parent")
    run(job_of(content, "job"), str(tmp_path / "run"), resume=True)
    values = [[trial.values for trial in recorded(str(tmp_path / name))] for name in ("whole", "run")]
    assert values[0] == values[1]


def test_a_tuner_killed_while_it_takes_over_trials(parent, tmp_path):
    described_job = job_of(child(parent), "job")
    tuner = Tuner(described_job, str(tmp_path / "run"))
    lines = (tmp_path / "run/tune/journal.log").read_bytes().splitlines(keepends=True)
    first = [(t.params, t.value, t.state) for t in tuner.study.study.trials]
    for kept in range(1, len(lines) + 1):
        (tmp_path / f"{kept}").write_bytes(b"".join(lines[:kept]))
        again = Study(
            described_job, open_storage(None, tmp_path / f"{kept}"), inherited=tuner.inherited
        ).study.trials
        assert [(t.params, t.value, t.state) for t in again] == first


def test_a_grid_leaves_out_what_a_parent_has_tried(tmp_path):
    content = described("echo ' loss={x}'", parameters={"x": {"type": "categorical", "values": [1, 2, 3, 4]}})
    run(job_of(content | {"limits": {"trials": 2}, "strategy": "grid"}, "job"), str(tmp_path / "parent"))
    content |= {"warm_start": {"parents": [str(tmp_path / "parent")]}, "strategy": "grid"}
    run(job_of(content, "job"), str(tmp_path / "run"))
    assert sorted(trial.values["x"] for trial in recorded(str(tmp_path / "run"))) == [3, 4]


def test_a_transfer_compares_by_ranks(parent, tmp_path):
    warm_start = {"type": "transfer"}
    other = "echo ' loss=1000' {x} {steps}"
    content = child((parent[0], other), warm_start=warm_start, strategy="bayesian", limits={"trials": 1})
    best = run(job_of(content, "job"), str(tmp_path / "run"))
    assert (best.job, best.objective) == ("", 1000.0)  # parents' objectives are those of other data
    study = Study(
        job_of(content, "job"),
        open_storage(None, tmp_path / "run/tune/journal.log"),
        inherited=inherited(str(tmp_path / "run")),
    )
    view = in_memory(study.study, ranks=True)
    ranks = [trial.value for trial in view.trials]
    assert sorted(ranks[:-1]) == pytest.approx([n / (len(ranks) - 2) for n in range(len(ranks) - 1)])
    assert ranks[-1] == 0
    study.ask()


def test_ranks():
    assert ranks_of([3.0, 1.0, 2.0]) == [1.0, 0.0, 0.5]
    assert ranks_of([1.0, 1.0, 2.0]) == [0.25, 0.25, 1.0]
    assert ranks_of([5.0]) == [0.0]


def test_a_stopped_trial_of_a_parent_counts_as_stopped(parent, tmp_path):
    described_job = job_of(child(parent), "job")
    stopped = Trial(
        0, {"x": 0.5, "steps": 2}, "stopped", objective=1.0, reports=[1.0], metrics={"loss": 1.0}, job="p"
    )
    study = Study(described_job, open_storage(None, tmp_path / "journal"), inherited=[stopped])
    (frozen,) = study.study.trials
    assert (frozen.state.name, frozen.value, frozen.user_attrs["loopwise:job"]) == ("PRUNED", 1.0, "p")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"warm_start": {"parents": ["nowhere"]}}, "the folder 'nowhere', without a tuning job"),
        ({"warm_start": {"parents": []}}, "warm_start.parents: Input should have at least 1 item"),
        ({"warm_start": {"parents": ["a"] * 6}}, "warm_start.parents: Input should have at most 5 items"),
        ({"warm_start": {"type": "other"}}, "warm_start.type: Input should be 'identical' or 'transfer'"),
        (
            {"objective": {"metric": "loss", "goal": "maximize"}},
            r"with the objective minimize 'loss'\nexpected: maximize 'loss'",
        ),
        (
            {"static": {}, "command": "echo {x}"},
            r"with the parameters steps, x\nexpected: x: .*\n.*only one of them has: steps",
        ),
        ({"static": {"steps": 2, "more": 1}}, "a parameter that only one of them has: more"),
        (
            {
                "parameters": {"y": {"type": "integer", "low": 1, "high": 3}},
                "static": {"steps": 2, "x": 0.5},
                "warm_start": {"type": "transfer"},
            },
            "a parameter that only one of them has: y",
        ),
        ({"command": "echo {x} {steps}"}, "with another command\n.*\n.*\nfix: use type: transfer"),
    ],
)
def test_parents_that_do_not_fit(parent, tmp_path, changes, message):
    content = child(parent, **{name: value for name, value in changes.items() if name != "command"})
    content |= {name: value for name, value in changes.items() if name == "command"}
    with pytest.raises(InputError, match=message):
        Tuner(job_of(content, "job"), str(tmp_path / "run"))
    assert not (tmp_path / "run/run.json").exists()


def test_a_job_is_no_parent_of_itself(parent):
    with pytest.raises(InputError, match=r"the job's own folder(.|\n)*use --resume"):
        Tuner(job_of(child(parent), "job"), parent[0])


def test_a_parent_counts_once(parent, tmp_path):
    content = child(parent) | {"warm_start": {"parents": [parent[0], parent[0] + "/."]}}
    with pytest.raises(InputError, match=r"warm_start from .*/\.', which stands twice"):
        Tuner(job_of(content, "job"), str(tmp_path / "run"))


def test_a_parent_of_which_no_trial_has_ended(parent, tmp_path):
    tuner = Tuner(job_of(child(parent) | {"warm_start": None}, "job"), str(tmp_path / "running"))
    content = child((str(tmp_path / "running"), parent[1]))
    with pytest.warns(LoopwiseWarning, match="no trial of the parents has ended"):
        Tuner(job_of(content, "job"), str(tmp_path / "run"))
    assert tuner.inherited == []

"""Several objectives: the Pareto front, and what compares trials by one objective only."""

import csv
import itertools
import json
import random

import pytest
from tune_kit import call, described, job, program

from loopwise.errors import InputError
from loopwise.tune import job_of, run
from loopwise.tune.page import sections
from loopwise.tune.pareto import pareto_front
from loopwise.tune.trials import front_of, recorded

TEXT = """
import os, sys
x = float(sys.argv[1])
print(f" loss={x:.4f} acc={x * x:.4f} size={1 - x:.4f}")
if os.environ["LOOPWISE_TRIAL"] == "1":
    print(" acc=nan")
if os.environ["LOOPWISE_TRIAL"] == "2":
    sys.exit(3)
open("objectives", "w").write(os.environ["LOOPWISE_OBJECTIVE_METRIC"])
"""
METRICS = [{"name": name, "regex": rf" {name}=(\S+)"} for name in ("loss", "acc", "size")]
GOALS = [{"metric": "loss", "goal": "minimize"}, {"metric": "acc", "goal": "maximize"}]


def several(command, objectives=GOALS, **changes):
    content = described(command, metrics=METRICS, **changes)
    del content["objective"]
    return content | {"objectives": objectives}


def test_the_front_is_what_no_other_one_dominates():
    draws = random.Random(0)
    for dimensions in (1, 2, 3):
        scores = [[draws.randrange(6) for _ in range(dimensions)] for _ in range(60)]
        front = pareto_front(scores)
        dominated = {
            a
            for a, b in itertools.permutations(range(60), 2)
            if all(x <= y for x, y in zip(scores[b], scores[a], strict=True)) and scores[b] != scores[a]
        }
        assert {tuple(scores[n]) for n in front} == {tuple(scores[n]) for n in set(range(60)) - dominated}
        assert len({tuple(scores[n]) for n in front}) == len(front)
        assert scores[front[0]][0] == min(score[0] for score in scores)
    assert pareto_front([]) == []


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """Return the folder of a job of six trials, of which two fail."""
    folder = tmp_path_factory.mktemp("objectives")
    (folder / "job.json").write_text(
        json.dumps(
            several(
                f"sh -c 'cd {folder} && {program(folder, TEXT)} {{x}}'",
                limits={"trials": 6},
                strategy="bayesian",
            )
        )
    )
    output = call("run", folder / "job.json", "--folder", folder / "run")
    assert output.count("best: trial") == 4
    return folder / "run"


def test_trials_that_no_other_one_dominates(done):
    trials = recorded(str(done))
    finished = [trial for trial in trials if trial.state == "finished"]
    assert {trial.number: trial.reason.splitlines()[0] for trial in trials if trial.state == "failed"} == {
        1: "'acc' is nan",
        2: "the program ended with code 3; its last lines:",
    }
    goals = job_of(json.loads((done / "tune/job.json").read_text())["job"], "job").goals
    front = front_of(trials, goals)
    assert [trial.number for trial in front] == [
        trial.number for trial in sorted(finished, key=lambda trial: trial.objective)
    ]  # each one is better in one objective and worse in the other one
    assert (done.parent / "objectives").read_text() == "loss\nacc"


def test_they_are_shown_and_exported(done, tmp_path):
    lines = [json.loads(line) for line in call("best", done).splitlines()]
    assert len(lines) == 4
    assert all({"trial", "loss", "acc", "values"} == set(line) for line in lines)
    assert [line["loss"] for line in lines] == sorted(line["loss"] for line in lines)
    shown = call("show", done)
    assert shown.count(" *") == 4
    assert shown.splitlines()[0].split() == ["trial", "state", "loss", "acc", "x", "seconds", "reason"]
    call("export", done, tmp_path / "trials.csv")
    rows = list(csv.DictReader((tmp_path / "trials.csv").read_text().splitlines()))
    assert [row["best"] for row in rows].count("True") == 4
    text = json.dumps(sections(str(done)))
    assert "No other trial is better than 4 of them: " in text
    assert "loss and acc of 4 finished trials, 4 of them in the Pareto front" in text
    assert "best so far" not in text


def test_a_page_of_three_objectives_has_a_menu(tmp_path):
    goals = [*GOALS, {"metric": "size", "goal": "minimize"}]
    content = several(program(tmp_path, TEXT) + " {x}", goals, limits={"trials": 1})
    content["command"] = f"sh -c 'cd {tmp_path} && {content['command']}'"
    assert run(job_of(content, "job"), str(tmp_path / "run")).number == 0
    (section,) = sections(str(tmp_path / "run"))
    (menu,) = [block for block in section["blocks"] if block["kind"] == "choice"]
    assert [plot["title"] for plot in menu["plots"]] == ["loss and acc", "loss and size", "acc and size"]


def test_a_job_whose_time_is_up_stops_its_trials(tmp_path):
    text = "import time\nprint(' loss=1 acc=1', flush=True)\ntime.sleep(1000)"
    content = several(program(tmp_path, text), limits={"trials": 2, "parallel": 1, "seconds": 5})
    assert run(job_of(content, "job"), str(tmp_path / "run")) is None
    (trial,) = recorded(str(tmp_path / "run"))
    assert (trial.state, trial.reason) == ("stopped", "the time of the job is up")


def test_an_objective_that_no_line_tells(tmp_path):
    content = several(program(tmp_path, "print(' loss=1')"), limits={"trials": 1})
    run(job_of(content, "job"), str(tmp_path / "run"))
    (trial,) = recorded(str(tmp_path / "run"))
    assert trial.reason.startswith(r"the objective 'acc': no line matched ' acc=(\\S+)'")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective": GOALS[0]}, "objective and objectives exclude each other"),
        ({"objectives": GOALS[:1]}, "objectives: Input should have at least 2 items"),
        ({"objectives": [GOALS[0]] * 2}, "the objective 'loss' stands twice"),
        ({"objectives": [GOALS[0], {"metric": "f1", "goal": "maximize"}]}, "the objective 'f1' is no metric"),
        (
            {"early_stopping": "auto"},
            "early_stopping compares trials by one objective, and the job has several",
        ),
        (
            {"strategy": "hyperband", "hyperband": {"max_resource": 9}},
            "strategy: hyperband compares trials by",
        ),
        ({"limits": {"trials": 9, "target": 1.0}}, "limits.target compares trials by one objective"),
        ({"limits": {"trials": 9, "target": 0.0}}, "limits.target compares trials by one objective"),
        (
            {"limits": {"trials": 9, "not_improving": 3}},
            "limits.not_improving compares trials by one objective",
        ),
        (
            {"limits": {"trials": 9, "convergence": True}},
            "limits.convergence compares trials by one objective",
        ),
    ],
)
def test_what_needs_one_objective(changes, message):
    with pytest.raises(InputError, match=message):
        job_of(several("python t.py {x}") | changes, "job")


def test_one_objective_is_a_front_of_one(tmp_path):
    best = run(job("echo ' loss={x}'", limits={"trials": 3}), str(tmp_path / "run"))
    assert best.objective == min(trial.objective for trial in recorded(str(tmp_path / "run")))

"""Whole jobs with real programs: results, failures, stops, and the folder of a job."""

import json
import re
import subprocess
import sys

import pytest
from tune_kit import PROGRAM, alive, job, program

from loopwise.errors import InputError, StateError
from loopwise.tune import Tuner, run
from loopwise.tune.search.storage import FileLock, mend
from loopwise.tune.trials import recorded


def test_a_job_finds_its_best_trial(tmp_path):
    command = program(tmp_path) + " --x {x}"
    best = run(job(command, limits={"trials": 5, "parallel": 2}), str(tmp_path / "run"))
    trials = recorded(str(tmp_path / "run"))
    assert len(trials) == 5
    assert {trial.state for trial in trials} == {"finished"}
    for trial in trials:
        assert trial.objective == pytest.approx((trial.values["x"] - 0.3) ** 2 + 1 / 3, abs=1e-6)
        assert len(trial.reports) == 3
        assert trial.metrics == {"loss": trial.objective}
    assert best.objective == min(trial.objective for trial in trials)


def test_the_same_seed_gives_the_same_values(tmp_path):
    command = program(tmp_path) + " --x {x} --steps 1"
    values = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run(job(command, seed=seed, limits={"trials": 3, "parallel": 1}), str(tmp_path / name))
        values.append([trial.values["x"] for trial in recorded(str(tmp_path / name))])
    assert values[0] == values[1] != values[2]


def test_what_the_program_sees(tmp_path, monkeypatch):
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    monkeypatch.setenv("KEPT", "yes")
    text = """
    import json, os, sys
    parameters = json.load(open(os.environ["LOOPWISE_PARAMETERS"]))
    print(json.dumps({"arguments": sys.argv[1:], "parameters": parameters, "environment": dict(os.environ)}))
    print(" loss=1")
    """
    described_job = job(
        program(tmp_path, text) + " --x={x} {flag:amp} --epochs {epochs}",
        parameters={
            "x": {"type": "integer", "low": 3, "high": 4},
            "amp": {"type": "categorical", "values": [True]},
        },
        static={"epochs": 7},
        environment={"SM_LOG_LEVEL": "10", "SIZE": "size-{x}"},
        limits={"trials": 1, "parallel": 1},
    )
    run(described_job, str(tmp_path / "run"))
    seen = json.loads((tmp_path / "run/tune/trials/00000/0/stdout").read_text().splitlines()[0])
    x = seen["parameters"]["x"]
    assert seen["arguments"] == [f"--x={x}", "--amp", "--epochs", "7"]
    assert seen["parameters"] == {"x": x, "amp": True, "epochs": 7}
    assert (
        seen["environment"].items()
        >= {
            "KEPT": "yes",
            "SM_LOG_LEVEL": "10",
            "SIZE": f"size-{x}",
            "PYTHONUNBUFFERED": "1",
            "LOOPWISE_TRIAL": "0",
            "LOOPWISE_OBJECTIVE_METRIC": "loss",
        }.items()
    )
    folder = tmp_path / "run/tune/trials/00000/0"
    assert not (folder / "start.json").exists()  # the environment may hold secrets
    assert (folder / "params.json").stat().st_mode & 0o077 == 0


def test_a_metric_without_an_expression_is_reported(tmp_path):
    text = "from loopwise.tune import report\nreport(loss=2.0)\nreport(loss=0.5)"
    changes = {"metrics": [{"name": "loss"}], "limits": {"trials": 1}}
    assert run(job(program(tmp_path, text), **changes), str(tmp_path / "run")).objective == 0.5
    run(job(program(tmp_path, "print('loss 3')"), **changes), str(tmp_path / "other"))
    (trial,) = recorded(str(tmp_path / "other"))
    assert "the metric 'loss' has no regex, and the program did not report it" in trial.reason
    assert "this line almost matches: 'loss 3'" in trial.reason


def test_a_grid_is_run_once_through(tmp_path):
    parameters = {
        "x": {"type": "categorical", "values": [0.1, 0.2, 0.3]},
        "steps": {"type": "categorical", "values": [1, 2]},
    }
    described_job = job(
        program(tmp_path) + " --x {x} --steps {steps}",
        parameters=parameters,
        strategy="grid",
        limits={"trials": 99},
    )
    best = run(described_job, str(tmp_path / "run"))
    values = [tuple(trial.values.values()) for trial in recorded(str(tmp_path / "run"))]
    assert sorted(values) == [(x, steps) for x in (0.1, 0.2, 0.3) for steps in (1, 2)]
    assert best.values == {"x": 0.3, "steps": 2}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("raise ValueError('no data')", "ended with code 1; its last lines:\n.*\n.*ValueError: no data"),
        (
            "print('loss: 0.5')",
            "no line matched .*; this line almost matches: 'loss: 0.5'; the regex .* would match it",
        ),
        ("print('nothing')", "no line matched ' loss=.*'; the last lines:\nnothing"),
        ("", "no line matched ' loss=.*'; the program printed nothing$"),
        ("raise SystemExit(2)", "^the program ended with code 2; it printed nothing$"),
        ("print(' loss=nan')", "the objective is nan"),
        ("print(' loss=inf')", "the objective is inf"),
        ("print(' loss=low')", r"1 matches of ' loss=\(\\\\S\+\)' are no numbers"),
    ],
)
def test_failures_are_explained(tmp_path, text, reason):
    assert run(job(program(tmp_path, text), limits={"trials": 1}), str(tmp_path / "run")) is None
    (trial,) = recorded(str(tmp_path / "run"))
    assert trial.state == "failed"
    assert re.search(reason, trial.reason, re.DOTALL), trial.reason


def test_a_program_that_fails_once_is_retried(tmp_path):
    text = """
    import os, sys
    if not os.path.exists("once"):
        open("once", "w").close()
        sys.exit(3)
    print(" loss=1")
    """
    command = f"sh -c 'cd {tmp_path} && {program(tmp_path, text)}'"
    run(job(command, limits={"trials": 1, "retries": 1}), str(tmp_path / "run"))
    (trial,) = recorded(str(tmp_path / "run"))
    assert (trial.state, trial.attempts) == ("finished", 2)


def test_limits_of_time(tmp_path):
    text = "import time\nprint(' loss=2', flush=True)\ntime.sleep(1000)"
    run(job(program(tmp_path, text), limits={"trials": 2, "trial_seconds": 5}), str(tmp_path / "a"))
    first, _ = recorded(str(tmp_path / "a"))
    assert (first.state, first.objective, first.reason) == ("finished", 2.0, "more than 5 seconds")
    run(job(program(tmp_path, text), limits={"trials": 2, "parallel": 1, "seconds": 5}), str(tmp_path / "b"))
    (only,) = recorded(str(tmp_path / "b"))
    assert (only.state, only.reason) == ("stopped", "the time of the job is up")


def test_a_trial_that_is_ended_before_its_first_report_says_why(tmp_path):
    command = program(tmp_path, "import time\ntime.sleep(1000)")
    for limits, reason in (
        ({"trial_seconds": 1}, "more than 1 seconds; no line matched "),
        ({"seconds": 1}, "the time of the job is up; no line matched "),
    ):
        folder = str(tmp_path / next(iter(limits)))
        run(job(command, limits={"trials": 1} | limits), folder)
        (only,) = recorded(folder)
        assert only.state == "failed"
        assert only.reason.startswith(reason)


def test_a_target_ends_the_job(tmp_path):
    described_job = job(program(tmp_path) + " --x {x}", limits={"trials": 50, "parallel": 1, "target": 0.8})
    best = run(described_job, str(tmp_path / "run"))
    assert best.objective <= 0.8
    assert len(recorded(str(tmp_path / "run"))) < 50


def test_a_trial_that_is_worse_than_the_others_is_stopped(tmp_path):
    text = """
    import os, time
    trial = int(os.environ["LOOPWISE_TRIAL"])
    for step in range(4 if trial < 5 else 1000):
        print(f" loss={1 if trial < 5 else 9}", flush=True)
        time.sleep(0 if trial < 5 else 0.5)
    """
    described_job = job(program(tmp_path, text), early_stopping="auto", limits={"trials": 6, "parallel": 1})
    run(described_job, str(tmp_path / "run"))
    last = recorded(str(tmp_path / "run"))[-1]
    assert (last.state, last.reason) == ("stopped", "worse than the median of the finished trials")
    assert len(last.reports) < 10


def test_a_whole_tree_of_processes_is_ended(tmp_path):
    text = """
    import os, subprocess, sys, time
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(1000)"
    child = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    open("child", "w").write(str(child.pid))
    print(" loss=1", flush=True)
    """
    command = f"sh -c 'cd {tmp_path} && {program(tmp_path, text)}'"
    run(job(command, limits={"trials": 1}), str(tmp_path / "run"))
    assert recorded(str(tmp_path / "run"))[0].state == "finished"
    assert not alive(int((tmp_path / "child").read_text()))


# -- the folder -----------------------------------------------------------------------------------


def test_a_folder_holds_one_job(tmp_path):
    command, folder = program(tmp_path) + " --x {x} --steps 1", str(tmp_path / "run")
    run(job(command, limits={"trials": 2}), folder)
    with pytest.raises(StateError, match="already holds a run"):
        run(job(command), folder)
    with pytest.raises(InputError, match=r"differs from the one in .* in seed"):
        run(job(command, seed=3), folder, resume=True)
    run(job(command, limits={"trials": 3}), folder, resume=True)
    assert len(recorded(folder)) == 3


def test_a_program_that_cannot_be_executed_leaves_no_run(tmp_path):
    folder = str(tmp_path / "run")
    with pytest.raises(InputError, match="the program 'no-such-program'"):
        run(job("no-such-program {x}"), folder)
    run(job(program(tmp_path) + " --x {x} --steps 1", limits={"trials": 1}), folder)


def test_two_tuners_in_one_folder(tmp_path):
    command, folder = program(tmp_path) + " --x {x}", str(tmp_path / "run")
    first = Tuner(job(command), folder)
    with pytest.raises(StateError, match="another tuner works in"):
        Tuner(job(command), folder, resume=True)
    first.close()


def test_a_torn_journal_is_mended(tmp_path):
    path = tmp_path / "journal.log"
    assert mend(path) == 0
    path.write_bytes(b'{"a": 1}\n{"b"')
    assert mend(path) == 4
    assert path.read_bytes() == b'{"a": 1}\n'


def test_a_lock_ends_with_its_process(tmp_path):
    code = f"""
import os, time
from loopwise.tune.search.storage import FileLock
FileLock({str(tmp_path / "journal")!r}).acquire()
print("locked", flush=True)
time.sleep(1000)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "locked\n"
    process.kill()
    process.wait()
    process.stdout.close()
    lock = FileLock(str(tmp_path / "journal"))
    assert lock.acquire()
    lock.release()


def test_the_program_of_the_kit_is_a_program():
    compile(PROGRAM, "train.py", "exec")

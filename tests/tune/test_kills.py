"""Tuners, supervisors and programs that are killed or interrupted, and jobs that go on afterwards."""

import json
import os
import signal
import subprocess
import sys

import pytest
from tune_kit import PATIENCE, alive, described, job, program, wait_for

from loopwise.programs.processes import write_json
from loopwise.tune import run
from loopwise.tune.process import supervise
from loopwise.tune.process.attempt import Attempt
from loopwise.tune.trials import recorded


def tuner_process(tmp_path, resume=False):
    code = f"""
    import json, signal, sys
    from loopwise.tune import job_of, run
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background process ignores it
    run(job_of(json.load(open({str(tmp_path / "job.json")!r})), "job"), {str(tmp_path / "run")!r}, resume={resume})
    """
    path = tmp_path / "tuner.py"
    path.write_text("\n".join(line[4:] for line in code.splitlines()))
    return subprocess.Popen([sys.executable, str(path)], stderr=subprocess.PIPE, text=True)


def resumed(folder):
    """Return the trials of a job after another tuner has gone on with it to its end."""
    process = tuner_process(folder, resume=True)
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, errors
    return recorded(str(folder / "run"))


@pytest.fixture
def killed(tmp_path, monkeypatch):
    """Start a job of six trials and kill its tuner while the third and fourth run; return the folder."""
    monkeypatch.setenv("PAUSE", "2")
    content = described(program(tmp_path) + " --x {x}", limits={"trials": 6, "parallel": 2})
    (tmp_path / "job.json").write_text(json.dumps(content))
    process = tuner_process(tmp_path)
    wait_for(lambda: (tmp_path / "run/tune/trials/00003/0/pid").exists())
    process.kill()
    process.wait()
    process.stderr.close()
    return tmp_path


def pids(folder):
    return [json.loads(path.read_text())["pid"] for path in folder.glob("run/tune/trials/*/*/pid")]


def test_a_killed_tuner_is_resumed_with_its_running_trials(killed):
    assert any(alive(pid) for pid in pids(killed))  # trials outlive the tuner
    trials = resumed(killed)
    assert sorted(trial.number for trial in trials) == list(range(6))
    assert {trial.state for trial in trials} == {"finished"}
    assert {trial.attempts for trial in trials} == {1}  # nothing was repeated
    assert not any(alive(pid) for pid in pids(killed))


def test_trials_that_died_with_the_tuner_are_repeated(killed):
    for pid in pids(killed):
        if alive(pid):
            os.kill(pid, signal.SIGKILL)
    trials = resumed(killed)
    assert sorted(trial.number for trial in trials) == list(range(6))
    assert {trial.state for trial in trials} == {"finished"}


@pytest.mark.parametrize("strategy", ["random", "grid"])
def test_a_tuner_killed_while_it_asks_for_values_is_resumed(tmp_path, strategy):
    changes = {"strategy": strategy, "limits": {"trials": 2, "parallel": 1}}
    parameters = {name: {"type": "categorical", "values": [0.25, 0.5, 0.75]} for name in "xy"}
    described_job = job("echo ' loss={x}{y}'", parameters=parameters, **changes)
    run(described_job, str(tmp_path / "whole"))
    values = [trial.values for trial in recorded(str(tmp_path / "whole"))]
    lines = (tmp_path / "whole/tune/journal.log").read_bytes().splitlines(keepends=True)
    assert [json.loads(line)["op_code"] for line in lines[:4]] == [0, 4, 5, 5]
    for kept in range(4):
        folder = tmp_path / f"{strategy}{kept}"
        (folder / "tune").mkdir(parents=True)
        (folder / "tune/journal.log").write_bytes(b"".join(lines[:kept]))
        run(described_job, str(folder), resume=True)
        assert [trial.values for trial in recorded(str(folder))] == values


def test_a_stop_that_the_killed_tuner_had_decided_on_is_carried_out(tmp_path, monkeypatch):
    monkeypatch.setenv("PAUSE", "1000")
    content = described(program(tmp_path) + " --x {x}", limits={"trials": 1})
    (tmp_path / "job.json").write_text(json.dumps(content))
    process = tuner_process(tmp_path)
    attempt = Attempt(tmp_path / "run/tune/trials/00000/0", [])
    wait_for(lambda: " loss=" in (attempt.folder / "stdout").read_text() if pids(tmp_path) else False)
    process.kill()
    process.communicate()
    attempt.mark("worse")
    (trial,) = resumed(tmp_path)
    assert (trial.state, trial.reason, trial.attempts) == ("stopped", "worse", 1)


def test_a_supervisor_that_starts_after_its_attempt_was_given_up_runs_nothing(tmp_path):
    write_json(str(tmp_path / "start.json"), {"arguments": ["true"], "folder": "/", "seconds": None})
    assert not Attempt(tmp_path, []).alive()
    supervise.main(str(tmp_path))
    assert not (tmp_path / "pid").exists()


def test_what_a_killed_supervisor_leaves_behind_is_ended(tmp_path):
    text = """
    import json, os, signal, subprocess, time
    folder = os.path.dirname(os.environ["LOOPWISE_PARAMETERS"])
    if folder.endswith("/0"):
        child = subprocess.Popen(["sleep", "1000"], start_new_session=True)
        json.dump([os.getpid(), child.pid], open("processes", "w"))
        os.kill(json.load(open(folder + "/pid"))["pid"], signal.SIGKILL)
        time.sleep(1000)
    print(" loss=1")
    """
    command = f"sh -c 'cd {tmp_path} && {program(tmp_path, text)}'"
    run(job(command, limits={"trials": 1}), str(tmp_path / "run"))
    assert [(t.state, t.attempts) for t in recorded(str(tmp_path / "run"))] == [("finished", 2)]
    assert not any(map(alive, json.loads((tmp_path / "processes").read_text())))


def test_interruptions_are_no_retries(tmp_path):
    text = """
    import os, sys, time
    runs = len(os.listdir(os.path.dirname(os.path.dirname(os.environ["LOOPWISE_PARAMETERS"])))) 
    time.sleep(1000 if runs == 1 else 0)
    sys.exit(3) if runs == 2 else print(" loss=1")
    """
    content = described(program(tmp_path, text), limits={"trials": 1, "retries": 1})
    (tmp_path / "job.json").write_text(json.dumps(content))
    process = tuner_process(tmp_path)
    wait_for(
        lambda: (tmp_path / "run/tune/trials/00000/0").exists()
    )  # at once: the supervisor does not listen yet
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=PATIENCE)
    assert [(t.state, t.attempts) for t in resumed(tmp_path)] == [("finished", 3)]


def test_interruption_ends_the_trials_and_leaves_a_job_to_resume(tmp_path, monkeypatch):
    monkeypatch.setenv("PAUSE", "5")
    content = described(program(tmp_path) + " --x {x} --steps 2", limits={"trials": 2, "parallel": 2})
    (tmp_path / "job.json").write_text(json.dumps(content))
    process = tuner_process(tmp_path)
    wait_for(lambda: (tmp_path / "run/tune/trials/00001/0/pid").exists())
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=PATIENCE)
    assert not any(alive(pid) for pid in pids(tmp_path))
    assert recorded(str(tmp_path / "run")) == []
    monkeypatch.setenv("PAUSE", "0")
    assert sorted((t.number, t.state, t.attempts) for t in resumed(tmp_path)) == [
        (0, "finished", 2),
        (1, "finished", 2),
    ]

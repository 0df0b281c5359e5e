"""The commands ``loopwise tune ...`` and the section of the page."""

import csv
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from rich.console import Console
from tune_kit import call, described, job, program

from loopwise.report import report
from loopwise.tune import Objective, Tuner, run
from loopwise.tune.page import sections
from loopwise.tune.table import live, trials_table
from loopwise.tune.trials import Trial, record_of


def write_job(folder, content):
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """Return the file and the folder of a job of four trials, of which one fails."""
    folder = tmp_path_factory.mktemp("done")
    text = """
    import os, sys
    if os.environ["LOOPWISE_TRIAL"] == "2":
        sys.exit("out of luck")
    for step in range(3):
        print(f" loss={float(sys.argv[1]) + 1 / (step + 1):.4f}")
    """
    parameters = {
        "x": {"type": "continuous", "low": 0.0, "high": 1.0},
        "kind": {"type": "categorical", "values": ["a", "b"]},
    }
    content = described(program(folder, text) + " {x} {kind}", parameters=parameters)
    path = write_job(folder, content)
    output = call("run", path, "--folder", folder / "run")
    assert "best: trial" in output
    return path, folder / "run"


def test_a_job_is_shown_and_exported(done, tmp_path):
    _, folder = done
    shown = call("show", folder)
    assert shown.count("finished") == 3
    assert "trial 2 failed: the program ended with code 1; its last lines:\nout of luck" in shown
    best = json.loads(call("best", folder))
    call("export", folder, tmp_path / "trials.csv")
    rows = list(csv.DictReader((tmp_path / "trials.csv").read_text().splitlines()))
    assert len(rows) == 4
    finished = [float(row["objective"]) for row in rows if row["state"] == "finished"]
    assert best["loss"] == min(finished)
    call("export", folder, tmp_path / "trials.json")
    assert len(json.loads((tmp_path / "trials.json").read_text())) == 4
    assert "an ending of .csv or .json" in call("export", folder, tmp_path / "trials.txt", code=1)


def test_columns_of_an_export_do_not_hide_each_other(tmp_path):
    command = program(tmp_path, "print(' loss=0.5 took=7000')") + " {loss}"
    parameters = {"loss": {"type": "categorical", "values": ["mse"]}}
    metrics = [{"name": "loss", "regex": r" loss=(\S+)"}, {"name": "seconds", "regex": r"took=(\S+)"}]
    content = described(command, parameters=parameters, metrics=metrics, limits={"trials": 1})
    call("run", write_job(tmp_path, content), "--folder", tmp_path / "run")
    call("export", tmp_path / "run", tmp_path / "trials.json")
    (row,) = json.loads((tmp_path / "trials.json").read_text())
    assert (row["loss"], row["metric.loss"], row["metric.seconds"]) == ("mse", 0.5, 7000.0)
    assert row["seconds"] < 7000


def test_logs(done):
    _, folder = done
    assert call("logs", folder, 0).count(" loss=") == 3
    assert call("logs", folder, 0, "-f").count(" loss=") == 3
    assert call("logs", folder, 2, "--stderr") == "out of luck\n"
    assert "a trial that was started" in call("logs", folder, 9, code=1)


def test_the_log_of_an_attempt_that_was_lost_is_followed_to_its_end(tmp_path, monkeypatch):
    attempts = tmp_path / "tune/trials/00000"
    (attempts / "0").mkdir(parents=True)
    (attempts / "0/stdout").write_text("step 0\n")
    monkeypatch.setattr("time.sleep", lambda seconds: (attempts / "1").mkdir())
    assert call("logs", tmp_path, 0, "-f") == "step 0\n"


def test_a_folder_that_is_used_again(done):
    path, folder = done
    assert call("run", path, "--folder", folder, code=1) == (
        "Error: \n"
        f"seen: the folder {str(folder)!r} already holds a run\n"
        "expected: a new folder, or --resume\n"
        "likely cause: this job was run before, perhaps up to Ctrl-C\n"
        "fix: pass --resume to go on with it, or --folder with the name of another folder\n"
    )
    assert "best: trial" in call("run", path, "--folder", folder, "--resume")
    assert "without a tuning job" in call("show", folder.parent, code=1)


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_shows_what_was_found_and_how_to_go_on(tmp_path):
    text = """
    import os, signal, sys, time
    print(" loss=0.5", flush=True)
    if os.environ["LOOPWISE_TRIAL"] == "1":
        os.kill(int(sys.argv[1]), signal.SIGINT)
        time.sleep(600)
    """
    changes = {"static": {"tuner": os.getpid()}, "limits": {"trials": 3, "parallel": 1}}
    path = write_job(tmp_path, described(program(tmp_path, text) + " {tuner}", **changes))
    output = call("run", path, "--folder", tmp_path / "run", code=130)
    assert "0 *" in output
    assert f"interrupted; go on with: loopwise tune run {path} --folder {tmp_path / 'run'} --resume" in output


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_before_the_first_trial_says_whether_the_job_was_begun(tmp_path, monkeypatch):
    path, folder, interrupted = write_job(tmp_path, described("true {x}")), tmp_path / "run", []

    def begin(job, folder, *arguments):
        if interrupted:
            Tuner(job, folder, *arguments).close()
        interrupted.append(True)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr("loopwise.tune.cli.Tuner", begin)
    first, second = (call("run", path, "--folder", folder, code=130) for _ in range(2))
    again = f"loopwise tune run {path} --folder {folder}"
    assert first == f"interrupted before the job was begun; start it with: {again}\n"
    assert second == f"interrupted; go on with: {again} --resume\n"


def test_a_log_is_tried_before_anything_is_run(tmp_path):
    path = write_job(tmp_path, described("python train.py {x}"))
    log = tmp_path / "old.log"
    log.write_text("epoch 0 loss=0.5\nepoch 1 loss=0.25\nepoch 2 loss=low\n")
    output = call("try", path, "--log", log)
    assert "2 values in 2 reports, 1 no numbers; last: 0.25" in output
    assert "epoch 1 loss=0.25" in output
    log.write_text("loss=tensor(0.25)\n")
    output = call(
        "try",
        write_job(tmp_path, described("a {x}", metrics=[{"name": "loss", "regex": "loss=(.*)"}])),
        "--log",
        log,
        code=1,
    )
    assert "1 matches, and no number" in output
    log.write_text("{'loss': '0.6716', 'epoch': '0.5'}\n")
    output = call("try", path, "--log", log, code=1)
    assert "no line matches" in output
    assert "almost: {'loss': '0.6716', 'epoch': '0.5'}" in output
    suggested = output.split("would match it: ")[1].strip()
    content = described("python train.py {x}", metrics=[{"name": "loss", "regex": suggested}])
    assert "last: 0.6716" in call("try", write_job(tmp_path, content), "--log", log)


def test_a_log_with_reports_is_tried(tmp_path):
    path = write_job(tmp_path, described("python train.py {x}", metrics=[{"name": "loss"}]))
    log = tmp_path / "old.log"
    log.write_text('{"loopwise": {"loss": 0.5}}\n')
    assert "1 values in 1 reports, 0 no numbers; last: 0.5" in call("try", path, "--log", log)


def test_no_trial_finished(tmp_path):
    path = write_job(tmp_path, described(program(tmp_path, "print(1)"), limits={"trials": 1}))
    assert "no trial finished" in call("run", path, "--folder", tmp_path / "run", code=1)
    assert "no trial has finished" in call("best", tmp_path / "run", code=1)


def test_the_page_shows_the_job(done):
    _, folder = done
    blocks = sections(str(folder))
    text = json.dumps(blocks)
    for expected in (
        "4 trials: 3 finished, 1 failed. The best is trial",
        "best so far",
        "parcoords",
        "out of luck",
    ):
        assert (expected in text) is (expected != "out of luck")
    assert "Tuning" in Path(report(str(folder))).read_text()


def test_the_best_trial_of_the_page_is_the_last_one_that_was_best_when_it_ended(tmp_path):
    from loopwise.run import Run

    with Run(str(tmp_path / "run")) as opened:
        for number, value in ((1, 0.5), (0, 0.25)):  # trial 1 ended first
            trial = Trial(
                number, {"x": value}, "finished", objective=value, reports=[value], metrics={"loss": value}
            )
            record = record_of(trial, [Objective(metric="loss", goal="minimize")], 10) | {"best": True}
            opened.append("tune", "trials", record)
    text = json.dumps(sections(str(tmp_path / "run")))
    assert "The best is trial 0 with 0.25" in text
    assert '"x": [1, 2], "y": [0.5, 0.25]' in text


def test_texts_of_the_user_are_no_markup():
    trial = Trial(0, {"[b]": "[/x]"}, "finished", objective=1.0)
    output = io.StringIO()
    Console(file=output, width=100).print(trials_table([trial], ["[loss]"]))
    for expected in ("[b]", "[/x]", "[loss]"):
        assert expected in output.getvalue()


def test_the_live_table(tmp_path):
    shown = []

    def show(tuner):
        output = io.StringIO()
        Console(file=output, width=120).print(live(tuner))
        shown.append(output.getvalue().splitlines())

    described_job = job(program(tmp_path) + " --x {x} --steps 1", limits={"trials": 1})
    best = run(described_job, str(tmp_path / "run"), show=show)
    head, bar, names, *rows = shown[-1]
    assert head.startswith("1 finished; ")
    assert f"best loss {best.objective:.5g} (trial 0)" in head
    assert set(bar.strip()) == {"━"}
    assert names.split() == ["trial", "state", "loss", "x", "seconds", "reason"]
    assert rows[0].split()[:3] == ["0", "*", "finished"]


def test_a_run_without_a_job_has_no_section(tmp_path):
    from loopwise.run import Run

    with Run(str(tmp_path / "run")):
        pass
    assert sections(str(tmp_path / "run")) == []


def test_an_extra_that_is_not_installed_is_named():
    code = """
import sys
sys.modules["pydantic"] = None
from loopwise.cli import main
main(["tune", "--help"])
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert "loopwise[tune]" in result.stderr


def test_the_table_says_by_what_a_program_failed():
    reason = "the program ended with code 1; its last lines:\nTraceback:\n  File ...\nModuleNotFoundError: No module named 'x'\nfix: pip\n"
    trial = Trial(0, {"x": 1.0}, state="failed", reason=reason)
    output = io.StringIO()
    Console(file=output, width=200).print(trials_table([trial], ["loss"]))
    assert "the program ended with code 1: ModuleNotFoundError: No module named 'x'" in output.getvalue()

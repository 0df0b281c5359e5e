"""The other examples in a short form: they learn, their lines can be read, and so can their runs."""

import functools
import os
import re
import subprocess
from pathlib import Path

import forks
import pytest

from loopwise.compile import Plan
from loopwise.debug import open_run
from loopwise.examples import ctc, detection, hugging_face_text, lightning_digits
from loopwise.run import Run

pytestmark = pytest.mark.filterwarnings(
    "ignore", "error:loopwise"
)  # all but ours, not those of the frameworks
CAPTURED = Plan(graph="captured")
"""A plan that needs no compiler; the search has tests of its own."""
UNDER_TORCHRUN = f"""
import functools, sys
from loopwise.compile import Plan
from loopwise.examples import ddp_digits

ddp_digits.TrainStep = functools.partial(ddp_digits.TrainStep, plan=Plan.from_json({CAPTURED.to_json()!r}))
ddp_digits.main(sys.argv[1:])
"""


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LOOPWISE_CACHE", str(tmp_path / "cache"))
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):  # which seed_everything sets
        monkeypatch.setenv(name, "0")


def ended(output, folder, parts=("sift", "compile", "findings")):
    """Validate what a script printed and its run; return the losses and the accuracies of its epochs."""
    lines = re.findall(r"^epoch (\d+) loss=(\d+\.\d{4}) accuracy=(\d\.\d{4})$", output, re.MULTILINE)
    assert [int(epoch) for epoch, *_ in lines] == list(range(1, len(lines) + 1)), output
    (page,) = re.findall(r"^\d+ findings; page: (.*)$", output, re.MULTILINE)
    page = Path(page).resolve()
    assert page.parent == Path(folder).resolve()
    saved = open_run(page.parent)
    steps, values = saved.series("loss")
    assert len(steps) == len(values) > 2
    assert saved.info["state"] == "finished"
    text = page.read_text()
    sections = [part for part in ("sift", "compile", "findings") if f'id="{part}"' in text]
    assert sections == list(parts)
    return [float(loss) for _, loss, _ in lines], [float(accuracy) for *_, accuracy in lines]


def test_lightning(monkeypatch, capsys):
    pinned = functools.partial(lightning_digits.CompilingCallback, plan=CAPTURED)
    monkeypatch.setattr(lightning_digits, "CompilingCallback", pinned)
    lightning_digits.main(["--epochs", "3"])
    _, accuracies = ended(capsys.readouterr().out, "runs/lightning_digits")
    assert accuracies[-1] > 0.8


def test_hugging_face(monkeypatch, capsys):
    original = hugging_face_text.TextTrainer

    def pinned(*args, compile, **options):
        return original(*args, compile=compile | {"plan": CAPTURED}, **options)

    monkeypatch.setattr(hugging_face_text, "TextTrainer", pinned)
    hugging_face_text.main(["--epochs", "2", "--samples", "1024", "--batch-size", "16"])
    losses, accuracies = ended(capsys.readouterr().out, "runs/hugging_face_text")
    assert losses[-1] < losses[0]
    assert accuracies[-1] > 0.25


def test_ddp_under_torchrun(tmp_path):
    Run("runs/ddp_digits").close()
    (tmp_path / "driver.py").write_text(UNDER_TORCHRUN)
    torchrun = [forks.python(), "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = os.environ | {"PYTHON_EXEC": forks.python()}
    command = [*torchrun, "driver.py", "--epochs", "3"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    _, accuracies = ended(done.stdout, "runs/ddp_digits-2")
    assert accuracies[-1] > 0.8
    assert open_run("runs/ddp_digits-2").info["world"] == 2


def test_detection(capsys):
    detection.main(["--epochs", "3", "--samples", "320", "--batch-size", "8"])
    losses, accuracies = ended(capsys.readouterr().out, "runs/detection", ["sift", "findings"])
    assert losses[-1] < 0.85 * losses[0]
    assert accuracies[-1] > 0


def test_ctc_twice(monkeypatch, capsys):
    monkeypatch.setattr(ctc, "TrainStep", functools.partial(ctc.TrainStep, plan=CAPTURED))
    short = ["--epochs", "3", "--samples", "512"]
    ctc.main(short)
    first = ended(capsys.readouterr().out, "runs/ctc")
    assert first[0][-1] < 0.2 * first[0][0]
    assert first[1][-1] > first[1][0]
    ctc.main(short)
    assert ended(capsys.readouterr().out, "runs/ctc-2") == first

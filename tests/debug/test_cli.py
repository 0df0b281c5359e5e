"""Commands ``loopwise debug`` as a user types them."""

import pytest
import torch
from click.testing import CliRunner

from loopwise.debug import cli as module
from loopwise.debug.cli import command


@pytest.fixture
def call():
    def run(*arguments):
        return CliRunner().invoke(command, [str(argument) for argument in arguments])

    return run


@pytest.fixture
def path(saving, tmp_path):
    run = saving(tmp_path / "run")
    table = {
        "collection": "gradients",
        "rows": ["gradient/w[0]"],
        "columns": ["min", "max"],
        "values": [[-1, 2]],
    }
    for step in range(3):
        run.step(step, {"weights": {"w[0]": torch.ones(2, 2) * step}}, {"losses": {"loss": step / 4}}, table)
    run.step(
        3, scalars={"losses": {"val_loss": 1.0}}, mode="eval", mode_step=0, marks={"skipped": ["optimizer"]}
    )
    run.end()
    return tmp_path / "run"


def test_ls(call, path):
    done = call("ls", path)
    assert done.exit_code == 0
    assert f"run {path}: finished; ranks: 0" in done.output
    assert "steps: train 0, 1, 2; eval 0" in done.output
    rows = [line.split() for line in done.output.splitlines()]
    assert ["weights", "w[0]"] in rows
    assert ["gradients", "gradient/w[0]"] in rows
    some = call("ls", path, "--collection", "losses", "--regex", "val", "--step", "3").output
    assert ["losses", "val_loss"] in [line.split() for line in some.splitlines()]
    assert "gradient/" not in some


def test_ls_of_very_many(call, path, monkeypatch):
    monkeypatch.setattr(module, "LISTED", 2)
    assert "2 more: narrow it with --collection or --regex" in call("ls", path).output


def test_show(call, path):
    done = call("show", path, "w[0]")
    assert done.exit_code == 0
    rows = [line.split() for line in done.output.splitlines()]
    assert ["step", "2", "(train", "2)"] in rows
    assert ["dtype", "torch.float32"] in rows
    assert "tensor([[2., 2.],\n        [2., 2.]])" in done.output
    assert "tensor([[1., 1.]" in call("show", path, "w[0]", "--step", "1").output
    rows = [line.split() for line in call("show", path, "gradient/w[0]", "--rank", "0").output.splitlines()]
    assert ["max", "2"] in rows
    assert "tensor(1., dtype=torch.float64)" in call("show", path, "val_loss", "--mode", "eval").output
    assert "['optimizer']" in call("show", path, "val_loss").output


def test_show_of_an_unknown_name(call, path):
    done = call("show", path, "v[0]")
    assert done.exit_code == 1
    assert "expected: one of: w[0]" in done.output
    assert "Traceback" not in done.output
    assert "none yet" in call("show", path, "loss", "--mode", "predict").output
    assert "no run.json" in call("ls", path / "nowhere").output


def test_diff(call, saving, path, tmp_path):
    same = call("diff", path, path)
    assert (same.exit_code, same.output) == (0, "no difference in steps and tensors that both runs have\n")
    other = saving(tmp_path / "other")
    for step in range(12):
        other.step(step, {"weights": {"w[0]": torch.ones(2, 2)}})
    done = call("diff", path, tmp_path / "other")
    assert done.exit_code == 1
    assert "first difference at step 0 in w[0]: largest difference 1, root mean square 1\n" in done.output
    assert f"only in {path}: 3 tensors: loss, gradient/w[0], val_loss\n" in done.output
    assert f"only in {tmp_path / 'other'}: 8 steps: 4, 5, 6, 7, 8, 9, 10, 11\n" in done.output
    assert call("diff", path, tmp_path / "other", "--atol", "1").exit_code == 0
    assert call("diff", path, tmp_path / "other", "--collection", "losses").exit_code == 0


def test_export(call, path, tmp_path):
    done = call("export", path, tmp_path / "out", "--to", "safetensors")
    assert (done.exit_code, done.output) == (0, f"7 values written to {tmp_path / 'out'}\n")
    assert len(list((tmp_path / "out").iterdir())) == 4
    assert call("export", path, tmp_path / "out", "--to", "csv").exit_code == 2


def test_verify(call, path):
    done = call("verify", path)
    assert (done.exit_code, done.output) == (0, "4 steps, 0 damaged blocks, 0 lost records\n")
    segment = path / "debug" / "tensors.rank0.0.seg"
    data = bytearray(segment.read_bytes())
    data[0] ^= 255
    segment.write_bytes(data)
    done = call("verify", path)
    assert done.exit_code == 1
    assert "CRC-32" in done.output
    assert done.output.endswith("4 steps, 1 damaged blocks, 0 lost records\n")

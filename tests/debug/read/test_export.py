"""Exported runs, read back by the tools that the formats belong to."""

import math
import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from loopwise.debug import open_run
from loopwise.debug.read.export import export
from loopwise.errors import InputError, MissingExtra

TABLE = {"collection": "weights", "rows": ["v"], "columns": ["min", "max"], "values": [[-1.0, math.nan]]}


@pytest.fixture
def saved(saving, tmp_path):
    run = saving(tmp_path / "run")
    weight = torch.tensor([[1.0, math.nan], [3.0, math.inf]])
    odd = {
        "half": weight.bfloat16(),
        "bool": weight > 2,
        "complex": weight.to(torch.complex128),
        "e": weight[:0],
    }
    odd |= {"huge": torch.full((4,), 1e300, dtype=torch.float64), "nan": torch.full((2,), math.nan)}
    run.step(0, {"weights": {"w": weight}}, {"losses": {"loss": 2.5}}, TABLE)
    run.step(1, {"odd": odd}, {"losses": {"val_loss": 4.0}}, mode="eval", mode_step=0)
    run.step(2, {"weights": {"w": weight * 2}}, {"losses": {"loss": math.nan}})
    run.end()
    return open_run(tmp_path / "run")


def test_safetensors(saved, tmp_path):
    assert export(saved, tmp_path / "out", "safetensors") == 2 + 7 + 2
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [
        f"step-0000000{step}.safetensors" for step in range(3)
    ]
    tensors = load_file(tmp_path / "out" / "step-00000000.safetensors")
    assert sorted(tensors) == ["loss", "w"]
    assert torch.equal(tensors["w"].view(torch.int32), saved.value("w", 0).view(torch.int32))
    assert (tensors["loss"].item(), tensors["loss"].dtype) == (2.5, torch.float64)
    with safe_open(tmp_path / "out" / "step-00000001.safetensors", "pt") as file:
        assert file.metadata() == {"run": saved.path, "step": "1", "mode": "eval", "mode_step": "0"}
        assert file.get_tensor("half").dtype == torch.bfloat16
        assert file.get_tensor("bool").tolist() == [[False, False], [True, True]]
        assert file.get_tensor("complex").shape == (2, 2, 2)
        assert file.get_tensor("e").shape == (0, 2)


def test_tensorboard(saved, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert export(saved, tmp_path / "out", "tensorboard") == (1 + 2 + 1) + (4 + 1) + (1 + 1)
    everything = {"scalars": 0, "histograms": 0}
    train, evaluation = (
        EventAccumulator(str(tmp_path / "out" / mode), everything).Reload() for mode in ("train", "eval")
    )
    assert [(event.step, event.wall_time) for event in train.Scalars("loss")] == [(0, 1e9), (2, 1e9 + 2)]
    assert train.Scalars("loss")[0].value == 2.5
    assert train.Scalars("v/min")[0].value == -1.0
    assert math.isnan(train.Scalars("v/max")[0].value)
    histogram = train.Histograms("w")[1]
    assert histogram.step == 2
    values = histogram.histogram_value
    assert (values.min, values.max, values.num, values.sum) == (2.0, 6.0, 2.0, 8.0)
    assert evaluation.Scalars("val_loss")[0].value == 4.0
    assert sorted(evaluation.Tags()["histograms"]) == ["bool", "complex", "half", "huge"]


def test_an_unknown_format(saved, tmp_path):
    with pytest.raises(InputError, match="one of tensorboard, safetensors"):
        export(saved, tmp_path / "out", "csv")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("package", ["tensorboard", "safetensors"])
def test_a_missing_package_names_the_extra(saved, tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtra) as error:
        export(saved, tmp_path / "out", package)
    assert "pip install 'loopwise[export]'" in str(error.value)


def test_a_broken_package_is_not_called_missing(saved, tmp_path, monkeypatch):
    (tmp_path / "safetensors.py").write_text("import no_such_module")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "safetensors")
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        export(saved, tmp_path / "out", "safetensors")

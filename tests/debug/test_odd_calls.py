"""Odd calls of a ``Watch``: values that are no numbers, transforms, and checkpoints that are older than the run."""

import pytest
import torch
from watch_kit import steps, watched

from loopwise.debug import every, open_run
from loopwise.warnings import LoopwiseWarning


@pytest.mark.parametrize(
    "value", [None, "0.5", [1.0, 2.0], {"a": 1}, torch.ones(2, dtype=torch.complex64)], ids=repr
)
def test_a_value_that_is_no_number_is_left_out_once(tmp_path, value):
    w = watched(tmp_path, save=every(1), trap=True)[2]
    with w, pytest.warns(LoopwiseWarning, match="have to be numbers or tensors: loss of type") as warned:
        w.step(loss=value, accuracy=0.5)
        w.step(loss=value)
        w.step(loss=3.0)
    assert len(warned) == 1
    saved = open_run(tmp_path / "run")
    assert (saved.has("loss", 0), saved.value("accuracy", 0), saved.value("loss", 2)) == (False, 0.5, 3.0)


def test_passes_under_transforms_are_left_out_and_nothing_is_switched_off(tmp_path):
    net, optimizer, w = watched(
        tmp_path, save=every(1), collections=["losses", "inputs", "outputs", "health"], trap=True
    )
    parameters = dict(net.named_parameters())

    def loss_of(parameters, x):
        return torch.func.functional_call(net, parameters, (x[None],)).square().mean()

    x = torch.randn(5, next(iter(parameters.values())).shape[1])
    with w:
        per_sample = torch.func.vmap(torch.func.grad(loss_of), (None, 0))(parameters, x)
        assert all(len(gradient) == 5 for gradient in per_sample.values())
        steps(net, optimizer, w, 2)
    saved = open_run(tmp_path / "run")
    assert saved.events == []
    assert saved.has("output.0", 0)
    assert not any("#" in name for name in saved.names())


@pytest.mark.parametrize("resume", [False, True], ids=["in the process", "in another run"])
def test_steps_behind_a_checkpoint_are_superseded(tmp_path, resume):
    w = watched(tmp_path, save=every(1), profile=False)[2]
    for step in range(6):
        if step == 3:
            checkpoint = w.state_dict()
        w.step(loss=float(step))
    if resume:
        w.close()
        w = watched(tmp_path, save=every(1), profile=False, resume=True)[2]
    reader = open_run(tmp_path / "run")
    w.load_state_dict(checkpoint)
    w.step(loss=30.0)
    w.close()
    for saved in (reader, open_run(tmp_path / "run")):
        saved.refresh()
        assert saved.steps() == saved.steps("train") == [0, 1, 2, 3]
        assert saved.series("loss")[1].tolist() == [0.0, 1.0, 2.0, 30.0]
    assert reader.verify() == []

"""The default of ``Watch``: scalars at every step, health densely at first, within a share of the time."""

import time

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from loopwise.debug import RULES, Watch, every, open_run
from loopwise.warnings import LoopwiseWarning


def watched(tmp_path, **options):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    return net, optimizer, Watch(net, optimizer, run=tmp_path / "run", on_finding=lambda _: None, **options)


def steps(net, optimizer, watched, count, **scalars):
    for _ in range(count):
        optimizer.zero_grad()
        loss = net(torch.rand(2, 4)).sum()
        loss.backward()
        optimizer.step()
        watched.step(loss=loss, **scalars)


def test_by_default_scalars_come_at_every_step_and_health_densely_at_first(tmp_path):
    net, optimizer, w = watched(tmp_path)
    rates = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    norms = []
    optimizer.register_step_pre_hook(lambda o, *_: norms.append(norm([p.grad for p in net.parameters()])))
    saves = []
    with w:
        for step in range(7):
            saves.append(w.saves)
            steps(net, optimizer, w, 1, accuracy=step)
            rates.step()
    saved = open_run(tmp_path / "run")
    assert saved.steps() == list(range(7))
    assert saves == [True, True, True, False, False, True, False]
    assert [step for step in range(7) if saved.has("0.weight", step)] == [0, 1, 2, 5]
    assert saved.names(collection="losses") == ["loss"]
    assert saved.names(collection="metrics") == ["learning_rate", "gradient_norm", "accuracy"]
    assert saved.series("accuracy")[1].tolist() == list(range(7))
    assert saved.series("learning_rate")[1] == pytest.approx([0.1 * 0.5**step for step in range(7)])
    assert saved.series("gradient_norm")[1] == pytest.approx(norms)
    assert [saved.record(step)["marks"]["samples"] for step in range(7)] == [2] * 7
    assert not saved.verify()
    assert saved.ended
    assert not any(m._forward_hooks for m in net.modules())


def norm(tensors):
    return float(torch.nn.utils.get_total_norm(tensors))


def test_scalars_of_every_step_are_readable_within_seconds_and_by_mode(tmp_path):
    net, optimizer, w = watched(tmp_path)
    with w:
        steps(net, optimizer, w, 4)
        with w.mode("eval"):
            for _ in range(3):
                w.step(val_loss=torch.tensor([1.0, 2.0]))
        while 6 not in open_run(tmp_path / "run").steps():
            time.sleep(0.1)
            steps(net, optimizer, w, 1)
        steps(net, optimizer, w, 600)
    saved = open_run(tmp_path / "run")
    assert saved.steps("eval") == [0, 1, 2]
    assert saved.series("val_loss", mode="eval")[1].tolist() == [1.5] * 3
    assert saved.steps("train") == list(range(len(saved.steps("train"))))
    live = [f.rule for f in saved.findings() if RULES[f.rule].source == "saved step"]
    assert [f.rule for f in saved.judge()] == live


def test_a_schedule_of_ones_own_holds_for_scalars_too(tmp_path):
    net, optimizer, w = watched(tmp_path, save=every(3))
    with w:
        steps(net, optimizer, w, 7)
    saved = open_run(tmp_path / "run")
    assert saved.steps() == [0, 3, 6]
    assert "learning_rate" not in saved.names()


def test_a_value_that_is_no_number_is_left_out_alone(tmp_path):
    net, optimizer, w = watched(tmp_path)
    with w, pytest.warns(LoopwiseWarning, match="accuracy of type str is left out"):
        steps(net, optimizer, w, 4)
        steps(net, optimizer, w, 4, accuracy="high")
    saved = open_run(tmp_path / "run")
    assert saved.series("loss")[0].tolist() == list(range(8))
    assert saved.series("gradient_norm")[0].tolist() == list(range(8))


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"factor": 1000.0}, "weight_update_ratio"),
        ({"scale": 300.0}, "input_not_normalized"),
        ({"frozen": True}, "frozen_parameter"),
        ({"shuffled": True}, "loss_not_decreasing"),
        ({}, None),
    ],
    ids=str,
)
def test_the_defaults_see_faults_in_a_short_run(tmp_path, change, rule):
    x, y = (torch.tensor(part).float() for part in load_digits(return_X_y=True))
    torch.manual_seed(0)
    x, y = (x / 16 - 0.3) / 0.376 * change.get("scale", 1.0), y.long()
    y = y[torch.randperm(len(y))] if "shuffled" in change else y
    net = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
    net[0].requires_grad_("frozen" not in change)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.02 * change.get("factor", 1.0), momentum=0.9)
    with Watch(
        net, optimizer, run=tmp_path / "run", trap=False, profile=False, on_finding=lambda _: None
    ) as w:
        for _ in range(120):
            chosen = torch.randint(len(x), (64,))
            loss = torch.nn.functional.cross_entropy(net(x[chosen]), y[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            w.step(loss=loss)
    assert rule in {finding.rule for finding in w.findings} if rule else not w.findings


def test_a_loader_that_does_not_shuffle_repeats_no_batch_for_its_epoch_divides_the_distance_of_saved_steps(
    tmp_path,
):
    net, optimizer, w = watched(tmp_path, trap=False, profile=False)
    batches = torch.randn(50, 16, 4)
    with w:
        for step in range(601):
            loss = (net(batches[step % 50]) - 1).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            w.step(loss=loss)
    assert not [finding for finding in w.findings if finding.rule == "repeated_batch"]

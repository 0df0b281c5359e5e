"""Comparison of a training with an earlier healthy run: faults, other seeds, and runs that cannot be compared."""

import itertools
import json
import shutil

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from sklearn.datasets import load_digits
from torch import nn

from loopwise.debug import Watch, every, open_run
from loopwise.debug.cli import command
from loopwise.debug.rules.healthy_run import HealthyRun
from loopwise.debug.rules.healthy_sizes import independent_numbers, luck
from loopwise.debug.rules.saved_steps import SavedStepRules
from loopwise.debug.rules.thresholds import select
from loopwise.errors import InputError
from loopwise.run import Run
from loopwise.warnings import LoopwiseWarning

F = nn.functional
NAME = "unlike_healthy_run"
STEPS = 40


def digits():
    data = load_digits()
    return torch.tensor(data.images, dtype=torch.float32)[:, None], torch.tensor(data.target)


def made(width=16):
    trunk = nn.Sequential(nn.Conv2d(1, width, 3), nn.ReLU(), nn.Flatten(), nn.Dropout(0.2))
    return nn.Sequential(trunk, nn.Linear(36 * width, 32), nn.ReLU(), nn.Linear(32, 10))


def train(path, seed, *, steps=STEPS, rate=0.05, model=None, fault="", batch=32, schedule=None, **options):
    """Train with a ``Watch``, and return its findings of this rule."""
    torch.manual_seed(seed)
    x, y = digits()
    x = x if fault == "pixels" else (x - x.mean()) / x.std()
    net = made() if model is None else model()
    if fault == "frozen":
        net[0].requires_grad_(False)
    if fault == "detached":
        net[0].register_forward_hook(lambda *call: call[2].detach())
    net.train(fault != "eval")
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=rate)
    rates = None if schedule is None else schedule(optimizer)
    options = {"trap": False, "profile": False, "on_finding": lambda _: None, "max_overhead": None} | options
    with Watch(net, optimizer, run=path, **options) as watch:
        for _ in range(steps):
            rows = torch.randint(len(x), (batch,))
            if fault != "zero_grad":
                optimizer.zero_grad()
            loss = F.cross_entropy(net(x[rows]), y[rows])
            loss.backward()
            optimizer.step()
            if rates is not None:
                rates.step()
            watch.step(loss=loss)
    return [finding for finding in watch.findings if finding.rule == NAME]


@pytest.fixture(scope="module")
def healthy(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "healthy"
    train(path, 0)
    return path


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "dense"
    train(path, 0, save=every(1))
    return path


def test_other_seeds_have_no_finding(tmp_path, healthy):
    for seed in (1, 2, 3):
        assert train(tmp_path / f"{seed}", seed, like=healthy) == []
    runs = [healthy, *(tmp_path / f"{seed}" for seed in (1, 2, 3))]
    for one, other in itertools.permutations(runs, 2):
        assert open_run(one).judge([NAME], like=other) == []


def test_other_seeds_have_no_finding_if_every_step_is_saved(tmp_path, dense):
    for seed in (1, 2):
        assert train(tmp_path / f"{seed}", seed, like=dense, save=every(1)) == []


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize(
    ("fault", "what", "advice"),
    [
        (
            {"fault": "frozen"},
            "no optimizer trains what one trains there: 0.0.weight, 0.0.bias",
            "requires_grad=True",
        ),
        ({"fault": "detached"}, "no gradient, there at every update: 0.0.weight, 0.0.bias", "detach()"),
        (
            {"fault": "zero_grad"},
            "gradients are not set to zero between updates, there they are",
            "zero_grad()",
        ),
        ({"rate": 0.5}, "learning_rate is 0.5, there 0.05", "scheduler"),
        ({"rate": 0.005}, "learning_rate is 0.005, there 0.05", "scheduler"),
        ({"fault": "pixels"}, "the size of the model's input is ", "transforms"),
        ({"fault": "eval"}, "in evaluation mode, there in training mode: 0.3", "model.train()"),
        ({"batch": 8}, "a step has 8 samples, there 32", "batch size"),
    ],
)
def test_a_fault_is_found_at_once(tmp_path, healthy, seed, fault, what, advice):
    (finding,) = train(tmp_path / "run", seed, like=healthy, **fault)
    assert finding.step <= 5
    assert finding.severity == "warning"
    assert finding.what.startswith("unlike the healthy run healthy since step ")
    assert what in finding.what
    assert advice in finding.advice
    assert str(open_run(tmp_path / "run").judge([NAME], like=healthy)) == str([finding])


@pytest.mark.parametrize("rate", [0.5, 0.005])
def test_a_learning_rate_that_is_not_saved_shows_in_the_updates(tmp_path, dense, rate):
    (finding,) = train(tmp_path / "run", 1, like=dense, save=every(1), rate=rate)
    assert "updates, in units of the gradients, of " in finding.what
    assert f"{'large' if rate > 0.05 else 'small'} by a factor of 1" in finding.what


def test_another_schedule_is_found_when_the_rates_part(tmp_path):
    def cosine(steps):
        return lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)

    train(tmp_path / "healthy", 0, schedule=cosine(STEPS))
    assert train(tmp_path / "same", 1, schedule=cosine(STEPS), like=tmp_path / "healthy") == []
    (finding,) = train(tmp_path / "other", 1, schedule=cosine(STEPS // 2), like=tmp_path / "healthy")
    assert "learning_rate is " in finding.what
    assert 3 < finding.step < STEPS // 2
    (finding,) = train(tmp_path / "constant", 1, like=tmp_path / "healthy")
    assert "learning_rate is 0.05, there from " in finding.what


def test_a_training_that_never_updates(tmp_path, dense):
    torch.manual_seed(1)
    net = made()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    with Watch(
        net, optimizer, run=tmp_path / "run", save=every(1), like=dense, on_finding=lambda _: None
    ) as watch:
        for _ in range(24):
            F.cross_entropy(net(torch.randn(32, 1, 8, 8)), torch.arange(32) % 10).backward()
            watch.step()
    (finding,) = [f for f in watch.findings if f.rule == NAME]
    assert "no optimizer updates the model, there one does at every step" in finding.what


def test_of_another_model_only_what_both_have_is_compared(tmp_path, healthy):
    def deeper():
        net = made()
        return net[:3].extend([nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 10)])

    (finding,) = train(tmp_path / "run", 1, model=deeper, like=healthy)
    assert finding.what == (
        "the model is not that of the healthy run healthy, and only what both have is compared; "
        "only here: 3.weight of 24x32, 5.weight of 10x24, 3.bias of 24 and 1 more; "
        "only in healthy: 3.weight of 10x32, 3.bias of 10"
    )
    first, second = train(tmp_path / "frozen", 1, model=deeper, fault="frozen", like=healthy)
    assert first.what == finding.what
    assert "no optimizer trains what one trains there: 0.0.weight, 0.0.bias" in second.what


def test_the_command_compares_as_well(tmp_path, healthy):
    train(tmp_path / "run", 1, fault="frozen")
    done = CliRunner().invoke(command, ["findings", str(tmp_path / "run"), "--like", str(healthy)])
    assert done.exit_code == 0
    assert "unlike the healthy run healthy since step 0: no optimizer trains" in done.output
    done = CliRunner().invoke(command, ["findings", str(tmp_path / "run"), "--like", str(tmp_path / "run")])
    assert done.exit_code == 1
    assert "which is the run itself" in done.output


def test_runs_that_cannot_be_compared(tmp_path, healthy):
    Run(str(tmp_path / "empty")).close()
    (tmp_path / "folder").mkdir()
    for like, seen in {
        str(tmp_path / "none"): "no run.json in",
        str(tmp_path / "folder"): "no run.json in",
        str(tmp_path / "empty"): "in which no training step is saved",
        7: "like of type int",
    }.items():
        with pytest.raises(InputError, match=seen):
            Watch(nn.Linear(1, 1), run=tmp_path / "run", like=like)
        assert not (tmp_path / "run").exists()
    with pytest.raises(InputError) as error:
        Watch(nn.Linear(1, 1), run=healthy, like=f"{healthy}/../healthy")
    assert str(error.value) == (
        f"seen: like={str(healthy)!r}, which is the run itself\nexpected: an earlier run\n"
        "likely cause: one path for both\nfix: name another folder for the new run"
    )
    with pytest.raises(InputError, match="the run itself"):
        open_run(healthy).judge(like=healthy)


def test_it_is_compared_whatever_rules_are_selected(tmp_path, healthy):
    assert len(train(tmp_path / "a", 1, fault="frozen", like=healthy, rules=False)) == 1
    assert len(train(tmp_path / "b", 1, fault="frozen", like=Run.existing(healthy), rules=["dead_relu"])) == 1
    assert train(tmp_path / "c", 1, fault="frozen", like=healthy, rules={NAME: {"steps": 20}}) == []


def test_without_a_healthy_run_nothing_is_applied():
    engine = SavedStepRules(select(True, "saved step"))._engine
    assert NAME not in engine._rules
    assert "dead_relu" in engine._rules


def test_a_damaged_run_is_read_as_far_as_it_goes(tmp_path, healthy):
    copy = shutil.copytree(healthy, tmp_path / "healthy")
    (index,) = (copy / "debug").glob("index.rank0.*.jsonl")
    lines = index.read_text().splitlines()
    steps = [number for number, line in enumerate(lines) if line.startswith('{"step"')]
    lines[steps[3]] = '{"step": 3, damaged'
    index.write_text("\n".join(lines[: steps[20]]) + '\n{"step": 20, "mo')
    segments = list((copy / "debug").glob("*.seg"))
    data = bytearray(segments[0].read_bytes())
    record = json.loads(lines[steps[1]])
    data[record["offset"] : record["offset"] + record["length"]] = b"\xff" * record["length"]
    segments[0].write_bytes(data)
    run = HealthyRun(Run.existing(copy))
    run.read(STEPS)
    assert [step.mode_step for step in run.scalars] == [0, 2, *range(4, 20)]
    assert train(tmp_path / "seed", 1, like=copy) == []
    assert len(train(tmp_path / "fault", 1, fault="frozen", like=copy)) == 1
    segments[0].unlink()
    assert train(tmp_path / "nothing left", 1, fault="frozen", like=copy) == []


def test_nothing_is_compared_after_the_end_of_the_healthy_run(tmp_path):
    train(tmp_path / "healthy", 0, steps=10)
    assert train(tmp_path / "run", 1, steps=60, like=tmp_path / "healthy") == []

    def later(optimizer):
        return torch.optim.lr_scheduler.StepLR(optimizer, 12)

    assert train(tmp_path / "later", 1, schedule=later, like=tmp_path / "healthy") == []


def test_a_failure_is_reported_once_and_training_goes_on(tmp_path, healthy, monkeypatch):
    monkeypatch.setattr(HealthyRun, "read", lambda *_: 1 / 0)
    with pytest.warns(LoopwiseWarning, match="the rule unlike_healthy_run is switched off") as said:
        assert train(tmp_path / "run", 1, fault="frozen", like=healthy) == []
    assert len(said) == 1
    assert open_run(tmp_path / "run").steps() == list(range(STEPS))


def test_training_is_the_same_to_the_bit(tmp_path, healthy):
    weights = []
    for options in ({}, {"like": healthy}):
        nets = []
        train(
            tmp_path / f"{len(weights)}", 1, model=lambda nets=nets: nets.append(made()) or nets[0], **options
        )
        weights.append(nets[0].state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_luck_bounds_the_ratio_of_two_sizes():
    draws = np.random.default_rng(0)
    for numbers, chance in itertools.product((1, 4, 32), (0.2, 0.02)):
        one, other = (np.sqrt((draws.normal(size=(40_000, numbers)) ** 2).mean(1)) for _ in range(2))
        exceeded = (np.log(one / other) > luck(numbers, chance)).mean()
        assert exceeded <= chance, (numbers, chance)
    assert luck(8, 1e-6) > luck(64, 1e-6) > luck(4096, 1e-6) > 0
    assert luck(1, 1e-200) == pytest.approx(np.log(2) + 200 * np.log(10))


def test_only_the_smallest_dimension_counts():
    assert independent_numbers("weight", (10, 64), 32) == 10
    assert independent_numbers("weight", (16, 3, 3, 3), 32) == 16
    assert independent_numbers("weight", (64,), 32) == 64
    assert independent_numbers("weight", (), 32) == 1
    assert independent_numbers("output", (4, 16, 1, 8), 32) == 8

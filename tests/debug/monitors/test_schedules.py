"""Learning-rate schedules that do not end where training ends."""

import gc

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler as of_torch
from torch.utils.data import DataLoader, TensorDataset
from transformers import get_cosine_schedule_with_warmup, get_linear_schedule_with_warmup

from loopwise.debug import Watch, open_run
from loopwise.sift import SiftingDataLoader


def one_cycle(optimizer, steps):
    return of_torch.OneCycleLR(optimizer, max_lr=0.1, total_steps=steps)


def warm_cosine(optimizer, steps):
    warm = of_torch.LinearLR(optimizer, total_iters=4)
    rest = of_torch.CosineAnnealingLR(optimizer, T_max=steps - 4)
    return of_torch.SequentialLR(optimizer, [warm, rest], milestones=[4])


def chained(optimizer, steps):
    parts = [
        of_torch.ConstantLR(optimizer, total_iters=2),
        of_torch.PolynomialLR(optimizer, total_iters=steps),
    ]
    return of_torch.ChainedScheduler(parts)


SCHEDULES = {
    "OneCycleLR": one_cycle,
    "SequentialLR": warm_cosine,
    "ChainedScheduler": chained,
    "CosineAnnealingLR": of_torch.CosineAnnealingLR,
    "MultiStepLR": lambda optimizer, steps: of_torch.MultiStepLR(optimizer, [3, steps]),
    "LambdaLR": lambda optimizer, steps: get_linear_schedule_with_warmup(optimizer, 2, steps),
    "LambdaLR of cosine": lambda optimizer, steps: get_cosine_schedule_with_warmup(optimizer, 2, steps),
}
WITHOUT_LENGTH = {
    "StepLR": lambda optimizer, steps: of_torch.StepLR(optimizer, steps),
    "LambdaLR": lambda optimizer, steps: of_torch.LambdaLR(optimizer, lambda step: 1 / (step + 1)),
    "CosineAnnealingWarmRestarts": of_torch.CosineAnnealingWarmRestarts,
    "ReduceLROnPlateau": lambda optimizer, steps: of_torch.ReduceLROnPlateau(optimizer),
}


def trained(tmp_path, make, length, steps=12, fails=False, **options):
    """Train 12 steps with a schedule of some length; return the findings about it."""
    net = nn.Linear(4, 2)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    scheduler = make(optimizer, length)
    arguments = (1.0,) if isinstance(scheduler, of_torch.ReduceLROnPlateau) else ()
    watch = Watch(net, optimizer, run=tmp_path / "run", **options)
    try:
        with watch:
            for _ in range(steps):
                loss = net(torch.randn(8, 4)).pow(2).mean()
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                scheduler.step(*arguments)
                watch.step(loss=loss)
            if fails:
                raise RuntimeError("stopped")
    except RuntimeError:
        pass
    return [finding for finding in watch.findings if finding.rule == "unfinished_schedule"]


@pytest.mark.filterwarnings("ignore:.*lr_scheduler.step")
@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_that_is_far_from_its_end_is_a_finding(tmp_path, name):
    [finding] = trained(tmp_path, SCHEDULES[name], 24)
    assert finding.severity == "info"
    assert finding.what.startswith(
        f"training ended after 12 of the 24 steps of {name.partition(' ')[0]}, at a learning"
    )
    assert str(finding) in map(str, open_run(tmp_path / "run").findings())


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("length", [12, 13])
def test_a_schedule_that_ends_with_the_training_is_none(tmp_path, name, length):
    assert trained(tmp_path, SCHEDULES[name], length) == []


@pytest.mark.parametrize("name", WITHOUT_LENGTH)
def test_schedules_without_a_length_are_none(tmp_path, name):
    assert trained(tmp_path, WITHOUT_LENGTH[name], 24) == []


def test_a_training_that_failed_is_not_judged(tmp_path):
    assert trained(tmp_path, one_cycle, 24, fails=True) == []


def test_the_rule_can_be_switched_off_and_changed(tmp_path):
    assert trained(tmp_path / "a", one_cycle, 24, rules=["non_finite"], trap=True) == []
    assert trained(tmp_path / "b", one_cycle, 24, rules={"unfinished_schedule": {"share": 0.4}}) == []


def test_schedulers_of_other_optimizers_and_of_earlier_trainings_do_not_count(tmp_path):
    other = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1)
    unused = one_cycle(other, 24)
    assert trained(tmp_path, one_cycle, 12) == []
    assert unused is not None
    gc.collect()


def test_a_schedule_of_the_plain_loaders_batches_under_sifting(tmp_path):
    """The loop that this rule is for: half of the batches, and a schedule that was sized before."""
    torch.manual_seed(0)
    net = nn.Linear(4, 3)
    data = TensorDataset(torch.randn(96, 4), torch.randint(0, 3, (96,)))
    loader = DataLoader(data, batch_size=8, shuffle=True)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    scheduler = one_cycle(optimizer, 3 * len(loader))
    criterion = nn.CrossEntropyLoss(reduction="none")
    sifting = SiftingDataLoader(loader, net, criterion, keep=0.5)
    with Watch(net, optimizer, run=tmp_path / "run") as watch:
        for _ in range(3):
            for x, y in sifting:
                loss = criterion(net(x), y).mean()
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                scheduler.step()
                watch.step(loss=loss)
    sifting.close()
    [finding] = [finding for finding in watch.findings if finding.rule == "unfinished_schedule"]
    assert "of the 36 steps of OneCycleLR" in finding.what
    assert "batches of the loader that is trained from" in finding.advice

"""Costs and savings of sifting: the pilot, scoring only while it pays, cheaper scorers."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from loopwise.errors import InputError
from loopwise.sift import LowResolution, Padded, SiftingDataLoader, TopLoss, pilot
from loopwise.sift import loader as loading
from loopwise.sift import report as reporting

CRITERION = nn.CrossEntropyLoss(reduction="none")


class Clock:
    """Clock that a test moves forward."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(loading, "time", clock)
    monkeypatch.setattr(reporting, "time", clock)
    return clock


def run(clock, scoring_cost, epochs=6):
    """Train on 160 batches of 10 per epoch at 1 s a batch; return the seconds, those of a plain loop, and the report."""
    data = TensorDataset(torch.randn(1600, 6), torch.arange(1600) % 3)
    model = nn.Linear(6, 3)

    def loss(model, batch):
        clock.now += scoring_cost * len(batch[1]) / 10
        return CRITERION(model(batch[0]), batch[1])

    loader = SiftingDataLoader(DataLoader(data, 10), model, loss=loss, policy=TopLoss(0.5), auto=True)
    for _ in range(epochs):
        for _, y in loader:
            clock.now += len(y) / 10
    return clock.now, epochs * 160.0, loader.report()


@pytest.mark.parametrize("scoring_cost", [0.6, 1.0, 5.0])
def test_scoring_that_cannot_pay_is_turned_off(clock, scoring_cost):
    seconds, plain, report = run(clock, scoring_cost)
    assert seconds <= 1.03 * plain
    assert report.scored > 0
    assert report.scored < 0.3 * report.seen


def test_scoring_that_pays_goes_on(clock):
    seconds, plain, report = run(clock, 0.1)
    assert seconds < 0.7 * plain
    assert report.scored > 0.9 * report.seen
    assert report.saved_seconds == pytest.approx(plain - seconds, rel=0.02)


def test_scoring_is_turned_on_again_when_it_begins_to_pay(clock):
    data = TensorDataset(torch.randn(1600, 6), torch.arange(1600) % 3)
    cost = [5.0]

    def loss(model, batch):
        clock.now += cost[0] * len(batch[1]) / 10
        return CRITERION(model(batch[0]), batch[1])

    loader = SiftingDataLoader(
        DataLoader(data, 10), nn.Linear(6, 3), loss=loss, policy=TopLoss(0.5), auto=True
    )
    scored = []
    for epoch in range(20):
        for _, y in loader:
            clock.now += len(y) / 10
        scored.append(loader.report().scored)
        cost[0] = 5.0 if epoch < 9 else 0.01
    assert scored[9] < 400
    assert scored[-1] - scored[-2] > 1200


@pytest.mark.parametrize(("spread", "auto", "kept"), [(0.1, True, 1.0), (0.1, False, 0.97), (9, True, 0.65)])
def test_auto_lets_go_where_the_policy_leaves_out_little(spread, auto, kept):
    """Losses that differ little, as those of text, and losses that differ much."""
    losses = 1 + spread * (torch.arange(100) / 100) ** 4
    data, model = TensorDataset(losses, torch.zeros(100)), nn.Linear(1, 1)
    loader = SiftingDataLoader(
        DataLoader(data, 10), model, lambda model, batch: batch[0], auto=auto, score_every=0
    )
    for _ in range(2):
        for values, _ in loader:
            loader.record_losses(values)
    assert (loader.report().kept - 100) / 100 == pytest.approx(kept, abs=0.1)
    if auto and kept == 1:
        assert loader.report().kept == 200


def test_the_pilot_changes_nothing_and_forecasts():
    torch.manual_seed(0)
    data = TensorDataset(torch.randn(200, 6), torch.arange(200) % 3)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    forecast = pilot(DataLoader(data, 10, shuffle=True), model, CRITERION, keep=0.25, steps=10)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not model.training
    assert forecast.plans
    assert forecast.remembered[0] == pytest.approx(0.25)
    load, train, score = (spread[0] for spread in (forecast.loading, forecast.training, forecast.scoring))
    assert forecast.scored[0] == pytest.approx((load + score + 0.25 * train) / (load + train))
    assert forecast.break_even == pytest.approx(max(0, 1 - score / train))
    assert "of a plain epoch's time" in str(forecast)


def test_the_pilot_needs_batches():
    data = TensorDataset(torch.randn(20, 6), torch.arange(20) % 3)
    with pytest.raises(InputError) as error:
        pilot(DataLoader(data, 10), nn.Linear(6, 3), CRITERION)
    assert str(error.value) == (
        "seen: a loader of 2 batches\nexpected: at least 4 batches to measure with\n"
        "likely cause: a small dataset or a large batch_size\nfix: pass a loader with a smaller batch_size"
    )


def test_a_cheaper_scorer_scores_in_place_of_the_model():
    seen = []

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Conv2d(1, 3, 3)

        def forward(self, x):
            seen.append(tuple(x.shape))
            return self.layer(x).mean((2, 3))

    model = Net()
    data = TensorDataset(torch.randn(20, 1, 16, 16), torch.arange(20) % 3)
    small = LowResolution(model, 0.5)
    list(SiftingDataLoader(DataLoader(data, 10), model, loss=CRITERION, scorer=small, score_every=1))
    assert seen == [(20, 1, 8, 8)]
    with pytest.raises(InputError, match="scale=2"):
        LowResolution(model, 2)


def test_batches_padded_to_different_lengths_are_joined():
    parts = [
        {"input_ids": torch.ones(2, 3), "labels": torch.zeros(2, 3), "n": torch.arange(2)},
        {"input_ids": torch.ones(1, 5), "labels": torch.zeros(1, 5), "n": torch.arange(1)},
    ]
    joined = Padded({"labels": -100})(parts, [2, 1])
    assert joined["input_ids"].tolist() == [[1, 1, 1, 0, 0]] * 2 + [[1] * 5]
    assert joined["labels"].tolist() == [[0, 0, 0, -100, -100]] * 2 + [[0] * 5]
    assert joined["n"].tolist() == [0, 1, 0]


def test_the_report_counts_the_samples_dropped_by_each_policy():
    from loopwise.sift import NoiseCap, Uniform

    policy = NoiseCap(Uniform(0.5), top=0.1)
    data = TensorDataset(torch.randn(200, 6), torch.arange(200) % 3)
    loader = SiftingDataLoader(
        DataLoader(data, 20), nn.Linear(6, 3), loss=CRITERION, policy=policy, score_every=1
    )
    for _ in loader:
        pass
    report = loader.report()
    (whole, (asked, dropped)), (part, (rest, chosen)) = report.policies.items()
    assert (whole, part) == (repr(policy), "Uniform(keep=0.5)")
    assert asked == 200
    assert rest == pytest.approx(180, abs=6)
    assert chosen == pytest.approx(rest / 2)
    assert dropped == pytest.approx(asked - rest + chosen)
    assert f"dropped by {part}" in str(report)
    other = SiftingDataLoader(
        DataLoader(data, 20),
        nn.Linear(6, 3),
        loss=CRITERION,
        policy=NoiseCap(Uniform(0.5), top=0.1),
        score_every=1,
    )
    other.load_state_dict(loader.state_dict())
    assert other.report().policies == report.policies

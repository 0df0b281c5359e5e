"""``preflight``: what is said only after a second look, and the dependence on inputs, masks and features."""

import pytest
import torch
from torch import nn
from watch_kit import rules

from loopwise.debug import preflight

F = nn.functional
CROSS = nn.CrossEntropyLoss()


def tried(model, batch, loss=CROSS, lr=1e-2, **options):
    return preflight(model, batch, loss, torch.optim.Adam(model.parameters(), lr), **options)


def digits(samples=16, features=24):
    torch.manual_seed(0)
    return torch.randn(samples, features), torch.arange(samples) % 5


def zeroed(layer):
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


# -- layers that begin with zeros -------------------------------------------------------------------


class Residual(nn.Module):
    """A residual branch whose last layer, and a head, begin with zeros."""

    def __init__(self):
        super().__init__()
        self.stem, self.inner = nn.Linear(24, 32), nn.Linear(32, 32)
        self.outer, self.head = zeroed(nn.Linear(32, 32)), zeroed(nn.Linear(32, 5))

    def forward(self, x):
        x = self.stem(x)
        return self.head(x + self.outer(F.relu(self.inner(x))))


class Denoiser(nn.Module):
    """A model of two inputs whose output begins with zeros."""

    def __init__(self):
        super().__init__()
        self.data, self.time = nn.Linear(24, 64), nn.Embedding(10, 64)
        self.out = zeroed(nn.Linear(64, 24))

    def forward(self, x, time):
        return self.out(F.silu(self.data(x) + self.time(time)))


@pytest.mark.parametrize(
    "model",
    [
        lambda: nn.Sequential(nn.Linear(24, 32), nn.GELU(), zeroed(nn.Linear(32, 5))),
        lambda: zeroed(nn.Linear(24, 5)),
        Residual,
    ],
)
def test_layers_that_begin_with_zeros(model):
    torch.manual_seed(0)
    assert tried(model(), digits()).findings == []


def test_an_output_that_begins_with_zeros():
    torch.manual_seed(0)
    batch = torch.randn(16, 24), torch.arange(16) % 10, torch.randn(16, 24)
    report = tried(Denoiser(), batch, lambda model, batch: F.mse_loss(model(*batch[:2]), batch[2]))
    assert report.findings == []
    assert "inputs 0, 1" in str(report) or "input 0, 1 change the output" in str(report)


def test_samples_that_are_mixed_behind_a_zero_head_are_seen():
    class Mixes(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Linear(24, 32), zeroed(nn.Linear(32, 5))

        def forward(self, x):
            x = self.body(x)
            return self.head(x + x.roll(1, 0))

    assert rules(tried(Mixes(), digits())) == {"samples_mixed"}


# -- gradients at random ----------------------------------------------------------------------------


class Drops(nn.Module):
    """A layer that is left out in most steps."""

    def __init__(self, probability):
        super().__init__()
        self.first, self.extra = nn.Linear(24, 32), nn.Linear(32, 32)
        self.head, self.probability = nn.Linear(32, 5), probability

    def forward(self, x):
        x = F.relu(self.first(x))
        if not self.training or torch.rand(()) > self.probability:
            x = x + self.extra(x)
        return self.head(x)


@pytest.mark.parametrize(("probability", "found"), [(0.8, set()), (1.0, {"missing_gradient"})])
def test_stochastic_depth(probability, found):
    torch.manual_seed(0)
    assert rules(tried(Drops(probability), digits())) == found


# -- inputs, masks and features ---------------------------------------------------------------------


class Masked(nn.Module):
    def __init__(self, uses_mask):
        super().__init__()
        self.embed, self.head, self.uses_mask = nn.Embedding(40, 32), nn.Linear(32, 5), uses_mask

    def forward(self, ids, mask):
        weight = mask.unsqueeze(-1).float() if self.uses_mask else torch.ones_like(mask).unsqueeze(-1)
        return self.head((self.embed(ids) * weight).sum(1) / weight.sum(1))


@pytest.mark.parametrize("uses_mask", [True, False])
def test_a_mask(uses_mask):
    torch.manual_seed(0)
    ids, mask = torch.randint(1, 40, (16, 8)), torch.ones(16, 8, dtype=torch.long)
    mask[::2, 5:] = 0
    report = tried(
        Masked(uses_mask), (ids, mask, torch.arange(16) % 5), lambda model, b: CROSS(model(*b[:2]), b[2])
    )
    assert rules(report) == (set() if uses_mask else {"ignored_input"})
    if not uses_mask:
        (finding,) = report.findings
        assert finding.tensors == ("input 1",)
        assert "stays the same for any values of input 1, but depends on 0" in finding.what


class Sliced(nn.Module):
    def __init__(self, used, categories=False):
        super().__init__()
        self.used, self.table = used, nn.Embedding(9, 4) if categories else None
        self.body = nn.Sequential(nn.Linear(used * (4 if categories else 1), 32), nn.ReLU(), nn.Linear(32, 5))

    def forward(self, x):
        x = x[:, : self.used]
        return self.body(x if self.table is None else self.table(x).flatten(1))


@pytest.mark.parametrize("used", [24, 12])
def test_features(used):
    torch.manual_seed(0)
    report = tried(Sliced(used), digits())
    assert rules(report) == (set() if used == 24 else {"ignored_input"})
    if used == 12:
        assert "12 of 24 features of input 0 do not influence the output: 12, 13, 14 and others" in str(
            report
        )


@pytest.mark.parametrize("used", [6, 4])
def test_columns_of_categories(used):
    torch.manual_seed(0)
    batch = torch.randint(9, (32, 6)), torch.arange(32) % 5
    assert rules(tried(Sliced(used, categories=True), batch)) == (set() if used == 6 else {"ignored_input"})


def test_features_without_gradients_are_exchanged_before_anything_is_said():
    class Rounds(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Linear(48, 5)

        def forward(self, x):
            return self.body(torch.cat([x, x.round()], 1)[:, 24:].repeat(1, 2))

    torch.manual_seed(0)
    assert rules(tried(Rounds(), digits())) == set()


def test_pixels_that_strides_leave_out():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 8, 3, stride=3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 25, 5))
    assert tried(model, (torch.randn(16, 1, 17, 17), torch.arange(16) % 5), lr=1e-3).findings == []


# -- learning rates ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("lr", "verb"), [(3e2, "lower"), (1e-5, "raise")], ids=["too large", "too small"])
def test_learning_rates_are_named(lr, verb):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(24, 64), nn.ReLU(), nn.Linear(64, 5))
    report = preflight(model, digits(), CROSS, torch.optim.SGD(model.parameters(), lr))
    finding = next(each for each in report.findings if each.rule == "unsuitable_learning_rate")
    assert finding.advice.startswith(f"{verb} the learning rate, to about ")
    assert len(finding.evidence["loss"]) <= (20 if verb == "lower" else 100)


def test_an_optimizer_whose_weight_decay_is_too_large():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(24, 64), nn.ReLU(), nn.Linear(64, 5))
    optimizer = torch.optim.SGD(model.parameters(), 0.1, weight_decay=5.0)
    assert "optimizer_does_not_learn" in rules(preflight(model, digits(), CROSS, optimizer))


def test_a_head_on_a_frozen_trunk_of_small_features_learns_slowly():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(24, 32), nn.Tanh(), nn.Linear(32, 32), nn.Linear(32, 10))
    for layer in model[:-1]:
        layer.requires_grad_(False)
    model[2].weight.data.mul_(0.1)
    optimizer = torch.optim.Adam(model[3].parameters(), 1e-3)
    report = preflight(model, (torch.randn(32, 24), torch.randperm(32) % 10), CROSS, optimizer)
    assert report.findings == []
    assert "slowly" in str(report)

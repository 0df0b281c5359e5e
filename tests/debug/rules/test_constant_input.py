"""Channels and features of the input that never vary, and those that look so in healthy trainings."""

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from loopwise.debug import Watch, every, open_run, preflight

NAME = "constant_input"


def run(path, batch, model=None, steps=20, forward=None):
    """Train on batches, and return the findings of this rule."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.LazyLinear(4)) if model is None else model
    net(batch(0))
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
    options = {"trap": False, "profile": False, "on_finding": lambda _: None}
    with Watch(net, optimizer, run=path, save=every(1), **options) as watch:
        for step in range(steps):
            optimizer.zero_grad()
            loss = net(batch(step)).square().mean()
            loss.backward()
            optimizer.step()
            watch.step(loss=loss)
    assert not watch.counts["failed"]
    findings = [finding for finding in watch.findings if finding.rule == NAME]
    assert str(open_run(path).judge([NAME])) == str(findings)
    return findings


def table(**columns):
    """Return a function that draws 64 samples of eight features, some of which are replaced."""

    def draw(_):
        x = torch.randn(64, 8)
        for name, column in columns.items():
            x[:, int(name[1:])] = column
        return x

    return draw


def test_a_feature_that_was_lost(tmp_path):
    (finding,) = run(tmp_path / "run", table(_3=0.0))
    assert finding.severity == "info"
    assert finding.step == 7
    assert finding.what == (
        "of the 8 features of the input, 1 has one value in all 512 samples of 8 batches, while others vary: 3 (0)"
    )
    assert finding.tensors == ("input feature 3",)
    assert finding.evidence == {"feature 3": [(7, 0.0)]}


def test_several_features(tmp_path):
    (finding,) = run(tmp_path / "run", table(_3=0.25, _5=-7.5))
    assert "2 have one value" in finding.what
    assert finding.what.endswith("3 (0.25), 5 (-7.5)")


def test_a_channel_of_images(tmp_path):
    def images(_):
        x = torch.rand(64, 3, 8, 8)
        x[:, 1] = 0.0
        return x

    (finding,) = run(tmp_path / "run", images)
    assert finding.what.startswith("of the 3 channels of the input, 1 has one value in all 512 samples")


def one_batch(_):
    return torch.randn(64, 8, generator=torch.Generator().manual_seed(0)).index_fill(
        1, torch.tensor([3]), 0.25
    )


def pixels(_):
    images = torch.tensor(load_digits().data, dtype=torch.float32)
    images = (images - images.mean()) / images.std()
    return images[torch.randint(len(images), (64,))]


def rare_classes(_):
    """Scaled columns of classes, two of which never come."""
    columns = nn.functional.one_hot(torch.randint(3, (64,)), 5).float()
    return torch.cat([torch.randn(64, 4), (columns - columns.new_tensor([0.3] * 3 + [0.01, 0.02])) / 0.1], 1)


def words(_):
    """Counts of words, some of which never come."""
    return torch.poisson(torch.tensor([3.0, 2.0, 0.5, 0.0, 0.0]).expand(64, 5))


def late(step):
    x = torch.randn(64, 8)
    x[:, 2] = float(step == 6)
    return x


def one_pixel(step):
    """Masks, of which one pixel of one sample is set."""
    x = torch.rand(64, 3, 8, 8)
    x[:, 2] = 0.0
    x[step, 2, 3, 5] = 0.5
    return x


@pytest.mark.parametrize(
    "batch",
    [
        table(),
        table(_0=1.0),  # the bias of a linear model
        one_batch,
        pixels,
        lambda step: pixels(step).reshape(64, 1, 8, 8),
        lambda step: pixels(step).reshape(64, 8, 8, 1),  # rows of pixels are no channels
        rare_classes,
        words,
        late,
        one_pixel,
        lambda _: torch.cat([torch.rand(64, 3, 8, 8), torch.ones(64, 1, 8, 8)], 1),  # an opaque channel
        lambda _: torch.zeros(64, 8),  # another rule names it
        lambda _: torch.rand(64, 17, 18, 18) * (torch.arange(17) > 3)[:, None, None],  # planes of a game
        lambda _: torch.randn(64, 10, 8) * (torch.arange(8) > 3),  # padded sequences
    ],
)
def test_healthy_inputs(tmp_path, batch):
    assert run(tmp_path / "run", batch) == []


def test_token_ids_and_changing_forms(tmp_path):
    def ids(step):
        x = torch.randint(9, (64, 8))
        x[:, 0] = 3
        return x

    assert run(tmp_path / "ids", ids, nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(32, 2))) == []

    def narrower(step):
        return table(_3=0.0)(step)[:, : 8 - step % 2]

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(7, 2)

        def forward(self, x):
            return self.linear(x[:, :7])

    assert run(tmp_path / "narrower", narrower, Net()) == []


def test_it_is_left_out_of_preflight():
    x = table(_3=0.0)(0).repeat(16, 1)
    report = preflight(nn.Linear(8, 3), (x, torch.arange(1024) % 3), nn.CrossEntropyLoss())
    assert NAME not in str(report)

"""Loops as people write them: a loss given as a number, weights under two names, an optimizer of Accelerate."""

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from loopwise.debug import Watch, every, open_run

F = nn.functional


class Tied(nn.Module):
    """Language model whose output layer has the weights of its embedding."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.head = nn.Embedding(20, 8), nn.Linear(8, 20, bias=False)
        nn.init.normal_(self.embed.weight, std=0.3)
        self.head.weight = self.embed.weight

    def forward(self, x):
        return self.head(self.embed(x))


def train(folder, rate, read, steps=60, save=None):
    model = Tied()
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    gradients = []
    draws = torch.Generator().manual_seed(0)
    with Watch(model, optimizer, run=folder, save=save, trap=False, profile=False, on_finding=[]) as watch:
        for _ in range(steps):
            x = torch.randint(20, (16,), generator=draws)
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), (x + 1) % 20)
            loss.backward()
            gradients.append(model.embed.weight.grad.clone())
            optimizer.step()
            watch.step(loss=read(loss))
    assert not watch.counts["failed"]
    return watch, gradients


def test_a_loss_that_is_a_number_has_its_rules(tmp_path):
    """Rules over the course of the loss find the same; those that read its autograd graph have nothing to read."""
    as_tensor, _ = train(tmp_path / "tensor", 0.0, lambda loss: loss)
    as_number, _ = train(tmp_path / "number", 0.0, lambda loss: loss.item())
    for name in ("loss_not_decreasing", "unchanged_tensor"):
        found = [[f.what for f in watch.findings if f.rule == name] for watch in (as_tensor, as_number)]
        assert found[0] == found[1], name
    one, two = open_run(tmp_path / "tensor"), open_run(tmp_path / "number")
    assert [float(one.value("loss", step)) for step in range(60)] == [
        float(two.value("loss", step)) for step in range(60)
    ]


def test_tied_weights_are_one_tensor_with_the_sum_of_their_gradients(tmp_path):
    watch, gradients = train(tmp_path / "run", 0.5, lambda loss: loss, steps=6, save=every(1))
    saved = open_run(tmp_path / "run")
    names = [name for name in saved.names(step=3) if name.endswith("weight")]
    assert names == ["embed.weight", "gradient/embed.weight", "update/embed.weight"]
    for step, gradient in enumerate(gradients):
        value = saved.statistic("gradient/embed.weight", "mean", step)
        assert value == pytest.approx(gradient.double().mean().item(), rel=1e-5, abs=1e-9)
    assert watch.findings == []


def test_an_optimizer_that_accelerate_has_prepared_is_watched(tmp_path):
    model = nn.Linear(4, 3)
    accelerator = Accelerator(cpu=True)
    prepared, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.5))
    with Watch(prepared, optimizer, run=tmp_path / "run", on_finding=[]) as watch:
        for _ in range(2):
            loss = prepared(torch.ones(2, 4)).square().mean()
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
            watch.step(loss=loss)
    saved = open_run(tmp_path / "run")
    assert saved.series("learning_rate")[1].tolist() == [0.5, 0.5]
    assert (saved.series("gradient_norm")[1] > 0).all()

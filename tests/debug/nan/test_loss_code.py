"""The expression of a loss function that a NaN came from is named, or none is."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from loopwise.debug import Watch


@pytest.fixture
def train(tmp_path):
    """Return a function that makes three steps of ``step(model, is_last)`` and returns the only finding."""

    def run(step):
        torch.manual_seed(0)
        model = nn.Linear(4, 3)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        quiet = {
            "rules": False,
            "collections": ["losses"],
            "profile": False,
            "on_finding": lambda finding: None,
        }
        with Watch(model, optimizer, run=tmp_path / "run", **quiet) as watch:
            for number in range(3):
                optimizer.zero_grad()
                step(model, optimizer, watch, number == 2)
        (found,) = watch.findings
        assert (found.rule, found.step) == ("non_finite", 2)
        return found

    return run


def finish(loss, optimizer, watch):
    loss.backward()
    optimizer.step()
    watch.step(loss=loss)


def test_all_labels_ignored(train):
    def step(model, optimizer, watch, bad):
        labels = torch.full((8,), -100) if bad else torch.arange(8) % 3
        loss = F.cross_entropy(model(torch.rand(8, 4)), labels)
        finish(loss, optimizer, watch)

    found = train(step)
    assert (
        "F.cross_entropy(model(torch.rand(8, 4)), labels): all labels in labels are ignored (-100)"
        in found.what
    )
    assert "its operations" not in found.what
    assert found.line.endswith(f"test_loss_code.py:{step.__code__.co_firstlineno + 2}")
    assert "divide it by at least 1" in found.advice


def test_an_infinite_class_weight(train):
    def step(model, optimizer, watch, bad):
        criterion = nn.CrossEntropyLoss(weight=torch.tensor([1.0, torch.inf if bad else 1.0, 1.0]))
        output = model(torch.rand(8, 4))
        loss = criterion(output, torch.arange(8) % 3)
        finish(loss, optimizer, watch)

    assert "criterion.weight is not finite, 1 infinite of 3 values" in train(step).what


def test_a_nan_target_in_arithmetic(train):
    def step(model, optimizer, watch, bad):
        targets = torch.rand(8, 3)
        targets[3, 1] = torch.nan if bad else 1.0
        loss = ((model(torch.ones(8, 4)) - targets) ** 2).mean()
        finish(loss, optimizer, watch)

    found = train(step)
    assert "targets is not finite, 1 NaN of 24 values (float32, 8x3)" in found.what
    assert "loaded" in found.advice


def test_a_logarithm_that_is_masked_is_not_named(train):
    def step(model, optimizer, watch, bad):
        chance = model(torch.ones(8, 4)).softmax(-1) * torch.tensor([1.0, 1.0, 0.0])
        masked = torch.where(chance > 0, chance.log(), torch.zeros(()))
        mask = torch.zeros(8, 3) if bad else torch.ones(8, 3)
        with torch.no_grad():
            scale = 1.0
        loss = (masked.detach() + model(torch.ones(8, 4))).mul(mask).sum() / (mask.sum() * scale)
        finish(loss, optimizer, watch)

    found = train(step)
    assert "mask.sum() * scale is 0" in found.what
    assert "log" not in found.what.partition(";")[0]


@pytest.mark.parametrize("how", ["assigned twice", "several calls", "a function that makes a step"])
def test_code_that_may_mean_other_values_is_not_named(train, how):
    def step(model, optimizer, watch, bad):
        labels = torch.full((8,), -100) if bad else torch.arange(8) % 3
        x = torch.ones(8, 4)
        if how == "several calls":
            model(x).sum().backward()
        if how == "a function that makes a step":
            loss = train_on(model, x, labels)
        else:
            loss = F.cross_entropy(model(x), labels)
            loss.backward()
        if how == "assigned twice":
            loss = loss * 1.0
        optimizer.step()
        watch.step(loss=loss)

    calls = []

    def train_on(model, x, labels):
        calls.append(len(x))
        loss = F.cross_entropy(model(x), labels)
        loss.backward()
        return loss

    found = train(step)
    assert "labels" not in found.what
    assert len(calls) in (0, 3)


def test_a_loss_function_of_ones_own_is_called_again_once(train):
    calls = []

    def step(model, optimizer, watch, bad):
        def likelihood(output, targets):
            calls.append(bad)
            chance = output.sigmoid() * (0.0 if bad else 1.0)
            return -(targets * chance.log()).mean()

        loss = likelihood(model(torch.ones(8, 4)), torch.ones(8, 3))
        finish(loss, optimizer, watch)

    found = train(step)
    assert "log in likelihood(model(torch.ones(8, 4)), torch.ones(8, 3))" in found.what
    assert found.line.endswith(f"test_loss_code.py:{step.__code__.co_firstlineno + 4}")
    assert calls == [False, False, True, True]


def test_a_loss_whose_code_is_not_found_has_its_operations(tmp_path):
    model = nn.Linear(4, 2)
    with Watch(model, run=f"{tmp_path}/run", rules=False) as watch:
        for factor in (1.0, 0.0):
            watch.step(loss=torch.log(model(torch.ones(3, 4)).exp() * factor).mean().abs())
    assert "its operations, backwards: Abs, Mean, Log, Mul, Exp" in watch.findings[0].what

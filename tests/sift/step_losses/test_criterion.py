"""Losses that the loop itself passes: by its own criterion, or one for the whole batch."""

import copy
import functools
import io
import pickle

import pytest
import torch
import torch.nn.functional as F
from sift_kit import (
    CRITERION,
    TOKENS,
    WITHOUT_READABLE_LOSSES,
    data,
    halves,
    language_model,
    remembered,
    reorder,
    sift,
)
from torch import nn

from loopwise.compile import TrainStep
from loopwise.errors import InputError
from loopwise.sift import PrunedHistory, SiftingDataLoader, TopLoss


@pytest.mark.parametrize("case", WITHOUT_READABLE_LOSSES)
def test_the_loops_own_criterion_records_what_no_hook_can_read(case):
    tensors, model, _ = WITHOUT_READABLE_LOSSES[case]
    loader = sift(*tensors, model=model, loss=None, policy=TopLoss(0.5))
    criterion = loader.criterion(nn.CrossEntropyLoss())
    counts = []
    for _ in range(2):
        counts.append(0)
        for x, y in loader:
            output = model(x)
            scores = output["logits"] if isinstance(output, dict) else output.flatten(0, 1)
            criterion(scores, y.flatten()).backward()
            counts[-1] += 1
    assert counts == [8, 4]
    x, y = tensors
    output = model(x)
    if isinstance(output, dict):
        expected = CRITERION(output["logits"], y)
    else:
        expected = CRITERION(output.transpose(1, 2), y).mean(1)
    torch.testing.assert_close(remembered(loader), expected.detach())


# -- loader.criterion -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "criterion",
    [
        nn.CrossEntropyLoss(),
        nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0]), label_smoothing=0.1),
        nn.CrossEntropyLoss(reduction="sum"),
        F.cross_entropy,
    ],
    ids=["mean", "weighted", "sum", "function"],
)
def test_a_recorded_criterion_gives_the_same_value_and_gradient(model, criterion):
    x, y = data()
    loader = sift(x, y, model=model, loss=None, keep=0.5)
    recording = loader.criterion(criterion)
    for inputs, targets in loader:
        results = []
        for function in (criterion, recording):
            model.zero_grad()
            loss = function(model(inputs), targets)
            loss.backward()
            results.append((loss.detach(), model.weight.grad.clone()))
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    per_sample = F.cross_entropy if criterion is F.cross_entropy else copy.copy(criterion)
    if criterion is not F.cross_entropy:
        per_sample.reduction = "none"
        expected = per_sample(model(x), y)
    else:
        expected = CRITERION(model(x), y)
    torch.testing.assert_close(remembered(loader), expected.detach())


class Drawing(nn.Module):
    """Criterion that draws random numbers and counts its calls."""

    reduction = "mean"

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, output, target):
        self.calls += 1
        return F.cross_entropy(F.dropout(output, 0.5), target, reduction=self.reduction)


@pytest.mark.parametrize("way", ["module", "function", "per_sample"])
def test_a_criterion_with_a_state_and_random_draws_gives_what_the_plain_one_gives(model, way):
    def function(output, target, reduction="mean"):
        return F.cross_entropy(F.dropout(output, 0.5), target, reduction=reduction)

    loader = sift(*data(), model=model, loss=None, policy=TopLoss(0.5))
    plain, own = (function, function) if way == "function" else (Drawing(), Drawing())
    per_sample = functools.partial(function, reduction="none") if way == "per_sample" else None
    recording = loader.criterion(own, per_sample)
    for inputs, targets in loader:
        results = []
        for criterion in (plain, recording):
            torch.manual_seed(3)
            results.append((float(criterion(model(inputs), targets).detach()), float(torch.rand(()))))
        assert results[0] == results[1]
    if way != "function":
        assert recording.calls == plain.calls == 8
    assert remembered(loader).isfinite().all()


def test_a_recorded_criterion_is_copied_and_pickled_as_the_plain_one(model):
    plain = nn.CrossEntropyLoss(weight=torch.ones(3))
    recording = sift(*data(), model=model, loss=None).criterion(plain)
    assert isinstance(recording, nn.CrossEntropyLoss)
    assert list(recording.state_dict()) == list(plain.state_dict())
    for copied in (copy.deepcopy(recording), pickle.loads(pickle.dumps(recording))):
        assert type(copied) is nn.CrossEntropyLoss
        assert torch.equal(copied.weight, plain.weight)
    torch.save(recording, io.BytesIO())


@pytest.mark.parametrize("step", [reorder, halves])
def test_targets_of_other_samples_are_refused(model, step, monkeypatch):
    loader = sift(*data(), model=model, loss=None, keep=0.5)
    monkeypatch.setattr(F, "cross_entropy", loader.criterion(F.cross_entropy))
    with pytest.raises(InputError, match="no tensor of the batch that the loader yielded"):
        for x, y in loader:
            step(model, x, y).backward()


def test_preprocessing_in_the_loop_and_fields_of_any_order_are_recorded(model):
    x, y = data()
    loader = sift(torch.arange(64), y, x, model=model, loss=None, policy=TopLoss(0.5))
    criterion = loader.criterion(nn.CrossEntropyLoss())
    for _, targets, inputs in loader:
        criterion(model(inputs / 2), targets).backward()
        with torch.no_grad():
            criterion(model(torch.randn(5, 6)), torch.zeros(5, dtype=torch.int64))  # a validation
    torch.testing.assert_close(remembered(loader), CRITERION(model(x / 2), y).detach())


def test_shifted_tokens_and_padding():
    torch.manual_seed(0)
    model, padded = language_model(), TOKENS.clone()
    padded[:, 6:] = 10
    loader = sift(padded, model=model, loss=None, keep=0.5)
    criterion = loader.criterion(nn.CrossEntropyLoss(ignore_index=10))
    for (tokens,) in loader:
        criterion(model(tokens)[:, :-1].reshape(-1, 11), tokens[:, 1:].reshape(-1)).backward()
    losses = F.cross_entropy(
        model(padded)[:, :-1].transpose(1, 2), padded[:, 1:], reduction="none", ignore_index=10
    )
    expected = losses.sum(1) / (padded[:, 1:] != 10).sum(1)
    torch.testing.assert_close(remembered(loader), expected.detach())


def test_a_criterion_that_cannot_be_recorded_is_refused(model):
    loader = sift(*data(), model=model, loss=None)
    with pytest.raises(InputError, match="pass per_sample="):
        loader.criterion(lambda output, target: output.mean())
    with pytest.raises(InputError, match="score_every=1"):
        sift(*data(), model=model, score_every=1).criterion(nn.CrossEntropyLoss())
    streamed = SiftingDataLoader([data(8)] * 3, model, None)
    streamed.criterion(nn.CrossEntropyLoss())
    with pytest.raises(InputError, match=r"Indexed\(dataset\)"):
        next(iter(streamed))


def test_a_criterion_that_is_never_called_is_noticed(model):
    loader = sift(*data(), model=model, loss=None)
    loader.criterion(nn.CrossEntropyLoss())
    with pytest.raises(InputError, match=r"no call of loader\.criterion"):
        for x, y in loader:
            F.cross_entropy(model(x), y).backward()
    with pytest.raises(InputError, match="loss=None, and no loss was recorded in 4 training steps") as caught:
        list(sift(*data(), model=model, loss=None))
    assert "loader.record_losses(step.losses)" in str(caught.value)


def test_a_criterion_inside_of_a_training_step_is_told_of_the_steps_losses(model):
    loader = sift(*data(), model=model, loss=None)
    criterion = loader.criterion(nn.CrossEntropyLoss())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    step = TrainStep(
        model, lambda model, batch: criterion(model(batch[0]), batch[1]), optimizer, autotune="off"
    )
    with pytest.raises(InputError, match="no call of loader") as caught:
        for batch in loader:
            step(batch)
    assert "loader.record_losses(step.losses)" in str(caught.value)


def test_the_losses_of_a_training_step_whose_loss_is_a_function(model):
    loader = sift(*data(), model=model, loss=None)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def losses(model, batch):
        return F.cross_entropy(model(batch[0]), batch[1], reduction="none")

    step = TrainStep(model, losses, optimizer, autotune="off")
    for batch in loader:
        step(batch)
        loader.record_losses(step.losses)
    assert loader.report().scored == 0
    assert remembered(loader).isfinite().all()


# -- batch scores ---------------------------------------------------------------------------------


def test_a_batchs_one_loss_scores_its_samples(model):
    """After some epochs, samples of high losses have higher averages of their batches' losses."""
    x, y = data(256)
    y = torch.where(torch.arange(256) < 64, (y + 1) % 3, model(x).argmax(1))
    loader = sift(x, y, model=model, loss=None, policy=PrunedHistory(0.5))
    for _ in range(30):
        for inputs, targets in loader:
            loader.record_losses(F.cross_entropy(model(inputs), targets))
    scores, losses = remembered(loader, 256), CRITERION(model(x), y).detach()
    assert torch.corrcoef(torch.stack([scores, losses]))[0, 1] > 0.3
    assert 0 < loader.report().skipped < 0.5 * 256 * 30


def test_the_default_policy_refuses_batch_losses(model):
    loader = sift(*data(), model=model, loss=None)
    next(iter(loader))
    with pytest.raises(InputError, match=r"pass policy=PrunedHistory\(\)"):
        loader.record_losses(torch.tensor(1.0))


def test_averages_of_batch_losses_follow_the_published_rule(model):
    loader = sift(*data(8), model=model, loss=None, policy=PrunedHistory(0.5))
    for loss in (1.0, 2.0):
        for _ in loader:
            loader.record_losses(torch.tensor(loss))
        loader._history.flush()
    assert loader._history.losses[:8].tolist() == pytest.approx([0.7 * 1.0 + 0.3 * 2.0] * 8)

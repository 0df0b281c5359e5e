"""The batches of an update train as one batch of them all, also if their counts differ; without counts, as a loop does."""

import functools
import warnings

import pytest
import torch
from accumulation_kit import (
    CLASSES,
    DATA,
    Net,
    batches,
    count,
    expected,
    joined,
    mean,
    same,
    trained,
    with_count,
    with_number,
)
from torch import nn
from torch.nn import functional

from loopwise.compile import Plan, TrainStep
from loopwise.errors import InputError
from loopwise.warnings import LoopwiseWarning

WEIGHTS = torch.tensor([0.1, 2.0, 1.0, 5.0, 0.5, 1.0, 3.0])
CRITERIA = {
    "cross-entropy": nn.CrossEntropyLoss(),
    "class weights": nn.CrossEntropyLoss(weight=WEIGHTS),
    "smoothed": nn.CrossEntropyLoss(weight=WEIGHTS, label_smoothing=0.2),
    "function": functional.cross_entropy,
    "partial function": functools.partial(functional.cross_entropy, weight=WEIGHTS),
}
FUNCTIONS = {"tensor returned": with_count, "number returned": with_number}


@pytest.mark.parametrize("name", [*CRITERIA, *FUNCTIONS])
@pytest.mark.parametrize("clip", [None, 0.05])
def test_batches_with_unequal_counts_train_as_one(name, clip):
    loss = CRITERIA.get(name) or FUNCTIONS[name]
    whole = (lambda net, batch: loss(net(batch[0]), batch[1])) if name in CRITERIA else mean
    ours = trained(loss, DATA, accumulate=4, clip=clip)
    same(ours, expected(whole, [joined(DATA[:4]), joined(DATA[4:])], clip))


@pytest.mark.parametrize("kind", ["tensors", "numbers", "fractions"])
def test_counts_can_be_given(kind):
    kinds = {"tensors": lambda n: n, "numbers": int, "fractions": lambda n: n.item() / 16}
    counts = [kinds[kind](count(batch)) for batch in DATA]
    same(
        trained(mean, DATA, counts=counts, accumulate=4), expected(mean, [joined(DATA[:4]), joined(DATA[4:])])
    )


def test_log_likelihoods_and_other_ignored_labels():
    data = batches(8, 1, 3, 2, ignored=0)
    loss = nn.NLLLoss(ignore_index=0)

    class Probabilities(Net):
        def forward(self, x):
            return super().forward(x).log_softmax(1)

    ours = trained(loss, data, net=Probabilities(), accumulate=4)
    same(ours, expected(lambda net, b: loss(net(b[0]).log_softmax(1), b[1]), [joined(data)]))


def test_probabilities_as_targets_count_as_samples():
    def soft(batch):
        x, y = batch
        return x, functional.one_hot(y, CLASSES).float().transpose(1, 2) * 0.9 + 0.1 / CLASSES

    data = [soft(batch) for batch in batches(8) + batches(8, rows=5)]
    loss = nn.CrossEntropyLoss(weight=WEIGHTS)
    ours = trained(loss, data, accumulate=2)
    same(ours, expected(lambda net, b: loss(net(b[0]), b[1]), [joined(data)]))


def test_a_loss_with_weights_of_its_own_gets_the_same_average():
    data, losses = batches(8, 1), []

    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, output, target):
            return functional.cross_entropy(output * self.scale, target)

    for together in (False, True):
        net, loss = Net(), Scaled()
        optimizer = torch.optim.SGD([*net.parameters(), *loss.parameters()], lr=1.0)
        step = TrainStep(net, loss, optimizer, accumulate=1 if together else 2, plan=Plan())
        for batch in [joined(data)] if together else data:
            step(batch, count=count(batch))
        losses.append(loss.scale.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_sparse_gradients_are_averaged():
    data = batches(8, 1, 2, 1)
    same(
        trained(nn.CrossEntropyLoss(), data, net=Net(sparse=True), accumulate=4),
        expected(mean, [joined(data)]),
    )


def test_equal_counts_train_bit_by_bit_as_the_usual_loop():
    data = batches(*[5] * 6)
    ours, theirs = trained(nn.CrossEntropyLoss(), data, accumulate=3), Net()
    optimizer = torch.optim.SGD(theirs.parameters(), lr=1.0)
    for number, batch in enumerate(data, 1):
        (mean(theirs, batch) / 3).backward()
        if number % 3 == 0:
            optimizer.step()
            optimizer.zero_grad()
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(one, other)


def test_without_counts_each_batch_has_the_same_weight_which_is_said_once():
    with pytest.warns(LoopwiseWarning, match=r"have 2 to 16 labels that are not -100, but each") as caught:
        ours = trained(mean, DATA[:4], accumulate=4)
    assert len(caught) == 1
    assert caught[0].filename.endswith("accumulation_kit.py")  # where the step was called
    same(ours, expected(lambda net, _: sum(mean(net, batch) for batch in DATA[:4]) / 4, [None]))


@pytest.mark.parametrize("accumulate", [1, 2])
def test_labels_of_a_dict_are_looked_at(accumulate):
    def loss(model, batch):
        return functional.cross_entropy(model(batch["x"]), batch["labels"])

    data = [{"x": x, "labels": y} for x, y in batches(8, 8, 3, 3, 8, 5, 8, 5)]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trained(loss, data, accumulate=accumulate)
    assert len(caught) == accumulate - 1


def test_shorter_batches_without_ignored_labels_are_no_reason_to_speak():
    trained(mean, batches(8) + batches(8, rows=1), accumulate=2)


NOTHING = {"cross-entropy": nn.CrossEntropyLoss(), "smoothed": CRITERIA["smoothed"], "returned": with_count}


@pytest.mark.parametrize("name", NOTHING)
@pytest.mark.parametrize("empty", [0, 2, 3])
def test_a_batch_without_a_count_adds_nothing(name, empty):
    """Its loss and the gradient of a mean over nothing are NaN."""
    data = batches(8, 1, 2)
    data.insert(empty, batches(0)[0])
    smoothed = name == "smoothed"

    def whole(net, batch):
        return NOTHING[name](net(batch[0]), batch[1]) if smoothed else mean(net, batch)

    same(trained(NOTHING[name], data, accumulate=4), expected(whole, [joined(data)]))


@pytest.mark.parametrize("accumulate", [1, 2])
def test_an_update_without_counts_is_left_out(accumulate):
    data = batches(*[0] * accumulate, *[4] * accumulate)
    counts = [count(batch) for batch in data]
    net = Net()
    optimizer = torch.optim.AdamW(net.parameters())
    step = TrainStep(net, mean, optimizer, accumulate=accumulate, plan=Plan())
    for number, batch in enumerate(data):
        if number == accumulate:
            assert not optimizer.state
            assert all(torch.equal(p, q) for p, q in zip(net.parameters(), Net().parameters(), strict=True))
        step(batch, count=counts[number])
    assert all(state["step"] == 1 for state in optimizer.state.values())
    assert all(p.isfinite().all() for p in net.parameters())
    assert "an update was left out: the counts of its batches are 0" in str(step.explain())


def test_a_gradient_scaler_sees_gradients_of_usual_size():
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=10)
    ours = trained(nn.CrossEntropyLoss(), DATA, accumulate=4, scaler=scaler, clip=0.05)
    same(ours, expected(mean, [joined(DATA[:4]), joined(DATA[4:])], 0.05))
    assert scaler.get_scale() == 1024.0


def test_gradients_in_half_precision_have_their_usual_size():
    data, net, usual = batches(8, 1, rows=2000), Net().half(), Net().half()
    step = TrainStep(net, mean, torch.optim.SGD(net.parameters(), lr=0.1), accumulate=2, plan=Plan())
    step(data[0], count=16000)  # a gradient of 16000 times the mean would be infinite
    (mean(usual, data[0]) / 2).backward()
    assert torch.equal(net.head.weight.grad, usual.head.weight.grad)
    step(data[1], count=2000)
    assert all(p.isfinite().all() for p in net.parameters())


def test_an_infinite_gradient_skips_the_update():
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, growth_interval=10)
    data, net = batches(8, 1), Net()
    trained(
        lambda model, b: 1000 * mean(model, b), data, net=net, counts=[16, 2], accumulate=2, scaler=scaler
    )
    for one, other in zip(net.parameters(), Net().parameters(), strict=True):
        assert torch.equal(one, other)
    assert scaler.get_scale() == 2.0**126


@pytest.mark.parametrize("counted", [True, False])
@pytest.mark.parametrize("clip", [None, 0.05])
def test_flush_updates_with_the_batches_that_are_there(counted, clip):
    data = batches(8, 1, 2, 1, 3) if counted else batches(*[8] * 5)
    ours = trained(nn.CrossEntropyLoss() if counted else mean, data, accumulate=3, clip=clip, flush=True)
    same(ours, expected(mean, [joined(data[:3]), joined(data[3:])], clip))


def test_an_incomplete_update_is_explained():
    net = Net()
    step = TrainStep(net, mean, torch.optim.SGD(net.parameters(), lr=0.1), accumulate=3, plan=Plan())
    for batch in batches(8, 8, 8, 8, 8):
        step(batch)
    text = "the present update has 2 of 3 batches: later batches complete it, or flush() makes it now"
    assert text in str(step.explain())
    assert step.flush()
    assert text not in str(step.explain())
    assert not step.flush()


@pytest.mark.parametrize(
    ("value", "seen"),
    [
        (-1, "count=-1"),
        (True, "count=True"),
        ("3", "count='3'"),
        (float("nan"), "count=nan"),
        (torch.ones(2), "count=a tensor of shape (2,)"),
        (torch.tensor(-2), "count=-2"),
    ],
    ids=str,
)
def test_a_wrong_count_is_refused(value, seen):
    net = Net()
    step = TrainStep(net, mean, torch.optim.SGD(net.parameters(), lr=0.1), accumulate=2, plan=Plan())
    with pytest.raises(InputError) as error:
        step(DATA[0], count=value)
    assert str(error.value).startswith(f"seen: {seen}\nexpected: a number from 0 on")


def test_counts_for_some_batches_only_are_refused():
    net = Net()
    step = TrainStep(net, mean, torch.optim.SGD(net.parameters(), lr=0.1), accumulate=3, plan=Plan())
    step(DATA[0], count=4)
    with pytest.raises(InputError, match="seen: a batch without a count, and others with one"):
        step(DATA[1])
    step(DATA[1], count=4)

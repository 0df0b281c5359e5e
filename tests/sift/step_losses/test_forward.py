"""Losses of the training steps: whose they are, and what the first batches decide."""

import pytest
import torch
import torch.nn.functional as F
from sift_kit import (
    CRITERION,
    WITHOUT_READABLE_LOSSES,
    data,
    halves,
    remembered,
    reorder,
    sift,
)
from torch import nn
from torch.utils.data import DataLoader

from loopwise.errors import InputError
from loopwise.sift import SiftingDataLoader, TopLoss
from loopwise.sift.step_losses import training_losses
from loopwise.warnings import LoopwiseWarning


@pytest.fixture(params=["compared at once", "compared at the end of the epoch"])
def comparison(request, monkeypatch):
    """On an accelerator comparisons are fetched once an epoch; the same code runs here on the CPU."""
    if request.param != "compared at once":
        monkeypatch.setattr("loopwise.sift.step_losses.forward.deferred", lambda same: True)


# -- other forward passes -------------------------------------------------------------------------


def mix(model, x, y):
    return F.cross_entropy(model(0.5 * x + 0.5 * x.roll(1, 0)), y)


def normalise(model, x, y):
    return F.cross_entropy(model((x - 0.3) / 0.4), y)


@pytest.mark.parametrize("step", [reorder, mix, halves, normalise])
def test_a_loop_that_changes_its_batches_is_refused_in_the_first_batches(model, step, comparison):
    loader = sift(*data(), model=model, keep=0.5)
    with pytest.raises(InputError, match=r"none of the batches' inputs.*\n.*\n.*\n.*loader.criterion"):
        for number, (x, y) in enumerate(loader):
            assert number < training_losses.PATIENCE
            step(model, x, y).backward()
    assert not remembered(loader).isfinite().any()


def fake_first(model, x, y):
    model(torch.randn(len(x), 6)).sum().backward()
    return F.cross_entropy(model(x), y)


def replayed(model, x, y):
    model(torch.roll(x, 1, 0)).sum().backward()
    return F.cross_entropy(model(x), y)


def teacher(model, x, y):
    with torch.no_grad():
        model(x)
    return F.cross_entropy(model(x), y)


def smaller_first(model, x, y):
    model(x[:3]).sum().backward()
    return F.cross_entropy(model(x), y)


@pytest.mark.parametrize("step", [fake_first, replayed, teacher, smaller_first])
def test_other_forward_passes_are_waited_past(model, step, comparison):
    x, y = data()
    loader = sift(x, y, model=model, keep=0.5)
    for inputs, targets in loader:
        step(model, inputs.clone(), targets).backward()
    expected = CRITERION(model(x), y)
    torch.testing.assert_close(remembered(loader), expected.detach())


def test_a_gan_whose_halves_take_turns(model, comparison):
    x, y = data(128)
    loader = sift(x, y, model=model, keep=0.5)
    for number, (inputs, targets) in enumerate(loader):
        fake = torch.randn_like(inputs)
        F.cross_entropy(model(inputs if number % 2 else fake), targets).backward()
    losses, expected = remembered(loader, 128), CRITERION(model(x), y).detach()
    known = losses.isfinite()
    assert known.sum() == 64
    torch.testing.assert_close(losses[known], expected[known])


def test_two_loaders_with_one_model(model, comparison):
    x, y = data()
    first, second = sift(x, y, model=model, keep=0.5), sift(*data(seed=1), model=model, keep=0.5)
    for (a, b), (c, d) in zip(first, second, strict=True):
        (F.cross_entropy(model(a.clone()), b) + F.cross_entropy(model(c.clone()), d)).backward()
    torch.testing.assert_close(remembered(first), CRITERION(model(x), y).detach())
    x, y = data(seed=1)
    torch.testing.assert_close(remembered(second), CRITERION(model(x), y).detach())


def test_batches_fetched_ahead_keep_their_losses(model, comparison):
    x, y = data()
    loader, ahead = sift(x, y, model=model, keep=0.5), []
    for batch in loader:
        ahead.append(batch)
        if len(ahead) == 3:
            a, b = ahead.pop(0)
            F.cross_entropy(model(a.clone()), b).backward()
    losses, expected = remembered(loader), CRITERION(model(x), y).detach()
    known = losses.isfinite()
    assert known.sum() >= 40
    torch.testing.assert_close(losses[known], expected[known])


@pytest.mark.parametrize(
    "change",
    [lambda x: x.double().float(), lambda x: x.unflatten(1, (2, 3)).flatten(1), lambda x: x.clone()],
    ids=["dtype", "shape", "copy"],
)
def test_another_dtype_or_shape_is_the_same_input(model, change):
    x, y = data()
    loader = sift(x, y, model=model, keep=0.5)
    for inputs, targets in loader:
        F.cross_entropy(model(change(inputs)), targets).backward()
    assert remembered(loader).isfinite().all()


def test_a_batch_in_bfloat16_and_inputs_of_integers():
    x, y = data()
    model = nn.Linear(6, 3).bfloat16()
    loader = sift(x, y, model=model, keep=0.5)
    for inputs, targets in loader:
        F.cross_entropy(model(inputs.bfloat16()).float(), targets).backward()
    assert remembered(loader).isfinite().all()
    pixels, plain = (x.abs() * 100).byte(), nn.Linear(6, 3)
    loader = sift(pixels, y, model=plain, keep=0.5)
    for inputs, targets in loader:
        F.cross_entropy(plain(inputs.float()), targets).backward()
    assert remembered(loader).isfinite().all()


def test_losses_in_evaluation_mode_are_read_too(model):
    x, y = data()
    model = nn.Sequential(nn.BatchNorm1d(6), model).eval()  # fine-tuning with frozen statistics
    loader = sift(x, y, model=model, keep=0.5)
    for inputs, targets in loader:
        F.cross_entropy(model(inputs), targets).backward()
    assert remembered(loader).isfinite().all()


def test_losses_that_stop_coming_stop_the_selection(model):
    x, y = data()
    loader = sift(x, y, model=model, policy=TopLoss(0.5))
    train = lambda step: [step(model, a, b).backward() for a, b in loader]  # noqa: E731
    assert len(train(lambda model, a, b: F.cross_entropy(model(a), b))) == 8
    with pytest.warns(LoopwiseWarning, match="the losses of 0 of 4 training steps could be read in epoch 1"):
        assert len(train(mix)) == 4
    assert len(train(lambda model, a, b: F.cross_entropy(model(a), b))) == 8
    assert len(train(lambda model, a, b: F.cross_entropy(model(a), b))) == 4


def test_batches_that_are_reordered_in_place_later_on_are_not_recognised(model):
    def in_place(model, x, y):
        order = x[:, 0].argsort()
        x.copy_(x[order])  # the tensor that the loader yielded, with other rows in each place
        y.copy_(y[order])
        return F.cross_entropy(model(x), y)

    x, y = data()
    loader = sift(x, y, model=model)
    for a, b in loader:
        F.cross_entropy(model(a), b).backward()
    before = remembered(loader).clone()
    with pytest.warns(LoopwiseWarning, match="the losses of 0 of"):
        for a, b in loader:
            in_place(model, a, b).backward()
    assert remembered(loader).equal(before)


def test_a_loop_that_begins_to_copy_its_batches_is_read_after_one_of_them(model):
    x, y = data()
    loader = sift(x, y, model=model, keep=1 / 2)
    for change in (lambda a: a, lambda a: a, torch.clone):
        for a, b in loader:
            F.cross_entropy(model(change(a)), b).backward()
    assert loader.report().scored == 0
    losses = F.cross_entropy(model(x), y, reduction="none").detach()
    assert torch.allclose(remembered(loader), losses)


# -- the form of the batches, and the loss --------------------------------------------------------


def test_batches_of_three_fields_are_refused_at_the_first(model):
    x, y = data()
    loader = sift(x, torch.randint(0, 3, (64,)), y, model=model, keep=0.5)
    with pytest.raises(InputError, match=r"TensorDataset|Tensor\(8, 6\), Tensor\(8,\), Tensor\(8,\)"):
        next(iter(loader))


def test_a_dict_is_refused_at_the_first(model):
    x, y = data()
    rows = [{"x": a, "y": b} for a, b in zip(x, y, strict=True)]
    loader = SiftingDataLoader(DataLoader(rows, 8), model, CRITERION, keep=0.5)
    with pytest.raises(InputError, match=r"criterion = loader.criterion"):
        next(iter(loader))


@pytest.mark.parametrize("case", WITHOUT_READABLE_LOSSES)
def test_losses_that_no_way_gives_are_an_error_after_the_first_step(case):
    tensors, model, step = WITHOUT_READABLE_LOSSES[case]
    loader = sift(*tensors, model=model, keep=0.5)
    batches = iter(loader)
    step(model, *next(batches)).backward()
    with pytest.raises(InputError, match="without readable losses"):
        next(batches)


def test_another_loss_than_the_loops_is_refused(model):
    x, y = data()
    loader = sift(x, y, model=model, loss=CRITERION, keep=0.5)
    batches = iter(loader)
    inputs, targets = next(batches)
    F.cross_entropy(model(inputs), (targets + 1) % 3).backward()
    with pytest.raises(InputError, match=r"cosine of -?0"):
        next(batches)


@pytest.mark.parametrize("factor", [0.0, 1.0])
def test_a_first_step_without_a_gradient_is_no_other_loss(model, factor):
    """A warm-up from 0, and a model that has nothing left to learn."""
    x, y = data()
    if factor:
        x, model = 1000 * F.one_hot(y, 6).float(), torch.nn.Linear(6, 3, bias=False)
        torch.nn.init.eye_(model.weight)
    loader = sift(x, y, model=model, loss=CRITERION, keep=0.5)
    for step, (inputs, targets) in enumerate(loader):
        (F.cross_entropy(model(inputs), targets) * max(factor, min(1, step))).backward()
    torch.testing.assert_close(remembered(loader), CRITERION(model(x), y).detach())


@pytest.mark.filterwarnings("ignore:Using a target size")
def test_an_output_that_broadcasts_against_its_target_is_named(model):
    x, y = data()
    regression = torch.nn.Linear(6, 1)
    loader = sift(x, y.float(), model=regression, loss=torch.nn.MSELoss(reduction="none"), keep=0.5)
    batches = iter(loader)
    inputs, targets = next(batches)
    F.mse_loss(regression(inputs).squeeze(1), targets).backward()
    with pytest.raises(InputError, match=r"which the criterion broadcasts(.|\n)*fix: make both of one shape"):
        next(batches)


@pytest.mark.parametrize("options", [{"label_smoothing": 0.2}, {"weight": torch.tensor([1.0, 4.0, 0.5])}])
def test_a_smoothed_or_weighted_loss_is_near_enough(model, options):
    loader = sift(*data(), model=model, keep=0.5)
    for inputs, targets in loader:
        (1024 * F.cross_entropy(model(inputs), targets, **options)).backward()
    assert remembered(loader).isfinite().all()


def test_scoring_passes_on_inputs_that_training_never_uses_are_refused(model):
    loader = sift(*data(), model=model, policy=TopLoss(0.5), score_every=1)
    with pytest.raises(InputError, match="normalises, augments, mixes"):
        for x, y in loader:
            normalise(model, x, y).backward()

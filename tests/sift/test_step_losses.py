"""Losses of the training steps: whose they are, and what the first batches decide."""

import copy
import io
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from loopwise.errors import InputError
from loopwise.sift import PrunedHistory, SiftingDataLoader, TopLoss
from loopwise.sift.step_losses import checksums, training_losses
from loopwise.warnings import LoopwiseWarning

CRITERION = nn.CrossEntropyLoss(reduction="none")


def data(n=64, columns=6, seed=0):
    draws = torch.Generator().manual_seed(seed)
    return torch.randn(n, columns, generator=draws), torch.randint(0, 3, (n,), generator=draws)


def sift(*tensors, model, loss=CRITERION, batch_size=8, **options):
    loader = DataLoader(TensorDataset(*tensors), batch_size, shuffle=True)
    return SiftingDataLoader(loader, model, loss, **options)


def remembered(loader, n=64):
    loader._losses.fetch()
    loader._history.flush()
    loader._history.grow(n)
    return loader._history.losses[:n]


@pytest.fixture(params=["compared at once", "compared at the end of the epoch"])
def comparison(request, monkeypatch):
    """On an accelerator comparisons are fetched once an epoch; the same code runs here on the CPU."""
    if request.param != "compared at once":
        monkeypatch.setattr("loopwise.sift.step_losses.forward.deferred", lambda same: True)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Linear(6, 3)


# -- other forward passes -------------------------------------------------------------------------


def reorder(model, x, y):
    order = x[:, 0].argsort()
    return F.cross_entropy(model(x[order]), y[order])


def mix(model, x, y):
    return F.cross_entropy(model(0.5 * x + 0.5 * x.roll(1, 0)), y)


def halves(model, x, y):
    return sum(
        F.cross_entropy(model(part), target) for part, target in zip(x.chunk(2), y.chunk(2), strict=True)
    )


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


class Named(nn.Linear):
    def forward(self, x):
        return {"logits": super().forward(x)}


def language_model():
    return nn.Sequential(nn.Embedding(11, 8), nn.Linear(8, 11))


TOKENS = torch.randint(0, 11, (64, 9), generator=torch.Generator().manual_seed(1))
WITHOUT_READABLE_LOSSES = {
    "the model returns a dict": (data(), Named(6, 3), lambda m, x, y: F.cross_entropy(m(x)["logits"], y)),
    "tokens flattened in the loop": (
        (TOKENS[:, :-1], TOKENS[:, 1:]),
        language_model(),
        lambda m, x, y: F.cross_entropy(m(x).flatten(0, 1), y.flatten()),
    ),
}


@pytest.mark.parametrize("case", WITHOUT_READABLE_LOSSES)
def test_losses_that_no_way_gives_are_an_error_after_the_first_step(case):
    tensors, model, step = WITHOUT_READABLE_LOSSES[case]
    loader = sift(*tensors, model=model, keep=0.5)
    batches = iter(loader)
    step(model, *next(batches)).backward()
    with pytest.raises(InputError, match="without readable losses"):
        next(batches)


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


def test_another_loss_than_the_loops_is_refused(model):
    x, y = data()
    loader = sift(x, y, model=model, loss=CRITERION, keep=0.5)
    batches = iter(loader)
    inputs, targets = next(batches)
    F.cross_entropy(model(inputs), (targets + 1) % 3).backward()
    with pytest.raises(InputError, match="cosine of -?0"):
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
    with pytest.raises(InputError, match="no call of loader.criterion"):
        for x, y in loader:
            F.cross_entropy(model(x), y).backward()
    with pytest.raises(InputError, match="loss=None, and no loss was recorded in 4 training steps"):
        list(sift(*data(), model=model, loss=None))


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


def test_averages_of_batch_losses_follow_the_published_rule(model):
    loader = sift(*data(8), model=model, loss=None, policy=PrunedHistory(0.5))
    for loss in (1.0, 2.0):
        for _ in loader:
            loader.record_losses(torch.tensor(loss))
        loader._history.flush()
    assert loader._history.losses[:8].tolist() == pytest.approx([0.7 * 1.0 + 0.3 * 2.0] * 8)


# -- checksums ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.bfloat16, torch.uint8, torch.int64, torch.bool]
)
def test_checksums_tell_rows_apart(dtype):
    values = (torch.randn(200, 3, 50, generator=torch.Generator().manual_seed(0)) * 20).clamp(min=0).to(dtype)
    sums = checksums.checksums(checksums.sampled(values))
    assert sums.shape == (200,)
    assert len(set(sums.tolist())) == 200
    order = torch.randperm(200)
    assert torch.equal(checksums.checksums(checksums.sampled(values[order])), sums[order])


def test_checksums_of_long_rows_cover_all_parts_and_take_no_random_numbers():
    state = torch.get_rng_state()
    image = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    before = checksums.checksums(checksums.sampled(image))
    for channel in range(3):
        for row in range(0, 64, 8):
            changed = image.clone()
            changed[:, channel, row : row + 8, :16] = 0
            assert not (checksums.checksums(checksums.sampled(changed)) == before).any()
    assert torch.equal(torch.get_rng_state(), state)

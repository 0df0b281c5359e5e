"""Training loops of many kinds: each is sifted by the right losses, or refused in its first batches."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from loopwise.errors import InputError, StateError
from loopwise.sift import PrunedHistory, SiftingDataLoader, TopLoss

CRITERION = nn.CrossEntropyLoss(reduction="none")
DRAWS = torch.Generator().manual_seed(0)
X, Y = torch.randn(64, 6, generator=DRAWS), torch.randint(0, 3, (64,), generator=DRAWS)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Linear(6, 3)


def wrapped(*tensors, model, loss=None, policy=None, **options):
    loader = DataLoader(TensorDataset(*tensors), 8, shuffle=True)
    return SiftingDataLoader(
        loader, model, loss, policy=TopLoss(0.5) if policy is None else policy, **options
    )


def remembered(loader, n=64):
    loader._losses.fetch()
    loader._history.flush()
    return loader._history.losses[:n]


def train(loader, step, epochs=1):
    """Return the number of batches of each epoch; the weights stay, so that losses can be compared."""
    counts = []
    for _ in range(epochs):
        counts.append(0)
        for batch in loader:
            step(batch).backward()
            counts[-1] += 1
    return counts


def test_ctc():
    torch.manual_seed(0)
    frames, model = torch.randn(64, 12, 6), nn.Linear(6, 5)
    targets, lengths = torch.randint(1, 5, (64, 4)), torch.randint(1, 5, (64,))
    loader = wrapped(frames, targets, lengths, model=model)
    criterion = loader.criterion(nn.CTCLoss())

    def scores(frames):
        return model(frames).log_softmax(2).transpose(0, 1)

    def step(batch):
        frames, targets, lengths = batch
        return criterion(scores(frames), targets, torch.full_like(lengths, 12), lengths)

    assert train(loader, step, epochs=2) == [8, 4]
    per_sample = nn.CTCLoss(reduction="none")
    expected = per_sample(scores(frames), targets, torch.full((64,), 12), lengths)
    torch.testing.assert_close(remembered(loader), expected.detach())


@pytest.mark.parametrize("way", ["hook", "scored", "recorded"])
def test_a_regression_with_a_column_as_target(way):
    model, targets, squared = nn.Linear(6, 1), X.sum(1, keepdim=True), nn.MSELoss(reduction="none")
    loss, score_every = None if way == "recorded" else squared, 1 if way == "scored" else "auto"
    loader = wrapped(X, targets, model=model, loss=loss, score_every=score_every)

    def step(batch):
        losses = squared(model(batch[0]), batch[1])
        if way == "recorded":
            loader.record_losses(losses)
        return losses.mean()

    assert train(loader, step, epochs=2) == ([4, 4] if way == "scored" else [8, 4])
    if way != "scored":
        torch.testing.assert_close(remembered(loader), squared(model(X), targets).detach().flatten())


def test_mixup_in_the_loop_is_refused_by_the_criterion(model):
    loader = wrapped(X, Y, model=model)
    criterion = loader.criterion(nn.CrossEntropyLoss())

    def step(batch):
        x, y = batch
        order, share = torch.randperm(len(x)), 0.6
        output = model(share * x + (1 - share) * x[order])
        return share * criterion(output, y) + (1 - share) * criterion(output, y[order])

    with pytest.raises(InputError, match="a second target, in another order"):
        train(loader, step)


def test_mixup_that_begins_later_is_refused_by_the_criterion(model):
    loader = wrapped(X, Y, model=model)
    criterion, steps = loader.criterion(nn.CrossEntropyLoss()), itertools.count()

    def step(batch):
        x, y = batch
        if next(steps) < 7:
            return criterion(model(x), y)
        order = torch.randperm(len(x))
        output = model(0.6 * x + 0.4 * x[order])
        return 0.6 * criterion(output, y) + 0.4 * criterion(output, y[order])

    with pytest.raises(InputError, match="a second target, in another order"):
        train(loader, step, epochs=2)


def test_a_second_loader_with_as_many_samples_of_each_class_is_no_mixup(model):
    loader = wrapped(X, Y, model=model)
    criterion = loader.criterion(nn.CrossEntropyLoss())

    def step(batch):
        x, y = batch
        return criterion(model(x), y) + criterion(model(torch.randn_like(x)), y.flip(0))

    train(loader, step)
    torch.testing.assert_close(remembered(loader), CRITERION(model(X), Y).detach())


def test_mixup_with_soft_targets_is_refused(model):
    loader = wrapped(X, Y, model=model)
    criterion = loader.criterion(nn.CrossEntropyLoss())

    def step(batch):
        soft = F.one_hot(batch[1], 3).float()
        return criterion(model(batch[0]), 0.6 * soft + 0.4 * soft.roll(1, 0))

    with pytest.raises(InputError, match="no tensor of the batch that the loader yielded"):
        train(loader, step)


def test_an_auxiliary_output_of_the_same_target(model):
    second = nn.Linear(6, 3)
    loader = wrapped(X, Y, model=model)
    criterion = loader.criterion(nn.CrossEntropyLoss())
    train(
        loader,
        lambda batch: criterion(model(batch[0]), batch[1]) + 0.4 * criterion(second(batch[0]), batch[1]),
    )
    torch.testing.assert_close(remembered(loader), CRITERION(model(X), Y).detach())


@pytest.mark.parametrize(("targets", "columns"), [(Y, ()), (torch.ones_like(Y), ()), (Y, (1,))])
def test_two_calls_for_each_batch_and_the_next_batch_fetched_ahead(targets, columns, model):
    second = nn.Linear(6, 3)
    loader = wrapped(X, targets.reshape(64, *columns), model=model)
    recording = loader.criterion(nn.CrossEntropyLoss())

    def criterion(output, y):
        return recording(output, y.flatten() if columns else y)

    for _ in range(2):
        batches = iter(loader)
        following = next(batches)
        while following is not None:
            (x, y), following = following, next(batches, None)
            (criterion(model(x), y) + criterion(second(x), y)).backward()
    torch.testing.assert_close(remembered(loader), CRITERION(model(X), targets).detach())


def test_the_losses_of_several_tasks_are_recorded_as_a_sum(model):
    other, depth = nn.Linear(6, 1), torch.randn(64)
    loader = wrapped(X, Y, depth, model=model)
    loader.criterion(nn.CrossEntropyLoss())
    with pytest.raises(StateError, match="a second call of loader"):
        loader.criterion(nn.MSELoss())
    loader = wrapped(X, Y, depth, model=model)

    def losses(x, y, depth):
        return CRITERION(model(x), y) + F.mse_loss(other(x).squeeze(1), depth, reduction="none")

    def step(batch):
        values = losses(*batch)
        loader.record_losses(values)
        return values.mean()

    assert train(loader, step, epochs=2) == [8, 4]
    torch.testing.assert_close(remembered(loader), losses(X, Y, depth).detach())


def test_contrastive_pairs(model):
    def per_sample(first, second):
        logits = first @ second.t() / 0.1
        return F.cross_entropy(logits, torch.arange(len(logits)), reduction="none")

    def loss(model, batch):
        return per_sample(model(batch[0]), model(batch[1]))

    loader = wrapped(X, X + 0.01, model=model, loss=loss, keep=None)
    counts = train(loader, lambda batch: loss(model, batch).mean(), epochs=2)
    assert counts == [4, 4]  # scored in each epoch
    loader = wrapped(X, X + 0.01, model=model, loss=CRITERION)
    with pytest.raises(InputError, match=r"without readable losses|normalises"):
        train(loader, lambda batch: loss(model, batch).mean())


def test_a_diffusion_step_is_scored_by_its_batch(model):
    network = nn.Linear(7, 6)

    def step(batch):
        (x,) = batch
        time, noise = torch.rand(len(x), 1), torch.randn_like(x)
        predicted = network(torch.cat([(1 - time) * x + time * noise, time], 1))
        loss = F.mse_loss(predicted, noise)
        loader.record_losses(loss)
        return loss

    loader = wrapped(X, model=network, policy=PrunedHistory(0.5))
    first, second = train(loader, step, epochs=2)
    assert first == 8
    assert second < 8


def test_a_discriminator_records_its_real_half():
    torch.manual_seed(0)
    critic = nn.Linear(6, 1)
    loader = wrapped(X, torch.ones(64), model=critic)
    criterion = loader.criterion(nn.BCEWithLogitsLoss())

    def step(batch):
        real, ones = batch
        fake = torch.randn_like(real)
        real_loss = criterion(critic(real).squeeze(1), ones)
        return real_loss + criterion(critic(fake).squeeze(1), torch.zeros(len(fake)))

    assert train(loader, step, epochs=2) == [8, 4]
    expected = F.binary_cross_entropy_with_logits(critic(X).squeeze(1), torch.ones(64), reduction="none")
    torch.testing.assert_close(remembered(loader), expected.detach())


class Images(Dataset):
    """Images as bytes, which the loop normalises."""

    def __init__(self):
        self.images = torch.randint(0, 255, (64, 1, 4, 4), dtype=torch.uint8, generator=DRAWS)

    def __len__(self):
        return 64

    def __getitem__(self, i):
        return {"image": self.images[i], "label": int(Y[i]), "name": f"image {i}"}


def test_preprocessing_in_the_loop_of_dict_batches():
    torch.manual_seed(0)
    data, model = Images(), nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    loader = SiftingDataLoader(DataLoader(data, 8, shuffle=True), model, policy=TopLoss(0.5))
    criterion = loader.criterion(nn.CrossEntropyLoss())

    def normalised(images):
        return images.float() / 255 - 0.5

    def step(batch):
        return criterion(model(normalised(batch["image"])), batch["label"])

    assert train(loader, step, epochs=2) == [8, 4]
    torch.testing.assert_close(remembered(loader), CRITERION(model(normalised(data.images)), Y).detach())


def test_segmentation_with_ignored_pixels():
    torch.manual_seed(0)
    images, masks = torch.randn(64, 1, 4, 4), torch.randint(0, 3, (64, 4, 4))
    masks[:, 0] = 255
    model = nn.Conv2d(1, 3, 3, padding=1)
    loader = wrapped(images, masks, model=model)
    criterion = loader.criterion(nn.CrossEntropyLoss(ignore_index=255))
    assert train(loader, lambda batch: criterion(model(batch[0]), batch[1]), epochs=2) == [8, 4]
    losses = F.cross_entropy(model(images), masks, ignore_index=255, reduction="none")
    torch.testing.assert_close(remembered(loader), losses.flatten(1).sum(1).detach() / 12)


def test_many_labels_for_each_sample(model):
    labels = torch.randint(0, 2, (64, 3)).float()
    loader = wrapped(X, labels, model=model)
    criterion = loader.criterion(nn.BCEWithLogitsLoss())
    assert train(loader, lambda batch: criterion(model(batch[0]), batch[1]), epochs=2) == [8, 4]
    losses = F.binary_cross_entropy_with_logits(model(X), labels, reduction="none").mean(1)
    torch.testing.assert_close(remembered(loader), losses.detach())

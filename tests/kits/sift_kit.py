"""Data, models and steps of the tests of losses that training steps give; pools of samples, and what holds for every policy."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from loopwise.sift import SiftingDataLoader
from loopwise.sift.policies import Pool

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


def reorder(model, x, y):
    order = x[:, 0].argsort()
    return F.cross_entropy(model(x[order]), y[order])


def halves(model, x, y):
    return sum(
        F.cross_entropy(model(part), target) for part, target in zip(x.chunk(2), y.chunk(2), strict=True)
    )


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


def pool(losses=64, seed=0):
    """Return a pool with all fields, of the given losses or of that many random ones."""
    draws = torch.Generator().manual_seed(seed)
    if isinstance(losses, int):
        losses = 3 * torch.rand(losses, generator=draws) ** 2
    n = len(losses)
    return Pool(
        losses,
        indices=torch.randperm(n, generator=draws),
        classes=torch.randint(-1, 3, (n,), generator=draws),
        gradients=torch.rand(n, generator=draws),
        features=torch.randn(n, 5, generator=draws),
        last_trained=torch.randint(-1, 7, (n,), generator=draws),
        epoch=7,
        losses_of=lambda model: model(losses),
    )


def decide(policy, given):
    """Return the policy's probabilities after verifying the properties that hold for every policy."""
    before = given.losses.clone()
    chances = policy.probabilities(given)
    assert chances.dtype == torch.float32
    assert chances.shape == (len(given),)
    assert ((chances >= 0) & (chances <= 1)).all()  # NaN is not
    assert torch.equal(given.losses, before)
    return chances


def of(losses, **fields):
    return Pool(torch.tensor(losses, dtype=torch.float32), **{k: torch.tensor(v) for k, v in fields.items()})

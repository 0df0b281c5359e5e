"""Data, models and steps of the tests of losses that training steps give."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from loopwise.sift import SiftingDataLoader

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

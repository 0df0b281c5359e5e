"""Random training loops: no loss is ever remembered for a sample that did not have it."""

import contextlib
import random
import warnings

import pytest
import torch
import torch.nn.functional as F
from sift_kit import CRITERION, data, remembered, sift
from torch import nn

from loopwise.errors import InputError

OTHER = {
    "noise": lambda draws, x: torch.randn(x.shape),
    "another length": lambda draws, x: torch.randn(draws.randint(1, 12), 6),
    "reordered": lambda draws, x: x.roll(draws.randint(1, 3), 0),
    "mixed": lambda draws, x: 0.7 * x + 0.3 * x.flip(0),
    "scaled": lambda draws, x: 2 * x,
    "half": lambda draws, x: x[: len(x) // 2],
    "one row changed": lambda draws, x: torch.cat([x[:-1], x[-1:] + 0.01]),
    "one element changed": lambda draws, x: x + 0.01 * F.one_hot(torch.tensor(3), 6),
}
"""Inputs of forward passes that are not the batch's."""


def random_loop(draws, loader, model):
    """Train for two epochs; each step makes other forward passes, or that of its batch, of an older one, or none."""
    kinds = draws.sample(list(OTHER), draws.randint(0, 3))
    own, lag = draws.choice([1.0, 1.0, 0.7, 0.0]), draws.choice([0, 0, 0, 1, 2])
    for _ in range(2):
        waiting = []
        for x, y in loader:
            waiting.append((x.clone() if draws.random() < 0.5 else x, y))
            if len(waiting) <= lag:
                continue
            x, y = waiting.pop(0)
            losses = []
            before = [kind for kind in kinds if draws.random() < 0.7]
            for kind in before:
                losses.append(model(OTHER[kind](draws, x)).sum())
            if draws.random() < own:
                losses.append(F.cross_entropy(model(x), y))
            if draws.random() < 0.3:
                losses.append(F.cross_entropy(model(x.flip(0)), y.flip(0)))
            if draws.random() < 0.2:
                with torch.no_grad():
                    model.eval()(x)
                model.train()
            if losses:
                sum(losses).backward()


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize("start", range(0, 150, 50))
def test_no_loss_is_remembered_for_another_sample(start, at_once, monkeypatch):
    if not at_once:  # as on an accelerator
        monkeypatch.setattr("loopwise.sift.step_losses.forward.deferred", lambda same: True)
    known = 0
    for seed in range(start, start + 50):
        draws = random.Random(seed)
        torch.manual_seed(seed)
        x, y = data(48, seed=seed)
        model = nn.Linear(6, 3)
        options = {"batch_size": draws.choice([3, 8, 16]), "seed": seed, "dtype": torch.float32}
        loader = sift(x, y, model=model, keep=0.5, **options)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with contextlib.suppress(InputError):  # a loop that never trains on its batches
                random_loop(draws, loader, model)
        losses = remembered(loader, 48)
        mask = losses.isfinite()
        torch.testing.assert_close(losses[mask], CRITERION(model(x), y).detach()[mask])
        known += int(mask.sum())
    assert known > 50 * 48 / 3

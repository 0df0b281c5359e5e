"""Pools of samples, and the properties that hold for the decisions of every policy."""

import torch

from loopwise.sift.policies import Pool


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

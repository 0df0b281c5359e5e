"""Policies that compare losses with past ones: what is in the comparison, and the share that follows."""

import pytest
import torch
from sift_kit import decide, of, pool

from loopwise.sift.policies import NoiseCap, Pool, ProportionalLoss, RelativeLoss


def test_a_history_has_at_most_one_epoch():
    """Losses that fall by a factor from epoch to epoch are ranked among those of one epoch, the present one's included."""
    policy, draws = RelativeLoss(beta=1, history=2048), torch.Generator().manual_seed(0)
    losses = torch.rand(200, generator=draws)
    shares = []
    for epoch in range(4):
        order = torch.randperm(200, generator=draws)
        parts = [Pool(0.9**epoch * losses[at], epoch=epoch) for at in order.split(20)]
        shares.append(sum(float(decide(policy, part).sum()) for part in parts) / 200)
    assert shares == pytest.approx([0.5] * 4, abs=0.06)
    assert len(policy.losses_to_share()) == 200


@pytest.mark.parametrize("make", [RelativeLoss, ProportionalLoss, lambda: NoiseCap(torch.ones_like, top=0.1)])
def test_a_planned_pool_is_compared_with_itself_alone(make):
    """Remembered losses of all samples: neither those of an earlier plan nor of other ranks are in the comparison."""
    policy, pools = make(), [pool(100, seed) for seed in range(3)]
    policy.receive_losses(torch.full((50,), 9.0))
    for number, given in enumerate(pools):
        given.losses, given.planned, given.epoch = given.losses * 0.5**number, True, number
        alone = make()
        assert torch.equal(decide(policy, given), decide(alone, given))


@pytest.mark.parametrize("planned", [False, True])
@pytest.mark.parametrize("fall", [1.0, 0.97, 0.5])
@pytest.mark.parametrize("floor", [0.0, 0.1])
def test_relative_loss_holds_its_share(floor, fall, planned):
    """Also while losses fall from pool to pool, as in the first epoch, and where many are equal."""
    policy, draws = RelativeLoss(0.4, floor=floor), torch.Generator().manual_seed(0)
    expected = []
    for number in range(60):
        losses = fall**number * torch.rand(60, generator=draws).sub_(0.3).clamp_min(0)
        chances = decide(policy, Pool(losses, planned=planned))
        expected.append(float(chances.mean()))
        order = losses.argsort()
        assert (chances[order].diff() >= -1e-6).all()
    if planned:
        assert expected == pytest.approx([0.4] * 60, abs=1e-4)
    assert sum(expected) / 60 == pytest.approx(0.4, abs=0.01)


def test_relative_loss_with_beta_keeps_the_exponent():
    policy = RelativeLoss(beta=1)
    decide(policy, of([9.0] * 30))
    assert decide(policy, of([1.0] * 10)).tolist() == pytest.approx([0.125] * 10)


def test_proportional_loss_by_hand():
    chances = decide(ProportionalLoss(), of([0, 0.1, 1, 2, 4.9]))
    assert chances.tolist() == pytest.approx([0.125, 0.125, 0.625, 1, 1])
    assert decide(ProportionalLoss(0), of([0, 1, 3])).tolist() == pytest.approx([0, 0.75, 1])
    assert decide(ProportionalLoss(), of([2.5] * 7)).tolist() == [1] * 7
    assert decide(ProportionalLoss(), of([0.0] * 3)).tolist() == [1] * 3
    assert decide(ProportionalLoss(), of([3e38, 3e38, 0])).tolist() == [1, 1, 0.125]


def test_proportional_loss_counts_from_the_lowest_loss_if_there_are_negative_ones():
    """Gaussian likelihoods of continuous targets have losses below 0 and of mean 0."""
    assert decide(ProportionalLoss(), of([-2, 0, 2])).tolist() == pytest.approx([0.125, 1, 1])
    assert decide(ProportionalLoss(), of([-5, -4, -3, 0])).tolist() == pytest.approx([0.125, 0.5, 1, 1])
    assert decide(ProportionalLoss(), of([-1.0] * 4)).tolist() == [1] * 4


def test_proportional_loss_takes_the_mean_of_past_losses():
    policy = ProportionalLoss(history=4)
    assert decide(policy, of([1, 3])).tolist() == [0.5, 1]
    assert decide(policy, of([1, 1])).tolist() == pytest.approx([1 / 1.5] * 2)
    assert decide(policy, of([2, 2])).tolist() == [1, 1]  # the mean of 1, 1, 2, 2
    policy.receive_losses(torch.full((4,), 8.5))
    assert decide(policy, of([0.5, 3.5])).tolist() == pytest.approx([0.125, 0.66667], rel=1e-4)
    assert decide(policy, of([1, 3, 2, 2, 9, 9]))[0] == 1 / 6  # a larger pool counts in full

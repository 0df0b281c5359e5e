"""One contract for all policies and guards, and the properties of each of them."""

import io
import math

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from sift_kit import decide, of, pool
from torch import nn

from loopwise.errors import InputError
from loopwise.sift import policies
from loopwise.sift.policies import (
    ClassFloor,
    Diverse,
    Function,
    GradNorm,
    Mixture,
    NoiseCap,
    Policy,
    Pool,
    Presence,
    ProportionalLoss,
    PrunedHistory,
    ReducibleLoss,
    RelativeLoss,
    Threshold,
    TopLoss,
    Uniform,
)


class Half(nn.Module):
    """Reference model under which every sample has half the loss (see ``pool``)."""

    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(0.5))

    def forward(self, losses):
        return losses * self.factor


def zeros(losses):
    return torch.zeros_like(losses)


def nested():
    return NoiseCap(
        Presence(Mixture((3, TopLoss(0.4)), (1, RelativeLoss(0.4))), epochs=9), top=0.1, history=50
    )


CASES = {  # the repr: how it is made, and its expected share for each unit of keep
    "ClassFloor(RelativeLoss(beta=1, floor=0, history=64), share=0.3)": (
        lambda: ClassFloor(RelativeLoss(0.5, history=64), share=0.3),
        None,
    ),
    "ClassFloor(Uniform(keep=0.5), share=0.1)": (lambda: ClassFloor(Uniform(), share=0.1), 1.0),
    "Diverse(keep=0.5, spread=0.5)": (Diverse, 1.0),
    "Diverse(keep=0.3, spread=1)": (lambda: Diverse(0.3, spread=1), 1.0),
    "Function(zeros)": (lambda: Function(zeros), None),
    "GradNorm(keep=0.5)": (GradNorm, 1.0),
    "Mixture((0.75, TopLoss(keep=0.2)), (0.25, Uniform(keep=0.8)))": (
        lambda: Mixture((3, TopLoss(0.2)), (1, Uniform(0.8))),
        1.0,
    ),
    "NoiseCap(TopLoss(keep=0.5), top=0.2, history=2048)": (lambda: NoiseCap(TopLoss(), top=0.2), 0.8),
    "NoiseCap(Presence(Mixture((0.75, TopLoss(keep=0.4)), (0.25, RelativeLoss(beta=1.5, floor=0,"
    " history=2048))), epochs=9), top=0.1, history=50)": (nested, 0.9),
    "Presence(TopLoss(keep=0.5), epochs=5)": (lambda: Presence(TopLoss()), None),
    "Presence(Uniform(keep=0.5), epochs=9)": (lambda: Presence(Uniform(), 9), 1.0),
    "ProportionalLoss(floor=0.125, history=2048)": (ProportionalLoss, None),
    "ProportionalLoss(floor=0, history=64)": (lambda: ProportionalLoss(0, history=64), None),
    "PrunedHistory(ratio=0.5)": (PrunedHistory, None),
    "ReducibleLoss(reference=Half, keep=0.1)": (lambda: ReducibleLoss(Half()), 1.0),
    "ReducibleLoss(reference=64 losses, keep=0.1)": (lambda: ReducibleLoss(torch.rand(64)), 1.0),
    "RelativeLoss(beta=1, floor=0, history=2048)": (RelativeLoss, 1.0),
    "RelativeLoss(beta=2, floor=0.1, history=64)": (lambda: RelativeLoss(0.4, floor=0.1, history=64), 1.0),
    "Threshold(loss=0.5, floor=0.1)": (lambda: Threshold(0.5, floor=0.1), None),
    "TopLoss(keep=0.5)": (TopLoss, 1.0),
    "Uniform(keep=0.5)": (Uniform, 1.0),
}
SIZES = (13, 1, 24, 0, 7, 40, 3, 64)


@pytest.fixture(params=CASES, ids=lambda name: name[:40])
def make(request):
    return CASES[request.param][0]


def test_all_policies_are_here():
    tested = {type(make()) for make, _ in CASES.values()}
    assert tested == {
        value
        for value in vars(policies).values()
        if isinstance(value, type) and issubclass(value, Policy) and value is not Policy
    }


@pytest.mark.parametrize("name", CASES)
def test_repr_tells_the_settings(name):
    assert repr(CASES[name][0]()) == name


@pytest.mark.parametrize("spread", [1.0, 0.0, 1e30, 1e-30])
@pytest.mark.parametrize("n", [0, 1, 2, 3, 64])
def test_pools_of_any_size_and_losses(make, n, spread):
    decide(make(), pool(spread * torch.arange(n)))
    policy = make()
    for losses in (torch.zeros(n), torch.full((n,), spread), torch.full((n,), -spread), torch.zeros(1)):
        decide(policy, pool(losses))


@pytest.mark.parametrize("name", [name for name, (_, factor) in CASES.items() if factor])
def test_the_share_is_keep_before_and_after_setting_it(name):
    make, factor = CASES[name]
    policy = make()
    for keep in (policy.keep, 0.3, 0.75):
        policy.keep = keep
        assert policy.keep == pytest.approx(keep)
        pools = [pool(n, seed) for seed, n in enumerate(SIZES * 20)]
        share = sum(float(decide(policy, given).sum()) for given in pools) / sum(map(len, pools))
        assert share == pytest.approx(factor * keep, rel=0.04)


def restored(policy, state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    policy.load_state_dict(torch.load(file, weights_only=True))
    return policy


def test_a_restored_policy_decides_as_the_uninterrupted_one(make):
    torch.manual_seed(0)
    policy, pools = make(), [pool(n, seed) for seed, n in enumerate(SIZES)]
    states, truth = [], []
    for given in pools:
        states.append(policy.state_dict())
        truth.append(decide(policy, given))
    for step, state in enumerate(states):
        torch.manual_seed(0)
        again = restored(make(), state)
        for given, expected in zip(pools[step:], truth[step:], strict=True):
            assert torch.equal(decide(again, given), expected)


@pytest.mark.parametrize("make", [TopLoss, Diverse, RelativeLoss, nested])
def test_without_its_state_a_policy_decides_otherwise(make):
    policy, pools = make(), [pool(n, seed) for seed, n in enumerate(SIZES)]
    truth = [decide(policy, given) for given in pools]
    fresh = make()
    assert not all(torch.equal(decide(fresh, g), t) for g, t in zip(pools[1:], truth[1:], strict=True))


def test_the_state_of_another_policy(make):
    policy = make()
    with pytest.raises(InputError) as error:
        policy.load_state_dict(Uniform(0.125).state_dict())
    assert str(error.value) == (
        "seen: the state of policy Uniform(keep=0.125)\n"
        f"expected: the state of {policy!r}\n"
        "likely cause: the run was saved with another policy or other settings of it\n"
        "fix: make the loader with the policy of the saved run, or start without its state"
    )


def test_threshold():
    chances = decide(Threshold(1.0, floor=0.25), of([0.5, 1.0, -2.0, 3.0]))
    assert chances.tolist() == [0.25, 1.0, 0.25, 1.0]


@pytest.mark.parametrize(
    ("gradients", "keep", "expected"),
    [
        ([4.0, 1, 1, 0], 0.5, [1, 0.5, 0.5, 0]),
        ([1.0, 100, 1, 1e30], 0.75, [0.5, 1, 0.5, 1]),
        ([1.0, 2, 3, 4], 0.25, [0.1, 0.2, 0.3, 0.4]),
        ([0.0, 0, 0, 0], 0.25, [0.25] * 4),
        ([0.0, 3, 0, 0], 0.5, [1 / 3, 1, 1 / 3, 1 / 3]),
        ([5.0, 0, 1, 2], 1.0, [1] * 4),
        ([1.0, math.nan, math.inf, 1], 0.75, [0.5, 1, 1, 0.5]),
    ],
)
def test_gradnorm_by_hand(gradients, keep, expected):
    assert decide(GradNorm(keep), of([0] * 4, gradients=gradients)).tolist() == pytest.approx(expected)


@hypothesis.settings(derandomize=True, deadline=None)
@hypothesis.given(
    st.lists(st.just(0.0) | st.floats(0, 2**100, width=32), min_size=1, max_size=40),
    st.floats(0.01, 1),
)
def test_gradnorm_sums_to_the_share_and_is_proportional_below_one(gradients, keep):
    norms = torch.tensor(gradients, dtype=torch.float64)
    chances = decide(GradNorm(keep), of([0] * len(norms), gradients=gradients)).double()
    assert float(chances.sum()) == pytest.approx(keep * len(norms), rel=1e-5)
    below = (chances < 1) & (norms > 0)
    if below.any():
        scale = (chances[below] / norms[below])[norms[below].argmax()]
        assert chances.tolist() == pytest.approx((scale * norms).clamp(max=1).tolist(), rel=1e-5, abs=1e-6)


def test_pruned_history_keeps_a_part_of_what_is_below_the_mean():
    assert decide(PrunedHistory(), of([1, 2, 3, 10])).tolist() == [0.5, 0.5, 0.5, 1]
    assert decide(PrunedHistory(0.25), of([4, 2, 6])).tolist() == [1, 0.75, 1]
    assert decide(PrunedHistory(), of([0.1] * 3)).tolist() == [1, 1, 1]
    assert decide(PrunedHistory(), of([3e38] * 3)).tolist() == [1, 1, 1]


def angles(*degrees, length=1.0):
    return [[length * math.cos(math.radians(d)), length * math.sin(math.radians(d))] for d in degrees]


@pytest.mark.parametrize(
    ("spread", "count", "chosen"),
    [
        (1, 2, {0, 3}),
        (1, 3, {0, 3, 2}),
        (0, 2, {0, 1}),
        (0, 3, {0, 1, 2}),
        (0.4, 2, {0, 2}),
        (0.5, 2, {0, 3}),
    ],
)
def test_diverse_by_hand(spread, count, chosen):
    """Distances from the first sample are 0, 0.09, 0.71 and 1; percentiles of the losses are 1, 0.75, 0.5 and 0.25."""
    features = angles(0, 10, 90) + angles(180, length=7.0)
    given = of([9, 8, 7, 6], features=features)
    assert set(decide(Diverse(count / 4, spread), given).nonzero().flatten().tolist()) == chosen


@pytest.mark.parametrize("spread", [0, 0.5, 1])
def test_diverse_takes_duplicates_last(spread):
    kinds = [*angles(0, 25, 50), [0.0, 0.0]]
    given = of([9, 8, 7, 6, 5, 4, 3, 2, 1, 0, 0, 0], features=[kinds[i] for i in [0] * 7 + [1, 2, 3, 2, 3]])
    assert decide(Diverse(4 / 12, spread), given).nonzero().flatten().tolist() == [0, 7, 8, 9]
    assert decide(Diverse(5 / 12, spread), given).nonzero().flatten().tolist() == [0, 1, 7, 8, 9]
    given.features[1:7, 0] = torch.tensor([torch.nan, torch.inf, -torch.inf]).repeat(2)
    given.features[1:7, 1] = 0  # values that are not finite count as 0
    assert decide(Diverse(4 / 12, spread), given).nonzero().flatten().tolist() == [0, 1, 7, 8]


def test_class_floor_by_hand():
    policy = ClassFloor(lambda losses: losses, share=0.5)
    given = of([1, 0, 0, 0.9, 0.7, 0], classes=[2, 2, 2, 0, 0, -1])
    assert decide(policy, given).tolist() == pytest.approx([1, 0.25, 0.25, 0.9, 0.7, 0.5])
    assert decide(ClassFloor(zeros, share=1), given).tolist() == [1] * 6


@hypothesis.settings(derandomize=True, deadline=None)
@hypothesis.given(
    st.lists(st.tuples(st.floats(0, 1, width=32), st.integers(-1, 3)), min_size=1, max_size=40),
    st.floats(0.01, 1),
)
def test_class_floor_is_exact_and_keeps_the_order(samples, share):
    chances, classes = map(list, zip(*samples, strict=True))
    given = of(chances, classes=classes)
    lifted = decide(ClassFloor(lambda losses: losses, share), given)
    assert (lifted >= given.losses - 1e-6).all()
    for name in set(classes):
        before, after = (values[given.classes == name] for values in (given.losses, lifted))
        assert float(after.mean()) == pytest.approx(max(share, float(before.mean())), abs=1e-6)
        assert (after[before.argsort()].diff() >= -1e-6).all()


def test_noise_cap_leaves_out_the_top_and_the_policy_chooses_from_the_rest():
    order = torch.randperm(100, generator=torch.Generator().manual_seed(0))
    losses = order.float()
    assert torch.equal(decide(NoiseCap(torch.ones_like, top=0.05), Pool(losses)), (losses < 95).float())
    expected = ((losses < 95) & (losses >= 95 - 38)).float()
    assert torch.equal(decide(NoiseCap(TopLoss(0.4), top=0.05), Pool(losses)), expected)


def test_which_policies_reach_all_samples():
    for policy in (
        RelativeLoss(0.5, floor=0.1),
        RelativeLoss(beta=0),
        ProportionalLoss(),
        Threshold(1.0, 0.1),
    ):
        assert policy.reaches_all
    for policy in (Uniform(), PrunedHistory(), GradNorm(), Function(zeros)):
        assert policy.reaches_all  # a function is looked at pool by pool
    for policy in (RelativeLoss(), ProportionalLoss(0), Threshold(1.0), TopLoss(), Diverse()):
        assert not policy.reaches_all
    assert not ReducibleLoss(Half()).reaches_all
    assert not NoiseCap(Uniform()).reaches_all
    assert not Presence(TopLoss()).reaches_all
    assert Presence(Uniform()).reaches_all
    assert not ClassFloor(TopLoss(), share=0.5).reaches_all
    assert Mixture((1, TopLoss()), (0.1, Uniform())).reaches_all
    assert not Mixture((1, TopLoss()), (1, Diverse())).reaches_all


def test_noise_cap_remembers():
    policy = NoiseCap(torch.ones_like, top=0.1, history=20)
    assert decide(policy, of([9.0] * 20)).all()
    assert decide(policy, of(list(range(10)))).all()
    assert decide(policy, of(list(range(10)))).tolist() == [1] * 9 + [0]  # the 20 last have two nines
    assert decide(policy, of(list(range(30)))).tolist() == [1] * 27 + [0] * 3  # all of a larger pool


def test_presence():
    given = of([1, 1, 1, 1], last_trained=[-1, 0, 1, 5])
    for epoch, expected in ((3, [0, 0, 0, 0]), (4, [1, 0, 0, 0]), (5, [1, 1, 0, 0]), (6, [1, 1, 1, 0])):
        given.epoch = epoch
        assert decide(Presence(zeros, epochs=5), given).tolist() == expected


def test_mixture_is_the_weighted_mean():
    policy = Mixture((2, torch.ones_like), (1, Threshold(2.0)), (1, zeros))
    assert decide(policy, of([1, 3])).tolist() == [0.5, 0.75]
    assert not hasattr(policy, "keep")
    with pytest.raises(AttributeError, match="has a share keep"):
        policy.keep = 0.5


def test_needs_and_past_losses_pass_through():
    relative = RelativeLoss(beta=1, history=8)
    policy = ClassFloor(Presence(Mixture((1, GradNorm()), (1, relative), (1, RelativeLoss(history=4)))), 0.1)
    assert policy.needs == {"classes", "last_trained", "gradients"}
    for n in (3, 3):
        policy.probabilities(pool(n))
    assert torch.equal(policy.losses_to_share(), relative.losses_to_share())
    assert len(policy.losses_to_share()) == 6
    policy.receive_losses(torch.full((1000,), 9.0))
    chances = relative.probabilities(pool(4))
    assert (chances < 0.02).all()  # among the others' losses all of these are low


def test_reducible_loss():
    given = of([5, 4, 3, 2], indices=[3, 1, 0, 2])
    for table in (torch.tensor([0.0, 0, 1.5, 4.5]), np.array([0, 0, 1.5, 4.5])):
        policy = ReducibleLoss(table, keep=0.5)
        assert policy.needs == {"indices"}
        assert decide(policy, given).tolist() == [0, 1, 1, 0]
    reference = nn.Sequential(Half(), nn.Dropout())
    policy = ReducibleLoss(reference, keep=0.25)
    assert policy.needs == {"losses_of"}
    assert not any(part.training for part in reference.modules())
    assert not any(parameter.requires_grad for parameter in reference.parameters())
    given.losses_of = lambda model: torch.tensor([5.0, 3, 0, 0]) if model is reference else None
    assert decide(policy, given).tolist() == [0, 0, 1, 0]

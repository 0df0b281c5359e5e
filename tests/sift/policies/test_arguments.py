"""Whole messages of all errors about arguments of the policies and guards."""

import math

import pytest
import torch
from torch import nn

from loopwise.errors import InputError
from loopwise.sift.policies import (
    ClassFloor,
    Diverse,
    GradNorm,
    Mixture,
    NoiseCap,
    Policy,
    Pool,
    Presence,
    PrunedHistory,
    ReducibleLoss,
    Threshold,
    TopLoss,
    Uniform,
)

NO_FRACTIONS = [-0.1, 2, 50, math.nan, "half", None, True]
NO_COUNTS = [0, -1, 2.0, "5", None, True]


def refused(seen, expected, cause, fix, make, *arguments, **options):
    with pytest.raises(InputError) as error:
        make(*arguments, **options)
    assert str(error.value) == f"seen: {seen}\nexpected: {expected}\nlikely cause: {cause}\nfix: {fix}"


@pytest.mark.parametrize("keep", [0, *NO_FRACTIONS])
@pytest.mark.parametrize(
    "make", [Uniform, GradNorm, Diverse, lambda keep: ReducibleLoss(torch.zeros(3), keep)]
)
def test_keep(make, keep):
    refused(
        f"keep={keep!r}",
        "the share of samples to train on, a number in (0, 1]",
        "a percentage or a count instead of a fraction",
        "pass a fraction, for instance keep=0.5",
        make,
        keep,
    )


@pytest.mark.parametrize("loss", [math.nan, math.inf, "low", None, False, nn.CrossEntropyLoss()])
def test_threshold_loss(loss):
    refused(
        f"loss={loss!r}",
        "the least loss that is always kept, a finite number",
        "a criterion was passed instead of a value of it",
        "pass a loss that a well learned sample has, for instance loss=0.1",
        Threshold,
        loss,
    )


@pytest.mark.parametrize("floor", [1, *NO_FRACTIONS])
def test_threshold_floor(floor):
    refused(
        f"floor={floor!r}",
        "the least keep probability, a number in [0, 1)",
        "a percentage or a count instead of a fraction",
        "pass a fraction, for instance floor=0.1",
        Threshold,
        1.0,
        floor,
    )


@pytest.mark.parametrize("ratio", [0, 1, *NO_FRACTIONS])
def test_pruned_history_ratio(ratio):
    refused(
        f"ratio={ratio!r}",
        "the share of the samples below the mean that is left out, a number in (0, 1)",
        "a percentage or a count instead of a fraction",
        "pass a fraction, for instance ratio=0.5",
        PrunedHistory,
        ratio,
    )


@pytest.mark.parametrize("spread", NO_FRACTIONS)
def test_diverse_spread(spread):
    refused(
        f"spread={spread!r}",
        "the weight of the distance against the loss, a number in [0, 1]",
        "a percentage or a count instead of a fraction",
        "pass a fraction, for instance spread=0.5",
        Diverse,
        spread=spread,
    )


@pytest.mark.parametrize(
    ("reference", "seen"),
    [
        (None, "NoneType"),
        ([1.0, 2.0], "list"),
        (torch.zeros(2, 3), "Tensor of shape (2, 3)"),
        (
            torch.tensor([1.0, math.nan, math.inf]).numpy(),
            "ndarray of shape (3,) with 2 values that are not finite",
        ),
    ],
)
def test_reducible_loss_reference(reference, seen):
    refused(
        f"reference: {seen}",
        "a reference model (nn.Module), or finite losses of shape (samples,) as a Tensor or array",
        "a function or a file name, one loss per batch instead of per sample, or samples that were not scored",
        "pass the model that was trained on held-out data, or its losses by index in the dataset",
        ReducibleLoss,
        reference,
    )


def test_an_index_without_irreducible_loss():
    refused(
        "a sample of index 3, with 3 irreducible losses",
        "one irreducible loss for every sample of the dataset, by its index",
        "the reference scored another dataset, or only a part of it",
        "score the whole training dataset with the reference, in order (shuffle=False)",
        ReducibleLoss(torch.zeros(3)).probabilities,
        Pool(torch.ones(2), indices=torch.tensor([0, 3])),
    )


@pytest.mark.parametrize(
    ("parts", "seen"),
    [
        ((), "(none)"),
        ((Uniform(),), "Uniform(keep=0.5)"),
        (((1, Uniform()), (0, TopLoss())), "(1, Uniform(keep=0.5)), (0, TopLoss(keep=0.5))"),
        (((True, Uniform()),), "(True, Uniform(keep=0.5))"),
        (((math.inf, Uniform()),), "(inf, Uniform(keep=0.5))"),
        (((1, Uniform(), 2),), "(1, Uniform(keep=0.5), 2)"),
        ((("1", Uniform()),), "('1', Uniform(keep=0.5))"),
    ],
)
def test_mixture_parts(parts, seen):
    refused(
        f"parts {seen}",
        "one or more pairs of a weight and a policy, the weights positive and finite",
        "policies without a weight, or a weight of 0 to switch a policy off",
        "pass for instance Mixture((0.8, TopLoss(0.5)), (0.2, Uniform(0.5)))",
        Mixture,
        *parts,
    )


@pytest.mark.parametrize("policy", [0.5, None, TopLoss, Policy])
@pytest.mark.parametrize(
    "make", [NoiseCap, Presence, lambda policy: ClassFloor(policy, 0.1), lambda policy: Mixture((1, policy))]
)
def test_guarded_policy(make, policy):
    refused(
        f"{policy!r} instead of a policy",
        "a Policy, or a function from losses to keep probabilities",
        "the class of a policy instead of an instance, or a share instead of a policy",
        "pass a policy with its settings, for instance TopLoss(keep=0.5)",
        make,
        policy,
    )


@pytest.mark.parametrize("share", [0, *NO_FRACTIONS])
def test_class_floor_share(share):
    refused(
        f"share={share!r}",
        "the least share of each class to keep, a number in (0, 1]",
        "a percentage or a count instead of a fraction",
        "pass a fraction, for instance share=0.2",
        ClassFloor,
        Uniform(),
        share,
    )


@pytest.mark.parametrize("top", [0, 1, *NO_FRACTIONS])
def test_noise_cap_top(top):
    refused(
        f"top={top!r}",
        "the share of the highest losses that is left out, a number in (0, 1)",
        "a percentage or a count instead of a fraction",
        "pass a fraction, for instance top=0.05",
        NoiseCap,
        Uniform(),
        top,
    )


@pytest.mark.parametrize(
    ("make", "name", "least", "unit", "example"),
    [(NoiseCap, "history", 2, "losses", 2048), (Presence, "epochs", 1, "epochs", 5)],
)
@pytest.mark.parametrize("value", NO_COUNTS)
def test_counts(make, name, least, unit, example, value):
    refused(
        f"{name}={value!r}",
        f"a whole number of {unit}, at least {least}",
        "a fraction, a negative number or a text",
        f"pass for instance {name}={example}",
        make,
        Uniform(),
        **{name: value},
    )

"""Selection of tokens against results by hand, and whole messages of its errors."""

import math

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from loopwise.errors import InputError
from loopwise.sift import RhoTokens

LOSSES = torch.tensor([[5.0, 4.0, 3.0], [2.0, 1.0, 6.0]])
REFERENCE = torch.tensor([[5.0, 1.0, 1.0], [0.0, 1.5, 9.0]])
VALID = torch.tensor([[True, True, False], [True, True, True]])


def test_the_highest_excess_loss_of_the_batch_is_kept():
    assert RhoTokens(0.5)(LOSSES).tolist() == [[1, 1, 0], [0, 0, 1]]
    assert RhoTokens(0.5)(LOSSES, REFERENCE).tolist() == [[0, 1, 1], [1, 0, 0]]
    assert RhoTokens(0.6)(LOSSES, REFERENCE, VALID).tolist() == [[1, 1, 0], [1, 0, 0]]
    assert RhoTokens(1.0)(LOSSES, REFERENCE, VALID).tolist() == VALID.float().tolist()


def test_one_token_at_least_and_padding_never():
    padding = torch.zeros(2, 3, dtype=torch.bool)
    assert not RhoTokens(1.0)(LOSSES, mask=padding).any()
    padding[1, 1] = True
    assert RhoTokens(0.01)(LOSSES, mask=padding).nonzero().tolist() == [[1, 1]]
    assert RhoTokens(0.01)(LOSSES).nonzero().tolist() == [[1, 2]]
    assert RhoTokens(0.5)(LOSSES[:0]).shape == (0, 3)


@pytest.mark.parametrize("wild", [math.inf, 1e30])
def test_extreme_losses_keep_the_count(wild):
    for losses, reference in (
        (LOSSES * wild, REFERENCE),
        (LOSSES, REFERENCE * 0 + wild),
        (LOSSES * 0, None),
    ):
        kept = RhoTokens(0.6)(losses, reference, VALID)
        assert kept.sum() == 3
        assert not kept[~VALID].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_from_logits_and_labels(dtype):
    torch.manual_seed(0)
    reference = nn.Sequential(nn.Embedding(11, 11), nn.Dropout())
    rho = RhoTokens(0.5, reference)
    assert not any(part.training for part in reference.modules())
    assert not reference[0].weight.requires_grad
    inputs, labels = torch.randint(0, 11, (2, 4, 7))
    labels[0, :3] = -1
    logits = torch.randn(4, 7, 11, requires_grad=True)
    of_reference = rho.reference(inputs).to(dtype)
    mask = rho.weights(logits.to(dtype), labels, of_reference, ignore_index=-1)
    assert (mask.dtype, mask.requires_grad, mask.shape) == (torch.float32, False, (4, 7))

    def losses(given):
        flat = cross_entropy(given.float().flatten(0, 1), labels.flatten(), ignore_index=-1, reduction="none")
        return flat.view(4, 7)

    assert torch.equal(mask, rho(losses(logits.to(dtype)), losses(of_reference), labels != -1))
    assert mask.sum() == round(0.5 * 25)
    assert not mask[0, :3].any()
    token_losses = cross_entropy(logits.transpose(1, 2), labels, ignore_index=-1, reduction="none")
    ((token_losses * mask).sum() / mask.sum()).backward()
    assert torch.equal(logits.grad.abs().sum(2) > 0, mask > 0)


def test_repr():
    assert repr(RhoTokens(0.5)) == "RhoTokens(keep=0.5, reference=None)"
    assert repr(RhoTokens(reference=nn.Linear(2, 2))) == "RhoTokens(keep=0.6, reference=Linear)"


def refused(seen, expected, cause, fix, call, *arguments):
    with pytest.raises(InputError) as error:
        call(*arguments)
    assert str(error.value) == f"seen: {seen}\nexpected: {expected}\nlikely cause: {cause}\nfix: {fix}"


LABELS = torch.zeros(2, 3, dtype=torch.int64)


@pytest.mark.parametrize(
    ("call", "arguments", "name", "shape", "expected", "cause"),
    [
        (
            "__call__",
            (LOSSES[0],),
            "losses",
            "(3,)",
            "(batch, tokens)",
            "losses averaged over the batch or its tokens",
        ),
        (
            "__call__",
            (LOSSES, REFERENCE[:, 1:]),
            "reference_losses",
            "(2, 2)",
            "(2, 3)",
            "one of the two is shifted or padded",
        ),
        (
            "__call__",
            (LOSSES, None, VALID[0]),
            "mask",
            "(3,)",
            "(2, 3)",
            "one of the two is shifted or padded",
        ),
        (
            "weights",
            (torch.zeros(2, 3, 5), LABELS[0]),
            "labels",
            "(3,)",
            "(batch, tokens)",
            "one-hot labels, or a flattened batch",
        ),
        (
            "weights",
            (torch.zeros(2, 4, 5), LABELS),
            "logits",
            "(2, 4, 5)",
            "(2, 3, vocabulary)",
            "logits and labels are not shifted alike, or are flattened",
        ),
        (
            "weights",
            (torch.zeros(2, 3, 5), LABELS, torch.zeros(6, 5)),
            "reference_logits",
            "(6, 5)",
            "(2, 3, vocabulary)",
            "logits and labels are not shifted alike, or are flattened",
        ),
    ],
)
def test_shapes(call, arguments, name, shape, expected, cause):
    refused(
        f"{name} of shape {shape}",
        f"{name} of shape {expected}",
        cause,
        "pass tensors of one batch, aligned token by token",
        getattr(RhoTokens(), call),
        *arguments,
    )


def test_a_mask_that_is_not_bool():
    refused(
        "a mask of dtype torch.int64",
        "a mask of dtype torch.bool: True for the valid tokens",
        "an attention mask of 0 and 1, or one to be added to the scores",
        "pass attention_mask.bool()",
        RhoTokens(),
        LOSSES,
        None,
        VALID.long(),
    )


def test_a_reference_that_is_forgotten():
    refused(
        "no losses of the reference",
        "the reference's losses or logits with every batch, because RhoTokens has a reference",
        "only the losses of the model in training were passed",
        "pass rho.weights(logits, labels, rho.reference(inputs)), or make RhoTokens without a reference",
        RhoTokens(reference=nn.Linear(2, 2)),
        LOSSES,
    )


def test_arguments():
    refused(
        "reference of type Tensor",
        "the reference model, an nn.Module, or None",
        "losses or logits of the reference, which belong to a batch",
        "pass the model here, and its losses or logits with each batch",
        RhoTokens,
        0.5,
        REFERENCE,
    )
    refused(
        "keep=60",
        "the share of samples to train on, a number in (0, 1]",
        "a percentage or a count instead of a fraction",
        "pass a fraction, for instance keep=0.5",
        RhoTokens,
        60,
    )

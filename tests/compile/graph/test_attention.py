"""Attention written as matmuls and softmax: replaced with equal results, or refused with the reason."""

import math

import pytest
import torch
import torch.nn.functional as F

from loopwise.compile.graph.passes.attention import attention

B, H, L, D = 2, 3, 5, 4


def tensors():
    torch.manual_seed(0)
    return [torch.randn(B, H, L, D, requires_grad=True) for _ in range(3)]


def run(function, *inputs):
    """Compare value and gradients with eager, and return the outcomes of the pass."""
    outcomes, targets = [], []

    def backend(gm, _):
        outcomes.extend(attention(gm))
        targets.extend(node.target for node in gm.graph.nodes)
        return gm.forward

    torch._dynamo.reset()
    expected = function(*inputs)
    actual = torch.compile(function, backend=backend, fullgraph=True)(*inputs)
    torch.testing.assert_close(actual, expected)
    needed = [t for t in inputs if t.requires_grad]
    weights = torch.linspace(-1, 1, expected.numel()).view(expected.shape)
    grads = [torch.autograd.grad((result * weights).sum(), needed) for result in (expected, actual)]
    torch.testing.assert_close(*grads)
    assert (F.scaled_dot_product_attention in targets) == any(o.rewritten for o in outcomes)
    return outcomes


def divided(q, k, v):
    return F.softmax(q @ k.transpose(-2, -1) / math.sqrt(D), dim=-1) @ v


def scaled_before(q, k, v):
    return torch.matmul(torch.softmax((q * 0.3) @ k.mT, -1), v)


def methods(q, k, v):
    return (q.matmul(k.permute(0, 1, 3, 2)) * 0.7).softmax(dim=3).matmul(v)


def in_float(q, k, v):
    scores = (q @ k.transpose(2, 3) * 0.5).float()
    return F.softmax(scores, dim=-1, dtype=torch.float32).to(q.dtype) @ v


def dropout_off(q, k, v):
    return F.dropout(F.softmax(q @ k.mT, dim=-1), 0.1, training=False) @ v


def causal(q, k, v):
    mask = torch.full((L, L), float("-inf")).triu(1)
    return F.softmax(q @ k.mT / 2.0 + mask, dim=-1) @ v


@pytest.mark.parametrize("function", [divided, scaled_before, methods, in_float, dropout_off, causal])
def test_attention_is_replaced(function):
    (outcome,) = run(function, *tensors())
    assert outcome.rewritten, outcome.reason
    assert outcome.name == "attention"
    assert outcome.saved_bytes == B * H * L * L * 4
    assert "test_attention.py:" in outcome.place


def test_a_learned_bias():
    bias = torch.randn(1, H, L, L, requires_grad=True)

    def biased(q, k, v, bias):
        return F.softmax(q @ k.mT * 0.5 + bias, dim=-1) @ v

    (outcome,) = run(biased, *tensors(), bias)
    assert outcome.rewritten, outcome.reason


def test_bmm_of_three_dimensions():
    q, k, v = (t.detach().flatten(0, 1).requires_grad_() for t in tensors())

    def batched(q, k, v):
        return torch.bmm(torch.softmax(torch.bmm(q, k.transpose(1, 2)), 2), v)

    assert run(batched, q, k, v)[0].rewritten


def over_queries(q, k, v):
    return F.softmax(q @ k.mT, dim=-2) @ v


def weights_used(q, k, v):
    weights = F.softmax(q @ k.mT, dim=-1)
    return weights @ v + weights.sum()


def scores_used(q, k, v):
    scores = q @ k.mT
    return F.softmax(scores, dim=-1) @ v + scores.sum()


def mask_scaled(q, k, v):
    return F.softmax((q @ k.mT + torch.eye(L)) * 0.5, dim=-1) @ v


def squashed(q, k, v):
    return F.softmax(torch.tanh(q @ k.mT), dim=-1) @ v


def dropout_inside(q, k, v):
    return F.dropout(F.softmax(q @ k.mT, dim=-1), 1e-9, training=True) @ v


REFUSED = [
    (over_queries, "the softmax is not over the last dimension"),
    (weights_used, "the attention weights are used elsewhere, at "),
    (scores_used, "the scores are used elsewhere, at "),
    (squashed, "tanh lies between the scores and the softmax"),
    (dropout_inside, "its dropout would draw other masks inside torch's kernel"),
]


@pytest.mark.parametrize(("function", "reason"), REFUSED)
def test_unsafe_attention_is_refused(function, reason):
    (outcome,) = run(function, *tensors())
    assert not outcome.rewritten
    assert reason in outcome.reason


def test_a_mask_that_is_scaled_is_refused():
    (outcome,) = run(mask_scaled, *tensors())
    assert "more than one mask, or a scaled one" in outcome.reason


def test_a_softmax_without_values_is_no_attention():
    def classes(x, w):
        return F.softmax(x @ w, dim=-1).sum(-1)

    x, w = torch.randn(3, 4, requires_grad=True), torch.randn(4, 5, requires_grad=True)
    assert run(classes, x, w) == []


def test_in_hugging_face_and_torchvision():
    from torchvision.models.swin_transformer import SwinTransformer
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=16,
        attn_implementation="eager",
        attention_probs_dropout_prob=0.0,
        hidden_dropout_prob=0.0,
    )
    bert = BertForSequenceClassification(config)
    swin = SwinTransformer([4, 4], 12, [2], [2], [4, 4], num_classes=3, stochastic_depth_prob=0.0)
    ids, labels = torch.randint(0, 50, (2, 8)), torch.tensor([0, 1])
    cases = [
        (lambda: bert(input_ids=ids, labels=labels).loss, bert),
        (lambda: swin(torch.ones(1, 3, 32, 32)).sum(), swin),
    ]
    for function, model in cases:
        outcomes = []

        def backend(gm, _, outcomes=outcomes):
            outcomes.extend(attention(gm))
            return gm.forward

        expected = function()
        actual = torch.compile(function, backend=backend)()
        torch.testing.assert_close(actual, expected)
        assert sum(outcome.rewritten for outcome in outcomes) >= 1, outcomes
        grads = [
            torch.autograd.grad(x, list(model.parameters()), allow_unused=True) for x in (expected, actual)
        ]
        for one, other in zip(*grads, strict=True):
            if one is not None:
                torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)

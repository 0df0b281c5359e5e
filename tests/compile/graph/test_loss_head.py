"""Pass that replaces loss heads: same value and gradients, and an outcome for each cross entropy."""

import logging
import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._dynamo.backends.debugging import aot_eager

from loopwise.compile import Plan
from loopwise.compile.graph.backend import Log, compile_function
from loopwise.compile.graph.passes.loss_head import loss_head
from loopwise.compile.loss_head import op as operator

B, T, D, V = 2, 5, 6, 11
OP = torch.ops.loopwise.linear_cross_entropy.default


class Recorder:
    """Backend that runs the pass and then AOTAutograd without a compiler."""

    def __init__(self, then=aot_eager):
        self.outcomes, self.changed, self.then, self.operators = [], False, then, 0

    def __call__(self, gm, inputs):
        before = gm.code
        self.outcomes += loss_head(gm)
        self.changed |= gm.code != before
        self.operators += sum(node.target is OP for node in gm.graph.nodes)
        return self.then(gm, inputs)


@pytest.fixture
def inputs():
    g = torch.Generator().manual_seed(0)
    x, weight, bias = (
        torch.randn(*shape, generator=g, dtype=torch.float64).requires_grad_()
        for shape in ((B, T, D), (V, D), (V,))
    )
    target = torch.randint(0, V, (B, T), generator=g)
    target[0, 1] = -100
    return x, weight, bias, target


def run(function, inputs, then=aot_eager, exact=None, **options):
    """Compare value and gradients with eager, and return the outcomes of the pass."""
    torch._dynamo.reset()
    record = Recorder(then)
    wanted = [t for t in inputs if t.requires_grad]
    sides = []
    for f in (function, torch.compile(function, backend=record, fullgraph=True, **options)):
        loss = f(*inputs)
        sides.append([loss, *torch.autograd.grad(loss.sum() * 1.5, wanted, allow_unused=True)])
    if exact:
        loss = exact(*inputs)
        truths = [loss, *torch.autograd.grad(loss.sum() * 1.5, wanted)]
        for theirs, ours, truth in zip(*sides, truths, strict=True):
            error, honest = ((value.double() - truth).abs().max() for value in (ours, theirs))
            assert ours.dtype == theirs.dtype
            assert error <= 2 * (honest + torch.finfo(torch.bfloat16).eps * truth.abs().max())
    for ours, theirs in zip(sides[1], sides[0], strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None and not exact:
            torch.testing.assert_close(ours, theirs)
    rewritten = [outcome for outcome in record.outcomes if outcome.rewritten]
    assert record.operators == len(rewritten)
    assert record.changed == bool(rewritten)
    return record.outcomes


def flat(x, w, b, y):
    return F.cross_entropy(F.linear(x, w, b).view(-1, V), y.view(-1))


def shifted(x, w, b, y):
    z = F.linear(x, w)[..., :-1, :].contiguous()
    return F.cross_entropy(z.view(-1, z.size(-1)), y[..., 1:].contiguous().view(-1))


def shifted_on_leading(x, w, b, y):
    return F.cross_entropy(F.linear(x, w, b)[:, :-1].flatten(0, 1), y[:, 1:].flatten())


def transposed(x, w, b, y):
    return F.cross_entropy(F.linear(x, w, b)[:, 1:].transpose(1, 2), y[:, 1:], reduction="none")


def permuted(x, w, b, y):
    return F.cross_entropy(F.linear(x.view(B, T, 1, D), w, b).permute(0, 3, 1, 2), y[..., None])


def capped(x, w, b, y):
    z = 30 * torch.tanh(F.linear(x, w, b) * 0.5 / 30.0)
    return F.cross_entropy(input=z.reshape(B * T, V), target=y.flatten(), reduction="sum")


def weighted(x, w, b, y):
    weights = torch.linspace(0.5, 2, V, dtype=x.dtype)
    z = F.linear(x, w, b).div(0.7)
    return F.cross_entropy(z.flatten(0, 1), y.view(-1), weights, None, -100, None, "mean", 0.1)


def as_float(x, w, b, y):
    return F.cross_entropy(F.linear(x.bfloat16(), w.bfloat16(), b.bfloat16()).float().view(-1, V), y.view(-1))


def low(x, w, b, y):
    return F.cross_entropy(F.linear(x.bfloat16(), w.bfloat16(), b.bfloat16()).view(-1, V), y.view(-1))


def autocast(x, w, b, y):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        z = F.linear(x.float(), w.float(), b.float())
    return F.cross_entropy(z.float().view(-1, V), y.view(-1))


def one_row(x, w, b, y):
    return F.cross_entropy(F.linear(x[0, 0], w, b), y[0, 0])


def two_heads(x, w, b, y):
    return flat(x, w, b, y) + flat(x * 2, w, b, y)


def ignoring(x, w, b, y):
    criterion = nn.CrossEntropyLoss(ignore_index=3, label_smoothing=0.2)
    return criterion(F.linear(x, w, b).view(-1, V), y.view(-1).clamp(min=0))


REPLACED = [
    flat, shifted, shifted_on_leading, transposed, permuted, capped, weighted, as_float, low, autocast, one_row,
    two_heads, ignoring,
]  # fmt: skip


@pytest.mark.parametrize("function", REPLACED, ids=lambda f: f.__name__)
def test_a_loss_head_is_replaced(function, inputs):
    outcomes = run(function, inputs, exact=flat if function in (as_float, low, autocast) else None)
    assert len(outcomes) == (2 if function is two_heads else 1)
    line = range(function.__code__.co_firstlineno, function.__code__.co_firstlineno + 5)
    for outcome in outcomes:
        assert outcome.rewritten, outcome.reason
        if function is not two_heads:
            assert int(re.fullmatch(rf"{__file__}:(\d+)", outcome.place)[1]) in line


def test_the_bytes_saved_are_the_logits(inputs):
    assert run(flat, inputs)[0].saved_bytes == B * T * V * 8


@pytest.mark.parametrize("frozen", [[0], [1], [0, 2]], ids=str)
def test_frozen_inputs(frozen, inputs):
    inputs = tuple(t.detach() if i in frozen else t for i, t in enumerate(inputs))
    assert run(flat, inputs)[0].rewritten


def test_without_gradients(inputs):
    torch._dynamo.reset()
    record = Recorder()
    with torch.no_grad():
        ours = torch.compile(flat, backend=record, fullgraph=True)(*inputs)
        torch.testing.assert_close(ours, flat(*inputs))
    assert record.operators == 1


@pytest.mark.parametrize("function", [flat, shifted], ids=lambda f: f.__name__)
def test_dynamic_shapes(function, inputs):
    assert run(function, inputs, dynamic=True)[0].rewritten


def test_small_logits_may_stay(inputs):
    kept = []

    def backend(gm, inputs):
        before = gm.code
        kept.extend([*loss_head(gm, at_least=B * T * V * 8 + 1), gm.code == before])
        return aot_eager(gm, inputs)

    torch._dynamo.reset()
    torch.compile(flat, backend=backend)(*inputs)
    assert (kept[0].reason, kept[1]) == ("the logits take 880 bytes, under the threshold of 881", True)


def used_elsewhere(x, w, b, y):
    z = F.linear(x, w, b)
    return F.cross_entropy(z.view(-1, V), y.view(-1)) + z.sum()


def probabilities(x, w, b, y):
    return F.cross_entropy(F.linear(x, w, b).view(-1, V), torch.full((B * T, V), 1 / V, dtype=x.dtype))


def other_classes(x, w, b, y):
    return F.cross_entropy(F.linear(x, w, b)[:, :, :T], y.clamp(min=0)[:, :T] % T)


def cut(x, w, b, y):
    return F.cross_entropy(F.linear(x, w, b)[..., : V - 1].reshape(-1, V - 1), y.view(-1) % (V - 1))


def activation(x, w, b, y):
    return F.cross_entropy(F.relu(F.linear(x, w, b)).view(-1, V), y.view(-1))


def no_linear(x, w, b, y):
    return F.cross_entropy((x @ w.t()).view(-1, V), y.view(-1))


def learned_scale(x, w, b, y):
    return F.cross_entropy((F.linear(x, w) * b[0]).view(-1, V), y.view(-1))


def more_precise(x, w, b, y):
    return F.cross_entropy(F.linear(x.float(), w.float()).double().view(-1, V), y.view(-1))


def square(x, w, b, y):
    return F.cross_entropy(F.linear(x[:, :, :], w[:T], b[:T]), y % T)


def mixed_grad_mode(x, w, b, y):
    with torch.no_grad():
        z = F.linear(x, w)
    return F.cross_entropy(z.view(-1, V), y.view(-1)) + x.sum()


def picked(x, w, b, y):
    return F.cross_entropy(F.linear(x, w)[y[:, 0].clamp(min=0) % B].view(-1, V), y.view(-1))


REFUSED = {
    used_elsewhere: r"the logits are used elsewhere, at .*test_loss_head.py:\d+",
    probabilities: "the targets are probabilities, not classes",
    other_classes: "the classes are not the last dimension of the linear layer's output",
    square: "the classes are not the last dimension of the linear layer's output",
    cut: r"getitem cuts or mixes the classes, at .*:\d+",
    activation: r"relu lies between the linear layer and the loss, at .*:\d+",
    no_linear: r"matmul lies between the linear layer and the loss, at .*:\d+",
    learned_scale: "mul does not have exactly one number as a factor, at .*",
    more_precise: "the logits are cast by double to torch.float64",
    mixed_grad_mode: "the grad mode changes between the linear layer and the loss",
    picked: "rows of the logits are picked by a tensor",
}


@pytest.mark.parametrize("function", REFUSED, ids=lambda f: f.__name__)
def test_an_unsafe_loss_head_is_refused(function, inputs):
    (outcome,) = run(function, inputs)
    assert not outcome.rewritten
    assert re.fullmatch(REFUSED[function], outcome.reason), outcome.reason


def test_logits_that_are_returned_are_refused(inputs):
    def both(x, w, b, y):
        z = F.linear(x, w, b).view(-1, V)
        return F.cross_entropy(z, y.view(-1)), z

    torch._dynamo.reset()
    record = Recorder()
    torch.compile(both, backend=record)(*inputs)
    assert record.outcomes[0].reason == "the logits are used elsewhere, in the values that the graph returns"


def test_another_graph_stays_as_it_is(inputs):
    assert run(lambda x, w, b, y: F.linear(x, w, b).logsumexp(-1).mean(), inputs) == []


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_causal_models_of_hugging_face(kind):
    transformers = pytest.importorskip("transformers")
    logging.getLogger("transformers").setLevel(logging.ERROR)
    torch.manual_seed(0)
    if kind == "llama":
        sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
        config = transformers.LlamaConfig(vocab_size=101, max_position_embeddings=32, **sizes)
        model = transformers.LlamaForCausalLM(config)
    else:
        config = transformers.GPT2Config(vocab_size=101, n_positions=32, n_embd=16, n_layer=1, n_head=2)
        model = transformers.GPT2LMHeadModel(config)
    model.eval().double()
    model.config.use_cache = False
    model.loss_type = "ForCausalLM"  # else its first look-up warns, and that breaks GPT-2's graph
    x = torch.randint(0, 101, (2, 8))
    wanted = list(model.parameters())

    def loss(x):
        return model(input_ids=x, labels=x).loss

    torch._dynamo.reset()
    record = Recorder()
    ours, theirs = torch.compile(loss, backend=record)(x), loss(x)
    assert [outcome.rewritten for outcome in record.outcomes] == [True], record.outcomes
    assert record.outcomes[0].saved_bytes == 2 * 8 * 101 * 8
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)  # it casts the logits to float32
    for one, other in zip(
        torch.autograd.grad(ours, wanted), torch.autograd.grad(theirs, wanted), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_inductor_takes_the_graph(inputs):
    from torch._inductor.compile_fx import compile_fx

    assert run(shifted, inputs, then=compile_fx)[0].rewritten


def test_what_is_there_for_its_effect_stays():
    """Removing dead code once took BatchNorm's count of batches with it."""
    net = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Linear(16, 3))

    def loss(x, y):
        return F.cross_entropy(net(x), y)

    outcomes = []

    def backend(gm, inputs):
        outcomes.extend(loss_head(gm))
        return gm.forward

    torch.compile(loss, backend=backend)(torch.randn(8, 6), torch.arange(8) % 3)
    assert [outcome.rewritten for outcome in outcomes] == [True]
    assert net[1].num_batches_tracked == 1


@pytest.mark.parametrize("by_hand", [False, True])
def test_recomputation_leaves_the_loss_head_alone(monkeypatch, tmp_path, by_hand):
    """The partitioner took the operator for free and ran it a second time, gradients included."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # not a graph that was divided before
    calls, real = [], operator.run
    monkeypatch.setattr(operator, "run", lambda *inputs: calls.append(1) or real(*inputs))
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 32), nn.GELU())
    head = nn.Linear(32, 64)

    def loss_of(x, y):
        if by_hand:
            return operator.linear_cross_entropy(body(x), head.weight, y, head.bias)
        return F.cross_entropy(head(body(x)), y)

    plan = Plan(graph="inductor", passes=("loss_head",), budget=0.0)
    compile_function(loss_of, plan, Log())(torch.randn(16, 8), torch.arange(16)).backward()
    assert len(calls) == 1

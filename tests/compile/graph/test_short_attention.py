"""Pass that runs attention in bfloat16 over short sequences in float32 on a CPU."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from loopwise.compile import Plan, TrainStep
from loopwise.compile.graph.backend import Backend, Log

PLAN = Plan(graph="captured", passes=("short_attention",))


CAPABILITIES = torch.cpu.get_capabilities()


def _set_amx(monkeypatch, on):
    """Let the processor have AMX or not; Inductor reads the other capabilities."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: CAPABILITIES | {"amx_bf16": on})


@pytest.fixture(autouse=True)
def without_amx(monkeypatch):
    _set_amx(monkeypatch, False)
    torch._dynamo.reset()


class Attending(nn.Module):
    def __init__(self, *, positional=False, **options):
        super().__init__()
        self.mix, self.positional, self.options = nn.Linear(8, 24), positional, options

    def forward(self, x):
        q, k, v = self.mix(x).unflatten(2, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        if self.positional:
            return F.scaled_dot_product_attention(q, k, v, None, 0.0, True)
        return F.scaled_dot_product_attention(q, k, v, **self.options)


def rewritten(model, x, graph="captured", autocast=True):
    """Return the outcomes, and losses and gradients without the pass and with it."""
    log, results = Log(), []

    def computed(model, x):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            return model(x), (model.mix(x) @ torch.ones(24, 2).to(x)).dtype

    plan = PLAN.changed(graph=graph)
    for function in (computed, torch.compile(computed, backend=Backend(plan, log))):
        model.zero_grad()
        out, after = function(model, x)
        out.float().square().mean().backward()
        results.append((out.detach(), model.mix.weight.grad.clone()))
        assert after == torch.bfloat16  # autocast is on again after the attention
    assert not log.failures
    return log.outcomes, *results


@pytest.mark.parametrize("options", [{"is_causal": True}, {"scale": 0.3}, {"positional": True}], ids=str)
@pytest.mark.parametrize("graph", ["captured", "inductor"])
@pytest.mark.parametrize("autocast", [True, False])
def test_the_attention_is_equal(options, graph, autocast):
    torch.manual_seed(0)
    dtype = torch.float32 if autocast else torch.bfloat16
    model, x = Attending(**options).to(dtype), torch.randn(3, 6, 8, dtype=dtype)
    (outcome,), eager, ours = rewritten(model, x, graph, autocast)
    assert outcome.rewritten
    for one, other in zip(ours, eager, strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, rtol=0.02, atol=0.02 * other.abs().max().item())


def test_a_boolean_mask_is_allowed():
    mask = torch.ones(6, 6, dtype=torch.bool).tril()
    (outcome,), eager, ours = rewritten(Attending(attn_mask=mask), torch.randn(3, 6, 8))
    assert outcome.rewritten
    torch.testing.assert_close(ours[0], eager[0], rtol=0.02, atol=0.02)


@pytest.mark.parametrize(
    ("length", "options", "reason"),
    [
        (300, {}, "the sequences are long, or their length changes"),
        (6, {"attn_mask": torch.zeros(6, 6, dtype=torch.bfloat16)}, "its mask is of numbers"),
        (6, {"dropout_p": 0.5}, "its dropout would draw other masks"),
    ],
)
def test_an_unsafe_attention_is_refused(length, options, reason):
    log = Log()
    with torch.autocast("cpu", torch.bfloat16):
        torch.compile(Attending(**options), backend=Backend(PLAN, log))(torch.randn(1, length, 8))
    assert [outcome.reason for outcome in log.outcomes] == [reason]


def test_float32_and_processors_with_amx_are_left_alone(monkeypatch):
    log = Log()
    torch.compile(Attending(), backend=Backend(PLAN, log))(torch.randn(1, 6, 8))
    _set_amx(monkeypatch, True)
    torch._dynamo.reset()
    with torch.autocast("cpu", torch.bfloat16):
        torch.compile(Attending(), backend=Backend(PLAN, log))(torch.randn(1, 6, 8))
    assert log.outcomes == []


def test_a_step_keeps_the_pass(monkeypatch):
    """The comparison with float64 accepts the pass."""
    monkeypatch.setattr("loopwise.compile.step.native_dtype", lambda device: torch.bfloat16)
    torch.manual_seed(0)
    model = Attending(is_causal=True)
    step = TrainStep(
        model,
        lambda model, batch: model(batch).float().square().mean(),
        torch.optim.SGD(model.parameters(), 0.1),
        precision="mixed",
        plan=PLAN.changed(precision="mixed"),
    )
    step(torch.randn(3, 6, 8))
    assert step.plan.passes == ("short_attention",)
    assert "short attention" in str(step.explain())

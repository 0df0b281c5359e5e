"""Triton kernel of the loss head, on the GPU if there is one, else under Triton's interpreter."""

import os
import subprocess
import sys
import textwrap

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from loopwise.compile import Plan, TrainStep, linear_cross_entropy
from loopwise.compile.graph.backend import Backend, Log
from loopwise.errors import InputError

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture
def interpreted(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "0" if DEVICE == "cuda" else "1")
    torch._dynamo.reset()


@pytest.fixture
def kernels(interpreted):
    from loopwise.compile.loss_head.kernels import loss_gradient

    return loss_gradient


def plain(z, target, weights, valid, by_loss, by_square, smoothing=0.0, softcap=None):
    """Return loss and logsumexp of each row and the gradient by ``softcap * z``, in float64 by autograd."""
    z = z.double().cpu().requires_grad_()
    target, valid, by_loss, by_square = target.cpu(), valid.cpu(), by_loss.cpu(), by_square.cpu()
    logits = softcap * torch.tanh(z) if softcap else z
    weights = None if weights is None else weights.cpu().double()
    losses = F.cross_entropy(logits, target, weights, label_smoothing=smoothing, reduction="none") * valid
    lse = logits.logsumexp(1) * valid
    (losses * by_loss + lse.square() * by_square).sum().backward()
    return losses.detach(), lse.detach(), z.grad / (softcap or 1)


def case(rows=5, classes=37, dtype=torch.float32, size=3.0, seed=0):
    draws = torch.Generator().manual_seed(seed)
    z = (torch.randn(rows, classes, generator=draws) * size).to(dtype)
    target = torch.randint(0, classes, (rows,), generator=draws)
    valid = torch.ones(rows)
    valid[1::3] = 0
    weights = torch.rand(classes, generator=draws) + 0.5
    by_loss, by_square = torch.rand(2, rows, generator=draws)
    return [t.to(DEVICE) for t in (z, target, valid, weights, by_loss, by_square)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("softcap", [None, 4.0])
@pytest.mark.parametrize("weighted", [False, True])
def test_loss_and_gradient(kernels, dtype, smoothing, softcap, weighted):
    z, target, valid, weights, by_loss, by_square = case(dtype=dtype, size=0.7 if softcap else 3.0)
    weights = weights if weighted else None
    row = valid if weights is None else weights[target] * valid
    losses, lse, gradient = plain(z, target, weights, valid, by_loss, by_square, smoothing, softcap)
    outputs = kernels.loss_gradient_(
        z, target, row, valid, (by_loss, by_square), weights, smoothing, softcap, False
    )
    torch.testing.assert_close(outputs[0].cpu().double(), losses, rtol=2e-6, atol=2e-6)
    torch.testing.assert_close(outputs[1].cpu().double(), lse, rtol=2e-6, atol=2e-6)
    # the float64 gradient itself, rounded to the dtype, is off by half a last place
    place = torch.finfo(dtype).eps
    torch.testing.assert_close(z.cpu().double(), gradient, rtol=max(place, 4e-6), atol=2e-6)


def test_any_number_of_classes_in_blocks(kernels, monkeypatch):
    monkeypatch.setattr(kernels, "MOST", 16)
    for classes in (1, 2, 15, 16, 17, 48, 50):
        z, target, valid, _, by_loss, by_square = case(classes=classes)
        losses, lse, gradient = plain(z, target, None, valid, by_loss, by_square)
        outputs = kernels.loss_gradient_(
            z, target, valid, valid, (by_loss, by_square), None, 0.0, None, False
        )
        for one, other in zip((*outputs, z), (losses, lse, gradient), strict=True):
            torch.testing.assert_close(one.cpu().double(), other, rtol=4e-6, atol=2e-6)


@given(rows=st.integers(0, 6), classes=st.integers(1, 40), gap=st.integers(0, 5), seed=st.integers(0, 99))
@settings(max_examples=15, deadline=None)
def test_memory_between_rows_is_not_written(rows, classes, gap, seed):
    os.environ["TRITON_INTERPRET"] = "0" if DEVICE == "cuda" else "1"
    try:
        from loopwise.compile.loss_head.kernels.loss_gradient import loss_gradient_
    finally:
        del os.environ["TRITON_INTERPRET"]
    z, target, valid, _, by_loss, by_square = case(rows, classes, seed=seed)
    wide = torch.full((rows, classes + gap), 7.0, device=z.device)
    wide[:, :classes] = z
    _, _, gradient = plain(z, target, None, valid, by_loss, by_square)
    loss_gradient_(wide[:, :classes], target, valid, valid, (by_loss, by_square), None, 0.0, None, False)
    torch.testing.assert_close(wide[:, :classes].cpu().double(), gradient, rtol=4e-6, atol=2e-6)
    assert bool((wide[:, classes:] == 7).all())


def test_large_and_infinite_logits(kernels):
    z = torch.tensor([[1e4, 0.0, -1e4], [-float("inf"), 2.0, 1.0], [3e38, 1e38, 0.0]], device=DEVICE)
    target, one = torch.tensor([0, 1, 0], device=DEVICE), torch.ones(3, device=DEVICE)
    losses, _, gradient = plain(z, target, None, one, one, 0 * one)
    outputs = kernels.loss_gradient_(z, target, one, one, (one, 0 * one), None, 0.0, None, True)
    torch.testing.assert_close(outputs[0].cpu().double(), losses, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(z.cpu().double(), gradient, rtol=1e-6, atol=1e-6)


def test_nan_in_a_row_stays_in_that_row(kernels):
    z, target, valid, _, by_loss, by_square = case()
    z[0, 3] = float("nan")
    losses, _ = kernels.loss_gradient_(z, target, valid, valid, (by_loss, by_square), None, 0.0, None, True)
    assert losses.isnan().tolist() == [True] + [False] * 4
    assert z[1:].isfinite().all()


def test_a_class_out_of_range_makes_a_loss_of_nan_and_reads_nothing_else(kernels):
    z, target, valid, _, by_loss, by_square = case()
    target[0], target[2] = 37, -5
    losses, _ = kernels.loss_gradient_(z, target, valid, valid, (by_loss, by_square), None, 0.0, None, True)
    assert losses.isnan().tolist() == [True, False, True, False, False]


def test_without_tangents_the_logits_stay(kernels):
    z, target, valid, *_ = case()
    before = z.clone()
    kernels.loss_gradient_(z, target, valid, valid, None, None, 0.0, None, True)
    assert torch.equal(z, before)


def test_capped_logits_are_exact_near_0(kernels):
    z = torch.logspace(-6, 1, 200, device=DEVICE).reshape(100, 2).neg()
    target, one = torch.zeros(100, dtype=torch.int64, device=DEVICE), torch.ones(100, device=DEVICE)
    losses, lse, gradient = plain(z, target, None, one, one, one, softcap=30.0)
    outputs = kernels.loss_gradient_(z, target, one, one, (one, one), None, 0.0, 30.0, False)
    for mine, other in zip((*outputs, z), (losses, lse, gradient), strict=True):
        torch.testing.assert_close(mine.cpu().double(), other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_sums_over_rows(kernels, dtype):
    draws = torch.Generator().manual_seed(0)
    p, factor = (
        torch.randn(70, 200, generator=draws).to(dtype).to(DEVICE),
        torch.randn(70, generator=draws).to(DEVICE),
    )
    sums = torch.ones(200, device=DEVICE)
    kernels.add_sums_(sums, p, factor)
    torch.testing.assert_close(sums.double(), 1 + factor.double() @ p.double(), rtol=1e-5, atol=1e-5)


OPTIONS = [
    {},
    {"reduction": "sum", "ignore_index": 3},
    {"reduction": "none", "label_smoothing": 0.1},
    {"class_weight": True, "label_smoothing": 0.1},
    {"z_loss": 0.1, "softcap": 3.0, "scale": 0.7},
]


def written_out(x, weight, target, bias, z_loss=0.0, softcap=None, scale=1.0, class_weight=None, **options):
    z = F.linear(x, weight, bias) * scale
    z = softcap * torch.tanh(z / softcap) if softcap else z
    squares = z.logsumexp(1).square()[target != -100].mean() if z_loss else 0.0
    return F.cross_entropy(z, target, class_weight, **options) + z_loss * squares


def by_kernel(*inputs, **options):
    return linear_cross_entropy(*inputs, kernel=True, **options)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("chunk", [None, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_loss_head_with_the_kernel_is_as_exact_as_torch(interpreted, options, chunk, dtype):
    draws = torch.Generator().manual_seed(0)
    sizes = ((13, 6), (11, 6), (11,), (11,))
    *given, weights = (torch.randn(*size, generator=draws).to(dtype).to(DEVICE) for size in sizes)
    target = torch.randint(0, 11, (13,), generator=draws).to(DEVICE)
    target[1::4] = options.get("ignore_index", -100)

    def results(function, dtype, **more):
        x, weight, bias, by_class = (t.detach().to(dtype).requires_grad_() for t in (*given, weights))
        more |= options | ({"class_weight": by_class.detach().abs()} if "class_weight" in options else {})
        loss = function(x, weight, target, bias, **more)
        loss.backward(torch.linspace(0.5, 1, loss.numel(), device=DEVICE).to(loss).reshape(loss.shape))
        return [loss.detach().double(), *(t.grad.double() for t in (x, weight, bias))]

    exact, torchs = results(written_out, torch.float64), results(written_out, dtype)
    for one, other, wanted in zip(results(by_kernel, dtype, chunk=chunk), torchs, exact, strict=True):
        # the interpreter cuts bfloat16 off instead of rounding it
        place = torch.finfo(dtype).eps * (2 if dtype == torch.bfloat16 else 1)
        assert (one - wanted).norm() <= (other - wanted).norm() + 0.5 * place * wanted.norm()


def test_float64_stays_with_torchs_operations(interpreted):
    x, weight, target = (
        torch.randn(3, 2, dtype=torch.float64),
        torch.randn(4, 2).double(),
        torch.tensor([0, 1, 2]),
    )
    without, ours = (linear_cross_entropy(x, weight, target, kernel=kernel) for kernel in (False, True))
    assert torch.equal(without, ours)


def test_a_kernel_on_a_cpu_is_refused():
    x, weight, target = torch.randn(3, 2), torch.randn(4, 2), torch.tensor([0, 1, 2])
    with pytest.raises(InputError, match=r"(?s)kernel=True on cpu.*a GPU that Triton compiles for"):
        linear_cross_entropy(x, weight, target, kernel=True)


def test_the_loss_head_compiles_as_one_graph(interpreted):
    x, weight = torch.randn(5, 4, device=DEVICE), torch.randn(7, 4, device=DEVICE)
    target = torch.tensor([0, 6, -100, 3, 2], device=DEVICE)

    def function(x):
        return linear_cross_entropy(x * 2, weight, target, kernel=True) * 2

    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), function(x))


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(50, 16), nn.Linear(16, 50)

    def forward(self, tokens):
        return self.head(self.embed(tokens))


def losses_of(model, tokens):
    return F.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten().roll(1))


def test_the_pass_switches_the_kernel_on(interpreted):
    model, tokens = Small().to(DEVICE), torch.randint(0, 50, (2, 6), device=DEVICE)
    log = Log()
    plan = Plan(graph="captured", passes=("loss_head", "loss_kernel"))
    compiled = torch.compile(lambda tokens: losses_of(model, tokens), backend=Backend(plan, log))
    loss = compiled(tokens)
    assert [(o.name, o.rewritten) for o in log.outcomes] == [("loss_head", True), ("loss_kernel", True)]
    torch.testing.assert_close(loss, losses_of(model, tokens))


def test_the_pass_finds_nothing_on_a_cpu():
    model, tokens, log = Small(), torch.randint(0, 50, (2, 6)), Log()
    plan = Plan(graph="captured", passes=("loss_head", "loss_kernel"))
    torch.compile(lambda tokens: losses_of(model, tokens), backend=Backend(plan, log))(tokens)
    assert [o.name for o in log.outcomes] == ["loss_head"]


@pytest.mark.parametrize("wins", [False, True])
def test_a_training_step_uses_the_kernel_only_if_it_is_faster(interpreted, monkeypatch, wins):
    from loopwise.compile.search import attempts

    model, tokens = Small().to(DEVICE), torch.randint(0, 50, (2, 6), device=DEVICE)
    asked = []

    def faster(other, plain):
        asked.append((plain.plan.passes, other.plan.passes))
        return wins and "loss_kernel" in other.plan.passes

    monkeypatch.setattr(attempts, "is_faster", faster)
    step = TrainStep(model, losses_of, torch.optim.SGD(model.parameters(), lr=0.1))
    step(tokens)
    captured = [one.plan.passes for one in step._search.candidates if one.plan.graph == "captured"]
    pair = ("loss_head",), ("loss_head", "loss_kernel")
    assert captured == (list(reversed(pair)) if wins else list(pair))
    assert pair in asked


def test_the_kernel_compiles_for_gpus_without_spilling_registers():
    """Compile for A100 and H100 by Triton's compiler, which needs no GPU."""
    code = """
    import re, subprocess, sys, warnings
    from pathlib import Path
    warnings.simplefilter("ignore")
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from loopwise.compile.loss_head.kernels import loss_gradient as kernels

    def compiled(kernel, dtypes, capability, warps, **constants):
        signature = {n: dtypes.get(n, "*fp32") for n in kernel.arg_names} | dict.fromkeys(constants, "constexpr")
        source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
        made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": warps})
        cuobjdump = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
        Path(sys.argv[1]).write_bytes(made.asm["cubin"])
        out = subprocess.run([cuobjdump, "-res-usage", sys.argv[1]], capture_output=True, text=True).stdout
        print(capability, *re.findall(r"(?:STACK|LOCAL):(\\d+)", out))

    for capability in (80, 90):
        for on in (False, True):
            flags = {"CAPPED": on, "SMOOTHED": on, "WEIGHTED": on, "GRADIENT": True, "PLAIN": not on}
            dtypes = {"logits": "*bf16", "stride": "i32", "target": "*i64", "classes": "i32"}
            dtypes |= {"cap": "fp32", "smoothing": "fp32"}
            compiled(kernels._row_kernel, dtypes, capability, 16, **flags, BLOCK=8192)
        dtypes = {"p": "*bf16", "stride": "i32", "rows": "i32", "classes": "i32"}
        compiled(kernels._sums_kernel, dtypes, capability, 4, ROWS=kernels.ROWS, COLUMNS=kernels.COLUMNS)
    """
    import tempfile

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        command = [sys.executable, "-c", textwrap.dedent(code), file.name]
        out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert out.split("\n") == ["80 0 0"] * 3 + ["90 0 0"] * 3 + [""]

"""Chunked loss head: values, gradients, dtypes, tracing and messages."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from loopwise.compile.loss_head import chunked
from loopwise.compile.loss_head.chunked import chunk_rows
from loopwise.compile.loss_head.op import linear_cross_entropy, linear_cross_entropy_op
from loopwise.errors import InputError, StateError

N, D, V = 13, 6, 11


def tensors(dtype=torch.float64, n=N, d=D, v=V, seed=0):
    g = torch.Generator().manual_seed(seed)
    x, weight, bias = (
        torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype) for shape in ((n, d), (v, d), (v,))
    )
    target = torch.randint(0, v, (n,), generator=g)
    target[1::4] = -100
    class_weight = torch.rand(v, generator=g, dtype=torch.float64).to(dtype) + 0.5
    return [t.requires_grad_() for t in (x, weight, bias)], target, class_weight


def plain(x, weight, target, bias=None, *, class_weight=None, scale=1.0, softcap=None, z_loss=0.0, **options):
    z = scale * F.linear(x, weight, bias)
    if softcap:
        z = softcap * torch.tanh(z / softcap)
    loss = F.cross_entropy(z, target, class_weight, **options)
    if z_loss:
        valid = (target != options.get("ignore_index", -100)).to(z.dtype)
        squares = z_loss * z.logsumexp(-1) ** 2 * valid
        reduced = {"none": squares, "sum": squares.sum(), "mean": squares.sum() / valid.sum()}
        loss = loss + reduced[options.get("reduction", "mean")]
    return loss


def results(function, inputs, target, tangent=None, **options):
    inputs = [t.detach().requires_grad_(t.requires_grad) for t in inputs]
    loss = function(inputs[0], inputs[1], target, *inputs[2:], **options)
    tangent = torch.linspace(-1, 2, loss.numel()).reshape(loss.shape).to(loss) if tangent is None else tangent
    wanted = [t for t in inputs if t.requires_grad]
    return [loss.detach(), *torch.autograd.grad(loss, wanted, tangent.expand_as(loss).to(loss))]


def same(ours, theirs):
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12, equal_nan=True)


OPTIONS = [
    {},
    {"class_weight": True},
    {"ignore_index": 3},
    {"ignore_index": -7},
    {"label_smoothing": 0.1},
    {"label_smoothing": 0.2, "class_weight": True},
    {"label_smoothing": 1.0},
    {"scale": 0.3},
    {"softcap": 2.0, "scale": 1.5},
    {"z_loss": 0.1},
    {"z_loss": 0.1, "class_weight": True, "softcap": 3.0, "label_smoothing": 0.1, "scale": 0.7},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("chunk", [None, 1, 4])
def test_it_is_cross_entropy_of_the_linear_layer(options, reduction, chunk):
    inputs, target, class_weight = tensors()
    options = options | {"reduction": reduction}
    if options.get("ignore_index") == -7:
        target[target < 0] = -7
    elif "ignore_index" in options:
        target[target < 0] = 0
    if "class_weight" in options:
        options["class_weight"] = class_weight
    tangent = None if reduction == "none" else torch.tensor(1.7)
    ours = results(linear_cross_entropy, inputs, target, tangent, chunk=chunk, **options)
    same(ours, results(plain, inputs, target, tangent, **options))
    same(
        results(linear_cross_entropy, inputs[:2], target, tangent, chunk=chunk, **options),
        results(plain, inputs[:2], target, tangent, **options),
    )


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("n", [0, 5])
def test_no_row_with_a_class(n, reduction):
    inputs, target, _ = tensors(n=n)
    target.fill_(-100)
    ours = results(linear_cross_entropy, inputs, target, reduction=reduction)
    same(ours, results(plain, inputs, target, reduction=reduction))
    assert (reduction == "mean") == bool(ours[0].isnan().any())
    assert all(g.abs().sum() == 0 for g in ours[1:])


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1, "z_loss": 1e-2}], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("small", [False, True], ids=["", "in small parts"])
def test_low_precision_is_no_worse_than_torch(dtype, options, reduction, small, monkeypatch):
    if small:  # 5 rows become float32 at a time, 32 classes are in a product
        monkeypatch.setattr(chunked, "CPU_GROUP_BYTES", 4 * 101 * 5)
        monkeypatch.setattr(chunked, "CPU_BLOCK", 32)
    inputs, target, _ = tensors(dtype, n=64, d=32, v=101)
    exact = results(plain, [t.double() for t in inputs_of(inputs)], target, reduction=reduction, **options)
    theirs = results(plain, inputs, target, reduction=reduction, **options)
    ours = results(linear_cross_entropy, inputs, target, chunk=24, reduction=reduction, **options)
    for one, other, truth in zip(ours, theirs, exact, strict=True):
        assert one.dtype == other.dtype == dtype
        error, honest = ((value.double() - truth).abs().max() for value in (one, other))
        assert error <= 2 * (honest + torch.finfo(dtype).eps * truth.abs().max()), (error, honest)


def inputs_of(inputs):
    return [t.detach().double().requires_grad_() for t in inputs]


def test_small_gradients_survive_float16():
    inputs, target, _ = tensors(torch.float16, n=64, d=32, v=101)
    inputs[0].data *= 1e-3
    ours = results(linear_cross_entropy, inputs, target, torch.tensor(4096.0))
    exact = results(plain, inputs_of(inputs), target, torch.tensor(4096.0))
    for one, truth in zip(ours[1:], exact[1:], strict=True):
        assert (one.double() - truth).abs().max() <= 4e-3 * truth.abs().max()


def test_a_class_far_below_the_others_has_a_finite_loss():
    x, weight = torch.eye(2), torch.tensor([[300.0, 0.0], [0.0, 0.0], [-300.0, 0.0]])
    ours = linear_cross_entropy(x, weight, torch.tensor([2, 1]), reduction="none")
    torch.testing.assert_close(ours, plain(x, weight, torch.tensor([2, 1]), reduction="none"))


@pytest.mark.parametrize("frozen", [(0,), (1,), (2,), (0, 1), (0, 1, 2)], ids=str)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_only_the_gradients_needed(frozen, reduction):
    inputs, target, _ = tensors()
    for i in frozen:
        inputs[i].requires_grad_(False)
    if len(frozen) == 3:
        assert not linear_cross_entropy(inputs[0], inputs[1], target, inputs[2]).requires_grad
        return
    ours = results(linear_cross_entropy, inputs, target, reduction=reduction)
    same(ours, results(plain, inputs, target, reduction=reduction))
    with torch.no_grad():
        made = linear_cross_entropy_op(
            inputs[0], inputs[1], target, inputs[2], None, -100, 0.0, "sum", 1.0, None, 0.0, 0, False,
            [i not in frozen for i in range(3)],
        )  # fmt: skip
    assert [g.numel() == 0 for g in made[1:]] == [i in frozen for i in range(3)]


def test_leading_dimensions_and_strides():
    (x, weight, bias), target, _ = tensors(n=24)
    x = x.detach().reshape(2, 12, D).transpose(0, 1).requires_grad_()
    wide = torch.randn(2 * D, 2 * V, dtype=torch.float64)
    for w in (wide[:D, :V].t(), wide[::2, ::2].t()):
        inputs, y = [x, w.detach().requires_grad_(), bias], target.reshape(12, 2)
        for reduction in ("mean", "none"):
            ours = results(linear_cross_entropy, inputs, y, reduction=reduction, chunk=5)
            flat = [x.detach().reshape(-1, D).requires_grad_(), *inputs[1:]]
            theirs = results(plain, flat, y.reshape(-1), reduction=reduction)
            same([t.reshape(-1) for t in ours], [t.reshape(-1) for t in theirs])
    assert linear_cross_entropy(x[0, 0], weight, torch.tensor(3)).shape == ()


def test_backward_twice_gives_the_same():
    (x, weight, _), target, _ = tensors()
    loss = linear_cross_entropy(x, weight, target)
    loss.backward(retain_graph=True)
    first = weight.grad.clone()
    loss.backward()
    torch.testing.assert_close(weight.grad, 2 * first)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_a_second_derivative_is_refused(reduction):
    (x, weight, _), target, _ = tensors()
    loss = linear_cross_entropy(x, weight, target, reduction=reduction).sum()
    with pytest.raises(StateError) as raised:
        torch.autograd.grad(loss, x, create_graph=True)
    assert str(raised.value) == (
        "seen: a second derivative of linear_cross_entropy\nexpected: first derivatives only\n"
        "likely cause: backward(create_graph=True), or torch.func\nfix: use F.cross_entropy(F.linear(...)) for this"
    )


def test_autocast_is_that_of_the_linear_layer():
    inputs, target, _ = tensors(torch.float32, n=32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours, theirs = (results(f, inputs, target) for f in (linear_cross_entropy, plain))
    assert ours[0].dtype == theirs[0].dtype == torch.float32
    for one, other in zip(ours, theirs, strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, rtol=5e-2, atol=2e-2)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    *(st.integers(*bounds) for bounds in ((0, 9), (1, 9), (1, 9), (1, 12))),
    st.sampled_from(["mean", "sum", "none"]),
    st.floats(0, 1),
)
def test_odd_shapes(n, d, v, chunk, reduction, smoothing):
    inputs, target, _ = tensors(n=n, d=d, v=v, seed=n + 10 * d)
    options = {"reduction": reduction, "label_smoothing": smoothing}
    ours = results(linear_cross_entropy, inputs, target, chunk=chunk, **options)
    same(ours, results(plain, inputs, target, **options))


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # of opcheck's own copies
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_the_operator_passes_opcheck(reduction):
    (x, weight, bias), target, class_weight = tensors()
    for needs in ([True, True, True], [True, False, False]):
        w, b = (t.detach().requires_grad_(needs[1]) for t in (weight, bias))
        options = (-100, 0.1, reduction, 1.0, None, 0.0, 4, False, needs)
        torch.library.opcheck(linear_cross_entropy_op, (x, w, target, b, class_weight, *options))


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_the_loss_head_compiles_as_one_graph(reduction, dynamic):
    def function(x, weight, target, bias):
        return linear_cross_entropy(x * 1, weight, target, bias, reduction=reduction, softcap=3.0) * 2

    torch._dynamo.reset()
    compiled = torch.compile(function, backend="aot_eager", fullgraph=True, dynamic=dynamic)
    for n in (N, N + 4) if dynamic else (N,):
        inputs, target, _ = tensors(n=n)
        same(results(compiled, inputs, target), results(function, inputs, target))
        with torch.no_grad():
            ours = compiled(inputs[0], inputs[1], target, inputs[2])
        same([ours], [function(inputs[0], inputs[1], target, inputs[2])])


GOOD = {"x": torch.ones(3, 2), "weight": torch.ones(5, 2), "target": torch.tensor([0, 1, 2])}
BAD = {
    "weight of shape (2, 5)": {"weight": torch.ones(2, 5)},
    "target of shape (2,)": {"target": torch.tensor([0, 1])},
    "target of torch.float32": {"target": torch.ones(3)},
    "target with classes from 0 to 5": {"target": torch.tensor([0, 5, 1])},
    "target with classes from -1 to 2": {"target": torch.tensor([0, -1, 2])},
    "bias of shape (4,)": {"bias": torch.ones(4)},
    "class_weight of shape (1,)": {"class_weight": torch.ones(1)},
    "weight of torch.float64": {"weight": torch.ones(5, 2).double()},
    "label_smoothing=1.5": {"label_smoothing": 1.5},
    "reduction='avg'": {"reduction": "avg"},
    "softcap=0": {"softcap": 0},
    "chunk=0": {"chunk": 0},
}


@pytest.mark.parametrize("seen", BAD)
def test_an_argument_that_does_not_fit_is_named(seen):
    linear_cross_entropy(**GOOD)  # the twin that fits
    with pytest.raises(InputError) as raised:
        linear_cross_entropy(**GOOD | BAD[seen])
    message = str(raised.value)
    assert seen in message
    assert all(f"\n{part}: " in message for part in ("expected", "likely cause", "fix"))


def test_rows_in_a_chunk():
    assert chunk_rows(1024, 8192, 256, "cpu") * 8192 * 4 == 4 << 20
    assert chunk_rows(1024, 32768, 256, "cpu") * 32768 * 4 == 16 << 20
    assert chunk_rows(1024, 10**9, 256, "cpu") == 1
    assert chunk_rows(4096, 32000, 4096, "cuda") == 512  # as Liger: 4096 / ceil(32000 / 4096), a power of two
    assert chunk_rows(3, 10**6, 8, "cuda") == 1

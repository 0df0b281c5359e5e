"""Functions and graphs that are compared with the eager ones before they are used."""

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from loopwise.compile import Plan, TrainStep, optimize
from loopwise.compile.graph.passes import PASSES, Outcome
from loopwise.errors import InputError
from loopwise.warnings import LoopwiseWarning

PLANTED = Plan(graph="captured", passes=("attention",))
CAPTURED = Plan(graph="captured")


@pytest.fixture(autouse=True)
def _no_captures():
    """Forget which sizes changed in other tests."""
    torch.compiler.reset()


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.GELU(), nn.Dropout(0.3), nn.Linear(8, 3))


def trained(model, sizes=(4, 4, 5, 5)):
    """Return losses, gradients, buffers, outputs without gradients, and a draw after all of it."""
    torch.manual_seed(1)
    results = []
    for size in sizes:
        loss = model(torch.randn(size, 6)).square().sum()
        loss.backward()
        results.append(loss.detach())
    results += [p.grad.clone() for p in model.parameters()] + [b.clone() for b in model.buffers()]
    model.eval()
    with torch.no_grad():
        results.append(model(torch.ones(3, 6)))
    with torch.inference_mode():
        results.append(model(torch.ones(3, 6)).clone())
    model.train()
    return [*results, torch.rand(1)]


def slope(value, exact):
    """Return ``exact``, with a gradient that is 5 % too large."""
    return value.detach() + 1.05 * (exact - exact.detach())


def other_function(gm, node):
    node.target, node.kwargs = nn.functional.silu, {}


def other_gradient(gm, node):
    with gm.graph.inserting_after(node):
        wrong = gm.graph.call_function(slope, (node, node))
    node.replace_all_uses_with(wrong, lambda user: user is not wrong)


def plant(monkeypatch, change, graph=None):
    """Let a pass change the activation function in each graph, or in one of them."""
    graphs = []

    def rewrite(gm):
        graphs.append(gm)
        for node in list(gm.graph.nodes):
            if node.target is nn.functional.gelu and graph in (None, len(graphs)):
                change(gm, node)
        gm.recompile()
        return [Outcome(True, "gelu", "")]

    monkeypatch.setitem(PASSES, "attention", rewrite)
    return graphs


@pytest.mark.parametrize("change", [other_function, other_gradient])
def test_a_wrong_form_is_never_used(monkeypatch, change):
    expected = trained(net())
    plant(monkeypatch, change)
    with pytest.warns(LoopwiseWarning, match="Sequential runs eagerly: .* is off by") as warned:
        results = trained(optimize(net(), plan=PLANTED))
    assert len(warned) == 1
    torch.testing.assert_close(results, expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("change", "graph", "tensor"),
    [
        (other_function, 2, "gradient/L_fn_self_modules_1_parameters"),
        (other_gradient, 2, "gradient/L_fn_self_modules_1_parameters"),
        (other_function, 3, "output 0"),
    ],
    ids=["another size", "another size, its gradient", "evaluation"],
)
def test_a_later_graph_that_is_wrong_is_never_used(monkeypatch, change, graph, tensor):
    expected = trained(net())
    graphs = plant(monkeypatch, change, graph)
    with pytest.warns(LoopwiseWarning, match=f"a graph runs by eager kernels: {tensor}.* is off by"):
        results = trained(optimize(net(), plan=PLANTED))
    assert len(graphs) >= graph
    torch.testing.assert_close(results, expected, rtol=0, atol=1e-6)


def test_a_right_form_is_used_and_its_comparison_leaves_no_trace():
    expected = trained(net())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.testing.assert_close(trained(optimize(net(), plan=CAPTURED)), expected)


def test_a_model_that_is_first_called_without_gradients(monkeypatch):
    plant(monkeypatch, other_gradient)
    model = optimize(net(), plan=PLANTED)
    with torch.no_grad():
        model(torch.ones(4, 6))
    expected, started = net(), copy.deepcopy(model.state_dict())
    expected.load_state_dict(started)
    with pytest.warns(LoopwiseWarning, match="Sequential runs eagerly: gradient/"):
        results = trained(model)
    torch.testing.assert_close(results, trained(expected), rtol=0, atol=0)


def test_a_function_with_state_in_arguments_and_closures(monkeypatch):
    model, calls = net(), []

    @optimize(plan=CAPTURED)
    def loss_of(model, x, *, scale):
        calls.append(len(x))
        x.mul_(scale)
        return {"loss": model(x).square().sum(), "input": x, "count": len(calls)}

    x = torch.randn(4, 6)
    before = x.clone()
    torch.manual_seed(1)
    results = loss_of(model, x, scale=2.0)
    results["loss"].backward()
    assert calls == [4]
    assert results["count"] == 1
    assert results["input"] is x
    torch.testing.assert_close(x, before * 2)
    other = net()
    torch.manual_seed(1)
    other(before * 2).square().sum().backward()
    for mine, parameter in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, parameter.grad)
    torch.testing.assert_close(model.state_dict(), other.state_dict())


def test_a_wrong_function_is_never_used(monkeypatch):
    plant(monkeypatch, other_gradient)

    @optimize(plan=PLANTED)
    def activated(x):
        return nn.functional.gelu(x)

    x = torch.randn(4, 6, requires_grad=True)
    with pytest.warns(LoopwiseWarning, match=r"activated runs eagerly: gradient/batch\[0\]\[0\] is off by"):
        activated(x.sin()).sum().backward()
    (expected,) = torch.autograd.grad(nn.functional.gelu(x.sin()).sum(), x)
    torch.testing.assert_close(x.grad, expected)


def test_modules_inside_of_each_other():
    def build(compile):
        torch.manual_seed(0)
        inner = [compile(nn.Linear(6, 6)) for _ in range(2)]
        return compile(nn.Sequential(inner[0], nn.Tanh(), inner[1]))

    mine, expected = build(lambda module: optimize(module, plan=CAPTURED)), build(lambda module: module)
    x = torch.ones(2, 6)
    for model in (mine, expected):
        model(x).sum().backward()
        model[0](x).sum().backward()
    for parameter, other in zip(mine.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, other.grad)
    outer = torch.compile(
        build(lambda module: optimize(module, plan=CAPTURED)), backend="eager", fullgraph=True
    )
    torch.testing.assert_close(outer(x), expected(x))


@pytest.mark.filterwarnings("ignore:None of the inputs have", "ignore:The .grad attribute")
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_with_dropout_inside_and_around(reentrant):
    def build():
        torch.manual_seed(0)
        return nn.ModuleList([nn.Sequential(nn.Linear(6, 6), nn.Dropout()) for _ in range(2)])

    class Inside(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = build()

        def forward(self, x):
            for block in self.blocks:
                x = x + checkpoint(block, x, use_reentrant=reentrant)
            return x

    compiled, expected = Inside(), Inside()
    around = Inside()
    optimize(compiled, plan=CAPTURED)
    for block in around.blocks:
        optimize(block, plan=CAPTURED)
    gradients = []
    for model in (expected, compiled, around):
        torch.manual_seed(1)
        for _ in range(2):
            model(torch.ones(4, 6, requires_grad=True)).square().sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    torch.testing.assert_close(gradients[1], gradients[0])
    torch.testing.assert_close(gradients[2], gradients[0])


def test_autocast_around_a_call():
    results, x = [], torch.randn(4, 6)
    for compile in (lambda module: module, lambda module: optimize(module, plan=CAPTURED)):
        model = compile(net())
        torch.manual_seed(1)
        with torch.autocast("cpu", torch.bfloat16):
            for _ in range(2):  # the second call uses weights that autocast has kept
                loss = model(x).square().sum()
        loss.backward()
        results.append([loss, *(parameter.grad for parameter in model.parameters())])
    torch.testing.assert_close(results[1], results[0])


def test_errors_of_the_user_are_the_user_s():
    model = optimize(net(), plan=CAPTURED)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        model(torch.ones(4, 5))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(torch.ones(4, 6)).sum().backward()


def test_what_cannot_be_compared_runs_eagerly():
    items = iter([1.0, 2.0, 3.0])
    model = net()

    @optimize(plan=CAPTURED)
    def scaled(x):
        return model(x) * next(items)

    with pytest.warns(LoopwiseWarning, match="scaled runs eagerly: it cannot be compared .* would advance"):
        scaled(torch.ones(4, 6)).sum().backward()
    assert next(items) == 2.0


def test_a_step_refuses_what_is_compiled_by_optimize():
    @optimize(plan=CAPTURED)
    def loss(model, batch):
        return model(batch).sum()

    with pytest.raises(InputError, match="a loss that torch"):
        TrainStep(net(), loss)
    with pytest.raises(InputError, match="a function that is compiled already"):
        optimize(loss)


@pytest.mark.parametrize("change", [other_function, other_gradient])
def test_the_backend_by_name_compares_each_graph(monkeypatch, change):
    monkeypatch.setattr(
        "loopwise.compile.graph.backend.compile_by_inductor", lambda gm, *arguments: gm.forward
    )
    plant(monkeypatch, change)
    expected = trained(net())
    options = {"passes": ["attention"]}
    with pytest.warns(LoopwiseWarning, match="a graph runs by eager kernels: .* is off by"):
        results = trained(torch.compile(net(), backend="loopwise", options=options))
    torch.testing.assert_close(results, expected, rtol=0, atol=1e-6)

"""Comparison of a pass: wrong rewrites are caught and named, slow ones are not chosen."""

import copy
import operator

import pytest
import torch
from torch import nn

from loopwise.compile import Plan, TrainStep
from loopwise.compile.graph.passes import PASSES, Outcome
from loopwise.compile.verify import reference as references
from loopwise.compile.verify.numerics import compare
from loopwise.compile.verify.reference import Reference
from loopwise.compile.verify.sandbox import Sandbox
from loopwise.warnings import LoopwiseWarning

CRITERION = nn.CrossEntropyLoss()


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 16), nn.GELU(), nn.Linear(16, 3))


def batch(size=16):
    return torch.randn(size, 6), torch.arange(size) % 3


CAPTURED = Plan(graph="captured", passes=("loss_head",))


def step_of(net, **options):
    return TrainStep(net, CRITERION, torch.optim.SGD(net.parameters(), lr=0.1), plan=CAPTURED, **options)


def plant(monkeypatch, change):
    """Replace a pass by one that applies ``change(graph, node)`` to the first node for which it returns true."""

    def wrong(gm):
        any(change(gm.graph, node) for node in list(gm.graph.nodes) if node.op == "call_function")
        gm.recompile()
        return []

    monkeypatch.setitem(PASSES, "loss_head", wrong)


def scaled(by, place):
    def change(graph, node):
        if place not in str(node.target):
            return False
        with graph.inserting_after(node):
            new = graph.call_function(operator.mul, (node, by))
        node.replace_all_uses_with(new, delete_user_cb=lambda user: user is not new)
        return True

    return change


@pytest.mark.parametrize("by", [1 + 2e-5, 1.001, 2.0, -1.0, float("nan")])
@pytest.mark.parametrize("place", ["linear", "gelu", "layer_norm", "cross_entropy"])
def test_a_wrong_pass_is_caught_and_named(monkeypatch, by, place):
    plant(monkeypatch, scaled(by, place))
    step = step_of(model())
    step.prepare(batch())
    assert step.plan.graph == "eager"
    text = str(step.explain())
    assert "captured + loss head: wrong: " in text
    assert "is off by" in text


def test_a_pass_that_fails_leaves_the_graph(monkeypatch):
    def failing(gm):
        node = next(n for n in gm.graph.nodes if "gelu" in str(n.target))
        node.replace_all_uses_with(node.args[0])
        raise KeyError("a bug")

    monkeypatch.setitem(PASSES, "loss_head", failing)
    step = step_of(model())
    step.prepare(batch())
    assert step.plan.graph == "captured"
    assert "loss head at the graph: left as it is: the pass failed: KeyError: 'a bug'" in str(step.explain())


def test_a_wrong_pass_after_a_recompilation_steps_back(monkeypatch):
    net = model()
    step = step_of(net)
    step(batch())
    plant(monkeypatch, scaled(1.01, "gelu"))
    twin = copy.deepcopy(net)
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.1)
    with pytest.warns(LoopwiseWarning, match="back to the eager step: after a recompilation: "):
        for _ in range(10):
            data = batch(5)
            step(data)
            optimizer.zero_grad()
            CRITERION(twin(data[0]), data[1]).backward()
            optimizer.step()
    assert step.plan.graph == "eager"
    assert all(map(torch.equal, net.parameters(), twin.parameters()))  # the wrong gradient was never applied


def test_a_loss_that_is_not_finite_is_compared_once():
    net = model()
    step = step_of(net)
    step(batch())
    x, y = batch()
    step((x * float("nan"), y))  # the eager step says the same
    assert step.plan.graph == "captured"


def test_a_slow_variant_is_not_chosen(monkeypatch):
    def slow(gm):
        graph = gm.graph
        node = next(n for n in graph.nodes if "gelu" in str(n.target))
        with graph.inserting_after(node):
            new = graph.call_function(_the_long_way, (node,))
        node.replace_all_uses_with(new, delete_user_cb=lambda user: user is not new)
        gm.recompile()
        return [Outcome(True, "here", name="loss_head")]

    monkeypatch.setitem(PASSES, "loss_head", slow)
    net = model()
    step = TrainStep(net, CRITERION, torch.optim.SGD(net.parameters(), lr=0.1))
    step.prepare(batch())
    assert step.plan.passes == ()


@torch.library.custom_op("tests::the_long_way", mutates_args=())
def _the_long_way(x: torch.Tensor) -> torch.Tensor:
    for _ in range(300):
        x = x + 0.0
    return x


_the_long_way.register_fake(torch.empty_like)
_the_long_way.register_autograd(lambda ctx, grad: grad)


class Draws(nn.Module):
    """Model that draws by modules and functions."""

    def __init__(self):
        super().__init__()
        self.first, self.drop, self.last = nn.Linear(6, 16), nn.Dropout(0.5), nn.Linear(16, 3)

    def forward(self, x):
        x = nn.functional.dropout(x + torch.randn_like(x) + torch.rand(1), 0.2, self.training)
        x = x * torch.bernoulli(torch.full_like(x, 0.7))
        return self.last(self.drop(nn.functional.gelu(self.first(x))))


def test_the_step_in_float64_draws_the_same_numbers():
    """Random models had a fixed budget of 1e-3, under which wrong rewrites passed."""
    expected = references.reference(Sandbox(step_of(Draws()).spec, batch()))
    expected.run_float64()
    assert expected.float64 is not None
    assert max(expected.errors.values()) < 1e-5


def test_float64_runs_only_if_the_eager_step_is_not_close(monkeypatch):
    monkeypatch.setattr(
        "loopwise.compile.verify.reference.observe_in_float64", lambda *_: pytest.fail("it was not needed")
    )
    net, data = model(), batch()
    step = step_of(net)
    expected = references.reference(Sandbox(step.spec, data))

    def changed(value, by):
        return value * (1 + by) if value.is_floating_point() else value

    near = {name: changed(value, 1e-6) for name, value in expected.eager.items()}
    assert compare(near, expected) is None
    assert expected.float64 is None
    monkeypatch.undo()
    far = {name: changed(value, 1e-4) for name, value in expected.eager.items()}
    assert compare(far, expected) is not None
    assert expected.float64 is not None


def test_a_missing_gradient_is_a_difference():
    net = model()
    data = batch()
    spec = step_of(net).spec
    eager = Sandbox(spec, data).observe(spec.eager)
    short = {name: value for name, value in eager.items() if name != "gradient/0.weight"}
    assert "gradient/0.weight (only one of both steps has it)" in str(compare(short, Reference(eager, None)))
    assert compare(eager, Reference(eager, None)) is None


def test_a_gradient_of_rounding_noise_is_no_difference():
    net = nn.Sequential(
        nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Linear(16, 3)
    )  # the first bias has gradient 0
    data = batch()
    expected = references.reference(Sandbox(step_of(net).spec, data))
    expected.run_float64()
    assert expected.float64 is not None
    noisy = {
        k: v + 1e-9 * torch.randn_like(v) if k == "gradient/0.bias" else v for k, v in expected.eager.items()
    }
    assert compare(noisy, expected) is None


def test_a_running_mean_of_rounding_noise_is_no_difference():
    """ShuffleNet stayed eager: behind a BatchNorm and a layer without bias the mean is 0 but for rounding."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Linear(16, 8, bias=False), nn.BatchNorm1d(8), nn.Linear(8, 3)
    )
    data = batch()
    step = step_of(net)
    expected = references.reference(Sandbox(step.spec, data))
    expected.run_float64()
    key = "buffer/3.running_mean"
    assert expected.float64[key].abs().max() < 1e-7
    assert compare(expected.eager | {key: expected.eager[key] + 1e-8}, expected) is None
    assert compare(expected.eager | {key: expected.eager[key] + 1e-4}, expected).tensor == key


def tanh_gelu(gm):
    """Rewrite the exact GELU wrongly, as its approximation, which is off by 1e-4 to 1e-3."""
    for node in gm.graph.nodes:
        if node.op == "call_function" and "gelu" in str(node.target):
            node.kwargs = {"approximate": "tanh"}
    gm.recompile()
    return []


def test_random_models_have_the_ordinary_budget(monkeypatch):
    data = batch(32)
    step = step_of(Draws())
    step.prepare(data)
    assert step.plan.graph == "captured"
    monkeypatch.setitem(PASSES, "loss_head", tanh_gelu)
    step = step_of(Draws())
    step.prepare(data)
    assert step.plan.graph == "eager"


def test_buffers_are_compared_with_those_of_one_exact_pass():
    """The test for random draws once advanced the reference's BatchNorm statistics, which widened their budget."""
    net = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Linear(16, 3))
    data = batch()
    step = step_of(net)
    expected = references.reference(Sandbox(step.spec, data))
    expected.run_float64()
    for name in ("buffer/1.running_mean", "buffer/1.running_var"):
        torch.testing.assert_close(expected.float64[name].float(), expected.eager[name])
    wrong = expected.eager | {"buffer/1.running_var": expected.eager["buffer/1.running_var"] * 1.001}
    assert compare(wrong, expected).tensor == "buffer/1.running_var"


def by_columns(gm):
    """Rewrite a linear layer correctly, with another order of additions."""
    node = next(n for n in gm.graph.nodes if "linear" in str(n.target))
    with gm.graph.inserting_after(node):
        new = gm.graph.call_function(_by_columns, node.args)
    node.replace_all_uses_with(new)
    gm.graph.erase_node(node)
    gm.recompile()
    return [Outcome(True, "here", name="loss_head")]


@torch.fx.wrap
def _by_columns(x, weight, bias):
    total = bias
    for column in reversed(range(x.shape[1])):
        total = total + x[:, column, None] * weight[:, column]
    return total


def on_an_edge():
    """Return a model and a batch for which the order of a sum decides whether a ReLU passes a gradient."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 3))
    x, y = torch.rand(16, 3) + torch.tensor([1.0, 0.0, 0.0]), torch.arange(16) % 3
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([1.0, -1.0, 1e-9]).expand(8, 3))
        net[0].bias.zero_()
        x[3] = 1.0  # 1 - 1 + 1e-9 is positive, 1e-9 - 1 + 1 is 0 in float32
    return net, (x, y)


def test_an_element_on_an_edge_is_no_reason_to_refuse(monkeypatch):
    """MobileNetV2 stayed eager: behind ReLU6 a last place decides whether an element's gradient passes."""
    monkeypatch.setitem(PASSES, "loss_head", by_columns)
    net, data = on_an_edge()
    before = [p.detach().clone() for p in net.parameters()]
    step = step_of(net)
    step.prepare(data)
    assert step._search.candidates[-1].refused == ""
    assert all(torch.equal(p, kept) for p, kept in zip(net.parameters(), before, strict=True))


@pytest.mark.parametrize(("error", "refused"), [(0.03, False), (0.3, True)])
def test_edges_that_few_perturbed_steps_reach(error, refused):
    """ShuffleNet stayed eager: 9 of 24 perturbed steps reached the edge, but none of the first four."""
    names, size = ("loss", "gradient/weight"), torch.ones(8)
    eager = dict.fromkeys(names, size)
    asked = []

    def perturb(seed):
        asked.append(seed)
        return {"loss": 1e-7, "gradient/weight": 0.02 if seed == 8 else 1e-3}

    expected = Reference(eager, eager, dict.fromkeys(names, 1e-7), perturb)
    difference = compare({"loss": size, "gradient/weight": size + error}, expected)
    assert (difference is not None) == refused
    assert 8 in asked
    assert compare(eager, expected) is None
    assert (
        compare(
            {"loss": size, "gradient/weight": size + 0.003}, Reference(eager, eager, expected.errors, perturb)
        )
        is None
    )


def test_an_edge_excuses_nothing_else(monkeypatch):
    plant(monkeypatch, scaled(1 + 1e-4, "linear"))
    net, data = on_an_edge()
    step = step_of(net)
    step.prepare(data)
    assert step.plan.graph == "eager"


def test_a_rank_that_compares_alone_changes_nothing(ranks):
    """DDP once sent its buffers in the comparison, and then not in the training step that followed."""
    code = """
    from torch import nn
    from loopwise.compile import Plan, TrainStep

    def trained(alone):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.GELU(), nn.Linear(16, 3))
        model = nn.parallel.DistributedDataParallel(net)
        plan = Plan(graph="captured", passes=("loss_head",))
        step = TrainStep(model, nn.CrossEntropyLoss(), torch.optim.SGD(net.parameters(), lr=0.1), plan=plan)
        torch.manual_seed(dist.get_rank())
        for n in range(4):
            batch = torch.randn(16, 6), torch.arange(16) % 3
            if n == 3 and alone and dist.get_rank() == 1:
                step._forward_pass.supervisor.compare("asked for", batch)
            step(batch)
        return [value.double().sum().item() for value in net.state_dict().values()]

    print(json.dumps([trained(True), trained(False)]))
    """
    for with_it, without in ranks(code):
        assert with_it == without

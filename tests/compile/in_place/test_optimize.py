"""The backend by name, ``optimize`` and the search for a batch size."""

import copy
import io
import re
import subprocess

import forks
import pytest
import torch
from torch import nn

from loopwise.compile import Plan, TrainStep, fit, optimize
from loopwise.errors import InputError
from loopwise.warnings import LoopwiseWarning

CRITERION = nn.CrossEntropyLoss()
CAPTURED = Plan(graph="captured", passes=("loss_head",))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(torch.relu(self.body(x)))


def test_the_backend_is_known_by_its_name_without_an_import():
    code = (
        "import torch, sys\n"
        "torch.set_num_threads(1)\n"
        "net = torch.nn.Linear(4, 2)\n"
        "step = torch.compile(net, backend='loopwise', options={'passes': ['loss_head']})\n"
        "x = torch.randn(3, 4)\n"
        "step(x).sum().backward()\n"
        "assert torch.allclose(step(x), net(x))\n"
        "assert 'loopwise.compile.graph.backend' in sys.modules\n"
        "try:\n"
        "    torch.compile(net, backend='loopwise', options={'budgett': 1})(x)\n"
        "except Exception as error:\n"
        "    print('seen: the options budgett' in str(error))\n"
    )
    done = subprocess.run([forks.python(), "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "True", done.stderr


def test_a_model_is_compiled_in_place():
    net, x = Net(), torch.randn(4, 6)
    expected = net(x)
    keys = list(net.state_dict())
    assert optimize(net, plan=CAPTURED) is net
    torch.testing.assert_close(net(x), expected)
    assert list(net.state_dict()) == keys
    torch.testing.assert_close(copy.deepcopy(net)(x), expected)
    buffer = io.BytesIO()
    torch.save(net, buffer)
    buffer.seek(0)
    torch.testing.assert_close(torch.load(buffer, weights_only=False)(x), expected)
    net.eval()
    net.load_state_dict(Net().state_dict())
    assert not torch.equal(net(x), expected)


def test_a_class_and_a_function():
    @optimize(plan=CAPTURED)
    class Compiled(Net):
        pass

    @optimize(plan=CAPTURED)
    def loss_of(net, x, y):
        return CRITERION(net(x), y)

    net, x, y = Compiled(), torch.randn(4, 6), torch.arange(4) % 3
    assert net._compiled_call_impl is not None
    assert loss_of(net, x, y).item() == pytest.approx(CRITERION(net(x), y).item())


def test_a_second_compilation_and_other_types_are_refused():
    net = optimize(Net(), plan=CAPTURED)
    for target in (net, torch.compile(Net())):
        with pytest.raises(InputError, match="a model that is compiled already"):
            optimize(target)
    with pytest.raises(InputError, match="'resnet18' to optimize"):
        optimize("resnet18")


def test_a_graph_that_cannot_be_compiled_runs_eagerly(monkeypatch):
    def broken(*args, **options):
        raise RuntimeError("no compiler here")

    monkeypatch.setattr("torch._inductor.compile_fx.compile_fx", broken)
    net, x = Net(), torch.randn(4, 6)
    expected = net(x)
    optimize(net)
    with pytest.warns(LoopwiseWarning, match="runs eagerly. RuntimeError: no compiler here"):
        assert torch.equal(net(x), expected)


def test_a_step_without_a_compiler_is_eager(monkeypatch):
    def broken(*args, **options):
        raise RuntimeError("no compiler here")

    monkeypatch.setattr("torch._inductor.compile_fx.compile_fx", broken)
    net = Net()
    step = TrainStep(net, CRITERION, torch.optim.SGD(net.parameters(), lr=0.1), autotune="off")
    with pytest.warns(LoopwiseWarning, match="no compiler here"):
        step((torch.randn(4, 6), torch.arange(4) % 3))
    assert step.plan.graph == "eager"
    assert "no compiler here" in str(step.explain())


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # of Dynamo itself, at a graph break
def test_data_dependent_control_flow_runs():
    def loss(model, batch):
        out = model(batch[0])
        return CRITERION(out, batch[1]) * (2.0 if out.sum() > 0 else 1.0)

    net = Net()
    step = TrainStep(net, loss, torch.optim.SGD(net.parameters(), lr=0.1), plan=CAPTURED)
    data = torch.randn(4, 6), torch.arange(4) % 3
    expected = loss(net, data).item()
    assert step(data).item() == pytest.approx(expected)
    assert step.plan.graph == "captured"
    line = r"graph break at .*test_optimize.py:\d+ \(return CRITERION.*\): a branch on a tensor's value: use torch.where"
    assert re.search(line, str(step.explain()))
    assert "2 graphs were compiled: graph breaks, or other shapes" in str(step.explain())


def test_batch_sizes_are_measured_and_advice_is_given():
    net = nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 3))
    step = TrainStep(net, CRITERION, torch.optim.AdamW(net.parameters(), lr=1e-3), plan=Plan())
    batch = torch.randn(64, 64), torch.arange(64) % 3
    before = [p.clone() for p in net.parameters()]
    result = fit(step, batch, largest=512)
    assert all(map(torch.equal, before, net.parameters()))
    assert result.sizes[0].samples == 16
    assert result.best in result.sizes
    assert result.sizes[-1].predicted == pytest.approx(result.sizes[-1].peak, rel=0.1)
    assert "samples/s" in str(result)
    small = fit(step, batch, memory=(result.sizes[0].peak + result.sizes[1].peak) // 2)
    assert [size.samples for size in small.sizes] == [16]
    assert small.best.samples == 16
    assert small.advice[0].startswith("learning rate 0.001 -> 0.0005 by the square-root rule for AdamW")
    assert small.advice[1] == "or accumulate=4 with the learning rate as it is"
    with pytest.raises(InputError, match="seen: a memory budget of"):
        fit(step, batch, memory=10)


@pytest.mark.parametrize(
    ("runs", "has_more", "known"),
    [("AVX512", True, True), ("AVX2", False, True), ("AVX2", True, False), ("DEFAULT", False, False)],
)
def test_vector_instructions_that_torch_uses_are_not_tested(monkeypatch, runs, has_more, known):
    from torch._inductor import config

    from loopwise.compile.torch_internals import known_vector_instructions

    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: runs)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_f": has_more})
    with config.patch({"cpp.vec_isa_ok": None}):
        assert known_vector_instructions() == ({"cpp.vec_isa_ok": True} if known else {})
    with config.patch({"cpp.vec_isa_ok": False}):  # the user's own
        assert known_vector_instructions() == {}

"""Inputs and outputs inside graphs that torch.compile makes."""

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter

from loopwise.debug import Collection, Watch, every, open_run


@pytest.fixture(autouse=True)
def _fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Block(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.fc, self.act = nn.Linear(width, width), nn.GELU()

    def forward(self, x):
        return {"hidden": self.act(self.fc(x)), "skip": x}


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two = Block(), Block()

    def forward(self, x):
        x = self.one(x)["hidden"]
        return self.two(x)["hidden"]


def data(step=0):
    return torch.randn(6, 4, generator=torch.Generator().manual_seed(step))


def trained(run, compiled, late=False):
    """Return the parameters after four steps, and Dynamo's numbers of graphs and breaks."""
    net = Net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    call = compiled(net)
    if late:
        call(data())
    torch._dynamo.utils.counters.clear()
    collections = [
        "inputs",
        "outputs",
        "gradients",
        Collection("s", include="output", statistics=("mean", "l2")),
    ]
    watch = Watch(net, optimizer, run=run, save=every(2), collections=collections) if run else None
    for step in range(4):
        optimizer.zero_grad()
        call(data(step)).square().sum().backward()
        optimizer.step()
        if watch is not None:
            watch.step()
    if watch is not None:
        watch.close()
    counts = torch._dynamo.utils.counters
    return (
        [p.detach().clone() for p in net.parameters()],
        counts["stats"]["unique_graphs"],
        counts["graph_break"],
    )


BACKENDS = {
    "aot": lambda net: torch.compile(net, backend="aot_eager", fullgraph=True),
    "inductor": lambda net: torch.compile(net, fullgraph=True),
    "in place": lambda net: net.compile(backend="aot_eager", fullgraph=True) or net,
}


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("kind", BACKENDS)
def test_a_whole_graph_saves_what_eager_code_saves(tmp_path, kind, late):
    trained(tmp_path / "eager", lambda net: net)
    _, graphs, breaks = trained(tmp_path / "compiled", BACKENDS[kind], late=late)
    assert graphs == 1
    assert not breaks
    eager, compiled = open_run(tmp_path / "eager"), open_run(tmp_path / "compiled")
    assert compiled.steps() == eager.steps() == [0, 2]
    assert sorted(compiled.names()) == sorted(eager.names())
    for step in eager.steps():
        for name in eager.names(collection="outputs") + eager.names(collection="inputs"):
            torch.testing.assert_close(compiled.value(name, step), eager.value(name, step))
        for name in eager.names(collection="gradients"):
            torch.testing.assert_close(compiled.value(name, step), eager.value(name, step))


def test_a_compiled_container_that_was_called_before_is_compiled_again(tmp_path):
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU())
    call = torch.compile(net, backend="aot_eager")
    call(data())
    with Watch(call, run=tmp_path / "run", save=every(1), collections=["outputs"], profile=False) as watch:
        call(data())
        watch.step()
    assert open_run(tmp_path / "run").names() == ["0.output.0", "1.output.0", "output.0"]


def test_a_compiled_training_is_the_same_to_the_bit(tmp_path):
    plain, _, _ = trained(None, BACKENDS["inductor"])
    torch._dynamo.reset()
    watched, _, _ = trained(tmp_path / "run", BACKENDS["inductor"])
    assert all(torch.equal(one, other) for one, other in zip(plain, watched, strict=True))


def test_a_second_instance_has_its_own_hooks(tmp_path):
    """By default Dynamo would use the graph of an instance without hooks for one with them."""
    first, second = Net(), Net()
    with Watch(second, run=tmp_path / "run", save=every(1), collections=["outputs"]) as watch:
        torch.compile(first, backend="aot_eager")(data())
        torch.compile(second, backend="aot_eager")(data())
        watch.step()
    assert len(open_run(tmp_path / "run").names()) == 9


def test_a_graph_is_compiled_again_without_hooks_when_they_are_gone(tmp_path):
    net = Net()
    call = torch.compile(net, backend="aot_eager")
    with Watch(net, run=tmp_path / "run", save=every(1), collections=["outputs"]) as watch:
        call(data())
        watch.step()
    graphs = []
    again = torch.compile(net, backend=lambda gm, inputs: graphs.append(gm) or gm.forward)
    again(data())
    assert not [node for node in graphs[0].graph.nodes if "observe" in str(node.target)]


def test_checkpointed_blocks_in_a_graph_come_once(tmp_path):
    from torch.utils.checkpoint import checkpoint

    class Checkpointed(Net):
        def forward(self, x):
            x = checkpoint(self.one, x, use_reentrant=False)["hidden"]
            return self.two(x)["hidden"]

    net = Checkpointed()
    call = torch.compile(net, backend="aot_eager", fullgraph=True)
    with Watch(net, run=tmp_path / "run", save=every(1), collections=["outputs"]) as watch:
        call(data()).sum().backward()
        watch.step()
    names = open_run(tmp_path / "run").names()
    assert len(names) == 9
    assert not [name for name in names if "#" in name]


def test_other_functions_keep_their_compiled_code(tmp_path):
    """A model that was compiled and called before a ``Watch`` is compiled again; nothing else is."""
    others, ours = CompileCounter(), CompileCounter()
    other = torch.compile(lambda x: x * 2, backend=others)
    net = Net()
    call = torch.compile(net, backend=ours)
    other(data())
    call(data())
    with Watch(net, run=tmp_path / "run", save=every(1), collections=["outputs"]) as watch:
        other(data())
        call(data())
        watch.step()
    other(data())
    assert others.frame_count == 1
    assert ours.frame_count == 2
    assert len(open_run(tmp_path / "run").names()) == 9


def hooks(net):
    return [bool(module._forward_hooks) for module in net.modules() if not isinstance(module, Net)]


def test_hooks_for_health_are_on_eager_modules_in_saved_steps_only(tmp_path):
    torch._dynamo.utils.counters.clear()  # as if nothing had been compiled in this process
    net = Net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    on = []
    with Watch(net, optimizer, run=tmp_path / "run", rules=False) as watch:
        for step in range(12):
            on.append(hooks(net))
            net(data(step)).square().sum().backward()
            optimizer.step()
            watch.step()
    saved = {0, 1, 2, 5, 10}
    assert [all(each) for each in on] == [step in saved for step in range(12)]
    assert [any(each) for each in on] == [step in saved for step in range(12)]
    assert not any(hooks(net))
    run = open_run(tmp_path / "run")
    for step in saved:
        assert run.statistics("one.act.output.0", step)


@pytest.mark.parametrize(("first", "graphs"), [(0, 1), (3, 2)])
@pytest.mark.parametrize("save", [None, every(20, start=10)])
def test_a_graph_is_compiled_at_most_once_more_for_the_hooks_of_health(tmp_path, first, graphs, save):
    torch._dynamo.utils.counters.clear()
    net, backend = Net(), CompileCounter()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    compiled = torch.compile(net, backend=backend)
    with Watch(net, optimizer, run=tmp_path / "run", save=save, rules=False) as watch:
        with watch.mode("eval"), torch.no_grad():  # as Lightning does before the first step
            for step in range(4):
                net(data(step))
                watch.step()
        for step in range(60):
            (compiled if step >= first else net)(data(step)).square().sum().backward()
            optimizer.step()
            watch.step()
    assert backend.frame_count == graphs

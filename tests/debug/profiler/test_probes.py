"""Forward passes and updates are observed in every kind of model; graphs stay the same, and no hook remains."""

import copy
import gc
import pickle
import weakref

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter
from torch.utils.data.dataloader import _BaseDataLoaderIter

from loopwise.debug.profiler import Profile, Profiler, loaders
from loopwise.debug.profiler.phases import FORWARD, OPTIMIZER, Phases
from loopwise.debug.profiler.probes import Probes
from loopwise.debug.profiler.sampler import Sampler


class Seen(Phases):
    """Recorder of the calls."""

    def __init__(self):
        self.calls = []
        super().__init__(lambda: 0.0)

    def forward_begins(self):
        self.calls.append("forward")

    def forward_ends(self, grad):
        self.calls.append("forward ends" + ", no gradients" * (not grad))

    def optimizer_begins(self):
        self.calls.append("update")

    def optimizer_ends(self):
        self.calls.append("update ends")


STEP = ["forward", "forward ends", "update", "update ends"]


class Net(nn.Sequential):
    """Module with its own `forward`: torch 2.11 compiles nothing else in place."""

    def forward(self, x):
        for layer in self:
            x = layer(x)
        return x


def parts():
    torch.manual_seed(1)
    net = Net(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 3))
    return net, torch.optim.SGD(net.parameters(), 0.1)


def step(call, optimizer):
    optimizer.zero_grad()
    call(torch.ones(2, 4)).sum().backward()
    optimizer.step()


def hooks(net, optimizer):
    named = ("_forward_pre_hooks", "_forward_hooks", "_compiled_call_impl")
    copies = [copy.copy(getattr(net, name)) for name in named]
    return [*copies, dict(optimizer._optimizer_step_pre_hooks), dict(optimizer._optimizer_step_post_hooks)]


@pytest.fixture
def graphs():
    torch._dynamo.reset()
    yield CompileCounter()
    torch._dynamo.reset()


@pytest.mark.parametrize("how", ["eager", "wrapped", "in place"])
def test_each_kind_of_model_is_observed_and_left_as_it_was(graphs, how):
    net, optimizer = parts()
    model = torch.compile(net, backend=graphs, fullgraph=True) if how == "wrapped" else net
    if how == "in place":
        net.compile(backend=graphs, fullgraph=True)
    before = hooks(model, optimizer)
    seen = Seen()
    probes = Probes(seen, [model], [optimizer])
    for _ in range(3):
        step(model, optimizer)
    with torch.no_grad():
        model(torch.ones(2, 4))
    assert seen.calls == [*STEP * 3, "forward", "forward ends, no gradients"]
    probes.remove()
    assert hooks(model, optimizer) == before
    told = len(seen.calls)
    step(model, optimizer)
    assert len(seen.calls) == told
    assert graphs.frame_count == (0 if how == "eager" else 2)  # one with gradients, one without


@pytest.mark.parametrize("how", ["wrapped", "in place"])
def test_a_model_that_ran_before_is_not_compiled_again(graphs, how):
    net, optimizer = parts()
    model = torch.compile(net, backend=graphs, fullgraph=True) if how == "wrapped" else net
    if how == "in place":
        net.compile(backend=graphs, fullgraph=True)
    step(model, optimizer)
    probes = Probes(seen := Seen(), [model], [optimizer])
    step(model, optimizer)
    probes.remove()
    step(model, optimizer)
    assert seen.calls == STEP
    assert graphs.frame_count == 1


def test_a_model_in_a_compiled_function_breaks_no_graph(graphs):
    net, optimizer = parts()
    probes = Probes(seen := Seen(), [net], [optimizer])
    call = torch.compile(lambda x: net(x) * 2, backend=graphs, fullgraph=True)
    for _ in range(3):
        step(call, optimizer)
    assert seen.calls == ["update", "update ends"] * 3
    assert graphs.frame_count == 1
    probes.remove()


def test_a_model_compiled_in_place_inside_of_a_compiled_function(graphs):
    net, optimizer = parts()
    net.compile(backend=graphs, fullgraph=True)
    probes = Probes(seen := Seen(), [net], [optimizer])
    call = torch.compile(lambda x: net(x) * 2, backend=graphs, fullgraph=True)
    for _ in range(3):
        step(call, optimizer)
    assert seen.calls == ["update", "update ends"] * 3
    assert graphs.frame_count == 1
    probes.remove()


def test_a_model_that_is_compiled_in_place_later(graphs):
    net, optimizer = parts()
    probes = Probes(seen := Seen(), [net], [optimizer])
    step(net, optimizer)
    net.compile(backend=graphs, fullgraph=True)
    probes.refresh()
    step(net, optimizer)
    assert seen.calls == STEP * 2
    assert graphs.frame_count == 1
    probes.remove()
    assert not net._forward_hooks


@pytest.mark.parametrize("of", [Seen, lambda: Phases(lambda: 0.0)])
def test_a_compiled_update_is_seen_and_compiled_once(graphs, of):
    net, optimizer = parts()
    probes = Probes(phases := of(), [net], [optimizer])
    phases.begin()
    update = torch.compile(optimizer.step, backend=graphs)
    for _ in range(4):
        net(torch.ones(2, 4)).sum().backward()
        update()
    assert (
        graphs.frame_count == 3
    )  # torch itself breaks the graph: an operator of ours, the update, an operator of ours
    if isinstance(phases, Seen):
        assert phases.calls == STEP * 4
    else:
        assert phases._seconds[FORWARD] > 0 < phases._seconds[OPTIMIZER]
    probes.remove()


def test_copies_of_a_model_are_not_observed():
    net, optimizer = parts()
    probes = Probes(seen := Seen(), [net], [optimizer])
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        other(torch.ones(2, 4))
    assert seen.calls == []
    copy.deepcopy(optimizer)
    probes.remove()


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_a_scripted_model_is_not_observed_and_works():
    net, optimizer = parts()
    scripted = torch.jit.script(net)
    probes = Probes(seen := Seen(), [scripted], [optimizer])
    step(scripted, optimizer)
    assert seen.calls == ["update", "update ends"]
    probes.remove()


def test_a_forward_pass_that_raises():
    net, optimizer = parts()
    probes = Probes(phases := Phases(lambda: 0.0), [net], [optimizer])
    phases.begin()
    with pytest.raises(RuntimeError):
        net(torch.ones(2, 5))
    phases.begin()
    net(torch.ones(2, 4))
    assert phases._seconds[FORWARD] > 0
    probes.remove()


def test_of_two_ranks(tmp_path, ranks):
    code = """
        from torch import nn
        from loopwise.run import Run
        from loopwise.debug.profiler import Profile, Profiler
        net = nn.parallel.DistributedDataParallel(nn.Linear(4, 2))
        optimizer = torch.optim.SGD(net.parameters(), 0.1)
        run = Run({path!r})
        dist.barrier()
        os.environ["LOCAL_RANK"] = os.environ["RANK"]
        profiler = Profiler({{"": net}}, {{"": optimizer}}, run, Profile())
        for step in range(5):
            profiler.begin(step, "train")
            net(torch.ones(2, 4)).sum().backward()
            optimizer.step()
            profiler.end(step, "train", {{}})
        profiler._sampler.sample()
        profiler.close()
        run.close()
        print(json.dumps(1))
    """
    assert ranks(code.format(path=str(tmp_path / "run"))) == [1, 1]
    from loopwise.debug.profiler import page, reading

    first, second = reading.sessions(tmp_path / "run")
    assert [first.rank, second.rank] == [0, 1]
    assert "cpu" in first.header["columns"]
    assert "cpu" not in second.header["columns"]
    for session in (first, second):
        table = session.phases
        assert table["count"].sum() == 5
        assert (table["forward"] > 0).all()
        assert (table["backward"] > 0).all()
    blocks = {
        b["title"]: b for s in page.sections(str(tmp_path / "run")) for b in s["blocks"] if "title" in b
    }
    assert [row[:2] for row in blocks["Training steps by rank, ms"]["rows"]] == [[0, 5], [1, 5]]
    assert [row[0] for row in blocks["Processes"]["rows"]] == [0, 1]


def test_a_profiler_leaves_everything_as_it_was(run):
    net, optimizer = parts()
    before = hooks(net, optimizer)
    profiler = Profiler({"": net}, {"": optimizer}, run, Profile())
    assert hooks(net, optimizer) != before
    profiler.close()
    profiler.close()
    assert hooks(net, optimizer) == before


def test_a_profiler_that_cannot_begin_leaves_everything_as_it_was(run, monkeypatch):
    net, optimizer = parts()
    before, loader = hooks(net, optimizer), _BaseDataLoaderIter.__next__

    def fails(self):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(Sampler, "start", fails)
    with pytest.raises(RuntimeError, match="new thread"):
        Profiler({"": net}, {"": optimizer}, run, Profile())
    assert hooks(net, optimizer) == before
    assert _BaseDataLoaderIter.__next__ is loader


def test_the_thread_does_not_keep_the_profiler_alive(run):
    net, optimizer = parts()
    profiler = Profiler({"": net}, {"": optimizer}, run, Profile())
    sampler, phases, probes = profiler._sampler, profiler._phases, profiler._probes
    gone = weakref.ref(profiler)
    del profiler
    gc.collect()
    assert gone() is None
    loaders.unsubscribe(phases)
    probes.remove()
    sampler.close()


def test_the_next_step_raises_the_error_of_a_failed_sampler(run):
    net, optimizer = parts()
    profiler = Profiler({"": net}, {"": optimizer}, run, Profile())
    profiler._sampler.error = OSError("the disk is full")
    with pytest.raises(OSError, match="full"):
        profiler.begin(0, "train")
    profiler.close()

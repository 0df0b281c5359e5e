"""Each second of a step belongs to one phase, by a clock that the tests set; real loops are timed without changes."""

import threading

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from loopwise import preserve
from loopwise.debug.profiler import Profile, Profiler, reading
from loopwise.debug.profiler.phases import ROW, Phases
from loopwise.debug.rules.profile import series
from loopwise.errors import InputError


@pytest.fixture
def phases(clock):
    phases = Phases(lambda: 0.0, clock=clock)
    phases.begin()
    return phases


def taken(phases):
    """Return seconds by phase of the rows so far, without zeros."""
    phases.close_row()
    table = series.phases([phases.drain()])
    return {
        name: pytest.approx(float(table[name].sum()), abs=1e-6)
        for name in ("seconds", *table.columns[6:])
        if table[name].any()
    }


def load(phases, clock, seconds, workers=0):
    start = phases.loads()
    clock.tick(seconds)
    phases.loaded(start, workers)


def forward(phases, clock, seconds, grad=True):
    phases.forward_begins()
    clock.tick(seconds)
    phases.forward_ends(grad)


def update(phases, clock, seconds):
    phases.optimizer_begins()
    clock.tick(seconds)
    phases.optimizer_ends()


def test_a_step(phases, clock):
    load(phases, clock, 1)
    clock.tick(2)
    forward(phases, clock, 4)
    clock.tick(8)
    update(phases, clock, 16)
    clock.tick(32)
    phases.end(0, "train")
    expected = {"data": 1, "to_device": 2, "forward": 4, "backward": 8, "optimizer": 16, "other": 32}
    assert taken(phases) == expected | {"seconds": 63}


def test_accumulated_batches(phases, clock):
    for _ in range(2):
        load(phases, clock, 1)
        forward(phases, clock, 2)
        clock.tick(4)
    forward(phases, clock, 8)
    clock.tick(16)
    phases.end(0, "train")
    assert taken(phases) == {"data": 2, "forward": 12, "backward": 24, "seconds": 38}


def test_forward_without_gradients_has_no_backward(phases, clock):
    load(phases, clock, 1)
    forward(phases, clock, 2, grad=False)
    clock.tick(4)
    phases.end(0, "eval")
    assert taken(phases) == {"data": 1, "forward": 2, "other": 4, "seconds": 7}


def test_a_model_in_a_model_counts_once(phases, clock):
    phases.forward_begins()
    forward(phases, clock, 2)
    clock.tick(1)
    phases.forward_ends(True)
    phases.end(0, "train")
    assert taken(phases) == {"forward": 3, "seconds": 3}


def test_a_closure(phases, clock):
    phases.optimizer_begins()
    for _ in range(2):
        forward(phases, clock, 2)
        clock.tick(4)
    clock.tick(1)
    phases.optimizer_ends()
    clock.tick(8)
    phases.end(0, "train")
    assert taken(phases) == {"forward": 4, "backward": 9, "other": 8, "seconds": 21}


def test_a_model_that_is_not_observed_counts_as_other(phases, clock):
    load(phases, clock, 1)
    clock.tick(2)
    update(phases, clock, 4)
    phases.end(0, "train")
    assert taken(phases) == {"data": 1, "optimizer": 4, "other": 2, "seconds": 7}


def test_forward_passes_of_loopwise_do_not_count(phases, clock):
    load(phases, clock, 1)
    with preserve.preserve():
        forward(phases, clock, 2)
    clock.tick(4)
    forward(phases, clock, 8)
    phases.end(0, "train")
    assert taken(phases) == {"data": 1, "to_device": 4, "forward": 8, "other": 2, "seconds": 15}


def test_time_of_the_watch_is_in_no_other_phase(clock):
    spent = [0.0]
    phases = Phases(lambda: spent[0], clock=clock)
    phases.begin()
    phases.forward_begins()
    clock.tick(3)
    spent[0] += 1  # a tap in the forward pass
    phases.forward_ends(True)
    clock.tick(4)
    spent[0] += 2
    phases.end(0, "train")
    assert taken(phases) == {"forward": 2, "backward": 2, "loopwise": 3, "seconds": 7}


def test_phases_of_the_user(phases, clock):
    with phases.phase("augmentation"):
        clock.tick(1)
        forward(phases, clock, 2)
        assert phases.loads() is None
        clock.tick(1)
    with phases.phase("data"):
        clock.tick(8)
    phases.end(0, "train")
    assert taken(phases) == {"augmentation": 4, "data": 8, "seconds": 12}


@pytest.mark.parametrize("name", ["", None, "step", "count", "other", "loopwise", "mode", "gpu_forward"])
def test_reserved_names_of_phases(phases, name):
    with pytest.raises(InputError) as error, phases.phase(name):
        pass
    assert f"the phase {name!r}" in str(error.value)


def test_an_epoch_that_ends_brings_no_batch(phases, clock):
    load(phases, clock, 1)
    start = phases.loads()
    clock.tick(2)
    phases.loaded(start, 0, arrived=False)
    clock.tick(4)
    forward(phases, clock, 8, grad=False)
    phases.end(0, "train")
    assert taken(phases) == {"data": 3, "forward": 8, "other": 4, "seconds": 15}


def test_a_forward_pass_that_raised_and_was_caught(phases, clock):
    load(phases, clock, 1)
    phases.forward_begins()  # raises
    clock.tick(2)
    load(phases, clock, 1)
    forward(phases, clock, 4)
    clock.tick(8)
    phases.forward_begins()  # raises
    update(phases, clock, 16)
    forward(phases, clock, 32, grad=False)
    phases.end(0, "train")
    expected = {"data": 2, "forward": 36, "backward": 8, "optimizer": 16, "other": 2, "seconds": 64}
    assert taken(phases) == expected


def test_a_phase_inside_of_a_forward_pass_counts_once(phases, clock):
    phases.forward_begins()
    clock.tick(1)
    with phases.phase("attention"):
        clock.tick(2)
    phases.forward_ends(True)
    clock.tick(4)
    phases.end(0, "train")
    assert taken(phases) == {"attention": 2, "forward": 1, "backward": 4, "seconds": 7}


def test_a_loader_inside_of_a_forward_pass_counts_once(phases, clock):
    phases.forward_begins()
    clock.tick(1)
    load(phases, clock, 2)
    phases.forward_ends(True)
    phases.end(0, "train")
    assert taken(phases) == {"data": 2, "other": 1, "seconds": 3}


def test_workers_are_those_of_the_step(phases, clock):
    for step, workers in enumerate((4, 0)):
        phases.begin()
        load(phases, clock, 1, workers)
        phases.end(step, "train")
    table = series.phases([phases.drain()])
    assert list(table["workers"]) == [4, 0]


def test_steps_that_end_inside_a_phase(phases, clock):
    with phases.phase("validation"):
        for step, seconds in enumerate((1, 2, 4)):
            clock.tick(seconds)
            phases.end(step, "eval")
            phases.begin()
        clock.tick(8)
    forward(phases, clock, 16)
    phases.end(3, "eval")
    table = series.phases([phases.drain()])
    assert list(table["validation"]) == pytest.approx([1, 2, 4, 8])
    assert list(table["forward"]) == pytest.approx([0, 0, 0, 16])
    assert not table["other"].any()


def test_a_step_that_begins_again_inside_a_phase(phases, clock):
    with phases.phase("validation"):
        clock.tick(1)
        phases.begin()
        clock.tick(2)
    phases.end(0, "eval")
    assert taken(phases) == {"validation": 2, "seconds": 2}


def test_other_threads_do_not_count(phases, clock):
    def body():
        forward(phases, clock, 1)
        assert phases.loads() is None
        with phases.phase("elsewhere"):
            update(phases, clock, 1)

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    phases.end(0, "train")
    assert taken(phases) == {"other": 2, "seconds": 2}


def test_short_steps_share_a_row_and_long_ones_do_not(phases, clock):
    for step, seconds in enumerate([ROW / 4] * 6 + [2 * ROW] * 2):
        phases.begin()
        clock.tick(seconds)
        phases.end(step, "eval" if step == 5 else "train")
    phases.close_row()
    table = series.phases([phases.drain()])
    assert list(table["count"]) == [4, 1, 1, 1, 1]
    assert list(table["step"]) == [3, 4, 5, 6, 7]
    assert table.modes == ("train", "train", "eval", "train", "train")
    assert table["longest"] == pytest.approx([ROW / 4] * 3 + [2 * ROW] * 2)
    assert phases.drain() is None


def test_a_step_that_begins_again_is_discarded(phases, clock):
    clock.tick(5)
    phases.begin()
    clock.tick(1)
    phases.end(0, "eval")
    assert taken(phases) == {"other": 1, "seconds": 1}


# -- real loops -------------------------------------------------------------------------------------


def parts():
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    data = TensorDataset(torch.randn(24, 4), torch.arange(24) % 3)
    return net, torch.optim.SGD(net.parameters(), 0.1), data


def train(net, optimizer, loader, profiler, epochs=1):
    step = 0
    profiler.begin(step, "train")
    for _ in range(epochs):
        for x, y in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x), y).backward()
            optimizer.step()
            profiler.end(step, "train", {})
            step += 1
            profiler.begin(step, "train")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_real_loop(run, workers):
    net, optimizer, data = parts()
    profiler = Profiler({"": net}, {"": optimizer}, run, Profile())
    train(net, optimizer, DataLoader(data, batch_size=4, num_workers=workers), profiler)
    profiler.close()
    table = reading.sessions(run.path)[0].phases
    assert table["count"].sum() == 6
    assert (table["workers"] == workers).all()
    for name in ("data", "to_device", "forward", "backward", "optimizer"):
        assert (table[name] > 0).all(), name
    parts_of = sum(table[name] for name in ("data", "to_device", "forward", "backward", "optimizer", "other"))
    assert parts_of == pytest.approx(table["seconds"], abs=1e-4)


@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")  # torchdata's own
def test_loaders_of_torchdata(run):
    stateful = pytest.importorskip("torchdata.stateful_dataloader")
    net, optimizer, data = parts()
    profiler = Profiler({"": net}, {"": optimizer}, run, Profile())
    train(net, optimizer, stateful.StatefulDataLoader(data, batch_size=4), profiler)
    profiler.close()
    assert reading.sessions(run.path)[0].phases["data"].sum() > 0


def test_a_loop_without_forward_passes_updates_and_loaders(run):
    net, _, _ = parts()
    profiler = Profiler({"": net}, {}, run, Profile())
    for step in range(3):
        profiler.begin(step, "train")
        profiler.end(step, "train", {})
    profiler.close()
    table = reading.sessions(run.path)[0].phases
    assert table["count"].sum() == 3
    assert table["forward"].sum() == 0

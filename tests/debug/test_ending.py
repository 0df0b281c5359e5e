"""Ends of a ``Watch``: interrupts at any place, forks, dropped objects, and starts that fail."""

import contextlib
import gc
import os
import signal
import sys
import threading
import warnings

import pytest
import torch
from torch import nn

from loopwise.debug import Watch, every, open_run
from loopwise.debug.interrupts import Delayed
from loopwise.errors import StateError
from loopwise.warnings import LoopwiseWarning


class Training:
    """A training whose weight and loss are the number of the step."""

    def __init__(self, run, **options):
        torch.manual_seed(0)
        self.model = nn.Linear(20, 1, bias=False)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.0)
        options = {
            "save": every(1),
            "collections": ["losses", "weights", "gradients"],
            "profile": False,
        } | options
        self.watch = Watch(self.model, self.optimizer, run=run, **options)
        self.number = 0

    def step(self):
        number, self.number = self.number, self.number + 1
        with torch.no_grad():
            self.model.weight.fill_(float(number))
        self.optimizer.zero_grad()
        self.model(torch.ones(2, 20)).mean().backward()
        self.optimizer.step()
        self.watch.step(loss=float(number))

    def hooks(self):
        module_hooks = len(self.model._forward_pre_hooks) + len(self.model._forward_hooks)
        return module_hooks + len(self.optimizer._optimizer_step_pre_hooks)


def is_right(path, repeated=False):
    """Return whether all saved steps can be read, with the values that they had."""
    saved = open_run(path)
    with_weights = [step for step in saved.steps() if saved.has("weight", step)]
    values = [(saved.value("loss", step), saved.value("weight", step)) for step in with_weights]
    late = (
        1.0 if repeated else 0.0
    )  # a step that goes on after an interrupt of the loop has the weights of its first update
    right = [bool(((weight == loss) | (weight == loss - late)).all()) for loss, weight in values]
    return saved.verify() == [] and all(right)


# -- interrupts -----------------------------------------------------------------------------------


class Interrupt:
    """Raises ``KeyboardInterrupt`` before the line number ``at`` of Loopwise that this thread runs inside of the context."""

    def __init__(self, at):
        self.at, self.lines = at, 0

    def __enter__(self):
        sys.settrace(self._trace)
        return self

    def __exit__(self, *error):
        sys.settrace(None)

    def _trace(self, frame, event, argument):
        module = frame.f_globals.get("__name__", "")
        ours = (
            module.startswith("loopwise.") and module != "loopwise.debug.interrupts"
        )  # no interrupt comes there
        if ours and event == "line":
            self.lines += 1
            if self.lines == self.at:
                raise KeyboardInterrupt
        return self._trace


def lines_of(action):
    with Interrupt(-1) as counting:
        action()
    return counting.lines


def test_an_interrupt_at_any_line_of_a_step_harms_neither_training_nor_the_run(tmp_path):
    training = Training(tmp_path / "run")
    training.step()
    count, interrupted = lines_of(training.step), 0
    assert count > 200
    for at in range(1, count, 17):
        with Interrupt(at):
            try:
                training.step()
            except KeyboardInterrupt:
                interrupted += 1
        training.step()
    assert interrupted > 15
    training.watch.close()
    assert is_right(tmp_path / "run", repeated=True)
    saved = open_run(tmp_path / "run")
    assert (
        training.number - len(saved.steps()) <= 2 * interrupted
    )  # the interrupted step, and the one that ends it
    assert saved.info["state"] == "finished"


# an interrupt can come between the opening of a file and its with block
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_an_interrupted_close_is_repeated(tmp_path):
    before = set(threading.enumerate())  # other tests' may be among them
    training = Training(tmp_path / "0")
    training.step()
    count = lines_of(training.watch.close)
    for at in range(1, count, 11):
        training = Training(tmp_path / str(at))
        training.step()
        with contextlib.suppress(KeyboardInterrupt), Interrupt(at):
            training.watch.close()
        training.watch.close()
        assert training.hooks() == 0
        assert is_right(tmp_path / str(at))
        assert open_run(tmp_path / str(at)).info["state"] == "finished"
    assert not [thread for thread in set(threading.enumerate()) - before if "loopwise" in thread.name]


@pytest.fixture
def ctrl_c():
    """Let SIGINT raise an exception also where the tests were started by a shell in the background, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
def test_the_first_interrupt_is_delayed_and_the_second_is_not():
    reached = []
    with pytest.raises(KeyboardInterrupt), Delayed():
        signal.raise_signal(signal.SIGINT)
        reached.append("end")
    with pytest.raises(KeyboardInterrupt), Delayed():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        reached.append("never")
    assert reached == ["end"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_during_close_takes_effect_after_it(tmp_path):
    training = Training(tmp_path / "run", on_finding=[])
    training.step()
    close = training.watch._monitors.close
    training.watch._monitors.close = lambda: (signal.raise_signal(signal.SIGINT), close())
    with pytest.raises(KeyboardInterrupt):
        training.watch.close()
    assert training.hooks() == 0
    assert open_run(tmp_path / "run").info["state"] == "finished"


# -- forks ----------------------------------------------------------------------------------------


def test_a_fork_does_nothing_and_says_so_once(tmp_path):
    training = Training(tmp_path / "run", collections=["losses", "weights", "inputs", "health"], profile=True)
    training.step()
    child = os.fork()
    if not child:
        code = 1
        try:
            with warnings.catch_warnings(record=True) as warned:
                warnings.simplefilter("always")
                with training.watch:
                    for _ in range(300):  # more than wait for a writer
                        training.step()
                    training.watch.save("mine", torch.ones(1))
            code = 0 if len(warned) == 1 and "does nothing in a fork" in str(warned[0].message) else 2
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    assert open_run(tmp_path / "run").info["state"] == "running"
    training.step()
    training.watch.close()
    assert open_run(tmp_path / "run").steps() == [0, 1]
    assert is_right(tmp_path / "run")


# -- objects that nobody holds ---------------------------------------------------------------------


def resources():
    gc.collect()  # what other tests have left
    return threading.active_count(), len(os.listdir("/proc/self/fd"))


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts descriptors by /proc")
def test_a_dropped_watch_is_closed_and_says_so(tmp_path):
    before = resources()
    training = Training(tmp_path / "run", profile=True, collections=["losses", "weights", "inputs", "health"])
    training.step()
    with pytest.warns(LoopwiseWarning, match=r"dropped without close\(\)") as warned:
        del training.watch
        gc.collect()
    assert len(warned) == 1
    assert resources() == before
    assert training.hooks() == 0
    assert open_run(tmp_path / "run").steps() == [0]
    assert open_run(tmp_path / "run").info["state"] != "running"


@pytest.mark.parametrize("allowed", range(2))
def test_a_watch_without_threads_leaves_nothing_behind(tmp_path, monkeypatch, allowed):
    before, started, start = resources(), [], threading.Thread.start

    def limited(thread):
        if len(started) == allowed:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    with (
        monkeypatch.context() as patch,
        pytest.raises(StateError, match=r"can't start new thread.*at the start of a Watch"),
    ):
        patch.setattr(threading.Thread, "start", limited)
        Training(tmp_path / "run")
    assert len(started) == allowed
    assert resources() == before
    assert list(tmp_path.iterdir()) == []

"""Stalls: reported while they last, and detected afterwards in the times of saved steps."""

import queue
import threading

import pytest

from loopwise.debug import open_run
from loopwise.debug.monitors.stall import StallMonitor
from loopwise.errors import InputError


class Time:
    """A clock that is set by hand, and a wait that lasts until then."""

    def __init__(self):
        self.now = 0.0
        self.turns, self.waits = queue.Queue(), queue.Queue()

    def wait(self, event, seconds):
        self.waits.put(seconds)
        return self.turns.get(timeout=600)

    def forward(self, to, ended=False):
        """End the present wait and return the seconds of the next one."""
        self.now = to
        self.turns.put(ended)
        return None if ended else self.waits.get(timeout=600)


def test_a_stall_is_reported_once_while_it_lasts():
    time, told = Time(), []
    stalled = StallMonitor(told.append, 1800, clock=lambda: time.now, wait=time.wait)
    stalled.begin(0, "train")
    assert time.waits.get(timeout=600) == 1800
    time.now = 1000
    stalled.begin(1, "train")
    assert time.forward(1800) == 1000  # until a step is late that began at 1,000
    assert told == []
    assert time.forward(2800) == 1800
    (finding,) = told
    assert (finding.rule, finding.severity, finding.step) == ("stalled_training", "warning", 1)
    assert time.forward(4600) == 1800
    assert len(told) == 1
    stalled.begin(2, "train")
    assert time.forward(6400) == 1800
    assert [finding.step for finding in told] == [1, 2]
    time.forward(6400, ended=True)
    stalled.close()
    assert not stalled._thread.is_alive()
    assert stalled.findings() == []


def test_the_thread_ends_at_once():
    stalled = StallMonitor(lambda finding: None)
    stalled.close()
    assert "loopwise-debug-stall" not in {thread.name for thread in threading.enumerate()}


def test_zero_seconds_are_refused():
    with pytest.raises(InputError, match="seconds=0"):
        StallMonitor(print, 0)


@pytest.mark.parametrize(("late", "found"), [(0, []), (1000, []), (2500, ["stalled_training"])])
def test_a_stall_is_detected_in_stored_steps(tmp_path, saving, late, found):
    """Steps take 100 seconds, and every tenth is saved."""
    made = saving(tmp_path / "run")
    for number in range(8):
        made.step(
            10 * number,
            scalars={"losses": {"loss": 1.0}},
            time=1e9 + 1000 * number + late * (number >= 6),
        )
    made.end()
    assert [finding.rule for finding in open_run(tmp_path / "run").judge(["stalled_training"])] == found

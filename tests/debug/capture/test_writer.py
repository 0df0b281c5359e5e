"""The writer with storage that is slow, stuck, full, read-only or gone, and the files at the end."""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import types
import warnings

import forks
import psutil
import pytest
import writing_kit

from loopwise.debug import Collection, open_run
from loopwise.debug.capture import writer
from loopwise.debug.store import host_buffer
from loopwise.debug.store.segments import Segments
from loopwise.run import Run, read
from loopwise.warnings import LoopwiseWarning

SIZE = 1000


class Training(writing_kit.Training):
    """Training of ``SIZE`` weights that are saved raw and as statistics."""

    def __init__(self, path, on_backlog="block", **more):
        raw, some = Collection("weights"), Collection("some", include="^weight$", statistics=("max",))
        super().__init__(path, SIZE, ["losses", raw, some], on_backlog=on_backlog, **more)


def raw_steps(saved):
    """Return the steps whose weights were saved, after comparing them with the expected ones."""
    found = [step for step in saved.steps() if "weight" in saved.names(step=step, collection="weights")]
    found = [step for step in found if is_raw(saved, step)]
    assert all(bool((saved.value("weight", step) == step).all()) for step in found)
    return found


def is_raw(saved, step):
    layout = saved._index.blocks[step][0].layout
    return "weight" in layout.tensors


class Gated(Segments):
    """Storage that waits at a gate."""

    def __init__(self, run, **more):
        super().__init__(run, **more)
        self.gate = threading.Event()

    def write(self, *args):
        assert self.gate.wait(600)
        super().write(*args)


@pytest.fixture
def gated(monkeypatch):
    monkeypatch.setattr(writer, "Segments", Gated)


def test_block_waits_and_loses_nothing(tmp_path, gated, monkeypatch):
    empty = threading.Event()

    class Watched(host_buffer.BufferPool):
        def take(self, wait, seconds=None):
            if wait and self._free.empty():
                empty.set()
            return super().take(wait, seconds)

    monkeypatch.setattr(writer, "BufferPool", Watched)
    training = Training(tmp_path / "run")
    thread = threading.Thread(target=training.train, args=(9,))
    thread.start()
    assert empty.wait(600)
    assert training.steps == 2
    training.watch._writer._segments.gate.set()
    thread.join()
    training.watch.close()
    assert +training.watch.counts == {"saved": 9}
    assert raw_steps(open_run(tmp_path / "run")) == list(range(9))


@pytest.mark.parametrize(("on_backlog", "count"), [("drop", "dropped"), ("reduce", "reduced")])
def test_steps_that_storage_has_no_time_for_lose_their_raw_tensors(tmp_path, gated, on_backlog, count):
    training = Training(tmp_path / "run", on_backlog)
    with pytest.warns(LoopwiseWarning, match=f"raw tensors of some steps are {count}") as said:
        training.train(7)
    assert len(said) == 1
    training.watch._writer._segments.gate.set()
    training.watch.close()
    assert +training.watch.counts == {"saved": 7, count: 5}
    saved = open_run(tmp_path / "run")
    assert raw_steps(saved) == [0, 1]
    written = [r["step"] for r in read(str(tmp_path / "run"), "debug", "index")[0] if "length" in r]
    assert written == list(range(7))
    for step in range(7):
        assert saved.value("loss", step) == step
        kept = {"max": step}
        if on_backlog == "reduce" and step > 1:
            kept |= {"min": step, "mean": step, "std": 0, "l2": pytest.approx(step * SIZE**0.5)}
        assert saved.statistics("weight", step) == kept
    assert [event["step"] for event in saved.events] == [2]


def test_raw_tensors_come_back_when_storage_does(tmp_path, gated):
    training = Training(tmp_path / "run", "drop")
    with pytest.warns(LoopwiseWarning, match="dropped"):
        training.train(3)
    target = training.watch._writer
    target._segments.gate.set()
    first, second = target._buffers.take(wait=True), target._buffers.take(wait=True)
    target._buffers.give_back(first)
    target._buffers.give_back(second)
    training.train(2)
    training.watch.close()
    assert raw_steps(open_run(tmp_path / "run")) == [0, 1, 3, 4]


@pytest.mark.parametrize("on_backlog", writer.ON_BACKLOG)
@pytest.mark.filterwarnings("ignore:loopwise.debug.*storage is slower")
def test_host_memory_is_bounded(tmp_path, monkeypatch, gated, on_backlog):
    taken = []
    take = host_buffer.HostBuffer._allocate

    def counted(self, size):
        taken.append(size)
        return take(self, size)

    monkeypatch.setattr(host_buffer.HostBuffer, "_allocate", counted)
    training = Training(tmp_path / "run", on_backlog)
    if on_backlog == "block":
        training.watch._writer._segments.gate.set()
    training.train(60)
    training.watch._writer._segments.gate.set()
    training.watch.close()
    small = 0 if on_backlog == "block" else 58
    assert len(taken) <= writer.BUFFERS + small
    assert set(taken) == {host_buffer.LEAST}


def test_steps_without_raw_tensors_wait_when_too_many_are_pending(tmp_path, gated, monkeypatch):
    monkeypatch.setattr(writer, "PENDING", 4)
    training = Training(tmp_path / "run", "drop")
    target, steps = training.watch._writer, []
    full = threading.Event()
    waiting = types.SimpleNamespace(sleep=lambda seconds: full.set() or time.sleep(seconds))
    monkeypatch.setattr(writer, "time", waiting)
    thread = threading.Thread(target=lambda: steps.append(quietly(training.train, 20)))
    thread.start()
    assert full.wait(600)
    assert training.steps < 20
    target._segments.gate.set()
    thread.join()
    training.watch.close()
    assert [float(open_run(tmp_path / "run").value("loss", step)) for step in range(20)] == list(range(20))


def quietly(function, *args):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        function(*args)


# -- trouble ------------------------------------------------------------------------------------


class Small(Segments):
    """A segment for each block."""

    def __init__(self, run, **more):
        super().__init__(run, full=1, **more)


def in_trouble(training, trouble, match, failed=5):
    """Train five steps, five more in trouble and two without, and return the only warning."""
    training.train(5)
    training.drain()
    with pytest.warns(LoopwiseWarning, match=match) as said:
        with trouble:
            training.train(5)
            training.drain()
        training.train(2)
        training.watch.close()
    assert len(said) == 1, [str(one.message) for one in said]
    assert +training.watch.counts == {"saved": 12, "failed": failed}


def test_files_that_cannot_grow(tmp_path):
    training = Training(tmp_path / "run")
    in_trouble(training, writing_kit.room(5 * 4288 + 100), "a step could not be written.*too large", failed=1)
    saved = open_run(tmp_path / "run")
    assert saved.verify() == []
    assert raw_steps(saved) == [0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 11]


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 256 KiB."""
    path = tmp_path / "disk"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(path)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("file systems can be mounted by the superuser only")
    yield path
    subprocess.run(["umount", "-l", str(path)], check=True)


@contextlib.contextmanager
def filled(folder):
    """No room at all."""
    with open(folder / "ballast", "wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    yield
    os.unlink(folder / "ballast")


def test_a_full_disk(small_disk):
    training = Training(small_disk / "run")
    in_trouble(training, filled(small_disk), "a step could not be written.*No space left")
    saved = open_run(small_disk / "run")
    assert saved.verify() == []
    assert saved.torn == 0
    assert raw_steps(saved)[:5] == [0, 1, 2, 3, 4]
    assert raw_steps(saved)[-2:] == [10, 11]


@contextlib.contextmanager
def read_only(folder):
    """Run as an ordinary user, in a folder without the permission to write."""
    superuser = not os.geteuid()
    if superuser:
        os.seteuid(65534)
    else:
        folder.chmod(0o555)
    yield
    if superuser:
        os.seteuid(0)
    else:
        folder.chmod(0o755)


def test_a_folder_that_cannot_be_written_to(tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "Segments", Small)
    training = Training(tmp_path / "run")
    in_trouble(
        training, read_only(tmp_path / "run" / "debug"), "a step could not be written.*Permission denied"
    )
    saved = open_run(tmp_path / "run")
    assert saved.verify() == []
    assert raw_steps(saved) == [0, 1, 2, 3, 4, 10, 11]


@pytest.mark.parametrize("made_again", [False, True], ids=["deleted", "made again"])
def test_a_folder_that_is_deleted_is_written_anew(tmp_path, made_again):
    training = Training(tmp_path / "run")
    training.train(3)
    training.drain()
    shutil.rmtree(tmp_path / "run")
    if made_again:
        (tmp_path / "run" / "debug").mkdir(parents=True)
    with pytest.warns(
        LoopwiseWarning, match="folder was deleted during training: it is written anew"
    ) as warned:
        training.train(4)
        training.watch.close()
    assert len(warned) == 1
    assert +training.watch.counts == {"saved": 7}
    saved = open_run(tmp_path / "run")
    assert saved.verify() == []
    assert raw_steps(saved) == [3, 4, 5, 6]
    assert saved.info["state"] == "finished"


# -- what is left behind ------------------------------------------------------------------------


def open_files(path):
    return [file.path for file in psutil.Process().open_files() if file.path.startswith(str(path))]


@pytest.mark.parametrize("place", ["local", "memory"])
def test_nothing_is_left_behind(tmp_path, monkeypatch, place):
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    before = set(threading.enumerate())
    training = Training(tmp_path / "run" if place == "local" else "memory://left/run")
    training.train(3)
    assert {thread.name for thread in set(threading.enumerate()) - before} >= {"loopwise-debug-writer"}
    training.watch.close()
    training.watch.close()
    assert set(threading.enumerate()) <= before
    assert open_files(tmp_path) == []
    assert list((tmp_path / "temporary").iterdir()) == []


def test_a_writer_is_closed_once(tmp_path):
    with Run(str(tmp_path / "run")) as run:
        target = writer.Writer(run, pinned=False, on_backlog="block")
        target.event("a remark", 0)
        target.close()
        target.close()
    assert target.problems() == []
    assert open_run(tmp_path / "run").events == [{"event": "a remark", "step": 0, "rank": 0}]


def test_an_interrupted_close_can_be_repeated(tmp_path, gated, monkeypatch):
    training = Training(tmp_path / "run")
    training.train(2)
    target = training.watch._writer
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(target, "_end_of_work", types.SimpleNamespace(acquire=interrupted))
        target.close()
    target._segments.gate.set()
    training.watch.close()
    assert raw_steps(open_run(tmp_path / "run")) == [0, 1]


def interrupted(**_):
    raise KeyboardInterrupt


def test_steps_after_the_end_are_warned_of_and_stop_nothing(tmp_path):
    training = Training(tmp_path / "run")
    training.train(2)
    training.watch._writer.close()
    with pytest.warns(LoopwiseWarning, match="a step came after the end"):
        training.train(5)
        training.watch.close()
    assert training.watch.counts["failed"] == 5
    assert raw_steps(open_run(tmp_path / "run")) == [0, 1]


SCRIPT = """
import sys
sys.path[:0] = {folders!r}
from test_writer import Training
training = Training({path!r})
training.train(30)
raise KeyError
"""


def test_a_script_that_ends_without_close_has_everything_written(tmp_path):
    code = SCRIPT.format(folders=[os.path.dirname(__file__), *sys.path], path=str(tmp_path / "run"))
    done = subprocess.run([forks.python(), "-W", "error", "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr.splitlines()[-1]) == (1, "KeyError")
    assert raw_steps(open_run(tmp_path / "run")) == list(range(30))


def test_a_snapshot_that_cannot_be_given_back_does_not_end_the_writer(tmp_path, monkeypatch):
    training = Training(tmp_path / "run")
    give_back = host_buffer.BufferPool.give_back

    def failing(self, found):
        give_back(self, found)
        raise RuntimeError("out of memory")

    with pytest.warns(LoopwiseWarning, match="out of memory"):
        with monkeypatch.context() as patch:
            patch.setattr(host_buffer.BufferPool, "give_back", failing)
            training.train(1)
            training.drain()
        training.train(3)
        training.watch.close()
    assert raw_steps(open_run(tmp_path / "run")) == [0, 1, 2, 3]

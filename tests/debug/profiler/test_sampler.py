"""Samples are taken on a grid, counted if they are missed, and on disk if the process is killed."""

import errno
import json
import subprocess
import textwrap
import threading
from typing import ClassVar

import forks
import fsspec
import pytest

from loopwise.debug.profiler import reading
from loopwise.debug.profiler.host import HOST, PROCESS, Counters
from loopwise.debug.profiler.sampler import FLUSHES, Sampler
from loopwise.errors import InputError
from loopwise.run import Lines, Run


class Still:
    """Source of a machine with two idle cores."""

    def __init__(self, failing=False):
        self.failing = failing

    def read(self):
        if self.failing:
            raise OSError("no counters today")
        return Counters(0.0, 1e6, [0.0, 0.0], [1.0, 1.0])

    def close(self):
        pass


def column(path, name):
    return list(reading.sessions(path)[0].system[name])


@pytest.mark.parametrize("interval", [0, 0.09, 60.1, -1, float("nan"), "0.5", None, True])
def test_invalid_intervals(run, interval):
    with pytest.raises(InputError) as error:
        Sampler(run, interval)
    assert f"interval={interval!r}" in str(error.value)
    assert "seconds from 0.1 to 60" in str(error.value)


def test_deadlines_do_not_drift_and_missed_samples_are_counted(run, clock):
    sampler = Sampler(run, 0.5, clock=clock, read=Still())
    for step in (0.5, 0.52, 0.48, 0.51, 1.7, 0.31):
        clock.tick(step)
        sampler.sample()
    sampler.close()
    assert column(run.path, "late") == pytest.approx([0, 0.02, 0, 0.01, 0.21, 0.02])
    assert column(run.path, "missed") == [0, 0, 0, 0, 2, 2]
    assert sampler.missed == 2
    assert sampler.due == pytest.approx(100 + 0.5 * 9)


def test_a_real_thread_takes_real_samples(run):
    seen, enough = [], threading.Event()

    def look(name, record):
        seen.append((name, record))
        if len(seen) == 5:
            enough.set()

    sampler = Sampler(run, 0.1, look=look).start()
    assert enough.wait(600)
    sampler.close()
    (session,) = reading.sessions(run.path)
    table = session.system
    assert table.columns[:5] == ("time", "late", "missed", *PROCESS)
    assert set(HOST) < set(table.columns)
    assert len(table) >= 3
    assert (table["process_memory"] > 1e6).all()
    assert (table["late"] >= 0).all()
    assert [name for name, _ in seen if name == "end"] == ["end"]


def test_only_one_rank_of_a_machine_reads_the_machine(run, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    sampler = Sampler(run, 0.5)
    sampler.sample()
    sampler.close()
    (session,) = reading.sessions(run.path)
    assert session.header["columns"] == ["time", "late", "missed", *PROCESS]


def test_a_source_that_fails_ends_the_thread_and_the_error_is_kept(run):
    source = Still()
    sampler = Sampler(run, 0.1, read=source)
    source.failing = True
    sampler.start()
    sampler._thread.join(600)
    assert isinstance(sampler.error, OSError)
    sampler.close()


STEP = {"columns": ["step", "count", "time", "seconds", "longest"], "rows": [["train", 3, 1, 1e9, 0.5, 0.5]]}
WINDOW = {"step": 1, "steps": 1, "seconds": 0.5, "trace": "trace", "columns": ["cpu"], "rows": []}


def test_records_of_others_are_written_with_the_samples(run, clock):
    phases = [STEP.copy()]
    sampler = Sampler(run, 0.5, clock=clock, read=Still(), phases=lambda: phases.pop() if phases else None)
    sampler.put("operators", WINDOW)
    for _ in range(2):
        clock.tick(0.5)
        sampler.sample()
    sampler.close()
    (session,) = reading.sessions(run.path)
    assert [name for name, _ in session.records] == ["system", "system", "phases"]
    assert session.operators == [WINDOW]


def test_remote_storage_is_written_rarely_and_at_the_end(clock):
    with Run("memory://sampled") as run:
        sampler = Sampler(run, 10.0, clock=clock, read=Still())
        files = []
        for _ in range(7):
            clock.tick(10)
            sampler.sample()
            files.append(len(fsspec.filesystem("memory").glob("/sampled/debug/system.*")))
        sampler.close()
        assert files == [0, 0, 1, 1, 1, 2, 2]
        assert len(column("memory://sampled", "time")) == 7
    fsspec.filesystem("memory").rm("/sampled", recursive=True)


class Cut(Lines):
    """Lines on storage that fails for a while."""

    away: ClassVar[set[str]] = set()

    def flush(self):
        if any(name in self._stem for name in self.away):
            raise OSError("connection reset")
        super().flush()


def test_uploads_that_fail_are_repeated(clock, monkeypatch, caplog):
    monkeypatch.setattr("loopwise.debug.profiler.sampler.Lines", Cut)
    record = [STEP.copy()]
    with Run("memory://cut") as run:
        sampler = Sampler(
            run,
            10.0,
            clock=clock,
            read=Still(),
            phases=lambda: record.pop() if record else None,
        )
        monkeypatch.setattr(Cut, "away", {"system"})
        for _ in range(6):
            clock.tick(10)
            sampler.sample()
        assert len(fsspec.filesystem("memory").glob("/cut/debug/phases.*")) == 1
        monkeypatch.setattr(Cut, "away", set())
        sampler.close()
        (session,) = reading.sessions("memory://cut")
        assert [name for name, _ in session.records] == ["system", "phases", *["system"] * 5]
    fsspec.filesystem("memory").rm("/cut", recursive=True)
    assert [line.message for line in caplog.records] == [
        "the profile could not be written yet: OSError('connection reset')"
    ]


class Full(Lines):
    """Lines on a disk that is full for a while."""

    full: ClassVar[bool] = False

    def append(self, *records):
        if self.full:
            raise OSError(errno.ENOSPC, "No space left on device")
        super().append(*records)


def test_a_full_disk_costs_its_samples_only(run, clock, monkeypatch, caplog):
    """The profiler was switched off for good, in the seconds for which another program filled the disk."""
    monkeypatch.setattr("loopwise.debug.profiler.sampler.Lines", Full)
    sampler = Sampler(run, 0.5, clock=clock, read=Still())
    for full in (False, True, True, False):
        monkeypatch.setattr(Full, "full", full)
        clock.tick(0.5)
        sampler.sample()
    sampler.close()
    assert column(run.path, "missed") == [0, 2]
    assert caplog.text.count("no space for the profile") == 1


def test_storage_that_stays_away_is_given_up(clock, monkeypatch):
    monkeypatch.setattr("loopwise.debug.profiler.sampler.Lines", Cut)
    monkeypatch.setattr(Cut, "away", {"system"})
    with Run("memory://gone") as run:
        sampler = Sampler(run, 30.0, clock=clock, read=Still(), phases=lambda: None)
        for _ in range(FLUSHES - 1):
            clock.tick(30)
            sampler.sample()
        clock.tick(30)
        with pytest.raises(OSError, match="reset"):
            sampler.sample()
        with pytest.raises(OSError, match="reset"):
            sampler.close()
    assert fsspec.filesystem("memory").glob("/gone/debug/phases.*")
    fsspec.filesystem("memory").rm("/gone", recursive=True)


def test_cores_that_the_process_may_run_on(run, monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {3}, raising=False)
    Sampler(run, read=Still()).close()
    assert reading.sessions(run.path)[0].header["usable"] == 1


KILLED = """
    import sys, time
    from loopwise.run import Run
    from loopwise.debug.profiler.sampler import Sampler
    Sampler(Run({path!r}), 0.1, look=lambda name, record: print(name, flush=True)).start()
    time.sleep(600)
"""


def test_samples_of_a_killed_process_are_on_disk(tmp_path):
    path = str(tmp_path / "run")
    code = textwrap.dedent(KILLED.format(path=path))
    process = subprocess.Popen([forks.python(), "-c", code], stdout=subprocess.PIPE, text=True)
    lines = [process.stdout.readline() for _ in range(7)]  # of two headers and of five samples
    forks.kill(process)
    lines += process.stdout.readlines()
    process.wait()
    process.stdout.close()
    assert lines[0] == "system\n"
    (session,) = reading.sessions(path)
    assert len(session.system) >= len(lines) - 2


def test_a_torn_tail_and_a_damaged_line_are_left_out(run, clock):
    sampler = Sampler(run, 0.5, clock=clock, read=Still())
    for _ in range(3):
        clock.tick(0.5)
        sampler.sample()
    sampler.close()
    file = next(iter(fsspec.filesystem("file").glob(f"{run.path}/debug/system.*")))
    with open(file, "ab") as lines:
        lines.write(b'{"row":[1,2]}\nnot json\n[1]\n{"row":[1,')
    assert len(reading.sessions(run.path)[0].system) == 3


def test_a_newer_format_is_refused(run, clock):
    sampler = Sampler(run, 0.5, clock=clock, read=Still())
    sampler.close()
    file = next(iter(fsspec.filesystem("file").glob(f"{run.path}/debug/system.*")))
    with open(file) as lines:
        header = json.loads(lines.readline())
    with open(file, "w") as lines:
        lines.write(json.dumps(header | {"version": 99}) + "\n")
    with pytest.raises(InputError, match="version 99"):
        reading.sessions(run.path)

"""Use of a machine and a process: both sources agree, and rates are right."""

import os
import time

import psutil
import pytest

from loopwise.debug.profiler.host import HOST, PROCESS, Counters, Portable, Proc, rates, source

linux = pytest.mark.skipif(not os.path.exists("/proc/stat"), reason="there is no /proc here")


def spin(seconds):
    start = time.process_time()
    while time.process_time() - start < seconds:
        pass


@linux
@pytest.mark.parametrize("reader", [Proc, Portable])
def test_counters_equal_those_of_psutil(reader):
    made = reader(host=True)
    before, process = made.read(), psutil.Process()
    spin(0.2)
    now = made.read()
    made.close()
    assert now.cpu - before.cpu >= 0.15
    assert now.rss == pytest.approx(process.memory_info().rss, rel=0.2)
    assert len(now.total) == len(now.busy) == psutil.cpu_count()
    assert sum(now.total) > sum(before.total)
    assert now.memory == pytest.approx(
        psutil.virtual_memory().total - psutil.virtual_memory().available, rel=0.2
    )
    assert now.swap == pytest.approx(psutil.swap_memory().used, rel=0.2, abs=2**20)
    assert now.net[0] >= before.net[0]


@linux
def test_both_sources_agree():
    readers = Proc(host=True), Portable(host=True)
    proc, portable = (reader.read() for reader in readers)
    for reader in readers:
        reader.close()
    assert proc.disk == pytest.approx(portable.disk, rel=0.05, abs=2**24)
    assert proc.net == pytest.approx(portable.net, rel=0.05, abs=2**20)
    ticks = os.sysconf("SC_CLK_TCK")
    assert [core / ticks for core in proc.total] == pytest.approx(portable.total, rel=0.01)
    assert [core / ticks for core in proc.busy] == pytest.approx(portable.busy, rel=0.02, abs=5)


@linux
def test_a_process_alone():
    made = source(host=False)
    assert isinstance(made, Proc)
    counters = made.read()
    made.close()
    assert counters.rss > 0
    assert len(rates(counters, counters, 1.0)) == len(PROCESS)


def test_without_proc_psutil_is_the_source(monkeypatch):
    real = os.open

    def absent(path, *args, **kwargs):
        if str(path).startswith("/proc"):
            raise FileNotFoundError(path)
        return real(path, *args, **kwargs)

    monkeypatch.setattr(os, "open", absent)
    assert isinstance(source(host=True), Portable)


@linux
def test_psutil_is_the_source_if_files_have_another_form(monkeypatch):
    def other(self, counters):
        raise KeyError(b"MemAvailable")

    monkeypatch.setattr(Proc, "_read_memory", other)
    assert isinstance(source(host=True), Portable)
    (made := source(host=False)).close()
    assert isinstance(made, Proc)


def test_rates():
    before = Counters(1.0, 5.0, [10.0, 20.0], [100.0, 100.0], 4.0, 7.0, 1.0, (1000.0, 0.0), (0.0, 50.0))
    now = Counters(1.5, 6.0, [20.0, 20.0], [110.0, 120.0], 7.0, 8.0, 2.0, (3000.0, 10.0), (20.0, 50.0))
    row = dict(zip((*PROCESS, *HOST, "cpu0", "cpu1"), rates(before, now, 0.5), strict=True))
    assert row == {
        "process_cpu": 100.0,
        "process_memory": 6.0,
        "cpu": pytest.approx(100 * 10 / 30),
        "iowait": pytest.approx(10.0),
        "memory": 8.0,
        "swap": 2.0,
        "disk_read": 4000.0,
        "disk_write": 20.0,
        "net_in": 40.0,
        "net_out": 0.0,
        "cpu0": 100.0,
        "cpu1": 0.0,
    }


def test_counters_that_were_reset_and_cores_that_were_added():
    before = Counters(1.0, 5.0, [10.0], [100.0], net=(1e9, 1e9))
    now = Counters(1.0, 5.0, [10.0, 0.0], [100.0, 0.0], net=(5.0, 5.0))
    row = rates(before, now, 1.0)
    assert len(row) == len(PROCESS) + len(HOST) + 2
    assert min(row) >= 0

"""What a machine and this process have used so far: from ``/proc`` where there is one, otherwise by psutil.

Reading ``/proc`` itself takes 0.2 ms, psutil 1.1 ms (two cores; a quarter of a percent of a core at 500 ms).
"""

from __future__ import annotations

import contextlib
import os
import re
from dataclasses import dataclass, field
from typing import Protocol

import psutil

SECTOR = 512
"""Bytes, in ``/proc/diskstats``, whatever the disk's own are."""
VIRTUAL = re.compile(r"(loop|ram|zram|dm-|md|sr|fd)\d")
"""Block devices that are none, or that others are beneath, which are counted themselves."""


@dataclass(slots=True)
class Counters:
    """Everything since the machine, or the process, began."""

    cpu: float = 0.0
    """Seconds of processor time of this process."""
    rss: float = 0.0
    """Bytes that it holds in memory."""
    busy: list[float] = field(default_factory=list)
    """Time of each core that was not idle, in any unit."""
    total: list[float] = field(default_factory=list)
    """Time of each core, in the same unit."""
    iowait: float = 0.0
    """Time of all cores that were idle while something waited for a disk, in the same unit."""
    memory: float = 0.0
    """Bytes in use, without what the system could give up."""
    swap: float = 0.0
    """Bytes in use."""
    disk: tuple[float, float] = (0.0, 0.0)
    """Bytes read and written, of all disks."""
    net: tuple[float, float] = (0.0, 0.0)
    """Bytes received and sent, of all interfaces but the loopback."""


class Source(Protocol):
    def read(self) -> Counters: ...

    def close(self) -> None: ...


class Proc:
    """Reads ``/proc``.

    Args:
        host: read what the machine has used, not only the process.
    """

    def __init__(self, host: bool) -> None:
        self._files: dict[str, int] = {}
        self._tick, self._page = 1.0 / os.sysconf("SC_CLK_TCK"), os.sysconf("SC_PAGE_SIZE")
        self._disks = {name.encode() for name in _disks()} if host else set()
        self._host = host
        try:
            for name in ("self/stat", *(("stat", "meminfo", "diskstats", "net/dev") if host else ())):
                self._files[name] = os.open(f"/proc/{name}", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            self.close()
            raise

    def read(self) -> Counters:
        fields = self._text("self/stat").rpartition(b")")[2].split()  # the process's name may have blanks
        found = Counters((int(fields[11]) + int(fields[12])) * self._tick, int(fields[21]) * self._page)
        if self._host:
            self._cores(found)
            self._memory(found)
            self._traffic(found)
        return found

    def _cores(self, found: Counters) -> None:
        for line in self._text("stat").splitlines():
            if not line.startswith(b"cpu"):
                break
            times = [int(value) for value in line.split()[1:9]]  # guests' time is in that of users
            if line.startswith(b"cpu "):
                found.iowait = times[4]
                continue
            total = sum(times)
            found.total.append(total)
            found.busy.append(total - times[3] - times[4])

    def _memory(self, found: Counters) -> None:
        kilobytes = {}
        for line in self._text("meminfo").splitlines():
            name, _, value = line.partition(b":")
            if name in (b"MemTotal", b"MemAvailable", b"SwapTotal", b"SwapFree"):
                kilobytes[name] = 1024.0 * int(value.split()[0])
        found.memory = kilobytes[b"MemTotal"] - kilobytes[b"MemAvailable"]
        found.swap = kilobytes[b"SwapTotal"] - kilobytes[b"SwapFree"]

    def _traffic(self, found: Counters) -> None:
        disks = [line.split() for line in self._text("diskstats").splitlines()]
        disks = [fields for fields in disks if fields[2] in self._disks]
        found.disk = (
            float(SECTOR * sum(int(fields[5]) for fields in disks)),
            float(SECTOR * sum(int(fields[9]) for fields in disks)),
        )
        lines = [line.partition(b":") for line in self._text("net/dev").splitlines()[2:]]
        links = [values.split() for name, _, values in lines if name.strip() != b"lo"]
        found.net = (float(sum(int(f[0]) for f in links)), float(sum(int(f[8]) for f in links)))

    def _text(self, name: str) -> bytes:
        """All of a file: a read may end before it does."""
        file, parts, at = self._files[name], [], 0
        while part := os.pread(file, 1 << 18, at):
            parts.append(part)
            at += len(part)
        return b"".join(parts)

    def close(self) -> None:
        for file in self._files.values():
            os.close(file)
        self._files.clear()


class Portable:
    """The same by psutil."""

    def __init__(self, host: bool) -> None:
        self._host, self._process = host, psutil.Process()

    def read(self) -> Counters:
        times = self._process.cpu_times()
        found = Counters(times.user + times.system, self._process.memory_info().rss)
        if not self._host:
            return found
        for core in psutil.cpu_times(percpu=True):
            waits = getattr(core, "iowait", 0.0)
            total = sum(core) - getattr(core, "guest", 0.0) - getattr(core, "guest_nice", 0.0)
            found.total.append(total)
            found.busy.append(total - core.idle - waits)
            found.iowait += waits
        memory = psutil.virtual_memory()
        found.memory, found.swap = memory.total - memory.available, psutil.swap_memory().used
        if disk := psutil.disk_io_counters():
            found.disk = disk.read_bytes, disk.write_bytes
        links = psutil.net_io_counters(pernic=True)
        links = {name: link for name, link in links.items() if name not in ("lo", "lo0")}
        found.net = (
            sum(link.bytes_recv for link in links.values()),
            sum(link.bytes_sent for link in links.values()),
        )
        return found

    def close(self) -> None:
        pass


def source(host: bool) -> Source:
    """What to read from here: ``Proc`` where it can read, for a sandbox may have files of another form."""
    with contextlib.ExitStack() as undone, contextlib.suppress(Exception):
        proc = Proc(host)
        undone.callback(proc.close)
        proc.read()
        undone.pop_all()
        return proc
    return Portable(host)


def _disks() -> list[str]:
    try:
        return [name for name in os.listdir("/sys/block") if not VIRTUAL.match(name)]
    except OSError:
        return []


HOST = ("cpu", "iowait", "memory", "swap", "disk_read", "disk_write", "net_in", "net_out")
"""Columns of a machine: %, %, bytes, bytes, and bytes a second; behind them ``cpu0``, ``cpu1``, ... in %."""
PROCESS = ("process_cpu", "process_memory")
"""Columns of a process: % of one core, and bytes."""


def rates(before: Counters, now: Counters, seconds: float) -> list[float]:
    """The columns of ``PROCESS``, and where the machine was read those of ``HOST`` and of its cores."""
    row = [100 * (now.cpu - before.cpu) / seconds, now.rss]
    if not now.total:
        return row
    if len(now.total) != len(before.total):  # cores came or went
        before = now
    total = sum(now.total) - sum(before.total)
    traffic = [
        max(0.0, after - then) / seconds
        for then, after in zip((*before.disk, *before.net), (*now.disk, *now.net), strict=True)
    ]
    busy = sum(now.busy) - sum(before.busy)
    row += [_percent(busy, total), _percent(now.iowait - before.iowait, total), now.memory, now.swap]
    cores = zip(before.busy, now.busy, before.total, now.total, strict=True)
    return row + traffic + [_percent(b - a, d - c) for a, b, c, d in cores]


def _percent(part: float, whole: float) -> float:
    return min(100.0, max(0.0, 100.0 * part / whole)) if whole > 0 else 0.0

"""Resources that a machine and this process have used so far: from ``/proc`` if it exists, otherwise by psutil.

Reading ``/proc`` itself takes 0.2 ms, psutil 1.1 ms (two cores; a quarter of a percent of a core at 500 ms).
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field

import psutil

SECTOR = 512
"""Bytes of a sector in ``/proc/diskstats``, whatever the disk's own sectors are."""
VIRTUAL = re.compile(r"(loop|ram|zram|dm-|md|sr|fd)\d")
"""Virtual block devices, and block devices made of others, which are counted already."""


@dataclass(slots=True)
class Counters:
    """Counters since the start of the machine, or of the process."""

    cpu: float = 0.0
    """Seconds of processor time of this process."""
    rss: float = 0.0
    """Bytes of this process in memory."""
    busy: list[float] = field(default_factory=list)
    """Time of each core that was not idle, in any unit."""
    total: list[float] = field(default_factory=list)
    """Time of each core, in the same unit."""
    iowait: float = 0.0
    """Time that cores were idle while a process waited for a disk, summed over cores, in the same unit."""
    memory: float = 0.0
    """Bytes in use, without caches that the system could free."""
    swap: float = 0.0
    """Bytes in use."""
    disk: tuple[float, float] = (0.0, 0.0)
    """Bytes read and written, of all disks."""
    net: tuple[float, float] = (0.0, 0.0)
    """Bytes received and sent, of all interfaces but the loopback."""


class Proc:
    """Source that reads ``/proc``.

    Args:
        host: read the counters of the machine, not only of the process.

    Raises:
        Exception: a file is missing, or has another form.
    """

    def __init__(self, host: bool) -> None:
        self._files: dict[str, int] = {}
        self._tick, self._page = 1.0 / os.sysconf("SC_CLK_TCK"), os.sysconf("SC_PAGE_SIZE")
        self._disks = {name.encode() for name in _disks()} if host else set()
        self._host = host
        try:
            for name in ("self/stat", *(("stat", "meminfo", "diskstats", "net/dev") if host else ())):
                self._files[name] = os.open(f"/proc/{name}", os.O_RDONLY | os.O_CLOEXEC)
            self.read()
        except BaseException:
            self.close()
            raise

    def read(self) -> Counters:
        """Return the counters as they are now."""
        fields = self._text("self/stat").rpartition(b")")[2].split()  # the process's name may have blanks
        counters = Counters((int(fields[11]) + int(fields[12])) * self._tick, int(fields[21]) * self._page)
        if self._host:
            self._read_cores(counters)
            self._read_memory(counters)
            self._read_traffic(counters)
        return counters

    def _read_cores(self, counters: Counters) -> None:
        for line in self._text("stat").splitlines():
            if not line.startswith(b"cpu"):
                break
            times = [int(value) for value in line.split()[1:9]]  # guests' time is in that of users
            if line.startswith(b"cpu "):
                counters.iowait = times[4]
                continue
            total = sum(times)
            counters.total.append(total)
            counters.busy.append(total - times[3] - times[4])

    def _read_memory(self, counters: Counters) -> None:
        lines = (line.partition(b":") for line in self._text("meminfo").splitlines())
        names = b"MemTotal", b"MemAvailable", b"SwapTotal", b"SwapFree"
        sizes = {name: 1024.0 * int(value.split()[0]) for name, _, value in lines if name in names}
        counters.memory = sizes[b"MemTotal"] - sizes[b"MemAvailable"]
        counters.swap = sizes[b"SwapTotal"] - sizes[b"SwapFree"]

    def _read_traffic(self, counters: Counters) -> None:
        disks = [line.split() for line in self._text("diskstats").splitlines()]
        disks = [fields for fields in disks if fields[2] in self._disks]
        reads, writes = (float(SECTOR * sum(int(fields[place]) for fields in disks)) for place in (5, 9))
        counters.disk = reads, writes
        lines = [line.partition(b":") for line in self._text("net/dev").splitlines()[2:]]
        links = [values.split() for name, _, values in lines if name.strip() != b"lo"]
        counters.net = (float(sum(int(f[0]) for f in links)), float(sum(int(f[8]) for f in links)))

    def _text(self, name: str) -> bytes:
        """Return a whole file: one read may return a part of it."""
        file, parts, at = self._files[name], [], 0
        while part := os.pread(file, 1 << 18, at):
            parts.append(part)
            at += len(part)
        return b"".join(parts)

    def close(self) -> None:
        """Close the files."""
        for file in self._files.values():
            os.close(file)
        self._files.clear()


class Portable:
    """Source that asks psutil.

    Args:
        host: read the counters of the machine, not only of the process.
    """

    def __init__(self, host: bool) -> None:
        self._host, self._process = host, psutil.Process()

    def read(self) -> Counters:
        """Return the counters as they are now."""
        times = self._process.cpu_times()
        counters = Counters(times.user + times.system, self._process.memory_info().rss)
        if not self._host:
            return counters
        for core in psutil.cpu_times(percpu=True):
            waits = getattr(core, "iowait", 0.0)
            total = sum(core) - getattr(core, "guest", 0.0) - getattr(core, "guest_nice", 0.0)
            counters.total.append(total)
            counters.busy.append(total - core.idle - waits)
            counters.iowait += waits
        memory = psutil.virtual_memory()
        counters.memory, counters.swap = memory.total - memory.available, psutil.swap_memory().used
        if disk := psutil.disk_io_counters():
            counters.disk = disk.read_bytes, disk.write_bytes
        links = psutil.net_io_counters(pernic=True)
        real = [link for name, link in links.items() if name not in ("lo", "lo0")]
        counters.net = sum(link.bytes_recv for link in real), sum(link.bytes_sent for link in real)
        return counters

    def close(self) -> None:
        """Do nothing: this source has no resources."""


Source = Proc | Portable
"""Source of counters."""


def source(host: bool) -> Source:
    """Return a ``Proc``, or a ``Portable`` if reading fails: files in a sandbox may have another form."""
    try:
        return Proc(host)
    except Exception:
        return Portable(host)


def _disks() -> list[str]:
    try:
        return [name for name in os.listdir("/sys/block") if not VIRTUAL.match(name)]
    except OSError:
        return []


HOST = ("cpu", "iowait", "memory", "swap", "disk_read", "disk_write", "net_in", "net_out")
"""Columns of a machine: %, %, bytes, bytes, and bytes a second; ``cpu0``, ``cpu1``, ... in % follow."""
PROCESS = ("process_cpu", "process_memory")
"""Columns of a process: % of one core, bytes."""


def rates(before: Counters, now: Counters, seconds: float) -> list[float]:
    """Return the columns of ``PROCESS``; if the machine was read, also those of ``HOST`` and of its cores."""
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

"""Two hosts on one machine: network namespaces with a link that is shaped to a rate."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

ADDRESSES = "10.77.0.1", "10.77.0.2"
_NEWNET = 0x40000000


def run(*words: str) -> None:
    """Run a command; its output is part of the error if it fails."""
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)}: {done.stderr}")


def available() -> bool:
    """Return whether this process may make namespaces and shape links."""
    if os.geteuid() or not (shutil.which("ip") and shutil.which("tc")):
        return False
    try:
        with two_hosts("1gbit"):
            return True
    except (RuntimeError, OSError):
        return False


@contextlib.contextmanager
def two_hosts(rate: str) -> Iterator[tuple[str, str]]:
    """Make two namespaces with a link between them, and enter the first one.

    Args:
        rate: of the link in each direction, as for ``tc``: ``1gbit``.
    """
    here, there = (f"loopwise-{os.getpid()}-{side}" for side in "ab")
    ours, theirs = f"lwa{os.getpid()}"[:15], f"lwb{os.getpid()}"[:15]
    before = os.open("/proc/self/ns/net", os.O_RDONLY)
    try:
        run("ip", "netns", "add", here)
        run("ip", "netns", "add", there)
        run("ip", "link", "add", ours, "netns", here, "type", "veth", "peer", "name", theirs, "netns", there)
        for namespace, device, address in zip((here, there), (ours, theirs), ADDRESSES, strict=True):
            run("ip", "-n", namespace, "addr", "add", f"{address}/24", "dev", device)
            run("ip", "-n", namespace, "link", "set", "lo", "up")
            run("ip", "-n", namespace, "link", "set", device, "up")
            shape = ["tbf", "rate", rate, "burst", "16mb", "latency", "100ms"]
            run("ip", "netns", "exec", namespace, "tc", "qdisc", "add", "dev", device, "root", *shape)
        enter(Path("/var/run/netns", here))
        yield here, there
    finally:
        _set(before)
        os.close(before)
        for namespace in (here, there):
            subprocess.run(["ip", "netns", "del", namespace], capture_output=True)


def enter(path: Path) -> None:
    """Move this thread, and the threads and processes that it starts later, to a network namespace."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        _set(descriptor)
    finally:
        os.close(descriptor)


def _set(descriptor: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(descriptor, _NEWNET):
        raise OSError(ctypes.get_errno(), "setns")

"""Lock files: exclusive, shared, waited for, inherited, and released by a kill."""

import os
import subprocess
import sys
import threading

import pytest

from loopwise.programs.locks import lock, locked

HOLDER = """
import sys
from loopwise.programs.locks import lock
lock(sys.argv[1])
print("locked", flush=True)
sys.stdin.read()
"""


def test_a_lock_is_exclusive_unless_it_is_shared(tmp_path):
    path = tmp_path / "lock"
    first = lock(path)
    assert lock(path) is None
    assert lock(path, shared=True) is None
    os.close(first)
    shared = [lock(path, shared=True) for _ in range(2)]
    assert None not in shared
    assert lock(path) is None
    for file in shared:
        os.close(file)
    with locked(path) as holds:
        assert holds
        with locked(path) as again:
            assert not again
        assert lock(path) is None  # the inner block has not released the outer one's
    os.close(lock(path))


def test_a_lock_that_is_waited_for(tmp_path):
    file, waiting, order = lock(tmp_path / "lock"), threading.Event(), []

    def wait():
        waiting.set()
        with locked(tmp_path / "lock", wait=True) as holds:
            order.append(holds)

    thread = threading.Thread(target=wait)
    thread.start()
    waiting.wait()
    order.append("released")
    os.close(file)
    thread.join()
    assert order == ["released", True]


def test_a_killed_process_releases_its_lock_and_a_child_keeps_it(tmp_path):
    path = tmp_path / "lock"
    arguments = [sys.executable, "-c", HOLDER, str(path)]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout.readline() == b"locked\n"
        assert lock(path) is None
        holder.kill()
    file = lock(path)
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=[file]) as child:
        os.close(file)
        assert lock(path) is None
        child.kill()
    os.close(lock(path))


def test_a_lock_that_cannot_be_made_leaves_nothing_open(tmp_path):
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(FileNotFoundError), locked(tmp_path / "none/lock"):
        pass
    file = lock(tmp_path / "lock")
    assert lock(tmp_path / "lock") is None
    os.close(file)
    assert len(os.listdir("/proc/self/fd")) == before

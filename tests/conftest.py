"""Leak police: every test leaves threads, child processes, environment and process groups as they were."""

import os
import sys
import threading

import psutil
import pytest
import torch.distributed as dist


@pytest.fixture(autouse=True)
def _no_leaks():
    environment, threads = dict(os.environ), set(threading.enumerate())
    children = set(psutil.Process().children())
    yield
    ours = {
        k: v for k, v in os.environ.items() if k not in ("PYTEST_CURRENT_TEST", "TORCHINDUCTOR_CACHE_DIR")
    }
    assert ours == {k: environment.get(k) for k in ours}  # torch sets the latter itself
    fresh = {t for t in set(threading.enumerate()) - threads if t.is_alive() and not t.daemon}
    assert not fresh, f"threads left behind: {fresh}"
    left = {
        p
        for p in set(psutil.Process().children()) - children
        if "resource_tracker" not in " ".join(p.cmdline())
    }
    assert not left, f"processes left behind: {left}"
    assert not dist.is_initialized(), "a process group was left behind"


def pytest_sessionfinish():
    doubled = {"sift", "compile", "debug", "base"} & set(sys.modules)
    assert not doubled, f"imported by folder instead of as loopwise.*: {doubled}"

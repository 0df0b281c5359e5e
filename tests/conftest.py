"""Detection of leaks: every test leaves threads, child processes, environment and process groups as they were."""

import builtins
import gc
import json
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
from collections import Counter
from pathlib import Path

import forks
import hypothesis
import psutil
import pytest
import torch
import torch.distributed as dist

os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # hundreds of child processes would compile the package anew
torch.set_num_threads(1)  # tests are small, and OpenMP's threads wait for each other on a busy machine
os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"  # no pool of compiler processes that outlives a test
if not torch.cuda.is_available():  # Triton decides at the import of a kernel whether to interpret it
    os.environ["TRITON_INTERPRET"] = "1"
    import triton.language  # noqa: F401

    del os.environ["TRITON_INTERPRET"]

HERE = Path(__file__).parent
KITS = HERE / "kits"
LONGEST = [
    "compile/test_situations.py",
    "examples/test_examples.py",
    "tune/test_cluster.py",
    "feed/launcher/test_machines.py",
    "docs/test_docs.py",
    "debug/rules/test_rules.py",
    "compile/graph/test_loss_head.py",
    "compile/test_frameworks.py",
    "compile/graph/test_regions.py",
    "compile/test_lightning_loops.py",
    "compile/in_place/test_trl.py",
    "debug/frameworks/test_transformers.py",
    "together/test_matrix.py",
    "feed/remote/test_cluster.py",
    "tune/test_kills.py",
    "tune/test_database.py",
    "report/test_live.py",
    "sift/test_transformers.py",
    "debug/frameworks/test_lightning_runs.py",
    "compile/test_cache.py",
    "docs/test_torchrun.py",
    "debug/loggers/test_packages.py",
    "feed/launcher/test_loading.py",
    "debug/store/test_crash.py",
    "together/test_resume.py",
    "benchmarks/test_compile_models.py",
    "benchmarks/test_compile_gpu.py",
    "compile/verify/test_numerics.py",
    "compile/test_step.py",
    "test_imports.py",
]
"""Files that take longest, the longest first."""
assert all((HERE / name).exists() for name in LONGEST)

hypothesis.settings.register_profile(  # equal examples in every run, and no limit that a busy machine exceeds
    "loopwise", deadline=None, derandomize=True, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("loopwise")

PRINT = builtins.print
"""Python's own, which Ray replaces in a process that joins a cluster."""
PATIENCE = 60
"""Seconds that a thread or process of a finished test may take to end; a busy machine needs some of them."""


LONG_LIVED = ("resource_tracker", str(forks.HERE / "server.py"))


def _children():
    """Return the processes started here, except those that live as long as the tests: the tracker of memory, servers."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:  # there are none, which takes no look at all processes of the machine
        return set()
    children = set()
    for child in psutil.Process().children():
        try:
            zombie = child.status() == psutil.STATUS_ZOMBIE
            if not zombie and not any(name in " ".join(child.cmdline()) for name in LONG_LIVED):
                children.add(child)
        except psutil.NoSuchProcess:
            pass
    return children


@pytest.fixture(autouse=True)
def _no_leaks():
    environment, threads, children = dict(os.environ), set(threading.enumerate()), _children()
    yield
    builtins.print = PRINT
    ours = {k: v for k, v in os.environ.items() if k != "PYTEST_CURRENT_TEST" and "TORCHINDUCTOR" not in k}
    assert ours == {k: environment.get(k) for k in ours}  # torch sets the variables of Inductor itself
    for thread in set(threading.enumerate()) - threads:
        if not thread.daemon:
            thread.join(PATIENCE)
            assert not thread.is_alive(), f"a thread was left behind: {thread}"
    left = _children() - children
    if left:  # an exception of the test may hold an iterator in a cycle, and its workers end with it
        gc.collect()
    _, left = psutil.wait_procs(left, timeout=PATIENCE)
    assert not left, f"processes were left behind: {left}"
    assert not dist.is_initialized(), "a process group was left behind"


def pytest_collection_modifyitems(items):
    """Sort files: the longest first, since one that begins last leaves the other cores idle; then those with most tests."""
    place = {HERE / name: number for number, name in enumerate(LONGEST)}
    tests = Counter(item.path for item in items)
    items.sort(key=lambda item: (place.get(item.path, len(place)), -tests[item.path], item.path))


def pytest_configure(config):
    if not hasattr(config, "workerinput"):  # the workers use those of the process that starts them
        config.forks = tempfile.TemporaryDirectory()
        config.servers = forks.start(config.forks.name)


def pytest_unconfigure(config):
    if hasattr(config, "servers"):
        forks.stop(config.servers)
        config.forks.cleanup()


def pytest_sessionfinish():
    doubled = {"sift", "compile", "debug", "feed", "report", "base"} & set(sys.modules)
    assert not doubled, f"imported by folder instead of as loopwise.*: {doubled}"


@pytest.fixture
def ranks(tmp_path):
    """Return a function that runs code in real gloo processes and returns the JSON that each printed last."""

    def run(code, world=2):
        setup = (
            "import json, os, torch, torch.distributed as dist\n"
            "torch.set_num_threads(1)\n"
            f"dist.init_process_group('gloo', init_method='file://{tmp_path}/store-{os.urandom(4).hex()}',"
            f" rank=int(os.environ['RANK']), world_size={world})\n"
        )
        end = "\ndist.barrier()\ndist.destroy_process_group()\n"
        path = os.pathsep.join([str(KITS), *filter(None, [os.environ.get("PYTHONPATH")])])
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        processes = [
            subprocess.Popen(
                [forks.python(), "-c", setup + textwrap.dedent(code) + end],
                env=os.environ | {"RANK": str(rank), "WORLD_SIZE": str(world), "PYTHONPATH": path},
                **pipes,
            )
            for rank in range(world)
        ]
        try:
            outputs = [process.communicate(timeout=900) for process in processes]
        finally:
            for process in processes:
                process.kill()
        for process, (_, errors) in zip(processes, outputs, strict=True):
            assert process.returncode == 0, errors
        return [json.loads(out.splitlines()[-1]) for out, _ in outputs]

    return run


@pytest.fixture
def forked(monkeypatch):
    """Let functions that begin ``sys.executable`` begin the program of ``forks`` instead."""
    monkeypatch.setattr(sys, "executable", forks.python())


@pytest.fixture
def interruptible():
    """Let this process be interrupted, also where a shell has started the tests in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)

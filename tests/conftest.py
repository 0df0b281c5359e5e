"""Leak police: every test leaves threads, child processes, environment and process groups as they were."""

import json
import os
import subprocess
import sys
import textwrap
import threading

import psutil
import pytest
import torch
import torch.distributed as dist

torch.set_num_threads(1)  # tests are small, and OpenMP's threads wait for each other on a busy machine
os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = (
    "1"  # compile in this process: no worker pool that outlives a test
)
if not torch.cuda.is_available():  # Triton's functions are interpreted where they are imported so
    os.environ["TRITON_INTERPRET"] = "1"
    import triton.language  # noqa: F401

    del os.environ["TRITON_INTERPRET"]


@pytest.fixture(autouse=True)
def _no_leaks():
    environment, threads = dict(os.environ), set(threading.enumerate())
    children = set(psutil.Process().children())
    yield
    ours = {k: v for k, v in os.environ.items() if k != "PYTEST_CURRENT_TEST" and "TORCHINDUCTOR" not in k}
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
    doubled = {"sift", "compile", "debug", "report", "base"} & set(sys.modules)
    assert not doubled, f"imported by folder instead of as loopwise.*: {doubled}"


@pytest.fixture
def ranks(tmp_path):
    """``ranks(code, world)``: run ``code`` in ``world`` real gloo processes; what each prints last, as JSON."""

    def run(code, world=2):
        setup = (
            "import json, os, torch, torch.distributed as dist\n"
            "torch.set_num_threads(1)\n"
            f"dist.init_process_group('gloo', init_method='file://{tmp_path}/store-{os.urandom(4).hex()}',"
            f" rank=int(os.environ['RANK']), world_size={world})\n"
        )
        end = "\ndist.barrier()\ndist.destroy_process_group()\n"
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", setup + textwrap.dedent(code) + end],
                env=os.environ | {"RANK": str(rank), "WORLD_SIZE": str(world)},
                **pipes,
            )
            for rank in range(world)
        ]
        try:
            outputs = [process.communicate(timeout=120) for process in processes]
        finally:
            for process in processes:
                process.kill()
        for process, (_, errors) in zip(processes, outputs, strict=True):
            assert process.returncode == 0, errors
        return [json.loads(out.splitlines()[-1]) for out, _ in outputs]

    return run

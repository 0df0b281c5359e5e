"""Importing sift loads no heavy package."""

import subprocess
import sys

HEAVY = (
    "torch._dynamo",
    "torch._inductor",
    "triton",
    "torch.distributed.tensor",
    "torch.distributed.fsdp",
    "fsspec",
)


def loaded(statement):
    code = f"import torch, sys; before = set(sys.modules); {statement}; print(*(set(sys.modules) - before))"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    return {heavy for heavy in HEAVY if any(f"{name}.".startswith(f"{heavy}.") for name in output.split())}


def test_nothing_heavy_is_loaded():
    assert loaded("import loopwise.sift") == set()


def test_a_heavy_import_would_be_seen():
    assert loaded("import fsspec") == {"fsspec"}

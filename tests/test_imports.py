"""The import of each part: no compiler, no optional package, and little time beside the import of torch."""

import importlib
import json
import pkgutil
import subprocess
import sys

import pytest
from layout_kit import LIBRARY

from docs.generators import reference

PARTS = [part for part in LIBRARY if part != "base"]
HEAVY = {
    "torch._dynamo", "torch._inductor", "torch.distributed.tensor", "torch.distributed.checkpoint", "triton", "sympy",
    "torchvision", "lightning", "pytorch_lightning", "transformers", "accelerate", "plotly", "jinja2", "sklearn",
    "scipy", "pandas", "matplotlib", "tensorboard", "s3fs", "pynvml",
}  # fmt: skip
"""Modules that take more than 50 ms, or are optional: they are imported when they are used."""
MODULES = 150
"""Most modules that a part may load beside its own."""
SHARE = 1 / 12
"""Most CPU time of a part's import, as a share of that of torch (which takes 1 s or more, so this is some 80 ms)."""
LAZY = ["compile", "debug", "feed", "tune"]
"""Parts that import a public name's module when the name is first used."""
OWN = 10
"""Most modules of Loopwise that such a part may load before."""
CODE = """
import json, sys, time
start = time.process_time()
import torch
before, middle = set(sys.modules), time.process_time()
sys.dont_write_bytecode, sys.pycache_prefix = False, {folder!r}  # an installed package has bytecode
middle, torch_seconds = time.process_time(), middle - start
import {module}
print(json.dumps([sorted(set(sys.modules) - before), (time.process_time() - middle) / torch_seconds]))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return the folder of the bytecode of all parts."""
    return str(tmp_path_factory.mktemp("bytecode"))


def imported(module, folder):
    """Return the modules that an import loads in a new process, and its CPU time as a share of torch's."""
    command = [sys.executable, "-c", CODE.format(module=module, folder=folder)]
    return json.loads(subprocess.check_output(command, text=True))


def heavy(modules):
    """Return the modules that no part may load, without their submodules."""
    return HEAVY & set(modules)


@pytest.mark.parametrize("part", PARTS)
def test_a_part_is_imported_quickly_and_loads_nothing_heavy(part, folder):
    modules, share = imported(f"loopwise.{part}", folder)  # it compiles the bytecode, too
    assert not heavy(modules)
    assert len([name for name in modules if not name.startswith("loopwise")]) <= MODULES
    shares = [share]
    while min(shares) > SHARE and len(shares) < 6:  # the least of several, as other processes disturb
        shares.append(imported(f"loopwise.{part}", folder)[1])
    assert min(shares) <= SHARE


@pytest.mark.parametrize("part", LAZY)
def test_a_part_loads_the_modules_of_its_names_when_they_are_used(part, folder):
    modules, _ = imported(f"loopwise.{part}", folder)
    assert len([name for name in modules if name.startswith("loopwise")]) <= OWN


def test_a_step_registers_no_operator_before_it_compiles(folder):
    modules, _ = imported("loopwise.compile.step", folder)
    assert "loopwise.compile.loss_head.op" not in modules
    assert "loopwise.compile.loss_head.op" in imported("loopwise.compile.loss_head.op", folder)[0]


@pytest.mark.parametrize("part", LAZY)
def test_no_module_hides_a_public_name(part):
    """Importing a module sets the package's attribute of that name, which must not be a name that is found later."""
    package = importlib.import_module(f"loopwise.{part}")
    modules = {module.name for module in pkgutil.iter_modules(package.__path__)}
    hidden = modules & set(reference.public(package.__name__))
    assert hidden <= {"preflight"}  # which is imported with its package


def test_a_heavy_import_would_be_seen(folder):
    modules, share = imported("torch._dynamo.utils", folder)
    assert heavy(modules) >= {"torch._dynamo", "torch._inductor", "torch.distributed.tensor"}
    assert len(modules) > MODULES
    assert share > SHARE

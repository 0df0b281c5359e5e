"""The command ``loopwise doctor``: versions, devices, and features that are missing or slow."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil

import click
import psutil
import torch
from rich.console import Console
from rich.table import Table

OPTIONAL = {
    "torchvision": ("demo", "loopwise demo"),
    "scikit-learn": ("demo", "loopwise demo"),
    "s3fs": ("s3", "run folders at s3:// URLs"),
    "lightning": ("lightning", "callbacks for a Lightning Trainer"),
    "transformers": ("transformers", "callbacks and mixins for a Hugging Face Trainer"),
    "plotly": ("report", "loopwise report and loopwise serve"),
    "tensorboard": ("export", "loopwise debug export --to tensorboard"),
    "safetensors": ("export", "loopwise debug export --to safetensors"),
}
"""Optional package -> (extra that installs it, feature that needs it)."""


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _rows() -> list[tuple[str, str]]:
    rows = [("python", platform.python_version())]
    rows += [(name, _version(name) or "missing") for name in ("loopwise", "torch", "triton", "numpy")]
    memory = psutil.virtual_memory().total / 2**30
    kind = torch.backends.cpu.get_cpu_capability()
    rows.append(("cpu", f"{os.cpu_count()} cores, {memory:.0f} GiB, {kind}"))
    for number in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(number)
        rows.append((f"gpu {number}", f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"))
    if not torch.cuda.is_available():
        rows.append(("gpu", "none that torch can use"))
    return rows


def _fallbacks() -> list[str]:
    lines = [
        f"{package} is not installed: no {purpose} (pip install 'loopwise[{extra}]')"
        for package, (extra, purpose) in OPTIONAL.items()
        if _version(package) is None
    ]
    if not torch.cuda.is_available() and not torch.cpu.get_capabilities().get("avx512_bf16", False):
        lines.append("this CPU does not multiply bfloat16: sift scores in float32")
    if shutil.which("c++") is None and shutil.which("g++") is None and shutil.which("clang++") is None:
        lines.append("no C++ compiler: torch.compile does not work on the CPU")
    if not os.environ.get("CC") and shutil.which("cc") is None and shutil.which("clang") is None:
        lines.append("no C compiler: debug takes twice as long for statistics on the CPU")
    return lines


@click.command("doctor")
def command() -> None:
    """Print versions, devices, optional packages, and features that are missing or slow."""
    console = Console()
    table = Table(show_header=False, box=None)
    for name, value in [*_rows(), *((name, _version(name) or "not installed") for name in OPTIONAL)]:
        table.add_row(name, value)
    console.print(table)
    for line in _fallbacks():
        console.print(f"falls back: {line}", markup=False)

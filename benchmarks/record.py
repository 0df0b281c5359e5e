"""Records of benchmarks as JSON, and the newest record of each claim.

A record is the file ``results/<claim>_<machine>_<yyyymmdd>.json`` with the object ``{claim, command, date, machine,
versions, commit, quick, rows: [{quantity, ours, peer, peer_name, ratio, unit, bar, met, runs}]}``.  ``<machine>`` is the
name of the GPU, or ``cpu-`` and the instruction set.  ``ours`` and ``peer`` are ``[median, lowest, highest]`` over the
runs, ``ratio`` is our median over the peer's, ``bar`` is a text such as ``ratio <= 0.5`` or ``ours <= 50`` or null, and
``met`` tells if the bar is met.  A target that no run reached is infinite in a ``Row`` and meets no ``<=``; in JSON,
which has no infinite numbers, it is the text ``never``.  ``raw`` has the quantities of all runs by case and seed, and
``commits`` the commits that they were measured at.  Records from before November 29, 2026 have no ``command`` and
no ``date``; the date is in the file name.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import math
import operator
import platform
import shlex
import statistics
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
SOURCES = ("base", "sift", "compile", "debug", "report", "tune", "feed", "benchmarks")
KINDS = (".py", ".c", ".js", ".css", ".html")
_COMPARE = {"<=": operator.le, ">=": operator.ge}


def median_range(values: list[float]) -> list[float]:
    """Return median, lowest and highest."""
    return [statistics.median(values), min(values), max(values)]


def _finite(value: float) -> float | str:
    return value if math.isfinite(value) else "never"


@dataclass(frozen=True)
class Row:
    """Quantity of a benchmark: our runs, the peer's runs and the bar for them."""

    quantity: str
    ours: list[float]
    peer: list[float] | None
    peer_name: str
    unit: str
    bar: str | None

    def record(self) -> dict[str, Any]:
        """Return the row as JSON, with medians, ratio and whether the bar is met."""
        ours = median_range(self.ours)
        peer = median_range(self.peer) if self.peer else None
        ratio = ours[0] / peer[0] if peer and peer[0] else None  # there is none to a peer's regret of 0
        met = None
        if self.bar is not None:
            which, compare, limit = self.bar.split()
            value = {"ours": ours[0], "ratio": ratio}[which]
            assert value is not None, f"{self.quantity}: a bar on the ratio needs a peer"
            met = _COMPARE[compare](value, float(limit))
        return {
            "quantity": self.quantity,
            "ours": [_finite(value) for value in ours],
            "peer": peer and [_finite(value) for value in peer],
            "peer_name": self.peer_name,
            "ratio": None if ratio is None else _finite(ratio),
            "unit": self.unit,
            "bar": self.bar,
            "met": met,
            "runs": len(self.ours),
        }


def device() -> str:
    """Return ``cpu``, or the name of the GPU in a form for file names."""
    if not torch.cuda.is_available():
        return "cpu"
    return torch.cuda.get_device_name().lower().replace(" ", "-").replace("_", "-")


def machine() -> str:
    """Return the name of the GPU, or ``cpu-`` and the instruction set that torch's kernels use."""
    capability = torch.backends.cpu.get_cpu_capability().lower().replace(" ", "-")
    return f"cpu-{capability}" if device() == "cpu" else device()


def command() -> str:
    """Return the command of this process."""
    spec = sys.modules["__main__"].__spec__
    program = ["-m", spec.name.removesuffix(".__main__")] if spec else [Path(sys.argv[0]).name]
    return shlex.join(["python", *program, *sys.argv[1:]])


def commit() -> str:
    """Return the checkout's commit, with a ``+`` if the tree differs from it."""
    try:
        head = subprocess.run(
            ["git", "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True
        )
        changed = subprocess.run(
            ["git", "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head.stdout.strip() + ("+" if changed.stdout.strip() else "")


def sources() -> str:
    """Return a digest of the code that a measurement depends on: the base, the parts and the benchmarks."""
    digest = hashlib.sha256()
    for path in sorted(p for d in SOURCES for p in (ROOT / d).rglob("*.*") if p.suffix in KINDS):
        digest.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def header() -> dict[str, Any]:
    """Return the machine, the versions and the commit."""
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    machine = {
        "cpu": name,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "cores": psutil.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "device": device(),
    }
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    return {"machine": machine, "versions": versions, "commit": commit()}


def write(
    claim: str, rows: list[Row], quick: bool, raw: dict[str, Any] | None = None, commits: Iterable[str] = ()
) -> Path:
    """Write the record of a claim and return its path.

    Args:
        claim: the claim.
        rows: the rows.
        quick: whether the runs were short.
        raw: quantities of all runs, by case and seed.
        commits: commits of an earlier record whose runs are among them.
    """
    RESULTS.mkdir(exist_ok=True)
    today = datetime.date.today()
    record = {"claim": claim, "command": command(), "date": today.isoformat(), **header(), "quick": quick}
    record["rows"] = [row.record() for row in rows]
    record |= {"commits": sorted({*commits, record["commit"]}), "raw": raw or {}}
    path = RESULTS / f"{claim}_{machine()}{'-quick' * quick}_{today:%Y%m%d}.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    return path


def number(value: float | str | None) -> str:
    """Return a number with three digits, or the text that stands for it."""
    if isinstance(value, str):
        return value
    return "" if value is None else f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def spread(values: list[float | str] | None) -> str:
    """Return a median with its range."""
    return "" if values is None else f"{number(values[0])} ({number(values[1])}-{number(values[2])})"


HEADINGS = ("quantity", "unit", "ours", "peer", "peer's name", "ratio", "bar", "met")


def cells(row: dict[str, Any]) -> list[str]:
    """Return a row of a record as texts, in the order of ``HEADINGS``."""
    met = {True: "yes", False: "NO", None: ""}[row["met"]]
    numbers = [spread(row["ours"]), spread(row["peer"]), row["peer_name"], number(row["ratio"])]
    return [row["quantity"], row["unit"], *numbers, row["bar"] or "", met]


def newest() -> list[dict[str, Any]]:
    """Return the newest record of each claim and machine, in the order of their names."""
    records = {}
    for path in sorted(RESULTS.glob("*.json"), key=lambda path: path.stem.rsplit("_", 1)[-1]):
        records[path.stem.rsplit("_", 1)[0]] = json.loads(path.read_text())
    return [records[name] for name in sorted(records)]

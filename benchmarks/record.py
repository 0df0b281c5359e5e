"""Records: what a benchmark found, as JSON and Markdown, and the table of the newest of every claim.

A record is ``results/<claim>_<device>_<yyyymmdd>.json``: ``{claim, machine, versions, commit, quick,
rows: [{quantity, ours, peer, peer_name, ratio, unit, bar, met, runs}]}``.  ``ours`` and ``peer``
are ``[median, lowest, highest]`` over the runs, ``ratio`` is ours over the peer's by the medians,
``bar`` a text such as ``ratio <= 0.5`` or ``ours <= 50``, or null, and ``met`` is computed from it.
What was never reached is infinite in a ``Row`` (and meets no ``<=``), and the text ``never`` here: JSON has
no infinite numbers.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import math
import operator
import platform
import statistics
import subprocess
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
    return [statistics.median(values), min(values), max(values)]


def _finite(value: float) -> float | str:
    return value if math.isfinite(value) else "never"


@dataclass(frozen=True)
class Row:
    """One quantity: our runs beside the peer's, and the bar that it is held to."""

    quantity: str
    ours: list[float]
    peer: list[float] | None
    peer_name: str
    unit: str
    bar: str | None

    def record(self) -> dict[str, Any]:
        ours = median_range(self.ours)
        peer = median_range(self.peer) if self.peer else None
        ratio = ours[0] / peer[0] if peer else None
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
    """``cpu``, or the accelerator's name as a file name can hold it."""
    if not torch.cuda.is_available():
        return "cpu"
    return torch.cuda.get_device_name().lower().replace(" ", "-").replace("_", "-")


def commit() -> str:
    """The checkout's commit, marked ``+`` when the tree differs from it."""
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
    """A digest of the code that a measurement depends on: the base, the parts and the benchmarks."""
    digest = hashlib.sha256()
    for path in sorted(p for d in SOURCES for p in (ROOT / d).rglob("*.*") if p.suffix in KINDS):
        digest.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def header() -> dict[str, Any]:
    """The machine, the versions and the commit."""
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


def write(claim: str, rows: list[Row], quick: bool) -> Path:
    """Write the record of ``claim`` and return the path of its JSON."""
    RESULTS.mkdir(exist_ok=True)
    record = {"claim": claim, **header(), "quick": quick, "rows": [row.record() for row in rows]}
    today = datetime.date.today().strftime("%Y%m%d")
    path = RESULTS / f"{claim}_{device()}{'-quick' if quick else ''}_{today}.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    path.with_suffix(".md").write_text(markdown(record))
    return path


def number(value: float | str | None) -> str:
    if isinstance(value, str):
        return value
    return "" if value is None else f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def spread(values: list[float | str] | None) -> str:
    return "" if values is None else f"{number(values[0])} ({number(values[1])}-{number(values[2])})"


HEADINGS = ("quantity", "unit", "ours", "peer", "peer's name", "ratio", "bar", "met")


def cells(row: dict[str, Any]) -> list[str]:
    """A row of a record as texts, in the order of ``HEADINGS``."""
    met = {True: "yes", False: "NO", None: ""}[row["met"]]
    numbers = [spread(row["ours"]), spread(row["peer"]), row["peer_name"], number(row["ratio"])]
    return [row["quantity"], row["unit"], *numbers, row["bar"] or "", met]


def markdown(record: dict[str, Any]) -> str:
    machine = ", ".join(f"{key} {value}" for key, value in (record["machine"] | record["versions"]).items())
    lines = [
        f"# {record['claim']}",
        "",
        f"Commit {record['commit']}; {machine}. Median (lowest-highest) over runs.",
        "",
    ]
    lines += ["| " + " | ".join(HEADINGS) + " |", "|" + "---|" * len(HEADINGS)]
    lines += ["| " + " | ".join(cells(row)) + " |" for row in record["rows"]]
    return "\n".join(lines) + "\n"


def newest() -> list[dict[str, Any]]:
    """The newest full record of every claim and device, oldest name first."""
    found = {}
    for path in sorted(RESULTS.glob("*.json"), key=lambda path: path.stem.rsplit("_", 1)[-1]):
        found[path.stem.rsplit("_", 1)[0]] = json.loads(path.read_text())
    return [found[name] for name in sorted(found)]

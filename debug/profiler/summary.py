"""Tables of a profiled run: its times, the use of the machine, the phases of its steps, steps that stand out."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from loopwise.run import Run

from ..rules.profile import series
from ..rules.profile.series import FIXED, KINDS, Floats, Table
from .reading import Session

PERCENTILES = {"max": 100, "p99": 99, "p95": 95, "p50": 50, "min": 0}
FAR = 3.0
"""Times the median, from which a step stands out."""
SECONDS = (*KINDS, "loopwise", "other")


def job(path: str, sessions: list[Session]) -> dict[str, float | None]:
    """Seconds since the epoch, and seconds; ``None`` for what has not come yet.

    ``start`` and ``end`` of the run; ``initialization``, until the first step had ended; ``loop``, from
    there to the end of the last one; ``finalization``, from there to the end.
    """
    info = Run.existing(path).info()
    start, end = float(info["start"]), info["end"]
    times = [table["time"] for session in sessions if len(table := session.phases())]
    if not times:
        return {"start": start, "end": end, "initialization": None, "loop": None, "finalization": None}
    first, last = min(float(each[0]) for each in times), max(float(each[-1]) for each in times)
    rest = None if end is None else max(0.0, float(end) - last)
    return {
        "start": start,
        "end": end,
        "initialization": first - start,
        "loop": last - first,
        "finalization": rest,
    }


def usage(table: Table, totals: dict[str, float]) -> dict[str, dict[str, float]]:
    """``PERCENTILES`` of each column of samples; of memory in % of all that there is, too, as ``memory, %``."""
    found: dict[str, dict[str, float]] = {}
    for name in table.columns:
        if name not in ("time", "late", "missed"):
            found[name] = percentiles(table[name])
            if name in totals and totals[name] > 0:
                found[f"{name}, %"] = percentiles(100 * table[name] / totals[name])
    return found


def percentiles(values: Floats) -> dict[str, float]:
    values = values[np.isfinite(values)]
    if not len(values):
        return dict.fromkeys(PERCENTILES, math.nan)
    return dict(zip(PERCENTILES, map(float, np.percentile(values, [*PERCENTILES.values()])), strict=True))


def kinds(table: Table) -> list[str]:
    """Names of the phases of a table, the user's own and a device's behind the others."""
    return [*SECONDS, *(name for name in table.columns if name not in FIXED)]


def phases(table: Table) -> dict[str, dict[str, tuple[float, float]]]:
    """Mode -> phase -> seconds in all, and their share of the time of the mode's steps."""
    found: dict[str, dict[str, tuple[float, float]]] = {}
    for mode in dict.fromkeys(table.modes):
        part = table.of(mode)
        total = float(part["seconds"].sum()) or math.nan
        sums = {kind: float(part[kind].sum()) for kind in kinds(table)}
        found[mode] = {kind: (value, value / total) for kind, value in sums.items()}
    return found


def steps(table: Table) -> dict[str, dict[str, float]]:
    """Mode -> how many steps, and mean, p50, p95, p99 and max of their seconds."""
    found = {}
    for mode in dict.fromkeys(table.modes):
        part = table.of(mode)
        each, count = part["seconds"] / part["count"], part["count"]
        p50, p95, p99 = series.percentiles(each, count, [50, 95, 99])
        mean = float(part["seconds"].sum() / count.sum())
        found[mode] = {"steps": float(count.sum()), "mean": mean, "p50": p50, "p95": p95, "p99": p99}
        found[mode]["max"] = float(part["longest"].max())
    return found


def outliers(table: Table, most: int = 10) -> list[dict[str, Any]]:
    """The longest training steps above three times the median: ``step``, ``seconds``, ``times`` it, ``phase``.

    The step is the last one of its row, and ``phase`` where it spent more than is usual.
    """
    train = table.of("train")
    if not len(train):
        return []
    usual = {
        kind: series.percentiles(train[kind] / train["count"], train["count"], [50])[0]
        for kind in ("seconds", *SECONDS)
    }
    order = np.argsort(-train["longest"])[:most]
    found = []
    for index in order:
        longest = float(train["longest"][index])
        if longest <= FAR * usual["seconds"]:
            break
        more = {kind: train[kind][index] - usual[kind] * train["count"][index] for kind in SECONDS}
        phase = max(more, key=lambda kind: more[kind])
        times = longest / usual["seconds"] if usual["seconds"] else math.inf
        found.append({"step": int(train["step"][index]), "seconds": longest, "times": times, "phase": phase})
    return found

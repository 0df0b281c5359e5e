"""Tables of a profiled run: times, use of the machine, phases of steps, outliers among the steps."""

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
"""Multiple of the median duration above which a step is an outlier."""
SECONDS = (*KINDS, "loopwise", "other")


def job(path: str, sessions: list[Session]) -> dict[str, float | None]:
    """Return the times of a run; ``None`` for a time that is not known yet.

    ``start`` and ``end`` of the run are in seconds since the epoch; the others are durations in seconds:
    ``initialization`` until the end of the first step, ``loop`` from there to the end of the last step, and
    ``finalization`` from there to the end of the run.
    """
    info = Run.existing(path).info()
    start, end = info["start"], info["end"]
    times = [table["time"] for session in sessions if len(table := session.phases)]
    job: dict[str, float | None] = {
        "start": start,
        "end": end,
        "initialization": None,
        "loop": None,
        "finalization": None,
    }
    if times:
        first, last = min(float(column[0]) for column in times), max(float(column[-1]) for column in times)
        job |= {"initialization": None if start is None else first - start, "loop": last - first}
        job["finalization"] = None if end is None else max(0.0, end - last)
    return job


def usage(table: Table, totals: dict[str, float]) -> dict[str, dict[str, float]]:
    """Return ``PERCENTILES`` of each column of samples; of memory also in % of the total, as ``memory, %``."""
    columns: dict[str, dict[str, float]] = {}
    for name in table.columns:
        if name not in ("time", "late", "missed"):
            columns[name] = percentiles(table[name])
            if name in totals and totals[name] > 0:
                columns[f"{name}, %"] = percentiles(100 * table[name] / totals[name])
    return columns


def percentiles(values: Floats) -> dict[str, float]:
    """Return ``PERCENTILES`` of the finite values; NaN if there are none."""
    values = values[np.isfinite(values)]
    if not len(values):
        return dict.fromkeys(PERCENTILES, math.nan)
    return dict(zip(PERCENTILES, map(float, np.percentile(values, [*PERCENTILES.values()])), strict=True))


def kinds(table: Table) -> list[str]:
    """Return the names of the phases of a table, the user's and a device's after the others."""
    return [*SECONDS, *(name for name in table.columns if name not in FIXED)]


def phases(table: Table) -> dict[str, dict[str, tuple[float, float]]]:
    """Return mode -> phase -> total seconds, and their share of the time of the mode's steps."""
    result: dict[str, dict[str, tuple[float, float]]] = {}
    for mode in dict.fromkeys(table.modes):
        part = table.of(mode)
        total = float(part["seconds"].sum()) or math.nan
        sums = {kind: float(part[kind].sum()) for kind in kinds(table)}
        result[mode] = {kind: (value, value / total) for kind, value in sums.items()}
    return result


def steps(table: Table) -> dict[str, dict[str, float]]:
    """Return mode -> number of steps, and mean, p50, p95, p99 and max of their seconds."""
    result = {}
    for mode in dict.fromkeys(table.modes):
        part = table.of(mode)
        count, means = part["count"], part["seconds"] / part["count"]
        named = zip(("p50", "p95", "p99"), series.percentiles(means, count, [50, 95, 99]), strict=True)
        mean, longest = float(part["seconds"].sum() / count.sum()), float(part["longest"].max())
        result[mode] = {"steps": float(count.sum()), "mean": mean, **dict(named), "max": longest}
    return result


def outliers(table: Table, most: int = 10) -> list[dict[str, Any]]:
    """Return up to ``most`` of the longest training steps above three times the median.

    Each has ``step``, the last one of its row; ``seconds``; ``times``, the multiple of the median; and ``phase``, the
    phase that took most of the extra time.
    """
    train = table.of("train")
    if not len(train):
        return []
    usual = {
        kind: series.percentiles(train[kind] / train["count"], train["count"], [50])[0]
        for kind in ("seconds", *SECONDS)
    }
    result = []
    for index in np.argsort(-train["longest"])[:most]:
        longest = float(train["longest"][index])
        if longest <= FAR * usual["seconds"]:
            break
        more = {kind: train[kind][index] - usual[kind] * train["count"][index] for kind in SECONDS}
        phase = max(more, key=lambda kind: more[kind])
        times = longest / usual["seconds"] if usual["seconds"] else math.inf
        result.append({"step": int(train["step"][index]), "seconds": longest, "times": times, "phase": phase})
    return result

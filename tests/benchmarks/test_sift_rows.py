"""Table of the sifting benchmark: crossings of the target, runs that never reach it, standard errors."""

import math
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def modules(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks import record
    from benchmarks.sift import rows

    yield record, rows
    for name in [name for name in sys.modules if name.split(".")[0] == "benchmarks"]:
        monkeypatch.delitem(sys.modules, name)


def curve(*metrics):
    quantities = {}
    for n, metric in enumerate(metrics):
        quantities |= {f"metric@{n}": [metric], f"seconds@{n}": [10.0 * n], f"samples@{n}": [100.0 * n]}
    return quantities


def test_the_first_crossing_is_interpolated(modules):
    _, rows = modules
    assert rows.reach(curve(0.0, 0.5, 1.0, 0.2), 0, 0.75, True) == (15.0, 150.0)
    assert rows.reach(curve(4.0, 2.0, 1.0), 0, 3.0, False) == (5.0, 50.0)
    assert rows.reach(curve(0.9), 0, 0.5, True) == (0.0, 0.0)
    assert rows.reach(curve(0.0, 0.5), 0, 0.9, True) == (math.inf, math.inf)


def test_a_method_that_never_reaches_the_target_meets_no_bar(modules):
    record, _ = modules
    row = record.Row(
        "seconds", [math.inf, math.inf, 3.0], [2.0, 2.0, 2.0], "plain", "s", "ratio <= 0.65"
    ).record()
    assert row["ours"] == ["never", 3.0, "never"]
    assert row["ratio"] == "never"
    assert row["met"] is False


def test_gains_are_paired_by_seed(modules):
    _, rows = modules
    assert rows.in_standard_errors([0.9, 0.8, 0.7], [0.8, 0.8, 0.8], True) == pytest.approx(0)
    assert rows.in_standard_errors([1.0, 1.2], [1.5, 1.9], False) == pytest.approx(0.6 / 0.1)

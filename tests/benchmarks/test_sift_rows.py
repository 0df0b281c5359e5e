"""Sifting benchmark: crossings of the target, rows of the table, rules of the peers."""

import math
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def modules(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks import record
    from benchmarks.sift import rows

    yield record, rows
    for name in [name for name in sys.modules if name.split(".")[0] == "benchmarks"]:
        monkeypatch.delitem(sys.modules, name)


def test_the_first_crossing_is_interpolated_between_trainings(modules):
    _, rows = modules
    points = [(0.5, 5.0, 55.0), (0.7, 7.0, 75.0), (0.6, 10.0, 100.0)]
    assert rows.reach(points, 0.6, True) == pytest.approx((6.0, 65.0))
    assert rows.reach(points, 0.4, True) == (5.0, 55.0)
    assert rows.reach(points, 0.9, True) == (math.inf, math.inf)
    assert rows.reach([(4.0, 10.0, 100.0), (2.0, 20.0, 200.0)], 3.0, False) == (15.0, 150.0)


def training(metric, samples, **more):
    return {
        "metric": [metric, metric + 0.01],
        "samples": [samples] * 2,
        "seconds": [samples / 10] * 2,
        "processor share": [0.5] * 2,
    } | more


def test_rows_say_which_figures_are_of_equal_samples_and_which_of_equal_passes(modules):
    _, rows = modules
    runs = {}
    for budget in rows.BUDGETS:
        for number, method in enumerate(rows.METHODS_OF_TABLE):
            case = f"digits.{method}.{round(100 * budget)}"
            runs[case] = training(
                0.8 + budget / 10 + (method == "ours") * 0.05 - number / 1000, 1000 * budget
            )
    more = {"other metric": [0.9, 0.91], "other seconds": [100.0, 100.0]}
    runs["cheap.auto.beside"] = training(0.9, 1000, **more)
    table = {row.quantity: row for row in rows.rows(runs)}
    name = "digits, ours: final accuracy after 1.0 of plain's samples (equal samples)"
    assert table[name].peer == runs["digits.plain.100"]["metric"]
    assert table[f"{name}, better than plain's by"].bar == "ours >= -1"
    name = "digits, ours: final accuracy after 0.55 of plain's samples (equal samples)"
    assert table[name].peer == runs["digits.uniform.55"]["metric"]
    row = table["digits, ours: samples to plain's final accuracy"]
    assert row.ours == pytest.approx([560, 550])
    assert (row.peer, row.bar) == ([1000, 1000], "ratio <= 0.65")
    assert table["digits, ours: seconds to plain's final accuracy"].peer == [50, 50]
    row = table["digits, orderdp: samples to plain's final accuracy"]
    assert row.ours == [math.inf, math.inf]
    assert table["cheap, auto=True: seconds of as many passes (equal passes)"].bar == "ratio <= 1.03"
    assert (
        table["cheap, auto=True: final accuracy, better than plain's by (equal passes)"].bar == "ours >= -1"
    )


def test_a_gain_takes_the_seeds_of_both_and_one_seed_has_no_error(modules):
    _, rows = modules
    runs = {
        f"digits.{method}.{budget}": training(0.9, 10 * budget)
        for method in ("plain", "ours", "seta", "uniform")
        for budget in (55, 100)
    }
    for quantity, values in runs["digits.seta.100"].items():
        runs["digits.seta.100"][quantity] = values[:1]
    gain = "digits, ours: final accuracy after 1.0 of plain's samples (equal samples), better than plain's by"
    table = {row.quantity: row for row in rows.rows(runs)}
    assert gain in table
    assert len(table["digits, seta: samples to plain's final accuracy"].ours) == 1
    runs["digits.ours.100"] = {quantity: values[:1] for quantity, values in runs["digits.ours.100"].items()}
    assert gain not in {row.quantity for row in rows.rows(runs)}


class Fetched:
    """Samples that are their own indices, fetched a batch at a time."""

    def __len__(self):
        return 100

    def __getitems__(self, indices):
        return torch.tensor(indices), torch.tensor(indices)


def passes(kind, done, losses):
    """Return the samples, and weights, of two passes of a peer, of which the second begins when ``done`` is over."""
    from torch.utils.data import DataLoader

    from benchmarks.sift.training import Budget

    budget = Budget(1000, 100)
    loader = kind(DataLoader(Fetched(), 10, collate_fn=lambda batch: batch), None, None, budget, 0)
    results = []
    for part in (0.0, done):
        budget.used, taken, of_pass = round(1000 * part), [], []
        for inputs, _, *weights in loader:
            taken.append(inputs)
            of_pass.append(weights[0] if weights else torch.ones(len(inputs)))
            loader.observe(losses[inputs])
        results.append((torch.cat(taken), torch.cat(of_pass)))
    return results


def test_the_rules_of_the_peers(modules):
    from benchmarks.sift import baselines

    losses = torch.arange(100) / 10
    (first, _), (second, weights) = passes(baselines.InfoBatch, 0.5, losses)
    assert sorted(first.tolist()) == list(range(100))
    assert (second >= 50).sum() == 50
    assert (second < 50).sum() == 25
    assert weights[second < 50].tolist() == [2] * 25
    assert len(passes(baselines.InfoBatch, 0.9, losses)[1][0]) == 100
    (first, _), (second, _) = passes(baselines.OrderDP, 0.9, losses)
    assert len(first) == len(second) == 30
    (first, _), (second, _) = passes(baselines.SeTa, 0.5, losses)
    assert len(first) == 90
    assert 60 <= len(second) <= 80
    assert len(passes(baselines.SeTa, 0.9, losses)[1][0]) == 90
    (_, _), (second, weights) = passes(baselines.BatchScores, 0.5, losses)
    assert 60 <= len(second) <= 90
    assert all(len(set(part.tolist())) == 1 for part in weights.split(10))


def test_clusters_on_a_line(modules):
    from benchmarks.sift import baselines

    values = torch.tensor([5.0, 0.1, 9.0, 0.2, 5.2, 0.0, 9.1])
    assert baselines.clusters(values, 3).tolist() == [1, 0, 2, 0, 1, 0, 2]
    assert baselines.clusters(torch.full((4,), 3.0), 5).max() < 5


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

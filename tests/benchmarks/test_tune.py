"""Benchmarks of tune: the known optima, regrets and their rows, and what early stopping saves."""

import math

import pytest

from benchmarks.tune import choice, kills, memory, search, stopping
from benchmarks.tune.functions import FUNCTIONS, Function, ackley, branin, conditional, hartmann6, mixed

MINIMA = {
    "Branin": {"x": math.pi, "y": 2.275},
    "Hartmann 6": dict(
        zip(
            [f"x{n}" for n in range(6)],
            [0.20169, 0.150011, 0.476874, 0.275332, 0.311652, 0.6573],
            strict=True,
        )
    ),
    "Ackley": {f"x{n}": 0.0 for n in range(5)},
    "mixed": {
        "lr": 10**-3.5,
        "width": 2**6.5,
        "decay": 1e-4,
        "dropout": 0.2,
        "optimizer": "adam",
        "activation": "gelu",
    },
    "conditional": {"family": "network", "lr": 10**-2.7, "layers": 3, "dropout": 0.25},
    "Hartmann 3": {"x0": 0.114614, "x1": 0.555649, "x2": 0.852547},
    "Levy": {f"x{n}": 1.0 for n in range(4)},
    "Rosenbrock": {f"x{n}": 1.0 for n in range(4)},
    "Styblinski-Tang": {f"x{n}": -2.903534 for n in range(5)},
}


@pytest.mark.parametrize("name", MINIMA)
def test_optima(name):
    function = choice.CHOICE[name]
    assert function.call(MINIMA[name]) == pytest.approx(function.optimum, abs=1e-4)
    assert function.typical > function.optimum


def test_functions_depend_on_each_of_their_parameters():
    functions = {"Branin": branin, "Hartmann 6": hartmann6, "Ackley": ackley, "mixed": mixed}
    for name, function in functions.items():
        for parameter, part in FUNCTIONS[name].space.items():
            for other in part.get("values", [part.get("low")]):
                if other != MINIMA[name][parameter]:
                    assert function(MINIMA[name] | {parameter: other}) > FUNCTIONS[name].optimum + 0.01
    trees = {"family": "trees", "lr": 0.1, "depth": 7, "trees": 200, "layers": 3, "dropout": 0.25}
    assert conditional(trees) == conditional(trees | {"layers": 8}) == pytest.approx(0.15, abs=1e-4)


@pytest.mark.parametrize("name", ["random", "tpe", "ours"])
def test_methods_call_the_function_as_often_as_they_may(name):
    called = []

    def call(values):
        called.append(values)
        return float(len(values["kind"])) + values["rate"] * values["size"]

    space = {
        "rate": {"type": "continuous", "low": 0.1, "high": 1.0, "scale": "log"},
        "size": {"type": "integer", "low": 1, "high": 9, "scale": "linear"},
        "kind": {"type": "categorical", "values": ["a", "bb"]},
    }
    function = Function(call, space, 1.1, 5.0)
    smallest = search.cases("cpu")[name].__defaults__[0](function, 4, 0)
    assert len(called) == 4
    assert all(0.1 <= v["rate"] <= 1 and v["size"] in range(1, 10) and v["kind"] in "abb" for v in called)
    assert smallest == min(call(values) for values in called[:4])
    assert set(search.cases("cpu")) == {"ours", *search.PEERS}


def runs(ours, random, others):
    values = {"ours": ours, "random": random, "tpe": others, "gp": others, "botorch@syne-tune": others}
    return {case: {"Branin": found, "SVC": found} for case, found in values.items()}


def test_regrets_and_rows():
    found = runs([1.0, 1.2], [9.0, 5.0], [1.1, 1.2])
    table = search.regrets(found)
    scale = FUNCTIONS["Branin"].typical - FUNCTIONS["Branin"].optimum
    assert table["Branin"]["ours"][0] == pytest.approx((1.0 - FUNCTIONS["Branin"].optimum) / scale)
    assert (
        min(value for of in table["SVC"].values() for value in of) == 0
    )  # the best one that any method found
    bars = {row.quantity: row.record() for row in search.rows(found)}
    best = bars["functions of 2 with the best mean regret, or within one standard error of it"]
    assert (best["ours"][0], best["met"]) == (2, True)
    assert bars["the same for Optuna's GP"]["ours"][0] == 2  # within one standard error
    assert bars["the same for random"]["ours"][0] == 0
    assert bars["functions of 2 with a mean regret below random's"]["met"]


def test_a_record_names_the_searches_that_were_not_run():
    found = runs([1.0, 1.2], [9.0, 5.0], [1.1, 1.2])
    del found["botorch@syne-tune"]
    rows = search.rows(found)
    assert {row.peer_name for row in rows} == {"", "Optuna's default (TPE)", "Optuna's GP", "random"}
    name = "functions of 2 with the best mean regret, or within one standard error of it"
    assert f"{name} (without Syne Tune's BoTorch, which was not run)" in {row.quantity for row in rows}


def test_candidates_for_the_default_are_ranked_by_functions_and_seeds():
    found = {"a": {"f": [1.0, 3.0, 9.0], "g": [1.0, 1.0, 9.0]}, "b": {"f": [2.0, 2.0], "g": [1.0, 0.0]}}
    assert choice.ranks(found) == {"a": [1.0, 2.0, 1.5, 2.0], "b": [2.0, 1.0, 1.5, 1.0]}
    assert [row.ours for row in choice.rows(found) if "rank" in row.quantity] == [[1.625], [1.375]]


def test_a_search_that_is_worse_meets_no_bar():
    bars = [row.record() for row in search.rows(runs([9.0, 9.1], [2.0, 2.1], [1.0, 1.1]))]
    assert [row["met"] for row in bars if row["bar"]] == [False, False]


def test_what_early_stopping_saves_and_loses():
    found = stopping.saved([stopping.EPOCHS, stopping.EPOCHS // 2], [2.0], [2.0, 1.0])
    assert found == {"epochs saved": 25.0, "loss": 100.0, "stopped": 1}


def test_memory_of_some_trials(monkeypatch):
    monkeypatch.setattr(memory, "FIRST", 5)
    monkeypatch.setattr(memory, "LAST", 20)
    found = memory.grow(0)
    (row,) = memory.rows({"memory": {name: [value] for name, value in found.items()}})
    assert row.record()["met"]


def test_a_lost_and_a_changed_trial_are_counted():
    found = {name: [0.0] for name in ("tuner", "supervisor", "program", "lost", "twice", "orphans", "failed")}
    found |= {"tuner": [150.0], "program": [50.0], "twice": [1.0]}
    met = {row.quantity: row.record()["met"] for row in kills.rows({"kills": found})}
    assert met["kills of tuner, supervisor or program"]
    assert met["kills: finished trials lost"]
    assert not met["kills: counted twice or changed"]

"""Sections of debug on the page of a run: true numbers, few steps, few rows, the worst first."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from page_kit import Training
from torch import nn

from loopwise.debug import Collection, SavedRun, Watch, every, open_run
from loopwise.debug import page as pages
from loopwise.debug.page import distributions, histograms, layers
from loopwise.debug.page.layers import QUANTITIES, ROWS
from loopwise.debug.page.scalars import smoothed
from loopwise.debug.read.tables import Table, spread
from loopwise.debug.rules import SEVERITIES, Finding
from loopwise.debug.statistics.thin import thinned
from loopwise.run import Run


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = str(tmp_path_factory.mktemp("runs") / "run")
    training = Training(path)
    training.train(12)
    training.evaluate(3)
    training.train(4)
    training.watch.close()
    return path


def by_id(path, *others):
    return {each["id"]: each["blocks"] for each in pages.sections(path, *others)}


def test_an_empty_run_has_no_sections(tmp_path):
    Run(str(tmp_path / "run")).close()
    assert pages.sections(str(tmp_path / "run")) == []


def test_tables_have_the_numbers_of_series(path):
    saved = open_run(path)
    table = saved.tables({"gradient": ("mean", "std", "quantile_50")})["gradient"]
    assert table.names == ["0.weight", "0.bias", "2.weight", "2.bias", "4.weight", "4.bias"]
    assert table.shapes[0] == (16, 8)
    for statistic in ("mean", "std", "quantile_50"):
        for row, name in enumerate(table.names):
            steps, values = saved.series(f"gradient/{name}", statistic)
            np.testing.assert_array_equal(table.steps, steps)
            np.testing.assert_array_equal(table[statistic][row], values)
    assert np.isnan(table["l2"]).all()


def test_steps_are_chosen_before_they_are_read(path, monkeypatch):
    saved, read_steps = open_run(path), set()
    read = saved._blocks.read
    monkeypatch.setattr(
        saved._blocks, "read", lambda block, *place: read_steps.add(block.step) or read(block, *place)
    )
    table = saved.tables({"output": ("std",), "weight": ("std",)}, most=3)["output"]
    assert sorted(read_steps) == table.steps.tolist() == [0, 8, 18]
    assert spread(range(1000), 5) == [0, 250, 500, 749, 999]
    assert spread([4, 7], 5) == [4, 7]


def test_heat_maps_are_logarithms_with_gaps(path):
    listed, *maps = layers.blocks(open_run(path))
    assert listed["names"] == ["0", "1", "2", "3", "4", "(the model)"]
    plots = {each["title"]: each for each in maps}
    assert list(plots) == [
        "Gradients",
        "Weights",
        "Updates",
        "Outputs: spread",
        "Outputs: shift",
        "Outputs: zeros",
    ]
    trace = plots["Weights"]["data"][0]
    weight = open_run(path).statistics("0.weight", 3)
    expected = np.log10(np.hypot(weight["mean"], weight["std"]))
    np.testing.assert_allclose(trace["z"][trace["y"].index("0.weight"), 3], expected)
    zeros = plots["Outputs: zeros"]["data"][0]
    assert zeros["z"][zeros["y"].index("3")].min() == 1.0  # the dead ReLU
    assert zeros["y"][-1] == "(the model)"
    dead = plots["Outputs: spread"]["data"][0]
    assert np.isnan(dead["z"][dead["y"].index("3")]).all()


def test_many_layers_share_rows_and_the_description_names_it(tmp_path):
    many = nn.Sequential(*(nn.Linear(2, 2) for _ in range(ROWS + 20)))
    optimizer = torch.optim.SGD(many.parameters(), lr=0.1)
    watched = Collection("weights", statistics=("mean", "std"))
    with Watch(
        many, optimizer, run=str(tmp_path / "run"), save=every(1), collections=[watched], rules=False
    ) as watch:
        for _ in range(2):
            many(torch.randn(4, 2)).sum().backward()
            optimizer.step()
            watch.step()
    _, plot = layers.blocks(open_run(str(tmp_path / "run")))
    trace = plot["data"][0]
    assert trace["z"].shape == (ROWS, 2) == (len(trace["y"]), 2)
    assert trace["y"][0] == "0.weight to 1.weight"
    assert f"{ROWS} rows of neighbours" in plot["describe"]


def test_distributions_by_quantiles_or_else_by_spread(path):
    shown = distributions.blocks(open_run(path), ["4.weight"])
    plots = {each["title"]: each["plots"] for each in shown}
    assert set(plots) == {f"{kind}: distribution" for kind in ("Weights", "Gradients", "Outputs", "Inputs")}
    assert (
        plots["Weights: distribution"][0]["title"]
        == plots["Gradients: distribution"][0]["title"]
        == "4.weight"
    )
    assert "Median" in plots["Gradients: distribution"][0]["describe"]
    assert "one standard deviation" in plots["Weights: distribution"][0]["describe"]
    low, high, *_, middle = plots["Gradients: distribution"][0]["data"]
    assert (low["y"] <= middle["y"]).all()
    assert (middle["y"] <= high["y"]).all()


def test_histograms_are_those_that_were_saved(path):
    saved = open_run(path)
    (chosen,) = histograms.blocks(saved, ["4.weight"])
    assert (chosen["title"], chosen["of_layers"]) == ("Gradients: histogram", True)
    plot = chosen["plots"][0]
    assert plot["title"] == "4.weight"
    frames = plot["frames"]
    assert frames["values"].tolist() == saved.steps("train")[:1] + frames["values"].tolist()[1:]
    step = int(frames["values"][3])
    kept = saved.statistics("gradient/4.weight", step)
    assert frames["range"][3].tolist() == [kept["bins_from"], kept["bins_to"]]
    assert frames["y"][3].tolist() == [kept[f"bin_{number}"] for number in range(64)]
    assert frames["y"].sum(axis=1).tolist() == [48] * len(frames["values"])


def test_histograms_of_a_run_that_saved_none(tmp_path):
    with Watch(nn.Linear(2, 2), run=str(tmp_path / "run"), save=every(1), rules=False) as watch:
        watch.step(loss=1.0)
    assert histograms.blocks(open_run(str(tmp_path / "run"))) == []


def test_an_overview_has_the_last_step_loss_and_findings(path, tmp_path):
    saved = open_run(path)
    row = pages.overview(path)
    counts = [finding.severity for finding in saved.findings()]
    assert row["step"] == saved.steps()[-1]
    assert row["last loss"] == saved.series("loss", mode="train")[1][-1]
    assert row["findings"] == f"{counts.count('warning')} warnings"
    Run(str(tmp_path / "empty")).close()
    assert pages.overview(str(tmp_path / "empty")) == {}


def test_a_finding_links_to_its_layers_and_plots():
    of_loss = Finding("a", "warning", 2, "train", "it rises", (), {"loss, train": [(1, 1.0)]}, "lower it")
    assert pages._finding(of_loss)["plots"] == ["Losses"]
    of_layer = Finding(
        "a", "warning", 2, "train", "it burns", ("0.weight",), {"2.weight": [(1, 1.0)]}, "water"
    )
    assert pages._finding(of_layer)["tensors"] == ["0.weight", "2.weight"]


def test_losses_of_each_mode_over_all_steps(path):
    losses = by_id(path)["metrics"][0]
    lines = {trace["name"]: trace for trace in losses["data"]}
    steps, values = open_run(path).series("loss")
    of_eval = (steps >= 12) & (steps < 15)
    np.testing.assert_array_equal(lines["loss, eval"]["x"], [12, 13, 14])
    np.testing.assert_array_equal(lines["loss, eval"]["y"], values[of_eval])
    np.testing.assert_array_equal(lines["loss, train"]["y"], values[~of_eval])


def test_a_thinned_line_keeps_its_extremes_and_ends():
    values = np.sin(np.arange(50_000) / 500)
    values[[777, 40_001]] = 9.0, -9.0
    values[20_000:21_000] = np.nan
    steps, kept = thinned(np.arange(50_000), values, 400)
    assert len(steps) <= 402
    assert {0, 777, 40_001, 49_999} <= set(steps.tolist())
    assert np.isnan(kept).any()
    mean = smoothed(np.array([1.0, np.nan, 3.0, 5.0]))
    np.testing.assert_allclose(mean, [1.0, 2.0, 4.0, 4.0])


def test_losses_that_are_not_finite_are_counted(tmp_path):
    with Watch(nn.Linear(1, 1), run=str(tmp_path / "run"), save=every(1), rules=False) as watch:
        for loss in (1.0, 0.5, float("nan"), float("inf")):
            watch.step(loss=loss)
    assert "NaN or infinite at 2 steps from 2 on" in by_id(str(tmp_path / "run"))["metrics"][0]["describe"]


def without_summary(path):
    """Return the blocks of the findings, without the sentences for the first paragraph."""
    return [block for block in by_id(path)["findings"] if block["kind"] != "summary"]


def test_findings_are_those_recorded(path, monkeypatch):
    recorded = without_summary(path)
    assert "dead_relu" in [block["rule"] for block in recorded]
    assert len(recorded) == len(open_run(path).findings())
    places = [(-SEVERITIES.index(block["severity"]), block["step"]) for block in recorded]
    assert places == sorted(places)
    monkeypatch.setattr(SavedRun, "findings", lambda self: [])
    (text,) = without_summary(path)
    assert text["text"].startswith("No findings were recorded")
    assert f"loopwise debug findings {path}" in text["text"]


def test_all_findings_are_there_and_the_worst_have_plots(path, monkeypatch):
    monkeypatch.setattr(pages, "SHOWN", 1)
    points = {"w": [(1, 1.0), (2, 2.0)]}
    recorded = [
        Finding("a_rule", severity, step, "train", "it burns", (), points, "water")
        for step, severity in enumerate(("info", "critical", "warning"))
    ]
    monkeypatch.setattr(SavedRun, "findings", lambda self: recorded)
    note, *blocks = without_summary(path)
    assert note["text"] == "3 findings, the worst 1 of them with their plots."
    assert [each["severity"] for each in blocks] == ["critical", "warning", "info"]
    assert [each["plot"] is not None for each in blocks] == [True, False, False]


def test_tensors_among_metrics_have_no_lines(tmp_path):
    with Watch(nn.Linear(1, 1), run=str(tmp_path / "run"), save=every(1), rules=False) as watch:
        for step in range(3):
            watch.save("confusion", torch.ones(2, 2) * step, collection="metrics")
            watch.step(loss=1.0, accuracy=0.5)
    assert [each["title"] for each in by_id(str(tmp_path / "run"))["metrics"]] == ["Losses", "accuracy"]


def test_a_shift_that_was_not_saved_is_a_gap():
    table = Table(np.arange(2), ["a", "b"], [(), ()], {"mean": np.ones((2, 2))})
    table.values["std"] = np.array([[np.nan, 0.5], [np.nan, np.nan]])
    shift = QUANTITIES[4].value(table)
    np.testing.assert_array_equal(shift, [[np.nan, 2.0], [np.nan, np.nan]])


def test_tensors_that_cannot_be_chosen_are_counted(path, monkeypatch):
    monkeypatch.setattr(distributions, "CHOICES", 2)
    weights = {each["title"]: each for each in distributions.blocks(open_run(path))}["Weights: distribution"]
    assert (weights["label"], len(weights["plots"])) == ("Of (2 of 6)", 2)


def test_a_finding_has_its_evidence_and_its_line():
    points = [(1, 1e-3), (2, 10.0)]
    finding = Finding(
        "a_rule", "warning", 2, "train", "it burns", ("w",), {"w": points}, "water", "train.py:3"
    )
    block = pages._finding(finding)
    assert (block["line"], block["step"], block["plot"]["layout"]["yaxis"]["type"]) == (
        "train.py:3",
        2,
        "log",
    )
    assert block["plot"]["data"][0]["y"] == [1e-3, 10.0]


def trained(path, seed, steps=4):
    torch.manual_seed(seed)
    training = Training(path, seed)
    training.train(steps)
    training.watch.close()
    return path


def test_two_equal_runs(tmp_path):
    first, second = (trained(str(tmp_path / name), 0) for name in ("first", "second"))
    text, *_ = by_id(first, second)["comparison"]
    assert text["text"] == "The two runs are equal in the 4 saved steps that both have."


def test_two_runs_that_differ_at_their_first_step(tmp_path):
    first, second = trained(str(tmp_path / "first"), 0), trained(str(tmp_path / "second"), 1, steps=6)
    text, table = by_id(first, second)["comparison"]
    assert text["text"].startswith("The two runs differ first at step 0 in ")
    assert table["rows"] == [[second, 2, "steps", "4, 5"]]
    assert [each["name"] for each in by_id(first, second)["metrics"][0]["data"]] == [
        "loss, train",
        "loss, train of second",
    ]


def of_rank(path, rank):
    """Copy the files of rank 0 as those of another rank."""
    for name in ("index.rank0.0.jsonl", "tensors.rank0.0.seg"):
        shutil.copy(f"{path}/debug/{name}", f"{path}/debug/{name.replace('rank0', f'rank{rank}')}")


def test_two_runs_that_differ_on_another_rank(tmp_path):
    first, second = (trained(str(tmp_path / name), 0) for name in ("first", "second"))
    other = trained(str(tmp_path / "other"), 1)
    of_rank(first, 1)
    of_rank(other, 1)
    for name in ("index.rank1.0.jsonl", "tensors.rank1.0.seg"):
        shutil.copy(f"{other}/debug/{name}", f"{second}/debug/{name}")
    text, *_ = by_id(first, second)["comparison"]
    assert text["text"].startswith("The two runs differ first at step 0 in ")
    assert " of rank 1: " in text["text"]


def test_the_comparison_of_two_runs_names_lost_bytes(tmp_path):
    first, second = trained(str(tmp_path / "first"), 0), trained(str(tmp_path / "second"), 1)
    os.truncate(f"{second}/debug/tensors.rank0.0.seg", 0)
    text, *_ = by_id(first, second)["comparison"]
    assert text["text"].startswith(
        "The first difference cannot be determined. Bytes of step 0, 1, 2, 3 are lost"
    )
    assert "findings" in by_id(first, second)


def cut(path, source, steps):
    """Write an index with the layouts and the first steps of another one."""
    lines = Path(source).read_text().splitlines(True)
    numbers = [number for number, line in enumerate(lines) if line.startswith('{"step"')]
    Path(path).write_text("".join(lines[: numbers[steps]]))


@pytest.mark.parametrize(("ended", "steps", "said"), [(False, 3, False), (False, 2, True), (True, 3, True)])
def test_ranks_that_write_a_step_later_are_not_behind(tmp_path, monkeypatch, ended, steps, said):
    path = trained(str(tmp_path / "run"), 0)
    of_rank(path, 1)
    cut(f"{path}/debug/index.rank1.0.jsonl", f"{path}/debug/index.rank0.0.jsonl", steps)
    monkeypatch.setattr(SavedRun, "ended", ended)
    texts = [each["text"] for each in without_summary(path) if each["kind"] == "text"]
    assert any("Some ranks end before step 3: 1" in text for text in texts) == said

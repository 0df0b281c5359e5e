"""Damaged runs and invalid thresholds: a clear error, or the part that can still be read."""

import dataclasses
import json
import math
import shutil

import pytest
import torch
from click.testing import CliRunner
from torch import nn

from loopwise.debug import RULES, Watch, every, open_run
from loopwise.debug.cli import command
from loopwise.errors import InputError, LoopwiseError, StateError
from loopwise.run import SCHEMA, Run


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run with findings."""
    path = tmp_path_factory.mktemp("whole") / "run"
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-4)
    with Watch(net, optimizer, run=path, save=every(1), on_finding=lambda _: None) as watch:
        for _ in range(6):
            loss = nn.functional.cross_entropy(net(100 * torch.randn(6, 4)), torch.arange(6) % 3)
            loss.backward()
            optimizer.step()
            watch.step(loss=loss)
    assert "gradient_not_zeroed" in {finding.rule for finding in watch.findings}
    return path


@pytest.fixture
def run(whole, tmp_path):
    """A copy of the run, which the test damages."""
    return shutil.copytree(whole, tmp_path / "copy")


def told(path, *options):
    """Exit status and output of ``loopwise debug findings``."""
    done = CliRunner().invoke(command, ["findings", str(path), *options])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.output


# -- the run ----------------------------------------------------------------------------------------


def test_no_run(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    for name in ("nothing", "file", "empty"):
        with pytest.raises(InputError, match=r"no run\.json in"):
            open_run(tmp_path / name)
        code, text = told(tmp_path / name)
        assert code == 1
        assert "seen: no run.json in" in text
        assert "fix: check the path" in text


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"schema": "new"}', "\x00\x01"])
def test_marks_of_an_invalid_form(run, text):
    (run / "run.json").write_text(text)
    with pytest.raises(InputError, match=r"the run\.json in"):
        open_run(run)
    assert told(run)[0] == 1


def test_a_newer_schema(run):
    info = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(info | {"schema": SCHEMA + 1}))
    with pytest.raises(InputError) as error:
        open_run(run)
    assert f"of schema {SCHEMA + 1}\nexpected: at most {SCHEMA}" in str(error.value)
    assert told(run)[0] == 1


def test_an_empty_run(tmp_path):
    Run(str(tmp_path / "run")).close()
    saved = open_run(tmp_path / "run")
    assert (saved.steps(), saved.findings(), saved.judge(), saved.verify()) == ([], [], [], [])
    assert told(tmp_path / "run") == (0, "0 findings, 0 critical\n")


def test_a_run_that_was_killed_before_its_first_step(run):
    shutil.rmtree(run / "debug")
    assert (open_run(run).steps(), open_run(run).findings(), open_run(run).judge()) == ([], [], [])


@pytest.mark.parametrize("cut", [1, 17, 60, 400])
def test_a_torn_index(run, cut):
    """Rules are applied to the steps that a killed process had committed."""
    (index,) = (run / "debug").glob("index.*")
    index.write_bytes(index.read_bytes()[:-cut])
    saved = open_run(run)
    assert saved.steps() == [*range(len(saved.steps()))]
    assert saved.judge() == [each for each in saved.findings() if each.step < len(saved.steps())]


@pytest.mark.parametrize("keep", [0, 100, 5000])
def test_lost_bytes(run, keep):
    """Lost bytes are named; rules do not take them for numbers."""
    for segment in (run / "debug").glob("tensors.*"):
        segment.write_bytes(segment.read_bytes()[:keep])
    with pytest.raises(StateError, match="step"):
        open_run(run).judge()
    assert open_run(run).findings()
    assert told(run)[0] == 1


@pytest.mark.parametrize("cut", [1, 30, 200])
def test_torn_findings(run, cut):
    (file,) = (run / "debug").glob("findings.*")
    before = open_run(run).findings()
    file.write_bytes(file.read_bytes()[:-cut])
    assert open_run(run).findings() == before[: len(open_run(run).findings())]
    assert len(open_run(run).findings()) < len(before)


# -- ranks ------------------------------------------------------------------------------------------


def shard(rank):
    return torch.full((2,), float(rank)), {"shape": [4], "start": [2 * rank]}


def test_a_rank_whose_files_are_missing(tmp_path, saving, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in range(2):
        writer = saving(tmp_path / "run", rank=rank)
        for step in range(3):
            writer.step(step, {"weights": {"w": shard(rank)}}, {"losses": {"loss": float("nan")}})
        writer.end()
    for file in (tmp_path / "run" / "debug").glob("*.rank1.*"):
        file.unlink()
    saved = open_run(tmp_path / "run")
    assert (saved.info["world"], saved.ranks, saved.steps()) == (2, [0], [0, 1, 2])
    assert [finding.rule for finding in saved.judge()] == ["exploding_tensor"]
    with pytest.raises(StateError, match="rank"):
        saved.value("w", 0)
    with pytest.raises(InputError, match="rank=1"):
        saved.judge(rank=1)
    assert told(tmp_path / "run")[0] == 1


def test_a_rank_that_ended_early(tmp_path, saving):
    for rank, steps in ((0, 3), (1, 1)):
        writer = saving(tmp_path / "run", rank=rank)
        for step in range(steps):
            writer.step(step, scalars={"losses": {"loss": float("nan") if rank else 1.0}})
        writer.end()
    saved = open_run(tmp_path / "run")
    assert saved.judge() == []
    with pytest.raises(InputError) as error:
        saved.judge(rank=1)
    assert "seen: rank=1 at step 1\nexpected: one of: 0" in str(error.value)


# -- rules ------------------------------------------------------------------------------------------


def broken(history):
    raise ZeroDivisionError("of its own")
    yield


def test_a_rule_that_raises_is_named(run, monkeypatch):
    monkeypatch.setitem(RULES, "overfit", dataclasses.replace(RULES["overfit"], detect=broken, mode="train"))
    with pytest.raises(StateError) as error:
        open_run(run).judge()
    assert "seen: the rule overfit is switched off: ZeroDivisionError('of its own')" in str(error.value)
    assert "fix: leave the rule out" in str(error.value)
    code, text = told(run)
    assert (code, "the rule overfit" in text) == (1, True)
    assert told(run, "--rule", "gradient_not_zeroed")[0] == 1
    assert [each.rule for each in open_run(run).judge(["gradient_not_zeroed"])] == ["gradient_not_zeroed"]


@pytest.mark.parametrize(
    ("rules", "seen"),
    [
        (5, "rules=5"),
        ([["overfit"]], r"the rule \['overfit'\]"),
        ([None], "the rule None"),
        ({"overfit": None}, "the thresholds None of the rule overfit"),
        ({"overfit": {"ratio": math.nan}}, "ratio=nan"),
        ({"overfit": {"ratio": math.inf}}, "ratio=inf"),
        ({"overfit": {"ratio": 0}}, "ratio=0"),
        ({"overfit": {"ratio": 1j}}, "ratio=1j"),
        ({"overfit": {"patience": 0.5}}, "patience=0.5"),
        ({"all_zero": {"steps": 2.5}}, "steps=2.5"),
        ({"dead_relu": {"share": 98}}, "share=98"),
    ],
)
def test_thresholds_out_of_range(run, rules, seen):
    with pytest.raises(InputError, match=seen):
        open_run(run).judge(rules)
    with pytest.raises(LoopwiseError, match=seen):
        Watch(nn.Linear(1, 1), run=run / "new", rules=rules)
    assert not (run / "new").exists()


@pytest.mark.parametrize("rule", [name for name, rule in RULES.items() if rule.source == "saved step"])
def test_whole_numbers_are_thresholds(run, rule):
    """Thresholds equal to the defaults are valid."""
    import inspect

    parameters = [*inspect.signature(RULES[rule].detect).parameters.values()][1:]
    thresholds = {each.name: each.default for each in parameters if 0 < each.default < math.inf}
    open_run(run).judge({rule: thresholds})

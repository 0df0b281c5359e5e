"""Benchmark records: medians, ratios and bars are computed, interrupted runs go on."""

import json
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def benchmarks(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks import harness, record

    monkeypatch.setattr(harness, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(record, "RESULTS", tmp_path / "results")
    yield harness, record
    for name in [name for name in sys.modules if name.split(".")[0] == "benchmarks"]:
        monkeypatch.delitem(sys.modules, name)


@pytest.mark.parametrize(
    ("bar", "met"),
    [
        ("ratio <= 0.5", True),
        ("ratio <= 0.4", False),
        ("ours >= 3", False),
        ("ours <= 2", True),
        (None, None),
    ],
)
def test_bars_are_computed(benchmarks, bar, met):
    row = benchmarks[1].Row("speed", [2.0, 1.0, 9.0], [4.0, 4.0, 5.0], "peer", "ms", bar).record()
    assert (row["ours"], row["peer"], row["ratio"], row["runs"]) == ([2.0, 1.0, 9.0], [4.0, 4.0, 5.0], 0.5, 3)
    assert row["met"] is met


def test_a_peer_of_zero_has_no_ratio(benchmarks):
    row = benchmarks[1].Row("regret", [0.25], [0.0], "random", "", None).record()
    assert (row["ours"], row["peer"], row["ratio"]) == ([0.25] * 3, [0.0] * 3, None)


def test_the_newest_record_of_a_claim_is_listed(benchmarks):
    _, record = benchmarks
    record.RESULTS.mkdir()
    for day, value in ((20260101, 1), (20260301, 3), (20260201, 2)):
        (record.RESULTS / f"speed_cpu_{day}.json").write_text(json.dumps({"value": value}))
    assert record.newest() == [{"value": 3}]


def fake():
    module = ModuleType("fake")
    module.__spec__ = SimpleNamespace(name="fake")
    module.CLAIM = "fake"
    module.cases = lambda device: {"a": None, "b": None}
    module.rows = lambda runs: []
    return module


def test_runs_are_interleaved_and_an_interrupted_benchmark_goes_on(benchmarks, monkeypatch, capsys):
    harness, record = benchmarks
    order = []

    def child(command, **_):
        order.append(tuple(command[-2:]))
        return SimpleNamespace(returncode=0, stdout='result: {"time": 1.5}\n', stderr="")

    monkeypatch.setattr(harness, "subprocess", SimpleNamespace(run=child))
    monkeypatch.setattr(record, "commit", lambda: "abc")
    assert not harness.run(fake(), 3, False, until=time.monotonic() - 1)
    assert harness.run(fake(), 2, False)
    assert order == [("a", "0"), ("b", "0"), ("a", "1"), ("b", "1")]
    assert harness.run(fake(), 3, False)
    assert order[4:] == [("a", "2"), ("b", "2")]
    newest = record.newest()[0]
    assert (newest["claim"], newest["commit"], newest["quick"]) == ("fake", "abc", False)
    assert newest["date"].replace("-", "") in next(record.RESULTS.glob("fake_*.json")).stem
    assert newest["command"].startswith("python ")
    assert "fake" in capsys.readouterr().out


def test_a_record_has_the_seeds_that_the_cache_has_of_cases_that_are_not_named(benchmarks, monkeypatch):
    harness, record = benchmarks
    child = SimpleNamespace(returncode=0, stdout='result: {"time": 1.5}\n', stderr="")
    monkeypatch.setattr(harness, "subprocess", SimpleNamespace(run=lambda *_, **__: child))
    monkeypatch.setattr(record, "commit", lambda: "abc")
    module, seen = fake(), []
    module.rows = lambda runs: seen.append({case: len(runs[case]["time"]) for case in runs}) or []
    assert harness.run(module, 1, False)
    assert harness.run(module, 3, False, match="b")
    assert seen == [{"a": 1, "b": 1}, {"a": 1, "b": 3}]


def test_a_benchmark_goes_on_from_a_record(benchmarks, monkeypatch):
    harness, record = benchmarks
    ran = []

    def child(command, **_):
        ran.append(tuple(command[-2:]))
        return SimpleNamespace(returncode=0, stdout='result: {"time": 1.5}\n', stderr="")

    monkeypatch.setattr(harness, "subprocess", SimpleNamespace(run=child))
    monkeypatch.setattr(record, "commit", lambda: "abc")
    assert harness.run(fake(), 1, False)
    path = next(record.RESULTS.glob("fake_*.json"))
    monkeypatch.setattr(record, "sources", lambda: "other code")
    monkeypatch.setattr(record, "commit", lambda: "def")
    assert harness.run(fake(), 2, False, earlier=path)
    assert ran == [("a", "0"), ("b", "0"), ("a", "1"), ("b", "1")]
    found = json.loads(path.read_text())
    assert found["commits"] == ["abc", "def"]
    assert found["raw"]["b"] == {"0": {"time": 1.5}, "1": {"time": 1.5}}
    assert harness.run(fake(), 1, False, match="a", earlier=path)  # its further seeds are kept
    assert json.loads(path.read_text())["raw"] == found["raw"]
    assert len(ran) == 4
    path.write_text(json.dumps(found | {"versions": {"torch": "1.0"}}))
    with pytest.raises(SystemExit, match="its versions is"):
        harness.run(fake(), 2, False, earlier=path)


def test_a_real_child_process_measures(benchmarks):
    harness, _ = benchmarks
    from benchmarks.sift import overhead

    quantities = harness.measure(overhead, "wrapper", 0, quick=True, fresh=False)
    assert quantities["wrapper us/sample"] > 0


def test_a_failing_case_says_which(benchmarks):
    harness, _ = benchmarks
    from benchmarks.sift import overhead

    with pytest.raises(RuntimeError, match=r"sift_overhead, case missing, seed 0 failed:[\s\S]*KeyError"):
        harness.measure(overhead, "missing", 0, quick=True, fresh=False)


def test_a_failing_case_does_not_stop_the_others(benchmarks, monkeypatch):
    harness, record = benchmarks
    order, broken = [], {"a"}

    def child(command, **_):
        order.append(command[-2])
        return SimpleNamespace(
            returncode=int(command[-2] in broken), stdout='result: {"time": 1}\n', stderr=""
        )

    monkeypatch.setattr(harness, "subprocess", SimpleNamespace(run=child))
    with pytest.raises(harness.CaseError, match="fake, case a, seed 0 failed"):
        harness.run(fake(), 1, False)
    assert (order, record.newest()) == (["a", "b"], [])
    broken.clear()
    assert harness.run(fake(), 1, False)
    assert order == ["a", "b", "a"]  # the finished case was kept
    assert len(record.newest()) == 1


def test_benchmarks_import_loopwise_from_a_bare_checkout():
    code = "import sys; sys.path[:0] = [sys.argv[1]]; sys.meta_path = [f for f in sys.meta_path if 'editable' not in repr(f).lower()]\nimport benchmarks, loopwise.sift; print(loopwise.sift.__file__)"
    done = subprocess.run([sys.executable, "-c", code, str(ROOT)], capture_output=True, text=True)
    assert done.stdout.strip() == str(ROOT / "sift" / "__init__.py"), done.stderr

"""Seeded mutations of every file of a run folder; ``python -m benchmarks.debug.fuzz`` reads many more of them."""

import sys
from pathlib import Path

import pytest

from loopwise.debug.store.dtypes import DTYPES

ROOT = Path(__file__).parents[3]
INPUTS = 40
KINDS = (
    "run", "index", "segment", "findings", "system", "phases", "operators", "epochs", "compile", "tune", "feed", "plan",
    "state",
)  # fmt: skip


@pytest.fixture(scope="module")
def fuzz(tmp_path_factory):
    """Return the fuzzer's module, and a fuzzer of a whole run."""
    folder = tmp_path_factory.mktemp("fuzz")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT))
        patch.setenv("LOOPWISE_CACHE", str(folder))  # set by the fuzzer, too
        from benchmarks.debug import fuzz

        yield fuzz, fuzz.Fuzzer(folder)
        for name in [name for name in sys.modules if name.split(".")[0] == "benchmarks"]:
            patch.delitem(sys.modules, name)


def test_every_kind_is_tested(fuzz):
    assert set(KINDS) == set(fuzz[0].READERS)


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_file_gives_a_clear_error_or_a_part_of_the_run(fuzz, kind):
    result = fuzz[1].run(kind, INPUTS, seed=0)
    assert result.raw == []
    assert result.touched == []
    assert result.memory < fuzz[0].MEMORY
    assert result.inputs == INPUTS


def test_a_raw_error_and_a_file_outside_would_be_seen(fuzz, monkeypatch, tmp_path):
    def careless(run):
        (tmp_path / "outside").write_text("")
        raise KeyError("of its own")

    monkeypatch.setitem(fuzz[0].READERS, "feed", ("feed/*.jsonl", (careless,)))
    result = fuzz[1].run("feed", 2, seed=0)
    assert ["of its own" in text for text in result.raw] == [True, True]
    assert [str(tmp_path / "outside") in text for text in result.touched] == [True, True]


def test_much_memory_would_be_seen(fuzz, monkeypatch):
    peaks = iter([100.0, 100.0 + 2 * fuzz[0].MEMORY])
    monkeypatch.setattr(fuzz[0], "peak", lambda: next(peaks))
    result = fuzz[1].run("feed", 1, seed=0)
    assert result.memory == 2 * fuzz[0].MEMORY
    assert result.raw == [f"feed, seed 0, input 0: {2 * fuzz[0].MEMORY:.0f} MiB"]


def test_the_same_seed_makes_the_same_inputs(fuzz):
    from random import Random

    from benchmarks.debug.fuzz_inputs import mutated

    data = b'{"a":1,"dtype":"float32","b":[1,2,3]}\n' * 3
    inputs = [[mutated(data, Random(f"x {seed}"), [b"other"]) for seed in range(100)] for _ in range(2)]
    assert inputs[0] == inputs[1]
    assert len(set(inputs[0])) > 80
    assert any(b'"quint8"' in each for each in inputs[0])
    assert "quint8" not in DTYPES

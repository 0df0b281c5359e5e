"""Writers killed by SIGKILL lose nothing that was committed; the benchmark ``debug.crash`` kills two hundred."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from loopwise.debug import open_run

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def crash():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT))
        from benchmarks.debug import crash

        yield crash
        for name in [name for name in sys.modules if name.split(".")[0] == "benchmarks"]:
            patch.delitem(sys.modules, name)


@pytest.fixture(scope="module")
def breeder(crash):
    with crash.breeding() as breeder:
        yield breeder


def test_killed_writers_leave_everything_committed(crash, breeder):
    result = crash.kills(10, 0, breeder)
    assert result["kills"] == 10
    assert result["steps"] > 10
    assert (result["lost"], result["corrupt"]) == (0, 0)


@pytest.fixture
def killed(crash, breeder, tmp_path):
    """Run of a writer that was killed, resumed and killed again."""
    crash.kill(breeder, str(tmp_path / "run"), 0, 3000, 0.0)
    first = len(crash.look(tmp_path / "run" / "debug").steps)
    crash.kill(breeder, str(tmp_path / "run"), first, 3000, 0.0)
    return tmp_path / "run"


def test_a_saved_run_reads_what_a_killed_writer_left(crash, killed):
    damage = crash.look(killed / "debug")
    saved = open_run(killed)
    assert saved.verify() == []
    assert saved.steps() == damage.steps == list(range(len(damage.steps)))
    for step in damage.steps:
        assert np.array_equal(saved.value("weight", step), crash.weight(step))
        assert np.array_equal(saved.value("extra", step), crash.extra(step))


def test_damage_would_be_detected(crash, killed):
    folder = killed / "debug"
    steps = crash.look(folder).steps
    first = next(iter(crash.lines(folder)))[0]
    record = next(r for r in map(json.loads, first) if r.get("step") == 2)
    file = folder / f"tensors.rank0.{record['segment']}.seg"
    data = bytearray(file.read_bytes())
    data[record["offset"] + record["length"] - 1] ^= 1
    file.write_bytes(data)
    index = folder / "index.rank0.0.jsonl"
    index.write_bytes(
        b"".join(line + b"\n" for line in first if not line.startswith(b'{"step":1,')) + b'{"st'
    )
    damage = crash.look(folder)
    assert (damage.corrupt, damage.lost, damage.torn >= 1) == ([2], 1, True)
    assert damage.steps == [step for step in steps if step != 1]

"""Reading of a stored profile, its tables, and the sections of the page."""

import numpy as np
import pytest
import torch
from torch import nn

from loopwise.debug.profiler import Profile, Profiler, page, reading, summary
from loopwise.debug.profiler.host import Counters
from loopwise.debug.profiler.sampler import Sampler
from loopwise.debug.rules.profile import series
from loopwise.debug.rules.profile.series import FIXED
from loopwise.errors import InputError
from loopwise.run import Run
from loopwise.schedule import at

sections_of = pytest.importorskip("loopwise.report.sections")


def profiled(path, clock, steps=4, resume=False, window=()):
    """Record a run of ``steps`` seconds; odd steps wait twice as long for their data."""
    with Run(str(path), resume=resume) as run:
        net = nn.Linear(4, 2)
        profiler = Profiler({"": net}, {}, run, Profile(interval=60, windows=at(window)))
        profiler._phases._clock = clock
        for step in range(steps):
            profiler.begin(step, "train" if step != 2 else "eval")
            start = profiler._phases.loads()
            clock.tick(0.25 * (1 + step % 2))
            profiler._phases.loaded(start, 3)
            with profiler.phase("mine"):
                clock.tick(0.25)
            net(torch.ones(2, 4))
            profiler.end(step, "train" if step != 2 else "eval", {})
        profiler._sampler.sample()
        profiler.close()
    return str(path)


def test_tables_of_a_run(tmp_path, clock):
    path = profiled(tmp_path / "run", clock)
    (session,) = reading.sessions(path)
    table = session.phases
    assert table.modes == ("train", "train", "eval", "train")
    shares = summary.phases(table)
    assert shares["train"]["data"] == pytest.approx((1.25, 0.625))
    assert shares["train"]["mine"] == pytest.approx((0.75, 0.375))
    assert shares["eval"]["data"] == pytest.approx((0.25, 0.5))
    steps = summary.steps(table)
    assert steps["train"] == pytest.approx(
        {"steps": 3, "mean": 2 / 3, "p50": 0.75, "p95": 0.75, "p99": 0.75, "max": 0.75}
    )
    times = summary.job(path, [session])
    assert times["start"] <= times["start"] + times["initialization"] <= times["end"]
    assert times["initialization"] + times["loop"] + times["finalization"] == pytest.approx(
        times["end"] - times["start"], abs=1e-2
    )


def test_usage_and_its_percentiles(run, clock):
    class Busier:
        """Counters of a machine whose memory fills up."""

        reads = 0

        def read(self):
            self.reads += 1
            return Counters(0.0, 2.0**20, [0.5 * self.reads], [self.reads], memory=1e6 * self.reads)

        def close(self):
            pass

    sampler = Sampler(run, 0.5, clock=clock, read=Busier())
    for _ in range(100):
        clock.tick(0.5)
        sampler.sample()
    sampler.close()
    (session,) = reading.sessions(run.path)
    usage = summary.usage(session.system, {"memory": 1e9})
    assert usage["memory"] == pytest.approx(
        {"max": 101e6, "p99": 100.01e6, "p95": 96.05e6, "p50": 51.5e6, "min": 2e6}
    )
    assert usage["memory, %"]["max"] == pytest.approx(10.1)
    assert usage["cpu"]["p50"] == 50


def test_outliers_among_steps():
    rows = np.zeros((50, len(FIXED)))
    rows[:, FIXED.index("step")] = np.arange(50)
    for name, value in {"count": 1, "seconds": 0.1, "longest": 0.1, "forward": 0.1}.items():
        rows[:, FIXED.index(name)] = value
    rows[7, [FIXED.index("seconds"), FIXED.index("longest"), FIXED.index("data")]] = 1.0, 1.0, 0.9
    (outlier,) = summary.outliers(series.Table(FIXED, rows, ("train",) * 50))
    assert outlier == {"step": 7, "seconds": 1.0, "times": pytest.approx(10), "phase": "data"}


def test_percentiles_of_values_that_stand_for_several():
    each, counts = np.array([3.0, 1.0, 2.0]), np.array([2.0, 7.0, 1.0])
    plain = np.sort(np.repeat(each, counts.astype(int)))
    for share in (1, 25, 50, 75, 99, 100):
        assert series.percentiles(each, counts, [share])[0] == plain[int(np.ceil(share / 10)) - 1]


def test_a_resumed_run_has_two_sessions(tmp_path, clock):
    profiled(tmp_path / "run", clock)
    path = profiled(tmp_path / "run", clock, steps=2, resume=True)
    first, second = reading.sessions(path)
    assert (first.phases["count"].sum(), second.phases["count"].sum()) == (4, 2)
    assert first.header["session"] < second.header["session"]
    assert [section["id"] for section in page.sections(path)] == ["job", "phases", "system"]


def test_sections_are_of_the_form_and_in_order(tmp_path, clock):
    path = profiled(tmp_path / "run", clock, window=[1])
    sections = [sections_of.validated(each) for each in page.sections(path)]
    assert [(each.id, each.order) for each in sections] == [
        ("job", 10),
        ("phases", 50),
        ("system", 60),
        ("operators", 70),
    ]
    for each in sections:
        for block in each.blocks:
            assert block["kind"] != "plot" or block["describe"], block


def test_two_runs_side_by_side(tmp_path, clock):
    one, two = profiled(tmp_path / "one", clock), profiled(tmp_path / "two", clock, steps=2)
    sections = {each["id"]: each for each in page.sections(one, two)}
    for each in sections.values():
        sections_of.validated(each)
    table = sections["phases"]["blocks"][0]
    assert table["columns"][-1] == "ms a step, two"
    data = next(row for row in table["rows"] if row[:2] == ["train", "data"])
    assert data[-2:] == pytest.approx([1250 / 3, 375], abs=0.01)


def test_long_runs_are_thinned(run, clock):
    class Idle:
        def read(self):
            return Counters(0.0, 2.0**20, [0.0, 0.0], [1.0, 1.0], memory=1e9)

        def close(self):
            pass

    rows = [["train", i, 1, 1e9 + i, 1, 1, 0, *[0.1] * 7] for i in range(10_000)]
    record = [{"columns": list(FIXED), "rows": rows}]
    sampler = Sampler(run, 0.5, clock=clock, read=Idle(), phases=lambda: record.pop() if record else None)
    for _ in range(5000):
        clock.tick(0.5)
        sampler.sample()
    sampler.close()
    for section in page.sections(run.path):
        for block in section["blocks"]:
            for trace in block.get("data", ()):
                assert len(trace["x"]) <= 2002, block["title"]


def test_a_run_without_a_profile_has_no_sections(tmp_path):
    with Run(str(tmp_path / "run")):
        pass
    assert page.sections(str(tmp_path / "run")) == []


def test_a_run_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match=r"no run\.json"):
        page.sections(str(tmp_path / "nothing"))


def test_a_run_that_goes_on_and_one_without_a_step(run, clock):
    sampler = Sampler(run, 0.5, clock=clock, phases=lambda: None)
    assert [each["id"] for each in page.sections(run.path)] == ["job"]
    clock.tick(0.5)
    sampler.sample()
    sections = page.sections(run.path)
    assert [each["id"] for each in sections] == ["job", "system"]
    for each in sections:
        sections_of.validated(each)
    sampler.close()


def test_samples_are_kept_as_numbers_of_8_bytes_and_damaged_ones_are_left_out(run, clock):
    sampler = Sampler(run, 0.5, clock=clock)
    for _ in range(3):
        clock.tick(0.5)
        sampler.sample()
    sampler.close()
    width = len(reading.sessions(run.path)[0].header["columns"])
    rest = [0.0] * (width - 3)
    for row in (
        [1.0],
        "x",
        ["x"] * width,
        [1.0, "NaN", None, *rest],
        ["NaN", 0, 0, *rest],
        [1.0, "NaN", 0, *rest],
    ):
        run.append("debug", "system", {"row": row})
    (session,) = reading.sessions(run.path)
    table = session.system
    assert table is session.system
    assert len(table) == 4
    assert np.isnan(table.rows[3]).sum() == 1
    assert {record["row"].itemsize for _, record in session.records} == {8}

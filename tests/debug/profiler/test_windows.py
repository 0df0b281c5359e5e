"""Windows of torch.profiler: their steps, their files, and the priority of the user's own profiler."""

import gzip
import json
import logging

import fsspec
import pytest
import torch
from torch import nn

from loopwise.debug.profiler import Profile, Profiler, reading
from loopwise.debug.profiler.windows import COLUMNS
from loopwise.run import Run
from loopwise.schedule import at, between, every


def train(run, windows, steps=8, modes=(), around=None, **options):
    net = nn.Linear(4, 2)
    profiler = Profiler({"": net}, {}, run, Profile(windows=windows, **options))
    for step in range(steps):
        mode = "eval" if step in modes else "train"
        if around is not None:
            around(step)
        profiler.begin(step, mode)
        net(torch.ones(2, 4)).sum().backward()
        profiler.end(step, mode, {})
    profiler.close()
    return profiler


def windows(path):
    return [(each["step"], each["steps"]) for session in reading.sessions(path) for each in session.operators]


@pytest.mark.parametrize(
    ("schedule", "modes", "expected"),
    [
        (at([2, 3, 6]), (), [(2, 2), (6, 1)]),
        (between(5), (), [(5, 3)]),
        (every(3), (3,), [(0, 1), (6, 1)]),
        (None, (), []),
    ],
)
def test_consecutive_steps_are_a_window(run, schedule, modes, expected):
    train(run, schedule, modes=modes)
    assert windows(run.path) == expected


@pytest.mark.parametrize(
    ("calls", "expected"),
    [
        ([("train", False), ("eval", True)], []),  # begun as training, and then anew
        ([("train", False), ("train", True), ("eval", True)], [(0, 1)]),
        ([("train", True), ("train", False), ("eval", True)], [(0, 1)]),
        ([("train", True), ("train", False), ("eval", False), ("train", True)], [(0, 1), (1, 1)]),
        ([("train", True), ("train", False)], [(0, 1)]),
    ],
)
def test_only_steps_that_ended_are_in_a_window(run, calls, expected):
    profiler = Profiler({"": nn.Linear(4, 2)}, {}, run, Profile(windows=every(1)))
    step = 0
    for mode, ends in calls:
        profiler.begin(step, mode)
        if ends:
            profiler.end(step, mode, {})
            step += 1
    profiler.close()
    assert windows(run.path) == expected
    traces = fsspec.filesystem("file").glob(f"{run.path}/debug/trace.*")
    assert len(traces) == len(expected)


def test_a_record_and_its_trace(run):
    train(run, at([1, 2]), top=5)
    (window,) = reading.sessions(run.path)[0].operators
    assert window["columns"] == list(COLUMNS)
    rows = {row[0]: row[1:] for row in window["rows"]}
    assert len(rows) == 5
    assert window["seconds"] >= sum(row[0] for row in rows.values()) > 0
    linear = next(row for name, row in rows.items() if name.startswith("aten::"))
    assert linear[2] >= 2
    assert window["trace"] == "trace.rank0.step1.json.gz"
    with gzip.open(f"{run.path}/debug/{window['trace']}") as file:
        names = {event.get("name") for event in json.load(file)["traceEvents"]}
    assert "aten::linear" in names


def test_traces_go_to_remote_storage():
    with Run("memory://windows") as run:
        train(run, at([1]))
    memory = fsspec.filesystem("memory")
    assert gzip.decompress(memory.cat("/windows/debug/trace.rank0.step1.json.gz"))
    assert windows("memory://windows") == [(1, 1)]
    memory.rm("/windows", recursive=True)


def test_the_users_own_profiler_has_priority(run, caplog):
    users = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], acc_events=True)

    def around(step):
        if step == 1:
            users.start()
        if step == 4:
            users.stop()

    with caplog.at_level(logging.WARNING, "loopwise.debug"):
        train(run, at([1, 2, 3, 5]), around=around)
    assert windows(run.path) == [(5, 1)]
    assert [record.message for record in caplog.records] == [
        "step 1 is not profiled: another torch.profiler is active"
    ]
    assert users.key_averages()

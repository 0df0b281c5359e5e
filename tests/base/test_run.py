"""Folder of a run: golden bytes, hostile bytes, resume, remote storage, and a writer killed at any moment."""

import json
import shutil
import subprocess

import forks
import pytest

from loopwise.errors import InputError, StateError
from loopwise.run import Lines, Run, decode, encode, location, read

WRITER = """
import sys
from loopwise.run import Run
run = Run(sys.argv[1])
print("ready", flush=True)
step = 0
while True:
    run.append("sift", "log", {"step": step, "text": "x" * (step % 5000)})
    step += 1
    print(step, flush=True)
"""


def test_golden_bytes():
    record = {"step": 1, "loss": float("nan"), "top": float("inf"), "low": float("-inf"), "name": "é"}
    golden = b'{"step":1,"loss":"NaN","top":"Infinity","low":"-Infinity","name":"\\u00e9"}\n'
    assert encode(record) == golden
    assert decode(golden + b'{"step":2') == ([json.loads(golden)], 1)


@pytest.mark.parametrize("cut", range(10))
def test_a_torn_tail_is_dropped_and_counted(cut):
    whole, second = encode({"a": 1}), encode({"b": 22})
    records, torn = decode(whole + second[:cut])
    assert records == ([{"a": 1}, {"b": 22}] if cut == len(second) else [{"a": 1}])
    assert torn == (0 < cut < len(second))


@pytest.mark.parametrize(
    "line",
    [
        b"{",
        b"",
        b"[1]",
        b"7",
        b"null",
        b"\xff\xfe",
        b'{"a":' + b"9" * 5000 + b"}",
        b"[" * 100_000,
        b'{"a":1}\x00',
    ],
)
def test_a_damaged_record_is_dropped_and_counted(tmp_path, line):
    """One flipped bit must not cost the records after it."""
    data = encode({"a": 1}) + line + b"\n" + encode({"b": 2})
    assert decode(data) == ([{"a": 1}, {"b": 2}], 1)
    (tmp_path / "sift").mkdir()
    (tmp_path / "sift" / "log.rank0.0.jsonl").write_bytes(data)
    assert read(tmp_path, "sift", "log") == ([{"a": 1}, {"b": 2}], 1)
    assert read(tmp_path, "sift", "log", lambda record: record["b"]) == ([2], 2)


@pytest.mark.parametrize(
    "facts",
    [
        {"schema": 1e300},
        {"schema": 10**400},
        {"schema": True},
        {"schema": 0},
        {"state": []},
        {"start": "yesterday"},
        {"start": 1e300},
        {"start": float("nan")},
        {"end": -1},
        {"host": {}},
        {"world": 10**9 * 10},
        {"world": 0},
        {"world": None},
        {"versions": 5},
        {"versions": [1]},
    ],
)
def test_a_run_json_with_values_of_another_form_is_refused(tmp_path, facts):
    Run(tmp_path).close()
    info = json.loads((tmp_path / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps(info | facts))
    with pytest.raises(InputError, match=r"the run\.json in"):
        Run.existing(tmp_path)


@pytest.mark.parametrize("moment", [1, 2, 7, 60, 300, 900])
def test_a_killed_writer_leaves_everything_committed(tmp_path, moment):
    path = str(tmp_path / "run")
    with subprocess.Popen([forks.python(), "-c", WRITER, path], stdout=subprocess.PIPE, text=True) as writer:
        announced = [writer.stdout.readline() for _ in range(moment)]
        forks.kill(writer)
        announced += writer.stdout.readlines()
    committed = sum(line.endswith("\n") for line in announced) - 1
    records, _ = read(path, "sift", "log")
    assert len(records) - committed in (0, 1)  # the last may be committed but not yet announced
    assert [r["step"] for r in records] == list(range(len(records)))
    assert Run.existing(path).state() == "ended"
    resumed = Run(path, resume=True)
    assert resumed.info()["state"] == resumed.state() == "running"
    resumed.close("failed")
    assert resumed.state() == "failed"


def test_resume_starts_a_new_file(tmp_path):
    with Run(str(tmp_path)) as run:
        run.append("sift", "log", {"step": 0})
    with Run(str(tmp_path), resume=True) as run:
        run.append("sift", "log", {"step": 1})
    assert read(str(tmp_path), "sift", "log") == ([{"step": 0}, {"step": 1}], 0)
    assert sorted(p.name for p in (tmp_path / "sift").iterdir()) == ["log.rank0.0.jsonl", "log.rank0.1.jsonl"]
    assert run.info()["state"] == "finished"


def test_a_second_run_into_a_folder_is_refused(tmp_path):
    Run(str(tmp_path)).close()
    with pytest.raises(StateError) as error:
        Run(str(tmp_path))
    assert str(error.value) == (
        f"seen: the folder '{tmp_path}' already holds a run\n"
        "expected: a new or empty folder, or resume=True\n"
        "likely cause: an earlier run wrote there\n"
        "fix: name another folder, delete this one, or pass resume=True to go on in it"
    )


def test_an_exception_marks_the_run_as_failed(tmp_path):
    with pytest.raises(KeyError), Run(str(tmp_path)) as run:
        raise KeyError
    assert run.info()["state"] == "failed"


def test_a_file_may_begin_while_others_are_flushed(tmp_path, monkeypatch):
    """The profiler's thread and the training loop write into one run."""
    run = Run(tmp_path / "run")
    flush = Lines.flush
    begun = iter(["second", "third"])

    def flush_beside_another_thread(lines):
        for name in begun:
            run.append("debug", name, {"step": 1})
        flush(lines)

    run.append("debug", "first", {"step": 0})
    monkeypatch.setattr(Lines, "flush", flush_beside_another_thread)
    run.flush()
    run.close()
    assert [read(str(tmp_path / "run"), "debug", name)[0] for name in ("first", "third")] == [
        [{"step": 0}],
        [{"step": 1}],
    ]


def test_remote_folders(tmp_path):
    with Run("memory://bucket/run") as run:
        for step in range(3):
            run.append("sift", "log", {"step": step})
            run.flush()
    assert read("memory://bucket/run", "sift", "log") == ([{"step": 0}, {"step": 1}, {"step": 2}], 0)


def test_a_missing_run_json_is_named(tmp_path):
    run = Run(tmp_path)
    (tmp_path / "run.json").unlink()
    with pytest.raises(InputError, match=r"no run\.json"):
        run.info()


def test_a_newer_schema_is_refused(tmp_path):
    Run(tmp_path).close()
    (tmp_path / "run.json").write_text(json.dumps({"schema": 2}))
    with pytest.raises(InputError) as error:
        Run.existing(tmp_path)
    assert str(error.value) == (
        f"seen: '{tmp_path}' of schema 2\n"
        "expected: at most 1\n"
        "likely cause: a newer version of Loopwise wrote the run\n"
        "fix: pip install -U loopwise"
    )


@pytest.mark.parametrize("place", ["memory:///bucket/named", None])
def test_location_of_a_run_opens_it_again(tmp_path, place):
    place = place or str(tmp_path)
    with Run(place) as run:
        run.append("sift", "log", {"step": 0})
    assert location(run) == run.url == place
    assert read(location(run), "sift", "log") == ([{"step": 0}], 0)
    assert repr(run) == f"Run({place!r})"


def test_location_refuses_other_types():
    with pytest.raises(InputError) as error:
        location(7)
    assert str(error.value) == (
        "seen: run= of type int\n"
        "expected: a folder, an fsspec URL such as s3://bucket/run, or a Run\n"
        "likely cause: arguments that changed places\n"
        "fix: pass run='runs/example'"
    )


def test_a_process_of_another_machine_or_container_is_not_looked_for(tmp_path):
    Run(tmp_path)
    info = json.loads((tmp_path / "run.json").read_text())
    for change in ({"boot": "another"}, {"space": "pid:[1]"}, {"pid": "x"}):
        (tmp_path / "run.json").write_text(
            json.dumps(info | {"process": info["process"] | {"pid": 2**22} | change})
        )
        assert Run.existing(tmp_path).state() == "running"
    (tmp_path / "run.json").write_text(json.dumps(info | {"process": info["process"] | {"pid": 2**22}}))
    assert Run.existing(tmp_path).state() == "ended"
    del info["process"]  # as older versions wrote it
    (tmp_path / "run.json").write_text(json.dumps(info))
    assert Run.existing(tmp_path).state() == "running"


def test_a_folder_that_is_deleted_is_written_anew(tmp_path):
    run = Run(tmp_path / "run")
    run.append("debug", "findings", {"number": 1})
    shutil.rmtree(tmp_path / "run")
    (tmp_path / "run").mkdir()
    run.append("debug", "findings", {"number": 2})
    assert Run.existing(tmp_path / "run").info()["state"] == "running"
    shutil.rmtree(tmp_path / "run")
    run.append("debug", "findings", {"number": 3})
    run.close()
    assert read(tmp_path / "run", "debug", "findings") == ([{"number": 3}], 0)
    assert Run.existing(tmp_path / "run").info()["state"] == "finished"

"""Segments: golden bytes, an independent reader, rotation, resuming, and disks that fail."""

import functools
import json
import os
import shutil
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from writing_kit import room

from loopwise.debug import open_run
from loopwise.debug.store import segments
from loopwise.debug.store.group import Group
from loopwise.debug.store.segments import Segments
from loopwise.run import Run


def padded(data):
    return data + bytes(-len(data) % 64)


@functools.cache
def groups(*names):
    """One float32 of shape (2,) for each name, and a table of two numbers."""
    signature = ((torch.float32, torch.Size([2])),) * len(names)
    tensors = Group("weights", names, signature, tuple(range(0, 64 * len(names), 64)))
    return tensors, Group("losses", ("a", "b"), (), (64 * len(names),), ("value",))


def chunks(step, count=1):
    """The bytes of a block of such a layout, computed from the step."""
    tensors = [padded(np.array([step, step + 0.5 + i], "<f4").tobytes()) for i in range(count)]
    return [*tensors, padded(np.array([step, -step], "<f8").tobytes())]


def record(step):
    return {"step": step, "mode": "train", "mode_step": step, "time": 1e9 + step, "marks": {}}


def write(target, step, *names):
    names = names or ("w",)
    target.write(groups(*names), chunks(step, len(names)), record(step))


def read_back(folder):
    """Return step -> names and arrays of rank 0, by the specification in segments.py alone."""
    steps, layouts = {}, {}
    numbered = [name.split(".") for name in os.listdir(folder) if name.startswith("index.rank0.")]
    for number in sorted(int(parts[2]) for parts in numbered):
        with open(f"{folder}/index.rank0.{number}.jsonl", "rb") as file:
            lines = file.read().split(b"\n")
        assert lines.pop() == b""
        for line in map(json.loads, lines):
            if "event" in line:
                continue
            if "step" not in line:
                layouts[line["layout"]] = line["groups"]
                continue
            with open(f"{folder}/tensors.rank0.{line['segment']}.seg", "rb") as file:
                file.seek(line["offset"])
                block = file.read(line["length"])
            assert (len(block), zlib.crc32(block)) == (line["length"], line["crc32"])
            assert line["offset"] % 64 == 0
            steps[line["step"]] = dict(arrays(block, layouts[line["layout"]]))
    return steps


def arrays(block, groups):
    for group in groups:
        if "tensors" in group:
            for name, dtype, shape, offset, length in group["tensors"]:
                assert offset % 64 == 0
                yield name, np.frombuffer(block[offset : offset + length], dtype).reshape(shape).tolist()
        else:
            shape = len(group["rows"]), len(group["columns"])
            table = np.frombuffer(block, "<f8", shape[0] * shape[1], group["offset"]).reshape(shape)
            for row, values in zip(group["rows"], table.tolist(), strict=True):
                yield row, dict(zip(group["columns"], values, strict=True))


def truth(step, *names):
    members = {name: [step, step + 0.5 + i] for i, name in enumerate(names or ("w",))}
    return {**members, "a": {"value": step}, "b": {"value": -step}}


def sizes(folder):
    return {name: (folder / name).stat().st_size for name in sorted(os.listdir(folder))}


@pytest.fixture
def run(tmp_path):
    with Run(str(tmp_path / "run")) as run:
        yield run


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "run" / "debug"


def test_golden_bytes(run, folder):
    target = Segments(run)
    write(target, 3)
    target.event("a remark", 3)
    write(target, 5)
    target.close()
    three = b"\0\0\x40\x40\0\0\x60\x40" + bytes(56)
    three += b"\0\0\0\0\0\0\x08\x40\0\0\0\0\0\0\x08\xc0" + bytes(48)
    five = b"\0\0\xa0\x40\0\0\xb0\x40" + bytes(56)
    five += b"\0\0\0\0\0\0\x14\x40\0\0\0\0\0\0\x14\xc0" + bytes(48)
    assert (folder / "tensors.rank0.0.seg").read_bytes() == three + five
    assert (folder / "index.rank0.0.jsonl").read_text() == (
        '{"layout":0,"groups":[{"collection":"weights","tensors":[["w","float32",[2],0,8]]},'
        '{"collection":"losses","rows":["a","b"],"columns":["value"],"offset":64}]}\n'
        '{"step":3,"mode":"train","mode_step":3,"time":1000000003.0,"marks":{},"layout":0,"segment":0,'
        f'"offset":0,"length":128,"crc32":{zlib.crc32(three)}}}\n'
        '{"event":"a remark","step":3}\n'
        '{"step":5,"mode":"train","mode_step":5,"time":1000000005.0,"marks":{},"layout":0,"segment":0,'
        f'"offset":128,"length":128,"crc32":{zlib.crc32(five)}}}\n'
    )
    assert zlib.crc32(three) == 3340804534


def test_segments_are_rotated_when_full(run, folder):
    target = Segments(run, full=200)
    for step in range(5):
        write(target, step)
    target.close()
    assert sizes(folder) == {
        "index.rank0.0.jsonl": (folder / "index.rank0.0.jsonl").stat().st_size,
        "tensors.rank0.0.seg": 256,
        "tensors.rank0.1.seg": 256,
        "tensors.rank0.2.seg": 128,
    }
    assert read_back(folder) == {step: truth(step) for step in range(5)}


def test_layouts_are_written_once(run, folder):
    target = Segments(run, full=200)
    for step in range(9):
        write(target, step, *("xyz"[: step % 3 + 1]))
    target.close()
    lines = (folder / "index.rank0.0.jsonl").read_text().splitlines()
    assert sum('"groups"' in line for line in lines) == 3
    assert read_back(folder) == {step: truth(step, *("xyz"[: step % 3 + 1])) for step in range(9)}


def test_the_number_of_remembered_layouts_is_limited(run, folder, monkeypatch):
    monkeypatch.setattr(segments, "LAYOUTS", 3)
    target = Segments(run)
    names = [("a",), ("a", "b"), ("c",), ("d",), ("a",), ("a", "b"), ("d", "c"), ("e",), ("c",)]
    for step, some in enumerate(names):
        write(target, step, *(f"w{name}" for name in some))
    target.close()
    assert len(target._layouts) <= 3
    expected = {step: truth(step, *(f"w{name}" for name in some)) for step, some in enumerate(names)}
    assert read_back(folder) == expected


def test_a_resumed_run_has_new_numbers_and_new_files(tmp_path, folder):
    kept = {}
    for turn in range(3):
        with Run(str(tmp_path / "run"), resume=bool(turn)) as run:
            target = Segments(run)
            write(target, turn, "first" if turn else "w")
            write(target, turn + 1, "w")
            target.close()
        assert all((folder / name).read_bytes() == data for name, data in kept.items())
        kept = {name: (folder / name).read_bytes() for name in os.listdir(folder)}
    assert sorted(kept) == sorted(
        [f"index.rank0.{n}.jsonl" for n in range(3)] + [f"tensors.rank0.{n}.seg" for n in range(3)]
    )
    assert read_back(folder) == {0: truth(0), 1: truth(1, "first"), 2: truth(2, "first"), 3: truth(3)}


def test_a_torn_segment_of_a_killed_run_is_left_alone(run, folder):
    folder.mkdir()
    (folder / "tensors.rank0.6.seg").write_bytes(b"torn")
    target = Segments(run)
    write(target, 1)
    target.close()
    assert (folder / "tensors.rank0.6.seg").read_bytes() == b"torn"
    assert (folder / "tensors.rank0.7.seg").stat().st_size == 128


def test_each_rank_has_its_own_files(run, folder, monkeypatch):
    for rank in "012":
        monkeypatch.setenv("RANK", rank)
        target = Segments(run, full=1)
        if rank == "2":
            monkeypatch.setenv("RANK", "0")  # as when the process group is gone before the end
        write(target, 7)
        write(target, 8)
        target.close()
    names = [name for name in sizes(folder) if name.endswith("seg")]
    assert names == [f"tensors.rank{rank}.{number}.seg" for rank in range(3) for number in range(2)]


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.lists(st.sampled_from(["a1", "a2", "a3"]), unique=True, min_size=1), max_size=12),
    st.integers(1, 1000),
    st.sets(st.integers(0, 12)),
)
def test_anything_written_is_read_back(tmp_path_factory, steps, full, resumes):
    path = tmp_path_factory.mktemp("any")
    target, run = None, None
    for step, names in enumerate(steps):
        if target is None or step in resumes:
            if target is not None:
                target.close()
                run.close()
            run = Run(str(path), resume=target is not None)
            target = Segments(run, full=full)
        write(target, step, *names)
    if target is not None:
        target.close()
        run.close()
        assert read_back(path / "debug") == {step: truth(step, *names) for step, names in enumerate(steps)}


def test_blocks_of_any_size_have_their_crc(run, folder):
    target = Segments(run)
    large = [bytes(range(256)) * 20000, np.arange(2**18, dtype="<i8").tobytes(), b"", bytes(64)]
    empty = [Group("c", (), (), ())]
    for step, block in enumerate([[], [b""], large, [memoryview(large[0])], large]):
        target.write(empty, block, record(step))
    target.close()
    lines = [json.loads(line) for line in (folder / "index.rank0.0.jsonl").read_text().splitlines()][1:]
    whole = zlib.crc32(b"".join(large))
    assert [line["crc32"] for line in lines] == [0, 0, whole, zlib.crc32(large[0]), whole]
    assert len(read_back(folder)) == 5


def test_a_remote_segment_is_closed_when_it_is_old():
    with Run("memory://old/run") as run:
        target = Segments(run, old=1000.0)
        assert target.patience is None
        target.event("a remark", 0)
        assert 0 < target.patience <= 1000
        target.rest()
        assert target.patience is not None
        target._since -= 1000
        assert target.patience == 0
        target.rest()
        assert target.patience is None
        target.close()
    assert len(open_run("memory://old/run").events) == 1


# -- disks that fail ----------------------------------------------------------------------------


def fill(target, steps):
    """Write steps and return those that failed."""
    failed = []
    for step in steps:
        try:
            write(target, step)
        except OSError:
            failed.append(step)
    return failed


def test_an_incomplete_block_is_removed(run, folder):
    target = Segments(run)
    assert fill(target, range(2)) == []
    before = sizes(folder)
    with room(300):
        with pytest.raises(OSError, match="too large"):
            target.write(groups("x"), [bytes(64)] * 3, record(2))
        assert sizes(folder) == before
    assert fill(target, range(3, 5)) == []
    target.close()
    assert read_back(folder) == {step: truth(step) for step in (0, 1, 3, 4)}
    assert [name for name in sizes(folder) if name.endswith("seg")] == [
        "tensors.rank0.0.seg",
        "tensors.rank0.1.seg",
    ]


def test_a_disk_that_stays_full_does_not_fill_with_files(run, folder):
    target = Segments(run)
    with room(100):
        assert fill(target, range(20)) == list(range(20))
        assert [name for name in sizes(folder) if name.endswith("seg")] == []
    assert fill(target, range(20, 22)) == []
    target.close()
    assert read_back(folder) == {step: truth(step) for step in (20, 21)}


def test_a_block_whose_record_is_not_written_is_removed(run, folder):
    target = Segments(run)
    assert fill(target, range(2)) == []
    target._run.append = None  # as if it failed before it wrote anything
    with pytest.raises(TypeError):
        write(target, 2)
    assert sizes(folder)["tensors.rank0.0.seg"] == 256
    del target._run.append
    assert fill(target, range(3, 5)) == []
    target.close()
    assert read_back(folder) == {step: truth(step) for step in (0, 1, 3, 4)}


@pytest.mark.parametrize("fits", range(0, 560, 35))
def test_an_index_without_room_has_no_half_records(run, folder, fits):
    target = Segments(run)
    target.event("x" * 1000, 0)
    with room((folder / "index.rank0.0.jsonl").stat().st_size + fits):
        failed = fill(target, range(3))
    assert failed
    assert fill(target, range(3, 6)) == []
    target.close()
    assert read_back(folder) == {step: truth(step) for step in range(6) if step not in failed}


def test_a_deleted_segment_is_noticed_and_another_one_begun(run, folder):
    target = Segments(run)
    assert fill(target, range(2)) == []
    (folder / "tensors.rank0.0.seg").unlink()
    assert fill(target, range(2, 5)) == []
    target.close()
    assert sizes(folder)["tensors.rank0.1.seg"] == 384


def test_a_deleted_folder_is_noticed_and_made_again(run, folder):
    target = Segments(run)
    assert fill(target, range(2)) == []
    shutil.rmtree(folder)
    assert fill(target, range(2, 5)) == []
    target.close()
    assert read_back(folder) == {step: truth(step) for step in range(2, 5)}


def test_close_twice(run):
    before = len(os.listdir("/proc/self/fd"))
    target = Segments(run)
    write(target, 1)
    target.close()
    target.close()
    run.close()
    assert len(os.listdir("/proc/self/fd")) == before

"""Reading a run while it is written, resumed, cut short and damaged."""

import contextlib
import json
import math
import threading
from random import Random

import fsspec
import pytest
import torch

from loopwise.debug.read.saved_run import Fault, open_run
from loopwise.errors import InputError, StateError

WEIGHT = torch.arange(6, dtype=torch.float32).reshape(2, 3)
FOREIGN = [
    b"",
    b"5",
    b"[]",
    b'"event"',
    b"{}",
    b'{"step":9}',
    b'{"layout":0}',
    b'{"step"',
    b"\xff\x00",
    b"[" * 5000,
]
FOREIGN += [
    b'{"layout":1,"groups":[{"collection":"c","tensors":5}]}',
    b'{"layout":1,"groups":[{"tensors":[]}]}',
]


def index(folder, rank=0, number=0):
    return folder / "debug" / f"index.rank{rank}.{number}.jsonl"


def segment(folder, rank=0, number=0):
    return folder / "debug" / f"tensors.rank{rank}.{number}.seg"


def add(run, *steps):
    for step in steps:
        run.step(step, {"weights": {"w": WEIGHT + step}}, {"losses": {"loss": float(step)}})


def test_each_step_can_be_read_as_soon_as_it_is_written(saving, tmp_path):
    run = saving(tmp_path)
    saved = open_run(tmp_path)
    assert saved.steps() == []
    for step in range(5):
        add(run, step)
        assert saved.steps() == list(range(step + 1))
        assert torch.equal(saved.value("w", step), WEIGHT + step)
        assert saved.series("loss")[1].tolist() == list(range(step + 1))
    run.event("thinned", 4)
    assert saved.events == [{"event": "thinned", "step": 4, "rank": 0}]
    assert not saved.ended
    run.end()
    assert saved.ended


def test_only_new_bytes_are_read(saving, tmp_path):
    run = saving(tmp_path)
    add(run, 0, 1)
    saved = open_run(tmp_path)
    file = index(tmp_path)
    file.write_bytes(b"x" * file.stat().st_size)
    add(run, 2)
    assert saved.steps() == [0, 1, 2]
    assert saved.torn == 0


def test_remote_runs_grow_by_files(saving, tmp_path, monkeypatch):
    monkeypatch.setattr("loopwise.debug.store.index.POLL", 0.0)
    place = f"memory://{tmp_path}"
    run = saving(place, full=1)  # each step is sent
    saved = open_run(place)
    for step in range(4):
        add(run, step)
        assert saved.wait_for(step)
        assert saved.steps() == list(range(step + 1))
        assert saved.value("loss", step).item() == step
    assert len(fsspec.filesystem("memory").glob(f"{tmp_path}/debug/index.*")) == 4
    run.end()
    assert (saved.series("loss")[1].tolist(), saved.torn, saved.verify()) == ([0, 1, 2, 3], 0, [])
    fsspec.filesystem("memory").rm(str(tmp_path), recursive=True)


def test_remote_runs_are_listed_once_in_a_while(saving, tmp_path, monkeypatch):
    monkeypatch.setattr("loopwise.debug.store.index.POLL", 1e9)
    place = f"memory://{tmp_path}"
    run = saving(place)
    saved = open_run(place)
    add(run, 0)
    run.end()
    assert saved.steps() == []
    saved.refresh()
    assert saved.steps() == [0]
    fsspec.filesystem("memory").rm(str(tmp_path), recursive=True)


def test_an_index_cut_at_any_byte(saving, tmp_path):
    run = saving(tmp_path)
    add(run, 0, 1, 2)
    run.event("something", 2)
    run.end()
    data = index(tmp_path).read_bytes()
    for cut in range(len(data) + 1):
        index(tmp_path).write_bytes(data[:cut])
        whole = [json.loads(line) for line in data[:cut].split(b"\n")[:-1]]
        saved = open_run(tmp_path)
        assert saved.steps() == [record["step"] for record in whole if "offset" in record]
        assert (len(saved.events), saved.torn) == (sum("event" in record for record in whole), 0)
        with index(tmp_path).open("ab") as file:
            file.write(data[cut:])
        assert (saved.steps(), len(saved.events), saved.torn) == ([0, 1, 2], 1, 0)


def test_a_tail_that_a_resumed_run_leaves_behind_is_counted(saving, tmp_path):
    add(saving(tmp_path), 0, 1)
    saved = open_run(tmp_path)
    with index(tmp_path).open("ab") as file:
        file.write(b'{"step":2,"mode"')
    assert (saved.steps(), saved.torn) == ([0, 1], 0)
    add(saving(tmp_path, resume=True), 2)
    assert (saved.steps(), saved.torn) == ([0, 1, 2], 1)
    assert (open_run(tmp_path).steps(), open_run(tmp_path).torn) == ([0, 1, 2], 1)


def test_the_last_record_of_a_step_counts(saving, tmp_path):
    run = saving(tmp_path)
    add(run, 0, 1)
    run.step(2, {"weights": {"w": WEIGHT, "gone": WEIGHT}}, mode="eval", mode_step=0)
    saved = open_run(tmp_path)
    assert "gone" in saved.names()
    again = saving(tmp_path, resume=True)
    again.step(1, {"weights": {"other": WEIGHT, "w": -WEIGHT}})
    again.step(2, {"weights": {"w": -WEIGHT}})
    assert saved.names() == ["w", "loss", "other"]
    assert (saved.steps(), saved.steps("train"), saved.steps("eval")) == ([0, 1, 2], [0, 1, 2], [])
    assert saved.modes == ["train"]
    assert torch.equal(saved.value("w", 1), -WEIGHT)
    assert torch.equal(saved.value("w", 0), WEIGHT)
    assert saved.verify() == []


@pytest.mark.parametrize("line", FOREIGN, ids=range(len(FOREIGN)))
def test_a_damaged_line_is_counted(saving, tmp_path, line):
    run = saving(tmp_path)
    add(run, 0)
    with index(tmp_path).open("ab") as file:
        file.write(line + b"\n")
    saved = open_run(tmp_path)
    assert (saved.steps(), saved.torn) == ([0], 1)


def test_steps_of_a_lost_layout_are_not_read_by_another_one(saving, tmp_path):
    add(saving(tmp_path), 0)
    run = saving(tmp_path, resume=True)  # counts layouts from 0 again
    run.step(1, {"weights": {"v": WEIGHT * 100}}, {"losses": {"lr": 0.1}})
    file = index(tmp_path, number=1)
    layout, step = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"x" + layout[1:] + step)
    saved = open_run(tmp_path)
    assert (saved.steps(), saved.torn) == ([0], 2)
    file.write_bytes(step)  # the first run's layout is shorter than this block says
    assert b'"length":128' in step
    file.write_bytes(step.replace(b'"length":128', b'"length":12'))
    saved = open_run(tmp_path)
    assert (saved.steps(), saved.torn) == ([0], 1)


def test_a_layout_may_stand_in_an_earlier_file(saving, tmp_path):
    run = saving(tmp_path)
    add(run, 0, 1)
    run.end()
    layout, *steps = index(tmp_path).read_bytes().splitlines(keepends=True)
    index(tmp_path).write_bytes(layout)
    index(tmp_path, number=3).write_bytes(b"".join(steps))
    assert torch.equal(open_run(tmp_path).value("w", 1), WEIGHT + 1)
    index(tmp_path).unlink()
    assert (open_run(tmp_path).steps(), open_run(tmp_path).torn) == ([], 2)


def test_a_segment_cut_at_any_byte(saving, tmp_path):
    run = saving(tmp_path)
    add(run, 0, 1)
    run.end()
    data, saved = segment(tmp_path).read_bytes(), open_run(tmp_path)
    for cut in range(len(data)):
        segment(tmp_path).write_bytes(data[:cut])
        have = [
            start + 24 <= cut for start in (0, 128)
        ]  # 24 bytes of the tensor, 40 nothing, 8 of the number
        for step, there in enumerate(have):
            if there:
                assert torch.equal(saved.value("w", step), WEIGHT + step)
            else:
                with pytest.raises(StateError, match=f"step {step} of rank 0"):
                    saved.value("w", step)
        numbers = [step for step in (0, 1) if 128 * step + 72 <= cut]
        assert saved.series("loss")[0].tolist() == numbers
        assert saved.values("w")[0].tolist() == [step for step, there in enumerate(have) if there]
        damaged = [step for step in (0, 1) if 128 * (step + 1) > cut]
        assert [(fault.step, fault.rank) for fault in saved.verify()] == [(step, 0) for step in damaged]


def test_a_large_tensor_cut_short(saving, tmp_path):
    run = saving(tmp_path)
    run.step(7, {"c": {"x": torch.ones(2**17)}})
    run.end()
    with segment(tmp_path).open("r+b") as file:
        file.truncate(2**18)
    with pytest.raises(StateError, match=r"step 7 of rank 0: .* ends 262144 bytes early"):
        open_run(tmp_path).value("x", 7)


def test_verify_detects_a_changed_byte(saving, tmp_path):
    run = saving(tmp_path)
    add(run, 0, 1, 2)
    run.end()
    data = bytearray(segment(tmp_path).read_bytes())
    data[128 + 5] ^= 1
    segment(tmp_path).write_bytes(data)
    (fault,) = open_run(tmp_path).verify()
    assert isinstance(fault, Fault)
    assert (fault.step, fault.rank) == (1, 0)
    assert "CRC-32" in fault.what


def test_files_that_vanish(saving, tmp_path):
    run = saving(tmp_path, full=1)  # a segment a step
    add(run, 0, 1, 2)
    saved = open_run(tmp_path)
    segment(tmp_path, number=1).unlink()
    assert saved.series("loss")[0].tolist() == [0, 2]
    assert [(fault.step, "no file" in fault.what) for fault in saved.verify()] == [(1, True)]
    with pytest.raises(StateError, match="step 1 of rank 0: no file"):
        saved.value("loss", 1)
    index(tmp_path).unlink()
    assert saved.steps() == [0, 1, 2]
    assert saved.value("loss", 2).item() == 2
    for file in (tmp_path / "debug").iterdir():
        file.unlink()
    (tmp_path / "debug").rmdir()
    assert saved.steps() == [0, 1, 2]
    assert len(saved.verify()) == 3
    assert open_run(tmp_path).steps() == []


def test_remote_segments_that_vanish_and_storage_that_is_down(saving, tmp_path, monkeypatch):
    place = f"memory://{tmp_path}"
    run = saving(place, full=1)
    add(run, 0, 1, 2)
    run.end()
    fs, saved = fsspec.filesystem("memory"), open_run(place)
    fs.rm_file(f"{tmp_path}/debug/tensors.rank0.1.seg")
    assert saved.series("loss")[0].tolist() == [0, 2]

    def down(*arguments, **more):
        raise ConnectionError("down")

    monkeypatch.setattr(fs, "cat_file", down)
    with pytest.raises(ConnectionError):
        saved.series("loss")
    with pytest.raises(ConnectionError):
        saved.value("loss", 0)
    monkeypatch.undo()
    fs.rm(str(tmp_path), recursive=True)


@pytest.mark.parametrize("offset", ["-64", "64.0", "null"])
def test_a_table_without_a_valid_offset_is_a_lost_layout(saving, tmp_path, offset):
    run = saving(tmp_path)
    add(run, 0, 1)
    text = index(tmp_path).read_text()
    assert '"offset":64}' in text
    index(tmp_path).write_text(text.replace('"offset":64}', f'"offset":{offset}}}'))
    assert (open_run(tmp_path).steps(), open_run(tmp_path).torn) == ([], 3)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("[2,3],64,24]", "[2,3],-64,24]"),
        ("[2,3],64,24]", "[2,4],64,24]"),
        ("[2,3],64,24]", "[-2,-3],64,24]"),
        ("[2,3],64,24]", "[2,3],64.0,24]"),
        ('"y","float32"', '"y","Tensor"'),
        ("[2,3],64,24]", '[2,3],64,24,{"shape":[2,2],"start":[0,0]}]'),
        ("[2,3],64,24]", '[2,3],64,24,{"shape":[2,3]}]'),
    ],
)
def test_an_entry_that_contradicts_itself_is_not_read(saving, tmp_path, old, new):
    run = saving(tmp_path)
    run.step(0, {"c": {"x": WEIGHT, "y": WEIGHT}})
    run.end()
    text = index(tmp_path).read_text()
    assert old in text
    index(tmp_path).write_text(text.replace(old, new))
    assert torch.equal(open_run(tmp_path).value("x", 0), WEIGHT)
    with pytest.raises(StateError):
        open_run(tmp_path).value("y", 0)


def test_no_damage_to_an_index_raises_anything_else(saving, tmp_path):
    run = saving(tmp_path)
    table = {"collection": "w", "rows": ["v"], "columns": ["max"], "values": [[1.0]], "of": [["int8", [2]]]}
    shard = (WEIGHT, {"shape": [2, 3], "start": [0, 0]})
    for step in range(2):
        run.step(step, {"c": {"x": WEIGHT, "y": shard}}, {"losses": {"loss": 1.0}}, table)
    run.end()
    data, random = index(tmp_path).read_bytes(), Random(0)
    for _ in range(300):
        damaged = bytearray(data)
        for _ in range(random.choice([1, 1, 2, 5])):
            damaged[random.randrange(len(data))] = random.choice([random.randrange(256), *b'019.-"[]{},:'])
        index(tmp_path).write_bytes(damaged)
        saved = open_run(tmp_path)
        str(saved)
        saved.verify()
        for name in ("x", "y", "v", "loss"):
            for ask in (saved.value, saved.shape, saved.dtype, saved.statistics):
                with contextlib.suppress(InputError, StateError):
                    ask(name, 1)
            with contextlib.suppress(InputError, StateError):
                saved.series(name, "max")


def test_waiting_for_a_step(saving, tmp_path):
    run = saving(tmp_path)
    saved = open_run(tmp_path)
    assert not saved.wait_for(0, timeout=0)
    add(run, 0, 4)
    assert saved.wait_for(0)
    assert saved.wait_for(3)  # a later one is there
    assert not saved.wait_for(5, timeout=0)
    assert not saved.wait_for(0, "eval", timeout=0)
    run.step(5, mode="eval", mode_step=0)
    assert saved.wait_for(0, "eval")
    run.end()
    assert not saved.wait_for(6)
    assert saved.wait_for(5)
    with pytest.raises(InputError, match="one of train, eval, predict"):
        saved.wait_for(5, "valid")


@pytest.mark.parametrize("wanted", [9, 10])
def test_waiting_while_another_thread_writes(saving, tmp_path, wanted):
    run = saving(tmp_path)
    saved = open_run(tmp_path)

    def write():
        add(run, *range(10))
        run.end()

    thread = threading.Thread(target=write)
    thread.start()
    waited = saved.wait_for(wanted)
    thread.join()
    assert waited == (wanted == 9)


def test_waiting_for_a_remote_run_sees_steps_written_before_its_end(saving, tmp_path):
    run = saving(f"memory://{tmp_path}")
    saved = open_run(f"memory://{tmp_path}")
    assert not saved.wait_for(1, timeout=0)
    add(run, 0, 1)
    run.end()
    assert saved.wait_for(1)
    fsspec.filesystem("memory").rm(str(tmp_path), recursive=True)


def test_marks_and_infinite_times_are_read(saving, tmp_path):
    run = saving(tmp_path)
    run.step(0, marks={"skipped": ["optimizer"]}, time=math.inf)
    assert open_run(tmp_path).record(0)["marks"] == {"skipped": ["optimizer"]}
    assert open_run(tmp_path).record(0)["time"] == math.inf

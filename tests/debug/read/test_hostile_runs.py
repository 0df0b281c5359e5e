"""Run folders that somebody made to hurt a reader: a clear error, or the part that can be read, in little memory."""

import json
import os
import resource

import pytest
import torch

from loopwise.debug import open_run
from loopwise.debug.page import sections
from loopwise.debug.read.export import export
from loopwise.debug.store.dtypes import DTYPES
from loopwise.debug.store.extents import Extents
from loopwise.errors import InputError, StateError
from loopwise.run import Run

WEIGHT = torch.arange(6.0)
HUGE = (2**32, 10**15, 2**63, 10**30, 10**400, -1)


def crafted(path, layout, data=b"", **record):
    """Write a run of one step."""
    Run(str(path)).close()
    (path / "debug").mkdir()
    (path / "debug" / "tensors.rank0.0.seg").write_bytes(data)
    step = {"step": 0, "mode": "train", "mode_step": 0, "time": 1.0, "layout": 0, "segment": 0, "offset": 0}
    step |= {"length": len(data), "crc32": 0} | record
    lines = [{"layout": 0, "groups": layout}, step]
    (path / "debug" / "index.rank0.0.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return open_run(path)


def tensors(*entries):
    return [{"collection": "c", "tensors": list(entries)}]


def everything(saved):
    """Ask all that a reader can be asked; errors that explain themselves are answers."""
    for ask in (
        lambda: str(saved),
        saved.verify,
        saved.judge,
        saved.findings,
        lambda: sections(saved.path),
        *(lambda name=name: str(saved.value(name, 0)) for name in saved.names()),
        *(lambda name=name: saved.statistic(name, "mean", 0) for name in saved.names()),
        *(lambda name=name: saved.series(name, "max") for name in saved.names()),
        *(lambda name=name: saved.values(name) for name in saved.names()),
    ):
        try:
            ask()
        except (InputError, StateError):
            continue


def most_memory():
    """Largest number of bytes that this process has used so far."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


# -- dtypes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "dtype", ["quint8", "qint32", "quint4x2", "bits8", "int4", "Tensor", "half", "__name__", "nn"]
)
def test_a_dtype_that_no_watch_writes_is_refused(tmp_path, dtype):
    """Tensors of a quantized dtype, made of plain bytes, end the process by a segmentation fault."""
    saved = crafted(
        tmp_path / "run", tensors(["x", dtype, [16], 0, 16], ["y", "uint8", [16], 0, 16]), bytes(16)
    )
    for ask in (saved.value, saved.shape, saved.dtype):
        with pytest.raises(StateError, match="the index has"):
            ask("x", 0)
    everything(saved)
    assert saved.value("y", 0).tolist() == [0] * 16
    table = {"collection": "c", "rows": ["x"], "columns": ["mean"], "offset": 0, "of": [[dtype, [2, 2]]]}
    saved = crafted(tmp_path / "table", [table], bytes(64))
    with pytest.raises(StateError):
        saved.dtype("x", 0)
    everything(saved)


def test_every_dtype_of_the_list_is_read(tmp_path):
    entries = [[name, name, [2], 0, 2 * dtype.itemsize] for name, dtype in DTYPES.items()]
    saved = crafted(tmp_path / "run", tensors(*entries), bytes(64))
    for name, dtype in DTYPES.items():
        assert saved.value(name, 0).dtype == saved.dtype(name, 0) == dtype
    with pytest.raises(InputError, match="the dtype has no arithmetic"):
        saved.statistic("float4_e2m1fn_x2", "mean", 0)


# -- lengths and offsets ----------------------------------------------------------------------------


@pytest.mark.parametrize("size", HUGE)
def test_lengths_and_offsets_are_compared_with_the_file(tmp_path, size):
    """A file of a few bytes that claims gigabytes must not make a reader take them."""
    shard = {"shape": [size], "start": [0]}
    layouts = {
        "length": tensors(["x", "uint8", [size], 0, size]),
        "empty": tensors(["x", "uint8", [0, size], 0, 0]),
        "offset": tensors(["x", "uint8", [4], size, 4]),
        "shard": tensors(["x", "uint8", [4], 0, 4, shard]),
        "start": tensors(["x", "uint8", [4], 0, 4, {"shape": [4], "start": [size]}]),
        "table": [
            {"collection": "c", "rows": ["x"], "columns": ["mean"], "offset": size, "of": [["uint8", [size]]]}
        ],
        "shape": [
            {"collection": "c", "rows": ["x"], "columns": ["mean"], "offset": 0, "of": [["uint8", [size]]]}
        ],
    }
    before = most_memory()
    for name, layout in layouts.items():
        everything(crafted(tmp_path / name, layout, bytes(64)))
    for key in ("length", "offset", "segment", "step", "mode_step", "crc32", "time"):
        everything(crafted(tmp_path / f"of {key}", layouts["length"], bytes(64), **{key: size}))
    assert most_memory() - before < 2**28


def test_a_table_larger_than_the_file(tmp_path):
    """Rows and columns of 1,000 names each would be 8 MB of numbers."""
    names = [str(number) for number in range(1000)]
    table = {"collection": "c", "rows": names, "columns": names, "offset": 0}
    saved = crafted(tmp_path / "run", [table], bytes(64), length=8 * 1000 * 1000)
    before = most_memory()
    with pytest.raises(StateError, match="ends 7999936 bytes early"):
        saved.judge()
    assert saved.series("7", "8")[0].size == 0
    assert sections(saved.path)
    assert most_memory() - before < 2**27


def test_a_tensor_of_many_dimensions(tmp_path):
    everything(crafted(tmp_path / "run", tensors(["x", "uint8", [1] * 10_000, 0, 1]), bytes(64)))


def test_blocks_that_share_bytes_are_lost_records(saving, tmp_path):
    """Thousands of steps over the same bytes would fill the memory from a small folder."""
    run = saving(tmp_path)
    run.step(0, {"c": {"w": WEIGHT}})
    run.end()
    (index,) = (tmp_path / "debug").glob("index.*")
    layout, step = index.read_text().splitlines(keepends=True)
    again = [step.replace('"step":0,', f'"step":{number},') for number in range(1, 5)]
    index.write_text(layout + step + "".join(again) + step)
    saved = open_run(tmp_path)
    assert (saved.steps(), saved.torn) == ([0], 4)


def test_extents_are_disjoint():
    extents = Extents()
    assert [extents.take(start, 10, step) for step, start in enumerate((0, 10, 30))] == [True] * 3
    assert extents.take(30, 10, 2)  # a record that is there twice
    assert extents.take(20, 10, 3)
    assert not any(extents.take(start, 5, 9) for start in (0, 3, 8, 19, 26, 39))
    assert not extents.take(40, 0, 9) or extents.take(40, 1, 9)


# -- records ----------------------------------------------------------------------------------------


def test_damaged_findings_are_dropped_and_counted(saving, tmp_path):
    """One flipped bit in a file of findings must not lose the others."""
    run = saving(tmp_path)
    finding = {
        "rule": "overfit",
        "severity": "warning",
        "step": 1,
        "mode": "train",
        "what": "w",
        "tensors": [],
    }
    finding |= {"evidence": {"loss": [[0, 1.0]]}, "advice": "a"}
    damaged = [
        {"severity": "bad"}, {"step": "x"}, {"step": 10**400}, {"step": float("inf")}, {"evidence": []},
        {"evidence": {"loss": [[0]]}}, {"tensors": 5}, {"evidence": {"loss": [[float("inf"), 1]]}},
    ]  # fmt: skip
    for number, change in enumerate([{}, *damaged, {}]):
        run.run.append("debug", "findings", finding | {"rule": f"rule{number}"} | change)
    run.end()
    (file,) = (tmp_path / "debug").glob("findings.*")
    file.write_bytes(file.read_bytes() + b"[]\n7\n{\n\xff\n")
    saved = open_run(tmp_path)
    assert [found.rule for found in saved.findings()] == ["rule0", "rule9"]
    assert saved.torn == len(damaged) + 4
    (texts,) = [s["blocks"] for s in sections(str(tmp_path)) if s["id"] == "findings"]
    assert texts[0]["text"].startswith("12 records were cut by the end of a process, or damaged")


@pytest.mark.parametrize(
    "marks",
    [
        [], 7, {"facts": []}, {"facts": {"classes": {"loss": "x"}}}, {"facts": {"classes": [1]}}, {"modules": ["x"]},
        {"lines": {"net": 7}}, {"optimizers": -1}, {"optimizers": "x"}, {"samples": [3]}, {"samples": float("nan")},
    ],
)  # fmt: skip
def test_a_record_with_marks_of_another_form_is_lost(tmp_path, marks):
    saved = crafted(tmp_path / "run", tensors(["x", "uint8", [16], 0, 16]), bytes(16), marks=marks or [1])
    assert (saved.steps(), saved.torn) == ([], 1)
    everything(saved)


def test_a_mode_that_leads_out_of_a_folder_is_lost(tmp_path):
    """Exports make a folder for each mode."""
    pytest.importorskip("tensorboard")
    for number, mode in enumerate(("../../outside", "/tmp/outside", "a/b", "", "x" * 99, 7, None)):
        saved = crafted(tmp_path / str(number), tensors(["x", "uint8", [1], 0, 1]), bytes(16), mode=mode)
        assert (saved.steps(), saved.torn) == ([], 1)
        assert export(saved, tmp_path / "out", to="tensorboard") == 0


def test_a_world_of_a_billion_ranks(saving, tmp_path):
    """Ranks that are missing are named, but not all."""
    run = saving(tmp_path, rank=1)
    for step in range(3):
        run.step(step, {"c": {"w": WEIGHT}})
    run.end()
    (tmp_path / "run.json").write_text('{"schema":1,"world":2000000000}')
    texts = [b["text"] for s in sections(str(tmp_path)) for b in s["blocks"] if "text" in b]
    assert texts[0].startswith("Ranks 0, 2, 3")
    assert "and 1,999,999,979 more of 2000000000 saved nothing" in texts[0]


def test_a_pipe_in_place_of_a_segment_does_not_block(saving, tmp_path):
    run = saving(tmp_path)
    run.step(0, {"c": {"w": torch.ones(2**16)}}, {"losses": {"loss": 1.0}})
    run.end()
    (segment,) = (tmp_path / "debug").glob("*.seg")
    segment.unlink()
    os.mkfifo(segment)
    os.mkfifo(tmp_path / "debug" / "index.rank0.7.jsonl")
    saved = open_run(tmp_path)
    assert saved.series("loss")[0].size == 0
    for ask in (saved.judge, lambda: saved.value("w", 0)):
        with pytest.raises(StateError, match="no file"):
            ask()

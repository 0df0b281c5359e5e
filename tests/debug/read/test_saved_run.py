"""Reading of a run, and errors about names, steps and modes that it does not have."""

from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch

from loopwise.debug import open_run
from loopwise.errors import InputError
from loopwise.run import Run

WEIGHT = torch.arange(6, dtype=torch.float32).reshape(2, 3)
DTYPES = [
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.int64,
    torch.int8,
    torch.uint8,
    torch.uint16,
    torch.bool,
    torch.complex64,
    torch.complex128,
]


@pytest.fixture(params=["local", "remote"])
def place(request, tmp_path):
    """Folder for a run, on this machine or on storage where files cannot grow."""
    if request.param == "local":
        yield str(tmp_path / "run")
        return
    folder = f"memory://{tmp_path}"
    yield folder
    fsspec.filesystem("memory").rm(str(tmp_path), recursive=True)


def small(saving, path, steps=3):
    """Save weights of ``step`` times ``WEIGHT`` and a loss of ``step / 2``, in mode ``train``."""
    run = saving(path)
    for step in range(steps):
        run.step(step, {"weights": {"fc.weight": WEIGHT * step}}, {"losses": {"loss": step / 2}})
    return run


def test_a_finished_run_is_read(saving, place):
    small(saving, place).end()
    saved = open_run(place)
    assert saved.steps() == saved.steps("train") == [0, 1, 2]
    assert (saved.modes, saved.ranks, saved.ended) == (["train"], [0], True)
    assert saved.collections() == ["weights", "losses"]
    assert saved.names() == ["fc.weight", "loss"]
    assert saved.names("w") == saved.names(collection="weights") == ["fc.weight"]
    assert torch.equal(saved.value("fc.weight", 2), WEIGHT * 2)
    loss = saved.value("loss", 1)
    assert (loss.item(), loss.dtype, loss.shape) == (0.5, torch.float64, ())
    assert saved.shape("fc.weight", 1) == (2, 3)
    assert saved.dtype("fc.weight", 1) == torch.float32
    assert (saved.shape("loss", 1), saved.dtype("loss", 1)) == ((), torch.float64)
    assert saved.info["state"] == "finished"
    assert saved.verify() == []


def test_series_and_values(saving, place):
    small(saving, place).end()
    saved = open_run(place)
    steps, losses = saved.series("loss")
    assert (steps.dtype, losses.dtype) == (np.int64, np.float64)
    assert (steps.tolist(), losses.tolist()) == ([0, 1, 2], [0.0, 0.5, 1.0])
    steps, weights = saved.values("fc.weight")
    assert steps.tolist() == [0, 1, 2]
    assert all(torch.equal(weight, WEIGHT * step) for step, weight in enumerate(weights))
    assert [loss.item() for loss in saved.values("loss")[1]] == [0.0, 0.5, 1.0]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_comes_back_to_the_bit(saving, place, dtype):
    raw = torch.arange(48, dtype=torch.uint8).reshape(3, 16) % 2
    tensor = raw.view(torch.bool) if dtype == torch.bool else raw.view(dtype)
    run = saving(place)
    run.step(
        0,
        {
            "c": {
                "odd": torch.ones(3, dtype=torch.uint8),
                "x": tensor,
                "none": tensor[:0],
                "one": tensor[0, 0],
            }
        },
    )
    run.end()
    saved = open_run(place)
    assert saved.value("x", 0).dtype == saved.dtype("x", 0) == dtype
    assert torch.equal(saved.value("x", 0).reshape(-1).view(torch.uint8), raw.reshape(-1))
    assert saved.value("none", 0).shape == (0, *tensor.shape[1:])
    assert saved.value("one", 0).shape == ()


@pytest.mark.parametrize("lead", [0, 1, 64])
def test_large_tensors_at_any_place_come_back(saving, tmp_path, lead):
    """A block may begin at any byte, so that a tensor cannot always be mapped."""
    large = torch.arange(2**17, dtype=torch.float64)
    run = saving(tmp_path)
    with run._as_rank():
        record = {"mode": "train", "time": 0.0, "marks": {}}
        run.segments.write([], [b"x" * lead], {"step": 0, "mode_step": 0, **record})
    run.step(1, {"c": {"x": large, "y": large * 2}})
    run.end()
    assert torch.equal(open_run(tmp_path).value("x", 1), large)
    assert torch.equal(open_run(tmp_path).value("y", 1), large * 2)


def test_large_tensors_of_local_runs_are_mapped_and_private(saving, tmp_path):
    large = torch.ones(2**20)
    run = saving(tmp_path)
    run.step(0, {"c": {"x": large}})
    run.end()
    segment = tmp_path / "debug" / "tensors.rank0.0.seg"
    value = open_run(tmp_path).value("x", 0)
    assert str(segment) in Path("/proc/self/maps").read_text()
    value.zero_()
    assert torch.equal(open_run(tmp_path).value("x", 0), large)
    assert segment.read_bytes() == large.numpy().tobytes()
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    many = [open_run(tmp_path).value("x", 0) for _ in range(20)]
    assert len(list(Path("/proc/self/fd").iterdir())) == descriptors
    assert len(many) == 20


def test_writing_into_a_value_does_not_change_what_is_read_next(saving, tmp_path):
    small(saving, tmp_path).end()
    saved = open_run(tmp_path)
    saved.value("fc.weight", 1).zero_()
    assert torch.equal(saved.value("fc.weight", 1), WEIGHT)


def table(values, columns=("min", "max"), **more):
    rows = [f"t{row}" for row in range(len(values))]
    return {"values": values, "collection": "weights", "rows": rows, "columns": list(columns), **more}


def test_statistics_come_from_tables(saving, place):
    run = saving(place)
    of = [["bfloat16", [4, 5]], ["int64", []]]
    for step in range(3):
        run.step(step, table=table([[-1.0 - step, 1.0], [float("nan"), float("inf")]], of=of))
    run.end()
    saved = open_run(place)
    assert saved.names() == ["t0", "t1"]
    assert saved.statistic("t0", "min", 2) == -3.0
    assert saved.statistics("t1", 0)["max"] == float("inf")
    assert (saved.shape("t0", 0), saved.dtype("t0", 0)) == ((4, 5), torch.bfloat16)
    assert (saved.shape("t1", 0), saved.dtype("t1", 0)) == ((), torch.int64)
    steps, values = saved.series("t0", "min")
    assert (steps.tolist(), values.tolist()) == ([0, 1, 2], [-1.0, -2.0, -3.0])
    assert np.isnan(saved.series("t1", "min")[1]).all()
    with pytest.raises(InputError, match="one of: min, max"):
        saved.value("t0", 0)
    with pytest.raises(InputError, match="one of: min, max"):
        saved.statistic("t0", "l2", 0)
    with pytest.raises(InputError, match="one of: min, max"):
        saved.series("t0", "l2")
    with pytest.raises(InputError, match="one of: min, max"):
        saved.series("t0")
    with pytest.raises(InputError, match="one of: min, max"):
        saved.values("t0")


def test_tables_need_not_have_the_shapes_of_their_tensors(saving, tmp_path):
    run = saving(tmp_path)
    run.step(0, table=table([[0.0, 1.0]]))
    run.end()
    with pytest.raises(InputError, match="dtype and shape of 't0'"):
        open_run(tmp_path).shape("t0", 0)


def test_statistics_are_computed_if_the_tensor_was_saved(saving, place):
    small(saving, place).end()
    saved = open_run(place)
    truth = {"min": 0.0, "max": 10.0, "mean": 5.0, "sum": 30.0, "l1": 30.0, "l2": 220**0.5, "abs_max": 10.0}
    truth |= {"variance": 35 / 3, "std": (35 / 3) ** 0.5, "prod": 0.0, "quantile_50": 5.0}
    for name, value in truth.items():
        assert saved.statistic("fc.weight", name, 2) == pytest.approx(value), name
    assert saved.statistics("fc.weight", 2) == {}
    assert saved.series("fc.weight", "max")[1].tolist() == [0.0, 5.0, 10.0]
    assert saved.statistic("loss", "mean", 1) == 0.5
    with pytest.raises(InputError, match="maximum"):
        saved.statistic("fc.weight", "maximum", 2)
    with pytest.raises(InputError, match="one number: quantile_"):
        saved.statistic("fc.weight", "quantiles", 2)


def test_series_of_a_tensor_needs_a_statistic(saving, tmp_path):
    run = saving(tmp_path)
    run.step(0, {"c": {"x": WEIGHT, "one": torch.tensor([3], dtype=torch.int8)}})
    run.end()
    assert open_run(tmp_path).series("one")[1].tolist() == [3.0]
    with pytest.raises(InputError, match="a scalar, or a statistic"):
        open_run(tmp_path).series("x")


def test_a_series_joins_tensors_and_tables(saving, tmp_path):
    """``on_backlog="reduce"`` saves statistics if storage is behind."""
    run = saving(tmp_path)
    run.step(0, {"weights": {"t0": WEIGHT}})
    run.step(1, table=table([[-7.0, 7.0]]))
    run.step(2, {"weights": {"t0": WEIGHT * 2}})
    run.end()
    saved = open_run(tmp_path)
    assert saved.series("t0", "max")[1].tolist() == [5.0, 7.0, 10.0]
    assert saved.values("t0")[0].tolist() == [0, 2]


def test_modes_count_their_own_steps(saving, place):
    run = saving(place)
    run.step(0, scalars={"losses": {"loss": 1.0}})
    run.step(1, scalars={"losses": {"loss": 2.0, "val_loss": 9.0}}, mode="eval", mode_step=0)
    run.step(2, scalars={"losses": {"loss": 3.0}}, mode_step=1)
    run.end()
    saved = open_run(place)
    assert saved.modes == ["train", "eval"]
    assert (saved.steps("train"), saved.steps("eval"), saved.steps("predict")) == ([0, 1], [0], [])
    assert saved.value("loss", 1, mode="train").item() == 3.0
    assert saved.value("loss", 1).item() == saved.value("loss", 0, mode="eval").item() == 2.0
    assert saved.names(mode="train") == ["loss"]
    assert saved.names(step=0, mode="eval") == ["loss", "val_loss"]
    assert [part.tolist() for part in saved.series("loss", mode="train")] == [[0, 1], [1.0, 3.0]]
    assert saved.has("val_loss", 0, mode="eval")
    assert not saved.has("val_loss", 0, mode="train")
    assert saved.record(0, mode="eval") == {
        "step": 1,
        "mode": "eval",
        "mode_step": 0,
        "time": 1e9 + 1,
        "marks": {},
    }


def test_names_stand_in_order_of_first_appearance(saving, tmp_path):
    run = saving(tmp_path)
    run.step(5, {"outputs": {"z": WEIGHT, "a": WEIGHT}})
    run.step(6, {"outputs": {"b": WEIGHT, "z": WEIGHT}, "all": {"z": WEIGHT}})
    run.end()
    assert open_run(tmp_path).names() == ["z", "a", "b"]
    assert open_run(tmp_path).names(step=6) == ["b", "z"]
    assert open_run(tmp_path).names(collection="all") == ["z"]
    assert open_run(tmp_path).names(collection="none such") == []


def test_errors_about_unknown_arguments_list_valid_ones(saving, tmp_path):
    small(saving, tmp_path, steps=30).end()
    saved = open_run(tmp_path)
    with pytest.raises(InputError) as error:
        saved.value("fc.wieght", 2)
    assert str(error.value) == (
        "seen: 'fc.wieght'\n"
        "expected: one of: fc.weight\n"
        "likely cause: a typo, or nothing was saved of it yet\n"
        "fix: names() lists all names"
    )
    with pytest.raises(InputError, match="30 from 0 to 29, nearest 29"):
        saved.value("loss", 100)
    with pytest.raises(InputError, match="30 from 0 to 29, nearest 0"):
        saved.value("loss", -1, mode="train")
    with pytest.raises(InputError, match="one of train, eval, predict"):
        saved.steps("valid")
    with pytest.raises(InputError, match="none yet"):
        saved.value("loss", 0, mode="eval")
    with pytest.raises(InputError, match="rank=3"):
        saved.value("loss", 0, rank=3)
    with pytest.raises(InputError, match="regular expression"):
        saved.names("(")
    with pytest.raises(InputError, match="one of 2 names"):
        saved.series("accuracy")
    for known, step in (("loss", 99), ("accuracy", 0)):
        assert not saved.has(known, step)
    assert not saved.has("loss", 0, mode="valid")


def test_the_error_about_a_name_of_other_steps_lists_the_steps(saving, tmp_path):
    run = saving(tmp_path)
    for step in range(4):
        run.step(step, {"weights": {"w": WEIGHT}} if step % 2 else {}, {"losses": {"loss": 0.0}})
    run.end()
    with pytest.raises(InputError, match="a step that has it: 1, 3"):
        open_run(tmp_path).value("w", 2)


def test_similar_names_among_very_many(saving, tmp_path):
    run = saving(tmp_path)
    run.step(0, scalars={"metrics": {f"layers.{n}.attention.weight": 0.0 for n in range(3000)}})
    run.end()
    with pytest.raises(InputError, match=r"layers\.77\.attention\.weight"):
        open_run(tmp_path).value("layers.77.atention.weight", 0)


def test_no_run_is_an_error_and_no_tensors_are_not(tmp_path):
    with pytest.raises(InputError, match=r"no run\.json"):
        open_run(tmp_path / "run")
    assert not (tmp_path / "run").exists()
    run = Run(str(tmp_path / "run"))
    saved = open_run(tmp_path / "run")
    assert (saved.steps(), saved.names(), saved.modes, saved.ranks, saved.events) == ([], [], [], [], [])
    assert (saved.ended, saved.torn, saved.verify()) == (False, 0, [])
    assert "steps: none" in str(saved)
    run.close()
    assert saved.ended


def test_reading_leaves_the_run_as_it_is(saving, tmp_path):
    small(saving, tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    saved = open_run(tmp_path)
    saved.value("fc.weight", 1)
    str(saved)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_the_text_of_a_run(saving, tmp_path):
    run = small(saving, tmp_path)
    run.step(3, scalars={"metrics": {"accuracy": 1.0}}, mode="eval", mode_step=0)
    run.event("weights: 3 saves dropped", 2)
    run.end("failed")
    lines = str(open_run(tmp_path)).splitlines()
    assert lines == [
        f"run {tmp_path}: failed; ranks: 0",
        "steps: train 0, 1, 2; eval 0",
        "tensors: weights 1, losses 1, metrics 1",
        "on disk: 0.0 MiB in 2 files",
        "events: 1; lost records: 0",
        "  step 2, rank 0: weights: 3 saves dropped",
    ]
    assert repr(open_run(tmp_path)) == f"SavedRun('{tmp_path}')"


def test_a_run_object_is_opened_like_its_path(saving, place):
    small(saving, place).end()
    run = Run.existing(place)
    assert open_run(run).steps() == open_run(place).steps() == [0, 1, 2]
    assert open_run(run).path == open_run(place).path == run.url


def test_series_by_mode_count_steps_over_all_modes(saving, tmp_path):
    run = small(saving, tmp_path)
    run.step(3, scalars={"losses": {"loss": 4.0}}, mode="eval", mode_step=0)
    run.end()
    series = open_run(tmp_path).series_by_mode("loss")
    assert {mode: (s.tolist(), v.tolist()) for mode, (s, v) in series.items()} == {
        "train": ([0, 1, 2], [0.0, 0.5, 1.0]),
        "eval": ([3], [4.0]),
    }


def test_last_steps_and_blocks_by_rank(saving, tmp_path):
    small(saving, tmp_path).end()
    second = saving(tmp_path, rank=1, resume=True)
    second.step(1, {"c": {"x": WEIGHT}})
    second.end()
    saved = open_run(tmp_path)
    assert saved.last_steps() == {0: 2, 1: 1}
    blocks = saved.blocks(1)
    assert [(rank, block.rank, block.step, block.length) for rank, block in blocks.items()] == [
        (0, 0, 1, 128),
        (1, 1, 1, 64),
    ]
    with pytest.raises(InputError, match="0, 1, 2"):
        saved.blocks(7)

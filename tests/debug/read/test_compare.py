"""The first difference of two runs: step, tensor and size; and steps and names of only one run."""

import math

import pytest
import torch

from loopwise.debug import open_run
from loopwise.debug.read.compare import compare, only
from loopwise.errors import InputError, StateError

NAN, INF = math.nan, math.inf


@pytest.fixture
def pair(saving, tmp_path):
    """``pair(first, second)``: readers of two runs from lists of ``{name: tensor}``, one a step."""

    def make(*steps):
        for name, run in zip("ab", (saving(tmp_path / "a"), saving(tmp_path / "b")), strict=True):
            for step, tensors in enumerate(steps["ab".index(name)]):
                run.step(step, {"outputs": tensors})
            run.end()
        return open_run(tmp_path / "a"), open_run(tmp_path / "b")

    return make


def test_equal_runs_have_no_difference(pair):
    steps = [{"x": torch.tensor([1.0, NAN, INF]), "i": torch.arange(3), "z": torch.ones(0)}] * 3
    first, second = pair(steps, steps)
    assert compare(first, second) is None
    assert compare(first, first) is None


def test_the_first_tensor_of_the_first_step_that_differs(pair):
    same = {"in": torch.ones(4), "b": torch.ones(4), "a": torch.ones(4)}
    later = same | {"a": torch.tensor([1.0, 1, 1, 5]), "b": torch.tensor([1.0, 2, 1, 4])}
    first, second = pair([same, same, later, same], [same, same, same, later])
    parting = compare(first, second)
    assert (parting.step, parting.name) == (2, "b")  # b is computed before a
    assert parting.largest == 3.0
    assert parting.rms == pytest.approx(math.sqrt((1 + 9) / 4))
    assert compare(first, second, regex="a").name == "a"
    assert compare(first, second, atol=3.0).name == "a"
    assert compare(first, second, atol=4.0) is None
    assert compare(first, second, collection="weights") is None
    with pytest.raises(InputError, match="regular expression"):
        compare(first, second, regex="(")


CASES = {
    "one is NaN": ([1.0, NAN], [1.0, 2.0], INF),
    "the other is NaN": ([1.0, 2.0], [1.0, NAN], INF),
    "infinities of two signs": ([INF], [-INF], INF),
    "one is infinite": ([INF, 1.0], [1.0, 1.0], INF),
    "shapes": ([1.0, 1.0], [1.0], INF),
    "a last place": ([1.0], [1.0 + 2**-23], 2**-23),
}


@pytest.mark.parametrize("tolerance", [0.0, 2**-25])
@pytest.mark.parametrize("case", CASES)
def test_kinds_of_differences(pair, case, tolerance):
    one, two, largest = CASES[case]
    parting = compare(*pair([{"x": torch.tensor(one)}], [{"x": torch.tensor(two)}]), rtol=tolerance)
    assert (parting.name, parting.largest) == ("x", largest)
    assert parting.rms == largest if len(one) == 1 else parting.rms > 0


@pytest.mark.parametrize(
    ("one", "two"),
    [
        (torch.tensor([0.0]), torch.tensor([-0.0])),
        (torch.tensor([NAN]), torch.tensor([0x7FF00001], dtype=torch.int32).view(torch.float32) * 0 + NAN),
        (torch.tensor([1.5]), torch.tensor([1.5]).bfloat16()),
        (torch.tensor([complex(NAN, 1)]), torch.tensor([complex(2, NAN)])),
        (torch.tensor([INF, -INF]), torch.tensor([INF, -INF]).double()),
    ],
)
def test_equal_values_in_other_bytes(pair, one, two):
    assert compare(*pair([{"x": one}], [{"x": two}])) is None


@pytest.mark.parametrize(
    "dtype",
    [torch.bool, torch.int64, torch.uint8, torch.bfloat16, torch.float8_e4m3fn, torch.complex64],
    ids=str,
)
def test_every_dtype_is_compared(pair, dtype):
    one, two = torch.zeros(4), torch.tensor([0.0, 0, 1, 0])
    parting = compare(*pair([{"x": one.to(dtype)}], [{"x": two.to(dtype)}]))
    assert (parting.largest, parting.rms) == (1.0, 0.5)


def test_integers_beyond_floats_are_compared(pair):
    one, two = torch.tensor([2**60]), torch.tensor([2**60 + 1])
    assert compare(*pair([{"x": one}], [{"x": two}])).largest == 1.0


def test_relative_tolerance(pair):
    two_runs = pair([{"x": torch.tensor([100.0, 1.0])}], [{"x": torch.tensor([101.0, 1.0])}])
    assert compare(*two_runs, rtol=0.0098).largest == 1.0
    assert compare(*two_runs, rtol=0.01) is None


def test_steps_and_names_of_only_one_run(pair):
    one = {"x": torch.ones(1), "first": torch.ones(1)}
    two = {"x": torch.zeros(1), "second": torch.ones(1)}
    two_runs = pair([one, one], [two, two, two])
    apart = only(*two_runs)
    assert apart.steps == ([], [2])
    assert apart.names == (["first"], ["second"])
    assert compare(*two_runs).only == apart
    assert only(*two_runs, regex="sec").names == ([], ["second"])
    assert compare(*two_runs, regex="sec") is None


def test_statistics_are_compared_if_only_those_were_saved(saving, tmp_path):
    table = {"collection": "weights", "rows": ["w", "v"], "columns": ["max", "l2"]}
    for name, large in (("a", 2.0), ("b", 2.5)):
        run = saving(tmp_path / name)
        run.step(0, table={**table, "values": [[1.0, 1.0], [NAN, 1.0]]})
        run.step(1, table={**table, "values": [[1.0, 1.0], [1.0, large]]})
    parting = compare(open_run(tmp_path / "a"), open_run(tmp_path / "b"))
    assert (parting.step, parting.name, parting.largest) == (1, "v", 0.5)


def test_a_tensor_is_compared_with_statistics_of_it(saving, tmp_path):
    saving(tmp_path / "a").step(0, {"weights": {"w": torch.tensor([3.0, -4.0])}})
    table = {"collection": "weights", "rows": ["w"], "columns": ["max", "l2", "other"]}
    saving(tmp_path / "b").step(0, table={**table, "columns": ["max", "l2"], "values": [[3.0, 5.0]]})
    saving(tmp_path / "c").step(0, table={**table, "columns": ["max", "l2"], "values": [[3.0, 5.5]]})
    one, same, other = (open_run(tmp_path / name) for name in "abc")
    assert compare(one, same) is None
    assert compare(same, one) is None
    assert compare(one, other).largest == 0.5


def test_scalars_are_compared(saving, tmp_path):
    for name, loss in (("a", 1.0), ("b", 1.25)):
        saving(tmp_path / name).step(0, scalars={"losses": {"loss": loss}})
    parting = compare(open_run(tmp_path / "a"), open_run(tmp_path / "b"))
    assert (parting.step, parting.name, parting.largest, parting.rms) == (0, "loss", 0.25, 0.25)


def test_lost_bytes_are_no_difference(pair, tmp_path):
    two_runs = pair([{"x": torch.ones(3)}], [{"x": torch.ones(3)}])
    (tmp_path / "b" / "debug" / "tensors.rank0.0.seg").write_bytes(b"")
    with pytest.raises(StateError, match="step 0 of rank 0"):
        compare(*two_runs)


def test_large_tensors_are_compared_in_pieces(pair, monkeypatch):
    monkeypatch.setattr("loopwise.debug.read.compare.PIECE", 3)
    one = torch.arange(8.0)
    two = one.clone()
    two[1], two[7] = 3.0, 9.0
    parting = compare(*pair([{"x": one}], [{"x": two}]))
    assert (parting.largest, parting.rms) == (2.0, pytest.approx(1.0))

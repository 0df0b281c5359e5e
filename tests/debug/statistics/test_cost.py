"""Number of operations for a table of statistics, and refused arguments."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from loopwise.debug.statistics.table import STATISTICS, checked, columns, table
from loopwise.errors import InputError

SHAPES = [(), (0,), (1,), (2, 0, 3), (7,), (3, 5, 2), (2048,), (2049,)]
FIVE = ("min", "max", "mean", "std", "l2")


def sample(shape, dtype, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


class Operations(TorchDispatchMode):
    """Counts operations, and those whose result an accelerator would have to be waited for."""

    def __init__(self):
        super().__init__()
        self.count, self.waits = 0, []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self.count += 1
        if any(
            word in str(operation)
            for word in ("_local_scalar_dense", "nonzero", "unique", "bincount", "equal.default")
        ):
            self.waits.append(str(operation))
        return operation(*args, **(kwargs or {}))


@pytest.mark.parametrize("way", ["joined"], indirect=True)
def test_on_an_accelerator_nothing_is_waited_for(way):
    names = tuple(name for name in STATISTICS if name not in ("quantiles", "histogram"))
    tensors = [sample(shape, dtype) for shape in SHAPES for dtype in (torch.float32, torch.bfloat16)]
    with Operations() as seen:
        table(tensors, names)
    assert not seen.waits
    meta = table([tensor.to("meta") for tensor in tensors], tuple(STATISTICS))  # where waiting is an error
    assert meta.device.type == "meta"
    assert meta.shape == (len(tensors), len(columns(tuple(STATISTICS))))


@pytest.mark.parametrize("way", ["without a compiler"], indirect=True)
def test_on_a_cpu_it_is_and_the_test_above_could_fail(way):
    with Operations() as seen:
        table([torch.ones(5000)], FIVE)
    assert seen.waits


def test_many_small_tensors_take_as_many_operations_as_few():
    counts = []
    for many in (64, 400):
        tensors = [sample((100 + n % 9,), torch.float32, n) for n in range(many)]
        with Operations() as seen:
            table(tensors, FIVE)
        counts.append(seen.count)
    assert counts[0] == counts[1] < 60


@pytest.mark.parametrize("way", ["without a compiler"], indirect=True)
def test_large_tensors_are_read_in_pieces_by_three_operations_each(way):
    counts = []
    for pieces in (2, 12):
        with Operations() as seen:
            table([sample((pieces, 2**18), torch.float32)], FIVE)
        counts.append(seen.count)
    assert counts[1] - counts[0] == 10 * 3


def test_with_a_compiler_tensors_are_read_by_one_call():
    counts = []
    for pieces in (2, 12):
        with Operations() as seen:
            table([sample((pieces, 2**18), torch.float32), sample((5,), torch.bfloat16)] * 40, FIVE)
        counts.append(seen.count)
    assert counts[0] == counts[1] < 200


def test_names_are_checked():
    assert checked(["mean", "l2", "mean"]) == ("mean", "l2")
    assert columns(("l2", "quantiles", "count"))[:3] == ("l2", "quantile_1", "quantile_5")
    assert columns(("histogram",)) == ("bins_from", "bins_to", *(f"bin_{n}" for n in range(64)))
    with pytest.raises(InputError) as error:
        checked(["mean", "median", "norm"])
    assert str(error.value) == (
        "seen: the statistics 'median', 'norm'\n"
        "expected: names among min, max, mean, std, variance, sum, prod, abs_min, abs_max, abs_mean, abs_std, "
        "abs_variance, abs_sum, abs_prod, l1, l2, count, nan, inf, zero, subnormal, quantiles, histogram\n"
        "likely cause: a typo, or a name of another library\n"
        "fix: use the names above"
    )


def test_tables_of_nothing():
    assert table([], FIVE).shape == (0, 5)
    assert table([torch.ones(3)] * 2, ()).shape == (2, 0)
    assert table([torch.ones(3)], FIVE).dtype == torch.float64


def test_one_device_at_a_time():
    with pytest.raises(InputError, match="tensors on cpu, meta"):
        table([torch.ones(3), torch.ones(3, device="meta")], FIVE)

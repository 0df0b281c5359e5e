"""The function in C, the cases that it leaves to others, and machines that cannot compile it."""

import math
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loopwise.debug.statistics import native
from loopwise.debug.statistics.table import table

FIVE = ("min", "max", "mean", "std", "l2")
INF, NAN = math.inf, math.nan


def by_pieces(monkeypatch, *arguments):
    with monkeypatch.context() as patch:
        patch.setattr(native, "kernel", lambda: None)
        return table(*arguments)


def test_elements_that_do_not_lie_side_by_side():
    row = torch.randn(9000, generator=torch.Generator().manual_seed(0))[::3]
    np.testing.assert_allclose(native.measure([row], False)[0], exact(row), rtol=1e-5)


def exact(values, absolute=False):
    x = values.double().numpy()
    x = np.abs(x) if absolute else x
    if not len(x):
        return [0, 0, 0, 0, INF, -INF, 0]
    sums = [len(x), x.sum(), ((x - x.mean()) ** 2).sum(), (x**2).sum()]
    return [*sums, x.min(), x.max(), (x == 0).sum()]


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.integers(0, 9000), min_size=1, max_size=5),
    st.sampled_from([0.0, 1.0, -3e4]),
    st.sampled_from([1e-9, 1.0, 1e9]),
    st.sampled_from(list(native.KINDS)),
    st.booleans(),
    st.sampled_from([0.0, 0.5]),
)
def test_sums(lengths, mean, scale, dtype, absolute, zeros):
    rows = [((torch.randn(n) + mean) * scale * (torch.rand(n) > zeros)).to(dtype) for n in lengths]
    found = native.measure(rows, absolute)
    for row, line in zip(rows, found, strict=True):
        truth = exact(row, absolute)
        size = np.abs(row.double().numpy()).sum()
        assert line[0] == truth[0]
        assert line[4:].tolist() == truth[4:]
        assert abs(line[1] - truth[1]) <= 1e-6 * size
        np.testing.assert_allclose(line[2:4], truth[2:4], rtol=2e-6)


@pytest.mark.parametrize("place", [0, 1, 31, 32, 4095, 4096, 9999, 10000])
@pytest.mark.parametrize("value", [1e6, -1e6])
def test_one_far_from_all_others(place, value):
    row = torch.randn(10001)
    row[place] = value
    np.testing.assert_allclose(native.measure([row], False)[0], exact(row), rtol=1e-6)


STRANGE = {
    "NaN": [1.0, NAN, 2.0],
    "infinity": [1.0, INF, 2.0],
    "both infinities": [INF, -INF],
    "squares overflow": [1e30, 2e30, -1e30],
    "sums overflow": [3e38, 3e38, 3e38],
    "squares vanish": [1e-30, 2e-30, 4e-30],
    "distances vanish": [1.0000001e-15, 1e-15, 1e-15],
    "subnormal": [1e-40, 3e-40],
    "all equal": [1e-20] * 5000,
    "zeros": [0.0] * 5000,
    "minus zero": [-0.0, 0.0],
}


@pytest.mark.parametrize("what", STRANGE)
def test_errors_of_float32_are_measured_again(what, monkeypatch):
    tensors = [torch.rand(100), torch.tensor(STRANGE[what]), torch.rand(5000)]
    names = (*FIVE, "nan", "inf", "zero", "abs_max", "variance")
    torch.testing.assert_close(
        table(tensors, names), by_pieces(monkeypatch, tensors, names), rtol=1e-5, atol=0, equal_nan=True
    )


def test_other_dtypes_and_layouts_are_measured_beside(monkeypatch):
    dense = torch.randn(40, 40)
    tensors = [
        dense,
        dense.double(),
        dense.half(),
        dense.bfloat16(),
        torch.arange(50),
        dense.relu().to_sparse(),
        dense.t()[::2],
        torch.empty(0),
        torch.randn(6, dtype=torch.complex64),
        dense.relu(),
    ]
    found, others = table(tensors, FIVE), by_pieces(monkeypatch, tensors, FIVE)
    torch.testing.assert_close(found, others, rtol=1e-5, atol=1e-6, equal_nan=True)
    # other statistics beside these change nothing about them
    torch.testing.assert_close(
        table(tensors, (*FIVE, "subnormal"))[:, :5], found, rtol=1e-5, atol=1e-6, equal_nan=True
    )


@settings(deadline=None, max_examples=40)
@given(st.binary(max_size=300), st.integers(0, 3000), st.integers(0, 2**32 - 1))
def test_crc32_is_that_of_zlib(more, blocks, before):
    data = bytes(range(256)) * blocks + more
    assert native.crc32(memoryview(data), before) == zlib.crc32(data, before)
    assert native.crc32(memoryview(data)[3:], before) == zlib.crc32(data[3:], before)


def test_crc32_without_a_compiler(monkeypatch):
    monkeypatch.setattr(native, "kernel", lambda: None)
    assert native.crc32(bytes(10**6), 7) == zlib.crc32(bytes(10**6), 7)


@pytest.fixture
def fresh():
    native.kernel.cache_clear()
    yield
    native.kernel.cache_clear()


@pytest.mark.parametrize("compiler", ["false", "/no/such/compiler", "true"])
def test_a_compiler_that_does_not_work(compiler, monkeypatch, fresh):
    monkeypatch.setenv("CC", compiler)
    assert native.kernel() is None
    assert table([torch.ones(5000)], FIVE).tolist() == [[1, 1, 1, 0, pytest.approx(5000**0.5)]]


def test_no_compiler(monkeypatch, fresh):
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", "")
    assert native.kernel() is None


def test_nothing_is_left_behind(tmp_path, monkeypatch, fresh):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert native.kernel() is not None
    assert list(tmp_path.iterdir()) == []

import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loopwise.debug.statistics.quantiles import BINS, PERCENTS
from loopwise.debug.statistics.table import STATISTICS, columns, table

FLOATS = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2]
WHOLE = [torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64, torch.bool]
COMPLEX = [torch.complex64, torch.complex128]
SHAPES = [(), (0,), (1,), (2, 0, 3), (7,), (3, 5, 2), (2048,), (2049,)]
FIVE = ("min", "max", "mean", "std", "l2")


def sample(shape, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    if dtype in WHOLE:
        return torch.randint(0, 2 if dtype is torch.bool else 100, shape, generator=generator).to(dtype)
    if dtype in COMPLEX:
        return torch.randn(shape, dtype=dtype, generator=generator)
    return torch.randn(shape, generator=generator).to(dtype)


def numbers(tensor):
    """Return the elements as float64 in NumPy; of complex ones the absolute values."""
    dense = tensor.detach().to_dense() if tensor.layout is not torch.strided else tensor.detach()
    dense = dense.resolve_conj().resolve_neg()
    return (dense.abs() if dense.is_complex() else dense).double().numpy().reshape(-1)


def smallest_normal(dtype):
    return 0 if dtype in WHOLE else torch.finfo(dtype).tiny


def bins(x):
    x = x[np.isfinite(x)]
    if not len(x):
        return [math.nan, math.nan, *[0] * BINS]
    counts = np.histogram(x, BINS)[0] if x.min() < x.max() else np.array([0] * (BINS - 1) + [len(x)])
    return [x.min(), x.max(), *counts]


def some(function):
    return lambda x, _: function(x) if len(x) else math.nan


ORACLE = {
    "min": some(np.min),
    "max": some(np.max),
    "mean": some(np.mean),
    "std": some(np.std),
    "variance": some(np.var),
    "sum": lambda x, _: x.sum(),
    "prod": lambda x, _: 0 if np.isfinite(x).all() and not x.all() else x.astype(np.longdouble).prod(),
    "l1": lambda x, _: np.abs(x).sum(),
    "l2": lambda x, _: np.linalg.norm(x),
    "count": lambda x, _: len(x),
    "nan": lambda x, _: np.isnan(x).sum(),
    "inf": lambda x, _: np.isinf(x).sum(),
    "zero": lambda x, _: (x == 0).sum(),
    "subnormal": lambda x, tiny: ((x != 0) & (np.abs(x) < tiny)).sum(),
    "quantiles": lambda x, _: np.quantile(x, np.array(PERCENTS) / 100) if len(x) else [math.nan] * 7,
    "histogram": lambda x, _: bins(x),
}
for plain in ("min", "max", "mean", "std", "variance", "sum", "prod"):
    ORACLE[f"abs_{plain}"] = lambda x, tiny, of=ORACLE[plain]: of(np.abs(x), tiny)


def truth(tensor, name):
    with np.errstate(all="ignore"):
        return np.atleast_1d(np.asarray(ORACLE[name](numbers(tensor), smallest_normal(tensor.dtype)), float))


def assert_right(tensors, names=tuple(STATISTICS)):
    result = table(tensors, names).numpy()
    assert result.shape == (len(tensors), len(columns(names)))
    at = 0
    for name in names:
        width = len(columns((name,)))
        for row, tensor in zip(result[:, at : at + width], tensors, strict=True):
            size = np.abs(numbers(tensor)).sum()  # sums that cancel are right to within a part of this
            slack = {"sum": 1e-6 * size, "mean": 1e-6 * size / max(tensor.numel(), 1)}.get(name, 0)
            message = f"{name} of {tensor.dtype} {tuple(tensor.shape)}"
            np.testing.assert_allclose(row, truth(tensor, name), rtol=1e-5, atol=slack, err_msg=message)
            if name.removeprefix("abs_") in ("min", "max", "count", "nan", "inf", "zero", "subnormal"):
                np.testing.assert_array_equal(row, truth(tensor, name), err_msg=message)
        at += width


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("dtype", FLOATS + WHOLE + COMPLEX, ids=str)
def test_every_statistic_is_that_of_numpy_in_float64(dtype):
    assert ORACLE.keys() == STATISTICS.keys()
    assert_right([sample(shape, dtype) for shape in SHAPES])


@pytest.mark.parametrize("dtype", FLOATS + WHOLE + COMPLEX, ids=str)
def test_tensors_of_several_pieces(dtype):
    assert_right([sample((5,), dtype), sample((3, 100_000), dtype)])


@pytest.mark.usefixtures("way")
def test_a_statistic_alone_is_the_same_as_among_others():
    tensors = [
        sample((5000,), torch.float32),
        sample((9, 9), torch.complex64),
        1e-30 * sample((2500,), torch.float32),
    ]
    tensors += [
        torch.full((3000,), 7.0),
        torch.full((3000,), math.nan),
        torch.full((2100,), 3e38),
        torch.zeros(2100),
    ]
    every = table(tensors, tuple(STATISTICS))
    for name in STATISTICS:
        at = columns(tuple(STATISTICS)).index(columns((name,))[0])
        alone = table(tensors, (name,))
        torch.testing.assert_close(
            alone, every[:, at : at + alone.shape[1]], rtol=1e-6, atol=0, equal_nan=True
        )


def test_many_tensors_of_all_sizes_and_dtypes_keep_their_order():
    shapes = [(n % 50, 1 + n % 7) for n in range(50)] + SHAPES
    dtypes = (FLOATS + COMPLEX + WHOLE) * 9
    tensors = [
        sample(shape, dtype, seed) for seed, (shape, dtype) in enumerate(zip(shapes, dtypes, strict=False))
    ]
    assert_right(tensors)
    assert_right(tensors[::-1], ("histogram", "mean", "zero"))


@pytest.mark.usefixtures("way")
@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(st.floats(width=32), max_size=40), min_size=1, max_size=5))
def test_any_numbers(rows):
    exact = ("min", "max", "abs_min", "abs_max", "count", "nan", "inf", "zero", "subnormal")
    tensors = [torch.tensor(row, dtype=torch.float32) for row in rows]
    assert_right(tensors, exact)
    result = table(tensors, ("l1", "l2", "histogram"))
    for row, tensor in zip(result, tensors, strict=True):
        np.testing.assert_allclose(row[:2], [truth(tensor, "l1")[0], truth(tensor, "l2")[0]], rtol=1e-5)
        assert row[4:].sum() == np.isfinite(numbers(tensor)).sum()


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("size", [100, 5000])
def test_nan_and_inf_show_wherever_they_are(size):
    clean = sample((size,), torch.float32)
    tensors = [clean]
    for value in (math.nan, math.inf, -math.inf):
        for place in (0, size // 2, size - 1):
            tensors.append(clean.clone())
            tensors[-1][place] = value
    tensors.append(torch.full((size,), math.nan))
    tensors.append(torch.tensor([math.inf, -math.inf] * (size // 2)))
    names = ("min", "max", "mean", "std", "sum", "l1", "l2", "nan", "inf", "abs_max", "histogram")
    assert_right(tensors, names)
    quantiles = table(tensors, ("quantiles",))
    assert quantiles.isnan().all(dim=1).tolist() == [False, *[True] * 3, *[False] * 6, True, False]
    torch.testing.assert_close(
        quantiles[0], torch.quantile(clean.double(), torch.tensor(PERCENTS).double() / 100)
    )


@pytest.mark.parametrize("size", [100, 5000, 300_000])
@pytest.mark.parametrize("scale", [1e30, 3e38, 1e-15, 1e-25, 1e-37, 1e-44, 0.0])
def test_squares_beyond_the_range_of_float32(size, scale):
    assert_right([sample((size,), torch.float32).clamp(-1, 1) * scale], (*FIVE, "l1", "abs_std"))


@pytest.mark.parametrize("size", [100, 5000, 300_000])
@pytest.mark.parametrize(
    ("mean", "std"), [(1e4, 1e-2), (-1e4, 1e-2), (1.0, 1e-3), (1.0, 0.3), (1e-20, 1e-24), (7.0, 0.0)]
)
def test_std_of_values_far_from_zero(size, mean, std):
    values = mean + std * sample((size,), torch.float32)
    assert_right([values, values.double()], (*FIVE, "variance", "abs_std", "abs_mean"))


def test_std_of_pieces_that_differ():
    values = sample((2**20,), torch.float32)
    values[: 2**19] += 100
    values[2**18 :] *= 1e-3
    assert_right([values, values.half()], (*FIVE, "abs_std"))


def test_sums_of_half_precision_do_not_overflow_or_stall():
    tensors = [
        torch.full((size,), value, dtype=dtype)
        for size in (1000, 100_000)
        for value in (1.0, 50_000.0)
        for dtype in (torch.float16, torch.bfloat16)
    ]
    assert_right(tensors, ("sum", "mean", "l1", "l2", "std"))


def test_squares_that_are_all_rounded_one_way():
    values = sample((2**18,), torch.int32).float()
    assert_right(
        [values, torch.full((2**18,), 0.1), torch.cat((values, values)).bfloat16()], (*FIVE, "abs_std")
    )


def test_heavy_tails():
    values = (3 * sample((2**20,), torch.float32)).exp()
    assert_right([values, -values, values.bfloat16()], (*FIVE, "l1", "variance"))


@pytest.mark.usefixtures("way")
def test_subnormal_numbers_are_those_of_the_dtype():
    tensors = [
        torch.tensor([0.0, 1e-39, -1e-40, 1.0, math.nan, math.inf]).repeat(9),
        torch.tensor([0.0, 6e-8, -5e-5, 1.0], dtype=torch.float16),
        torch.tensor([0.0, 2.0**-9, 1.0]).to(torch.float8_e4m3fn),
        torch.tensor([0.0, 1e-310, 1e-300], dtype=torch.float64),
    ]
    assert table(tensors, ("subnormal", "zero")).tolist() == [[18, 9], [2, 1], [1, 1], [1, 1]]


@pytest.mark.usefixtures("way")
def test_memory_in_any_order():
    image = sample((2, 3, 40, 30), torch.float32)
    complex_ = sample((4, 6), torch.complex64)
    with torch.inference_mode():
        inference = sample((30,), torch.float32)
    tensors = [
        image.to(memory_format=torch.channels_last),
        image.transpose(0, 3),
        image[:, ::2, 1:, ::3],
        image[0, 0, 0].expand(20, 30),
        torch.tensor(2.5).expand(3000),
        image.as_strided((4, 4), (1, 1)),
        complex_.conj(),
        complex_.conj().imag,
        complex_.real,
        inference,
        torch.nn.Parameter(image),
        (torch.nn.Parameter(image) * 2).transpose(1, 2),
    ]
    assert_right(tensors)


def sparse():
    values = torch.tensor([1.5, -2.0, 0.0, 4.0])
    places = torch.tensor([[0, 3, 3, 0], [1, 2, 4, 1]])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # sparse compressed tensors are in beta
        return {
            "coo with repetitions": torch.sparse_coo_tensor(places, values, (5, 6), check_invariants=False),
            "coo of rows": torch.sparse_coo_tensor([[0, 2]], sample((2, 3), torch.float32), (4, 3)),
            "coo without zeros": sample((3, 3), torch.float32).to_sparse(),
            "coo of nothing": torch.sparse_coo_tensor(size=(3, 4)),
            "coo of nan": torch.sparse_coo_tensor([[1]], [math.nan], (3,)),
            "coo of bfloat16": torch.sparse_coo_tensor(places, values.bfloat16(), (5, 6)),
            "coo, large": torch.sparse_coo_tensor(
                [list(range(3000))], sample((3000,), torch.float32), (9000,)
            ),
            "csr": sample((6, 5), torch.float32).relu().to_sparse_csr(),
            "csc": sample((6, 5), torch.float64).relu().to_sparse_csc(),
            "bsr": sample((6, 4), torch.float32).relu().to_sparse_bsr((2, 2)),
        }


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("kind", sparse())
def test_sparse_tensors_are_like_dense_ones(kind):
    tensor = sparse()[kind]
    assert_right([tensor])
    assert_right([sample((9,), torch.float32), tensor, sample((0,), torch.float32)])


def test_quantiles_of_more_than_16_million_values():
    values = torch.arange(2**24 + 1, dtype=torch.float32).view(-1, 1).flip(0)
    assert table([values], ("quantiles",))[0].tolist() == [p / 100 * 2**24 for p in PERCENTS]


def test_histogram_of_special_cases():
    ends = torch.tensor([-3e38, 3e38, -math.inf, math.inf, math.nan])
    tensors = [
        torch.full((9,), 3.0),
        torch.arange(65),
        ends,
        torch.full((3,), math.inf),
        torch.tensor([-1.7e308, 1.7e308], dtype=torch.float64),
    ]
    low_high, counts = table(tensors, ("histogram",)).split((2, BINS), dim=1)
    assert low_high[:3].tolist() == [[3, 3], [0, 64], [ends[0].item(), ends[1].item()]]
    assert counts.tolist() == [
        [0] * 63 + [9],
        [1] * 63 + [2],
        [1, *[0] * 62, 1],
        [0] * 64,
        [1, *[0] * 62, 1],
    ]


@pytest.mark.usefixtures("way")
def test_nothing_is_changed_or_recorded():
    weight = torch.nn.Parameter(sample((50, 50), torch.float32))
    tensors = [weight, weight * 2, sample((7,), torch.bfloat16), sample((70, 70), torch.float32).t()]
    before, versions = (
        [tensor.detach().clone() for tensor in tensors],
        [tensor._version for tensor in tensors],
    )
    state, numpy_state = torch.get_rng_state(), np.random.get_state()
    result = table(tensors, tuple(STATISTICS))
    assert not result.requires_grad
    assert all(torch.equal(a, b) for a, b in zip(before, tensors, strict=True))
    assert versions == [tensor._version for tensor in tensors]
    assert torch.equal(state, torch.get_rng_state())
    assert all(np.array_equal(a, b) for a, b in zip(numpy_state, np.random.get_state(), strict=True))


@pytest.mark.usefixtures("way")
def test_the_caller_s_modes_make_no_difference():
    tensors = [sample((50, 50), torch.float32), sample((9,), torch.float16), sample((5000,), torch.bfloat16)]
    expected = table(tensors, tuple(STATISTICS))

    def same():
        result = table(tensors, tuple(STATISTICS))
        assert not result.is_inference()
        assert torch.equal(result.nan_to_num(), expected.nan_to_num())

    with torch.autocast("cpu", torch.bfloat16):
        same()
    with torch.inference_mode():
        same()
    with torch.device("meta"):
        same()
    torch.set_default_dtype(torch.float64)
    try:
        same()
    finally:
        torch.set_default_dtype(torch.float32)
    torch.use_deterministic_algorithms(True)
    try:
        same()
    finally:
        torch.use_deterministic_algorithms(False)

"""Layouts: places of tensors and statistics."""

import json

import numpy as np
import pytest
import torch

from loopwise.debug.store.group import Group
from loopwise.debug.store.layout import Layout

SIGNATURE = ((torch.float32, torch.Size([2, 3])), (torch.float32, torch.Size([3])))
TENSORS = Group("weights", ("a", "b"), SIGNATURE, (0, 64))
STATISTICS = Group("gradients", ("gradient/a", "gradient/b"), SIGNATURE, (128,), ("min", "max"))
OWN = Group("weights", ("a",), SIGNATURE[:1], (192,), ("mean",))
LOSSES = Group("losses", ("loss", "other"), (), (256,), ("value",))
NUMBERS = np.arange(7.0)


def read(offset, length):
    """Bytes of a block whose tables have the numbers 0 to 6."""
    first = {128: 0, 192: 4, 256: 5}[offset]
    return NUMBERS[first : first + length // 8].tobytes()


@pytest.fixture
def layout():
    groups = [group.record() for group in (TENSORS, STATISTICS, OWN, LOSSES)]
    return Layout(json.loads(json.dumps(groups)))


def test_places_by_name(layout):
    assert list(layout.names()) == ["a", "b", "gradient/a", "gradient/b", "a", "loss", "other"]
    assert list(layout.names("losses")) == ["loss", "other"]
    entry = layout.tensor("b")
    assert (entry.dtype, entry.shape, entry.offset, entry.length) == (torch.float32, (3,), 64, 12)
    assert layout.tensor("loss") is None
    assert layout.statistic_offsets("gradient/b") == {"min": 144, "max": 152}
    assert layout.described("gradient/b") == (torch.float32, (3,))
    assert layout.described("loss") == (torch.float64, ())
    assert layout.extent == 272
    assert "loss" in layout
    assert "c" not in layout


def test_numbers_by_kind(layout):
    numbers = layout.numbers(read)
    np.testing.assert_array_equal(numbers, NUMBERS)
    columns = layout.columns(numbers, "gradient", ("max", "min"))
    assert (columns.names, columns.shapes, columns.dtypes) == (
        ("a", "b"),
        ((2, 3), (3,)),
        ("float32", "float32"),
    )
    assert [values.tolist() for values in columns.values] == [[1, 3], [0, 2]]
    assert layout.cells("weight", ("mean",)).names == ("a",)
    assert layout.columns(numbers, "gradient", ("mean",)).names == ()
    assert [values.tolist() for values in layout.columns(numbers, "output", ("min", "max")).values] == [
        [],
        [],
    ]


def test_scalars_and_collections(layout):
    numbers = layout.numbers(read)
    assert (
        layout.column(numbers, "value")
        == layout.column(numbers, "value", "losses")
        == {"loss": 5.0, "other": 6.0}
    )
    assert layout.column(numbers, "value", "weights") == {}
    assert layout.column(numbers, "max", "gradients") == {"gradient/a": 1.0, "gradient/b": 3.0}

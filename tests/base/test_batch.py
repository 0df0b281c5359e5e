"""Batch helpers on every structure: hypothesis over nests, and the ambiguous ones by hand."""

import dataclasses
from collections import namedtuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import BatchEncoding

from loopwise import batch as batches
from loopwise.errors import InputError

Pair = namedtuple("Pair", "first second")


@dataclasses.dataclass(frozen=True)
class Fields:
    image: object
    name: object


def leaf(size):
    tensor = st.integers(0, 3).map(lambda d: torch.arange(size * 2**d).reshape(size, *[2] * d))
    array = st.just(np.arange(size * 3).reshape(size, 3))
    words = st.just([f"word {i}" for i in range(size)])
    return st.one_of(tensor, array, words)


def nest(size):
    return st.recursive(
        leaf(size),
        lambda inner: st.one_of(
            st.tuples(inner, inner),
            st.builds(lambda a, b: [a, b], inner, inner),
            st.builds(Pair, inner, inner),
            st.builds(Fields, inner, inner),
            st.dictionaries(st.sampled_from("abc"), inner, min_size=1),
            st.builds(lambda a: BatchEncoding({"ids": a}), inner),
        ),
        max_leaves=6,
    )


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return np.array_equal(a, b)
    if dataclasses.is_dataclass(a):
        return type(a) is type(b) and same(vars(a), vars(b))
    if isinstance(a, (dict, BatchEncoding)):
        return type(a) is type(b) and a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return a == b


sized = st.integers(4, 9).flatmap(lambda size: st.tuples(st.just(size), nest(size)))


@given(sized)
def test_length(pair):
    size, batch = pair
    assert batches.length(batch, size) == size


@given(sized, st.data())
def test_split_and_concatenate_are_inverse(pair, data):
    size, batch = pair
    cut = data.draw(st.integers(1, size - 1))
    parts = batches.split(batch, [cut, size - cut])
    assert same(batches.concatenate(parts, [cut, size - cut]), batch)


@given(sized)
def test_index_selects_copies(pair):
    size, batch = pair
    everything = batches.index(batch, torch.arange(size), size)
    assert same(everything, batch)
    mine = {id(x) for x in batches.leaves(batch) if isinstance(x, torch.Tensor)}
    assert not mine & {id(x) for x in batches.leaves(everything) if isinstance(x, torch.Tensor)}
    assert batches.nbytes(everything) == batches.nbytes(batch)


def test_detection_batches_are_lists_of_samples():
    batch = (
        tuple(torch.zeros(3, 8, 8) for _ in range(4)),
        tuple({"boxes": torch.zeros(i, 4), "id": i} for i in range(4)),
    )
    assert batches.length(batch) == 4
    images, targets = batches.index(batch, torch.tensor([3, 1]), 4)
    assert len(images) == 2
    assert [t["id"] for t in targets] == [3, 1]


def test_a_list_of_samples_is_one_entry_a_sample():
    batch = [(torch.zeros(3, 8), i) for i in range(5)]
    assert batches.length(batch, 8) == 5
    assert [label for _, label in batches.index(batch, torch.tensor([4, 0]), 5)] == [4, 0]


def test_constants_are_shared():
    batch = {
        "x": torch.zeros(4),
        "temperature": 0.5,
        "name": "train",
        "flag": None,
        "scale": torch.tensor(2.0),
    }
    picked = batches.index(batch, torch.tensor([0]), 4)
    assert picked["x"].shape == (1,)
    assert (picked["temperature"], picked["name"], picked["flag"]) == (0.5, "train", None)


@pytest.mark.parametrize("batch", [3.0, torch.tensor(1.0), {"a": torch.tensor(1.0)}, None])
def test_no_batch_dimension(batch):
    with pytest.raises(InputError, match="without a batch dimension"):
        batches.length(batch)


def test_different_shapes_are_not_joined():
    with pytest.raises(InputError, match="pads each batch to its own longest"):
        batches.concatenate([torch.zeros(2, 3), torch.zeros(2, 4)], [2, 2])

"""States without code: a round through torch.save and torch.load(weights_only=True), and what is refused."""

import io
import pickle
from collections import OrderedDict, UserDict, deque, namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch

from loopwise.errors import InputError
from loopwise.sift.frameworks.plain import from_plain, load, save, to_plain

Pair = namedtuple("Pair", "a b")


def loaded(value):
    file = io.BytesIO()
    torch.save(to_plain(value), file)
    file.seek(0)
    return from_plain(torch.load(file, weights_only=True))


def test_a_round():
    value = {
        "tensor": torch.arange(3, dtype=torch.int16),
        "nest": [(1, 2.5, None, True), {"a": "text", 3: b"bytes"}, {1, 2}, []],
        "array": np.arange(6, dtype=np.uint8).reshape(2, 3),
        "number": np.float32(1.5),
        "deque": deque([1, torch.ones(2)], maxlen=4),
        "mapping": UserDict(a=1),
        "ordered": OrderedDict(b=2),
    }
    again = loaded(value)
    assert torch.equal(again["tensor"], value["tensor"])
    assert again["tensor"].dtype == torch.int16
    assert again["nest"] == value["nest"]
    assert again["array"].dtype == np.uint8
    assert (again["array"] == value["array"]).all()
    assert again["number"] == 1.5
    assert again["deque"].maxlen == 4
    assert again["deque"][0] == 1
    assert (again["mapping"], again["ordered"]) == ({"a": 1}, {"b": 2})


@pytest.mark.parametrize("value", [Pair(1, 2), np.array(["text"]), np.array([None]), print, object()])
def test_classes_of_others_are_refused(value):
    with pytest.raises(InputError) as error:
        to_plain({"batch": [value]}, "the state of a loader")
    seen, expected, _, fix = error.value.args
    kind = type(value)
    assert seen == f"a {kind.__module__}.{kind.__name__} in the state of a loader"
    assert "without code" in expected
    assert fix == "return a dict or a tuple of tensors from the collate function"


class Trap:
    def __reduce__(self):
        return (pytest.fail, ("code of a checkpoint was run",))


def test_a_file_is_read_without_running_code(tmp_path):
    path = str(tmp_path / "sift_0.pt")
    save({"a": deque([1])}, path, "the state")
    assert load(path) == {"a": deque([1])}
    whole = Path(path).read_bytes()
    torch.save(Trap(), path)
    for data in (Path(path).read_bytes(), whole[:100], b"", pickle.dumps(Trap())):
        Path(path).write_bytes(data)
        with pytest.raises(InputError, match=r"sift_0\.pt"):
            load(path)

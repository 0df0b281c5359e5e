"""States in a form without code, and their files, which are read by ``torch.load(weights_only=True)``."""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from loopwise.errors import InputError
from loopwise.storage.files import replace_file

MARK = "loopwise"
"""Key of the dicts that stand for values of other types."""
PLAIN = (torch.Tensor, bool, int, float, complex, str, bytes, type(None))


def to_plain(value: Any, place: str = "the state") -> Any:
    """Return a nest of containers, tensors and arrays as dicts, lists, tuples, tensors and numbers.

    A mapping of another type, such as Hugging Face's ``BatchEncoding``, becomes a dict.

    Args:
        value: the nest.
        place: what the nest is, for the message.

    Raises:
        InputError: an object of another type.
    """
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, PLAIN):
        return value
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
        return {MARK: "array", "values": torch.from_numpy(np.ascontiguousarray(value))}
    if isinstance(value, deque):
        return {MARK: "deque", "values": [to_plain(item, place) for item in value], "most": value.maxlen}
    if isinstance(value, Mapping):
        return {name: to_plain(item, place) for name, item in value.items()}
    if type(value) in (list, tuple, set):
        return type(value)(to_plain(item, place) for item in value)
    raise InputError(
        f"a {type(value).__module__}.{type(value).__name__} in {place}",
        "dicts, lists, tuples, tensors, arrays, numbers and strings, which a checkpoint holds without code",
        "the collate function returns a class of its own, or the policy's state has one",
        "return a dict or a tuple of tensors from the collate function",
    )


def from_plain(value: Any) -> Any:
    """Return the nest that ``to_plain`` was given."""
    if isinstance(value, dict) and MARK in value:
        if value[MARK] == "deque":
            return deque((from_plain(item) for item in value["values"]), value["most"])
        return value["values"].numpy()
    if isinstance(value, dict):
        return {name: from_plain(item) for name, item in value.items()}
    if type(value) in (list, tuple, set):
        return type(value)(from_plain(item) for item in value)
    return value


def save(nest: Any, path: str, place: str) -> None:
    """Write a nest into a file in one piece; see ``to_plain`` for ``place`` and errors."""
    data = io.BytesIO()
    torch.save(to_plain(nest, place), data)
    replace_file(path, data.getbuffer())


def load(path: str) -> Any:
    """Return the nest that ``save`` wrote; no code in the file is run.

    Raises:
        InputError: the file is damaged, or holds something else.
    """
    try:
        return from_plain(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # PyTorch raises what its reader of bytes happens to raise
        raise InputError(
            f"the file {path!r}: {type(error).__name__}: {error!s:.200}",
            "a state of the sifting loader, as a checkpoint has it",
            "the file is damaged, or another program or an older version of Loopwise wrote it",
            "resume from another checkpoint, or delete the file to go on without the loader's state",
        ) from error

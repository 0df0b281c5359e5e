"""Places of mappings: attributes of an object, a dict, the variable of a closure, or the variables of a module."""

from __future__ import annotations

import types
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from torch import Tensor

from ..torch_internals import DYNAMO_MARKS
from .places import GONE, same


class MappingPlace:
    """Some or all entries of a mapping: attributes of an object, a dict, or variables.

    Args:
        name: path to the mapping.
        entries: returns the entries.
        put: replaces the entries.
        label: turns a key into the end of a path.
    """

    def __init__(
        self,
        name: str,
        entries: Callable[[], dict[Any, Any]],
        put: Callable[[dict[Any, Any]], None],
        label: Callable[[Any], str] = lambda key: f".{key}",
    ) -> None:
        self.name, self.save, self._put, self._label = name, entries, put, label

    def changes(self, saved: dict[Any, Any]) -> dict[str, Any]:
        """Return the entries that are new, gone, or have another value."""
        now, found = self.save(), {}
        for key in [*saved, *(key for key in now if key not in saved)]:
            value = now.get(key, GONE)
            if key not in saved or not same(value, saved[key]):
                found[f"{self.name}{self._label(key)}"] = value
        return found

    def restore(self, saved: dict[Any, Any]) -> None:
        """Restore the entries and their order."""
        now = self.save()
        if list(now) != list(saved) or any(now[key] is not value for key, value in saved.items()):
            self._put(saved)

    def substitute(self, twins: dict[int, Tensor]) -> None:
        """Replace tensors by their twins, which are given by the tensors' identities."""
        now = self.save()
        if any(id(value) in twins for value in now.values()):
            self._put({key: twins.get(id(value), value) for key, value in now.items()})


def label(key: Any) -> str:
    """Return the end of a path for a key of a dict."""
    return (
        f"[{key!r}]"
        if isinstance(key, (str, int, float, bool, tuple, type(None)))
        else f"[{type(key).__name__}]"
    )


def of_mapping(name: str, mapping: dict[Any, Any], label: Callable[[Any], str] = label) -> MappingPlace:
    """Return the place of a dict, without Dynamo's marks among the attributes of a tensor or function."""
    # an OrderedDict would keep its old order after dict.clear
    kind: type[dict[Any, Any]] = OrderedDict if isinstance(mapping, OrderedDict) else dict

    def entries() -> dict[Any, Any]:
        return {key: value for key, value in mapping.items() if key not in DYNAMO_MARKS}

    def put(saved: dict[Any, Any]) -> None:
        marked = {key: mapping[key] for key in DYNAMO_MARKS if key in mapping}
        kind.clear(mapping)
        for key, value in (marked | saved).items():
            kind.__setitem__(mapping, key, value)

    return MappingPlace(name, entries, put, label)


def of_cell(name: str, cell: types.CellType) -> MappingPlace:
    """Return the place of a closure's variable."""

    def put(entries: dict[Any, Any]) -> None:
        if entries:
            cell.cell_contents = entries[""]
        else:
            del cell.cell_contents

    return MappingPlace(name, lambda: contents(cell), put, lambda key: "")


def contents(cell: types.CellType) -> dict[Any, Any]:
    """Return the contents of a closure's variable under the key ""; nothing if it has no value yet."""
    try:
        return {"": cell.cell_contents}
    except ValueError:
        return {}


def of_slots(name: str, owner: Any) -> MappingPlace | None:
    """Return the place of the attributes that a class of the user's declares in ``__slots__``; None if there are none."""
    declared = [vars(base).get("__slots__", ()) for base in type(owner).__mro__]
    keys = [key for own in declared for key in ([own] if isinstance(own, str) else own)]
    keys = [key for key in keys if not key.startswith("__")]
    if not keys:
        return None

    def entries() -> dict[str, Any]:
        return {key: getattr(owner, key) for key in keys if hasattr(owner, key)}

    def put(saved: dict[str, Any]) -> None:
        for key in keys:
            if key in saved:
                object.__setattr__(owner, key, saved[key])  # also in frozen dataclasses
            elif hasattr(owner, key):
                object.__delattr__(owner, key)

    return MappingPlace(name, entries, put)

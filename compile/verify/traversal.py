"""Walk over all objects that some roots lead to, which collects the places that hold state.

The walk follows attributes, containers, hooks, closures, the arguments of partial functions, and the variables of
modules and classes that the user's own functions name.  It enters no code of libraries, but objects that
libraries made.  State that no walk can see (files, other processes, objects of C libraries) stays unseen.
"""

from __future__ import annotations

import functools
import io
import random
import sys
import sysconfig
import types
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..torch_internals import members, tensor_hooks
from .mappings import MappingPlace, contents, label, of_cell, of_mapping, of_slots
from .places import Place, SequencePlace, TensorPlace, ValuePlace

MOST_OBJECTS = 100_000
"""Objects after which the walk ends; the nearest ones come first."""
MOST_ELEMENTS = 10_000
"""Elements from which on a container's elements are not looked at."""
_OPAQUE: tuple[str, ...] = (
    "torch._C",
    "torch._dynamo",
    "torch._inductor",
    "torch.fx",
    "torch.distributed",
    "loopwise.",
)
_OPAQUE += (
    "logging",
    "threading",
    "_thread",
    "concurrent",
    "multiprocessing",
    "asyncio",
    "socket",
    "io",
    "weakref",
)
_TRAINERS = ("lightning.pytorch.trainer", "pytorch_lightning.trainer")
"""Modules of trainers.  The walk enters only what was logged: loaders and signal handlers lead to everything in the process."""
_WRITERS = ("torch.utils.tensorboard", "tensorboard", "wandb", "mlflow", "comet_ml", "neptune", "aim.")
"""Modules whose objects write records, which no restoring takes back."""
_LIBRARIES = tuple(sysconfig.get_paths()[name] for name in ("stdlib", "purelib", "platlib"))


class Walk:
    """Places that hold state, collected by one walk or several.

    Args:
        free: bytes of tensors and arrays that may be copied.
    """

    def __init__(self, free: int) -> None:
        self.places: list[Place] = []
        self.parameters: dict[str, Tensor] = {}
        """Leaves of autograd that need a gradient, by the path to them."""
        self.floating: list[Tensor] = []
        """Tensors of floating-point or complex numbers that a pass may calculate with."""
        self.iterators: list[str] = []
        """Iterators that cannot be copied, such as generators: a pass that advances one cannot be undone."""
        self.writers: list[str] = []
        """Files and experiment loggers: a pass that writes to one cannot be undone."""
        self._seen: dict[int, Any] = {}
        self._kinds: set[type] = set()
        self._free = free
        self._queue: deque[tuple[str, Any]] = deque()

    def walk(self, roots: Iterable[tuple[str, Any]]) -> None:
        """Visit everything from the roots, given by name, on, the nearest first."""
        most = len(self._seen) + MOST_OBJECTS
        self._queue = deque(roots)
        while self._queue and len(self._seen) < most:
            name, value = self._queue.popleft()
            if id(value) not in self._seen and not _is_constant(value):
                self._seen[id(value)] = value  # kept alive, or another object could take its number
                self._visit(name, value)

    def _visit(self, name: str, value: Any) -> None:
        """Add an object's places and queue what it refers to."""
        if isinstance(value, Tensor):
            self._add_tensor(name, value)
        elif isinstance(value, np.ndarray):
            self._add_array(name, value)
        elif _writes(value):
            self.writers.append(name)
        elif isinstance(value, type):
            self._classes(value)
        elif isinstance(value, types.FunctionType):
            self._queue.extend(self._function(name, value))
        elif isinstance(value, types.MethodType):
            self._queue.extend([(name, value.__self__), (name, value.__func__)])
        elif isinstance(value, functools.partial):
            self._queue.extend([(name, value.func), (name, value.args), (name, value.keywords)])
        elif isinstance(value, DistributedDataParallel):
            self._queue.append((name, value.module))
        elif isinstance(value, nn.Module):
            self._module(name, value)
        elif not (
            self._container(name, value) or self._generator(name, value) or self._iterator(name, value)
        ):
            self._object(name, value)

    def _module(self, name: str, module: nn.Module) -> None:
        """Add a module's attributes, parameters, buffers and submodules, by the paths that users write."""
        for entries in members(module):
            self.places.append(of_mapping(name, entries, ".{}".format))
            self._seen[id(entries)] = entries
            self._queue.extend((f"{name}.{key}", entry) for key, entry in entries.items())
        self._object(name, module)

    def _container(self, name: str, value: Any) -> bool:
        """Add a dict, list, set, deque or tuple; return whether ``value`` is one."""
        if isinstance(value, (list, set, deque)):
            self.places.append(SequencePlace(name, value))
        elif isinstance(value, dict):
            self.places.append(of_mapping(name, value))
            if len(value) <= MOST_ELEMENTS:
                self._queue.extend((f"{name}{label(key)}", entry) for key, entry in value.items())
                self._queue.extend((f"a key of {name}", key) for key in value if isinstance(key, Tensor))
            # subclasses of dict have attributes as well
            return type(value).__module__ in ("builtins", "collections")
        elif not isinstance(value, (tuple, frozenset)):
            return False
        if len(value) <= MOST_ELEMENTS:
            self._queue.extend((f"{name}[{n}]", element) for n, element in enumerate(value))
        return True

    def _generator(self, name: str, value: Any) -> bool:
        """Add a random generator; return whether ``value`` is one."""
        if isinstance(value, torch.Generator):
            put_back: Any = value.set_state
            self.places.append(ValuePlace(name, value.get_state, put_back))
        elif isinstance(value, random.Random):
            self.places.append(ValuePlace(name, value.getstate, value.setstate))
        elif isinstance(value, np.random.RandomState):
            self.places.append(ValuePlace(name, value.get_state, value.set_state))
        elif isinstance(value, np.random.Generator):
            bits = value.bit_generator
            put = functools.partial(setattr, bits, "state")
            self.places.append(ValuePlace(name, lambda: bits.state, put))
        else:
            return False
        return True

    def _iterator(self, name: str, value: Any) -> bool:
        """Note an iterator, whose state cannot be restored; return whether ``value`` is one."""
        if not hasattr(type(value), "__next__") or _is_users(type(value)):
            return False
        if "trainer" not in name:  # a trainer's loaders are not the loss's
            self.iterators.append(f"{name} ({type(value).__name__})")
        return True

    def _object(self, name: str, value: Any) -> None:
        """Add the attributes of an object, and the class's own if the user wrote it."""
        kind = type(value)
        module = kind.__module__ or ""
        if module.startswith(_OPAQUE) and not isinstance(value, nn.Module):
            return
        if module.startswith("loopwise."):
            return
        trainer = any(base.__module__.startswith(_TRAINERS) for base in kind.__mro__)
        if trainer and not isinstance(value, (nn.Module, dict)):
            self._queue.append((f"{name}: values logged", getattr(value, "_results", None)))
            return
        try:
            attributes = getattr(value, "__dict__", None)
        except Exception:  # a proxy of an object that is not there yet
            return
        if isinstance(attributes, dict):
            self.places.append(of_mapping(name, attributes, ".{}".format))
            self._seen[id(attributes)] = attributes
            self._queue.extend((f"{name}.{key}", entry) for key, entry in attributes.items())
        if _is_users(kind) and (declared := of_slots(name, value)):
            self.places.append(declared)
            self._queue.extend((f"{name}.{key}", entry) for key, entry in declared.save().items())
        self._classes(kind)

    def _classes(self, kind: type) -> None:
        """Add the variables of a class and of its bases, as far as the user wrote them."""
        for base in kind.__mro__:
            if _is_users(base) and base not in self._kinds:
                self._kinds.add(base)
                self._class(base)

    def _class(self, kind: type) -> None:
        """Add the variables of a class of the user's, and what its functions name."""
        own = {key: entry for key, entry in vars(kind).items() if not key.startswith(("__", "_abc_"))}
        data = [key for key, entry in own.items() if not callable(entry) and not hasattr(entry, "__get__")]
        if data:

            def put(entries: dict[Any, Any]) -> None:
                for key, entry in entries.items():
                    setattr(kind, key, entry)

            entries = lambda: {key: vars(kind).get(key) for key in data}  # noqa: E731
            self.places.append(MappingPlace(kind.__name__, entries, put))
            self._queue.extend((f"{kind.__name__}.{key}", vars(kind)[key]) for key in data)
        for key, entry in vars(kind).items():
            function = getattr(entry, "__func__", entry)
            if isinstance(function, types.FunctionType):
                self._queue.append((f"{kind.__name__}.{key}", function))

    def _function(self, name: str, function: types.FunctionType) -> Iterator[tuple[str, Any]]:
        """Yield what a function refers to: closure, defaults, attributes, and variables of its module if the user wrote it."""
        cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
        for variable, cell in cells:
            if id(cell) not in self._seen:
                self._seen[id(cell)] = cell
                self.places.append(of_cell(f"{variable} in {function.__qualname__}", cell))
                yield from (
                    (f"{variable} in {function.__qualname__}", entry) for entry in contents(cell).values()
                )
        yield from (
            (name, entry) for entry in (function.__defaults__, function.__kwdefaults__, vars(function))
        )
        if _is_library(function.__code__.co_filename) or (function.__module__ or "").startswith("loopwise."):
            return
        variables = function.__globals__
        names = [key for key in _names(function.__code__) if key in variables and not key.startswith("__")]
        data = [key for key in names if not isinstance(variables[key], (types.ModuleType, type))]
        if data:
            entries = lambda: {key: variables[key] for key in data if key in variables}  # noqa: E731
            self.places.append(MappingPlace("the global", entries, variables.update, " {}".format))
        yield from ((f"the global {key}", variables[key]) for key in data)
        yield from ((key, variables[key]) for key in names if isinstance(variables[key], type))

    def _add_tensor(self, name: str, tensor: Tensor) -> None:
        if tensor.is_meta or type(tensor).__name__ == "FakeTensor":
            return
        # nested tensors have no size, and cannot be compared; a pass that changes one in place changes its version
        nested = tensor.is_nested
        size = tensor.numel() * tensor.element_size() if tensor.layout == torch.strided and not nested else 0
        copied = size <= self._free and not nested
        self._free -= size if copied else 0
        self.places.append(TensorPlace(name, tensor, copied))
        if tensor.is_floating_point() or tensor.is_complex():
            self.floating.append(tensor)
            if tensor.is_leaf and tensor.requires_grad:
                self.parameters.setdefault(name, tensor)
        self._queue.extend((f"a hook of {name}", hook) for hook in tensor_hooks(tensor))
        if attributes := getattr(tensor, "__dict__", None):
            self._queue.append((name, attributes))

    def _add_array(self, name: str, array: np.ndarray) -> None:
        if array.nbytes <= self._free and array.dtype != object:
            self._free -= array.nbytes
            self.places.append(ValuePlace(name, array.copy, functools.partial(np.copyto, array)))


def _writes(value: Any) -> bool:
    """Return whether a value is a file that is open for writing, the terminal excepted, or an experiment logger."""
    if isinstance(value, io.IOBase):
        return value not in (sys.stdout, sys.stderr) and not value.closed and value.writable()
    return (type(value).__module__ or "").startswith(_WRITERS)


def _is_constant(value: Any) -> bool:
    """Return whether a value has no state, or none that the walk can follow."""
    simple = (
        int,
        float,
        complex,
        str,
        bytes,
        torch.dtype,
        torch.device,
        types.ModuleType,
        types.BuiltinFunctionType,
    )
    return value is None or isinstance(value, simple)


def _is_users(kind: type) -> bool:
    """Return whether a class is neither of a library nor built in."""
    module = sys.modules.get(kind.__module__)
    file = getattr(module, "__file__", None)
    if module is None or kind.__module__ == "builtins" or kind.__module__.startswith("loopwise."):
        return False
    return not _is_library(file) if file else kind.__module__ == "__main__"


def _is_library(file: str) -> bool:
    """Return whether a source file belongs to Python or to an installed package."""
    packages = (
        "site-packages" in file or "dist-packages" in file
    )  # another environment's are on the path, too
    return packages or file.startswith((*_LIBRARIES, "<frozen"))


def _names(code: types.CodeType) -> set[str]:
    """Return the names that a function's code, and the functions inside it, look up in the module."""
    inner = [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]
    return set(code.co_names).union(*map(_names, inner))

"""Warning about loaders that a framework has made from the attributes of a ``RemoteDataLoader``, and uses in its place."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from loopwise.warnings import warn

from .torch_internals import observe_iterators

STREAM = ("batch_size", "num_workers", "collate_fn", "worker_init_fn", "prefetch_factor")
"""Attributes by which the loader of a stream is recognised, besides the stream: it keeps no sampler."""
FRAMEWORKS = ("loopwise", "torch", "torchdata", "accelerate", "transformers")
"""Packages whose code iterates a loader for the user."""


@dataclass(frozen=True, eq=False, slots=True)
class _Unused:
    """Remains of a loader that was never iterated, by which its replacement is recognised."""

    part: weakref.ref[Any]
    """The stream, or the sampler of the batches."""
    options: tuple[Any, ...] | None
    """Values of ``STREAM`` for a stream."""


_unused: set[_Unused] = set()
_of_loader: weakref.WeakKeyDictionary[Any, _Unused] = weakref.WeakKeyDictionary()
_end: list[Callable[[], None]] = []
"""The function that ends the observation of loaders, if they are observed."""


def add(loader: Any) -> None:
    """Look for loaders that take the place of ``loader``, until it is iterated."""
    part = loader.sampler if loader.batch_sampler is None else loader.batch_sampler
    options = None
    if loader.iterable:
        part, options = loader.dataset, _options(loader)
    try:
        # while the interpreter exits, this module's names may be gone before the loader is: they are held here
        def gone(_: Any, remove: Callable[[_Unused], None] = _remove) -> None:
            remove(unused)

        unused = _Unused(weakref.ref(part, gone), options)
    except TypeError:  # a list of batches
        return
    _unused.add(unused)
    _of_loader[loader] = unused
    if not _end:
        _end.append(observe_iterators(_warn_if_rebuilt))


def discard(loader: Any) -> None:
    """Stop looking for loaders that take the place of ``loader``."""
    unused = _of_loader.pop(loader, None)
    if unused is not None:
        _remove(unused)


def _remove(unused: _Unused) -> None:
    if not _unused:  # none are left, or the interpreter exits and has removed the name
        return
    _unused.discard(unused)
    while _end and not _unused:
        _end.pop()()


def _warn_if_rebuilt(iterated: Any) -> None:
    if hasattr(iterated, "with_batch_sampler"):  # one of ours
        return
    for unused in list(_unused):
        if _made_from(iterated, unused):
            _remove(unused)
            warn(
                f"a {type(iterated).__name__} that was made from the attributes of a RemoteDataLoader is iterated in its "
                "place, so that its batches are loaded without Loopwise; Accelerate's prepare does this: use "
                "loopwise.feed.accelerate.prepare_loader(accelerator, loader), or FeedingTrainerMixin in a Hugging Face "
                "Trainer, or else a plain DataLoader",
                stacklevel=_level(),
            )


def _level() -> int:
    """Return the ``stacklevel`` for ``warn`` in the calling function that points at the first code of no framework."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in FRAMEWORKS:
        frame, level = frame.f_back, level + 1
    return level


def _made_from(iterated: Any, unused: _Unused) -> bool:
    """Return whether a loader has the sampler of another one, or reads its stream with the same options."""
    if unused.options is None:
        parts = _nested(iterated.batch_sampler, "batch_sampler") + _nested(iterated.sampler, "batch_sampler")
    elif unused.options == _options(iterated):
        parts = _nested(iterated.dataset, "dataset")
    else:
        return False
    own = unused.part()
    return own is not None and any(part is own for part in parts)


def _options(loader: Any) -> tuple[Any, ...]:
    return tuple(getattr(loader, name, None) for name in STREAM)


def _nested(value: Any, name: str) -> list[Any]:
    """Return a value, the value of its attribute ``name``, and so on."""
    values: list[Any] = []
    while value is not None and len(values) < 5:
        values.append(value)
        value = getattr(value, name, None)
    return values

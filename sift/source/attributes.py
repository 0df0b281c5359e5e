"""Attributes of the wrapped loader that the sifting loader shows too."""

from __future__ import annotations

from typing import Any


class _OfLoader:
    """Read-only attribute of ``loader``; missing where the wrapped loader has none of that name."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return self if instance is None else getattr(vars(instance).get("loader"), self.name)

    def __set__(self, instance: Any, value: Any) -> None:
        raise AttributeError(
            f"{self.name} of a {type(instance).__name__} cannot be set: set it on the wrapped loader, or wrap another"
        )


class WrappedAttributes:
    """Loader with the attributes of the ``DataLoader`` that it wraps; ``loader`` is the wrapped one."""

    dataset = _OfLoader()
    sampler = _OfLoader()
    batch_sampler = _OfLoader()
    collate_fn = _OfLoader()
    generator = _OfLoader()
    num_workers = _OfLoader()
    worker_init_fn = _OfLoader()
    multiprocessing_context = _OfLoader()
    prefetch_factor = _OfLoader()
    persistent_workers = _OfLoader()
    pin_memory = _OfLoader()
    pin_memory_device = _OfLoader()
    timeout = _OfLoader()
    in_order = _OfLoader()

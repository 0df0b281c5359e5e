"""Attributes of the sifting loader that cannot be set: those of the wrapped loader, and arguments."""

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


_ARGUMENTS = {"model", "keep", "policy", "batch_size", "drop_last"}
"""Arguments of the loader that are set once: a later value would have no effect."""


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

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _ARGUMENTS and name in vars(self):
            raise AttributeError(
                f"{name} of a {type(self).__name__} cannot be set: it would have no effect. Pass it to a new one; "
                "keep=lambda epoch: ... changes the share by epoch"
            )
        super().__setattr__(name, value)

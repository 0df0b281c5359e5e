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


class _Argument:
    """Argument of the loader, which is set once: a later value would have no effect."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        if instance is None:
            return self
        try:
            return vars(instance)[self.name]
        except KeyError:
            raise AttributeError(self.name) from None

    def __set__(self, instance: Any, value: Any) -> None:
        if self.name in vars(instance):
            raise AttributeError(
                f"{self.name} of a {type(instance).__name__} cannot be set: it would have no effect. Pass it to a new "
                "one; keep=lambda epoch: ... changes the share by epoch"
            )
        vars(instance)[self.name] = value


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
    model = _Argument()
    keep = _Argument()
    policy = _Argument()
    batch_size = _Argument()
    drop_last = _Argument()

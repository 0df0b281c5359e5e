"""Utilization, memory and power of NVIDIA devices, through NVML."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any

import torch
from torch import nn

COLUMNS = ("", "_memory", "_power")
"""Endings of a device's columns after its name ``gpu0``: utilization in %, bytes in use, watts."""


class Devices:
    """All NVIDIA devices of this machine; none without NVML (the extra ``gpu``), a driver or a device.

    Args:
        sampled: whether this process samples the machine; if not, there are no devices.

    Attributes:
        kinds: model of each device by name: ``gpu0``, ``gpu1``, ... in NVML's order.
        totals: bytes of memory of each device by the name of its column.
    """

    def __init__(self, sampled: bool) -> None:
        self.kinds: dict[str, str] = {}
        self.totals: dict[str, float] = {}
        self._handles: dict[str, Any] = {}
        self._nvml = _nvml() if sampled else None
        for index in range(int(self._asked(lambda nvml: nvml.nvmlDeviceGetCount(), 0))):
            self._add(index)

    def _add(self, index: int) -> None:
        handle, name = self._asked(lambda nvml: nvml.nvmlDeviceGetHandleByIndex(index), None), f"gpu{index}"
        if handle is None:  # the device is lost, or not accessible
            return
        self._handles[name] = handle
        self.totals[f"{name}_memory"] = self._value(lambda nvml: nvml.nvmlDeviceGetMemoryInfo(handle).total)
        self.kinds[name] = _text(self._asked(lambda nvml: nvml.nvmlDeviceGetName(handle), "unknown"))

    def read(self) -> list[float]:
        """Return ``COLUMNS`` of each device; NaN for numbers that a device does not report."""
        return [value for handle in self._handles.values() for value in self._of(handle)]

    def _of(self, handle: Any) -> list[float]:
        return [
            self._value(lambda nvml: nvml.nvmlDeviceGetUtilizationRates(handle).gpu),
            self._value(lambda nvml: nvml.nvmlDeviceGetMemoryInfo(handle).used),
            self._value(lambda nvml: nvml.nvmlDeviceGetPowerUsage(handle) / 1e3),
        ]

    def used(self, identities: Iterable[str]) -> list[str]:
        """Return the names of the devices with these UUIDs."""
        wanted = set(identities)
        return [name for name, handle in self._handles.items() if self._identity(handle) in wanted]

    def _identity(self, handle: Any) -> str:
        return _text(self._asked(lambda nvml: nvml.nvmlDeviceGetUUID(handle), "")).removeprefix("GPU-")

    def _value(self, ask: Callable[[Any], float]) -> float:
        return float(self._asked(ask, math.nan))

    def _asked(self, ask: Callable[[Any], Any], otherwise: Any) -> Any:
        """Return the result of an NVML call, or ``otherwise`` if it fails or there is no NVML."""
        if self._nvml is None:
            return otherwise
        try:
            return ask(self._nvml)
        except self._nvml.NVMLError:
            return otherwise

    def close(self) -> None:
        """Shut NVML down."""
        self._asked(lambda nvml: nvml.nvmlShutdown(), None)
        self._nvml, self._handles = None, {}


def _nvml() -> ModuleType | None:
    """Return NVML after its initialization; ``None`` if it is missing."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()  # type: ignore[no-untyped-call]
    except pynvml.NVMLError:  # no driver
        return None
    return pynvml


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def identities(models: Iterable[nn.Module]) -> list[str]:
    """Return the UUIDs of the CUDA devices that the training uses on this machine.

    They are the devices of the models' parameters; with several ranks on the machine, as many of its first devices.
    """
    devices = {p.device for model in models for p in model.parameters() if p.device.type == "cuda"}
    if not devices:
        return []
    beside = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    indices = range(min(beside, torch.cuda.device_count())) if beside > 1 else {d.index or 0 for d in devices}
    return [str(torch.cuda.get_device_properties(index).uuid) for index in indices]

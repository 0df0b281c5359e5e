"""What a saved holds, in the files of other tools."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from loopwise.errors import InputError, MissingExtra

from .saved_run import SavedRun

MODULES = {"tensorboard": "torch.utils.tensorboard", "safetensors": "safetensors.torch"}
"""Format, named as its package -> the module that writes it."""
TOP = 1e19
"""The outermost bin of TensorBoard's histograms; it fails on tensors that lie beyond."""


def export(saved: SavedRun, folder: str | os.PathLike[str], to: str) -> int:
    """Write all steps of a saved.

    ``tensorboard``: event files, a folder a mode (which TensorBoard shows as runs side by side), steps
    counted over all modes.  Scalars as they are, statistics as the scalar ``name/statistic``, tensors as
    histograms of their finite values.

    ``safetensors``: a file ``step-00000040.safetensors`` a step with its tensors and scalars, and in its
    metadata ``run``, ``step``, ``mode`` and ``mode_step``.  Statistics are left out, and complex128, which
    the format lacks, is float64 with a last dimension of 2.

    Args:
        saved: of any state; what is saved later is not written.
        folder: made if missing.
        to: ``tensorboard`` or ``safetensors``.

    Returns:
        Number of scalars, histograms or tensors written.

    Raises:
        InputError: an unknown format.
        MissingExtra: its package is not installed.
        StateError: bytes that are lost.
    """
    if to not in WRITERS:
        raise InputError(f"to={to!r}", f"one of: {', '.join(WRITERS)}", "a typing error", "name a format")
    module = _module(to)
    return WRITERS[to](saved, Path(folder), module)


def _module(to: str) -> Any:
    try:
        importlib.import_module(to)
    except ModuleNotFoundError as error:
        if error.name != to:  # it is there, but broken
            raise
        raise MissingExtra.of(to, "export", f"exporting to {to}") from None
    return importlib.import_module(MODULES[to])


def _tensorboard(saved: SavedRun, folder: Path, module: Any) -> int:
    written, writers = 0, {}
    try:
        for step in saved.steps():
            record = saved.record(step)
            mode, when = record["mode"], record["time"]
            if mode not in writers:
                writers[mode] = module.SummaryWriter(str(folder / mode))
            for name in saved.names(step=step):
                for tag, value in _shown(saved, name, step):
                    if isinstance(value, float):
                        writers[mode].add_scalar(tag, value, step, when)
                    else:
                        writers[mode].add_histogram(tag, value.numpy(), step, walltime=when)
                    written += 1
    finally:
        for writer in writers.values():
            writer.close()
    return written


def _shown(saved: SavedRun, name: str, step: int) -> Iterator[tuple[str, float | torch.Tensor]]:
    """What TensorBoard shows of a tensor: tags, and numbers or float64 tensors to make histograms of."""
    for key, number in saved.statistics(name, step).items():
        yield f"{name}/{key}", number
    try:
        value = saved.value(name, step)
    except InputError:  # statistics are all that there is
        return
    value = (value.abs() if value.is_complex() else value).to(torch.float64)
    finite = value[value.isfinite()]
    if value.dim() == 0:
        yield name, float(value)
    elif finite.numel():
        yield name, finite.clamp(-TOP, TOP)


def _safetensors(saved: SavedRun, folder: Path, module: Any) -> int:
    written = 0
    folder.mkdir(parents=True, exist_ok=True)
    for step in saved.steps():
        found: dict[str, torch.Tensor] = {}
        for name in saved.names(step=step):
            try:
                value = saved.value(name, step)
            except InputError:  # statistics are all that there is
                continue
            found[name] = torch.view_as_real(value) if value.dtype == torch.complex128 else value
        record = saved.record(step)
        about = {key: str(record[key]) for key in ("step", "mode", "mode_step")}
        module.save_file(found, folder / f"step-{step:08}.safetensors", {"run": saved.path, **about})
        written += len(found)
    return written


WRITERS: dict[str, Callable[[SavedRun, Path, Any], int]] = {
    "tensorboard": _tensorboard,
    "safetensors": _safetensors,
}
"""Format -> what writes it."""

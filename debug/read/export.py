"""Export of a saved run into the file formats of other tools."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from loopwise.errors import InputError
from loopwise.extras import required
from loopwise.validate import one_of

from .query import fix_of_errors
from .saved_run import SavedRun

TOP = 1e19
"""Largest absolute value in TensorBoard's histograms, which fail on larger values."""


def export(saved: SavedRun, folder: str | os.PathLike[str], to: str) -> int:
    """Write all steps of a run.

    ``tensorboard``: event files, one folder for each mode (which TensorBoard shows as runs side by side), with
    steps counted over all modes.  Scalars are written as they are, statistics as the scalar ``name/statistic``,
    tensors as histograms of their finite values.

    ``safetensors``: one file for each step, such as ``step-00000040.safetensors``, with its tensors and scalars.
    The metadata have ``run``, ``step``, ``mode`` and ``mode_step``.  Statistics are left out.  complex128, which
    the format lacks, is written as float64 with a last dimension of 2.

    Args:
        saved: the run; steps saved during the export are not written.
        folder: created if missing.
        to: ``tensorboard`` or ``safetensors``.

    Returns:
        Number of scalars, histograms and tensors written.

    Raises:
        InputError: there is no such format.
        MissingExtra: the package of the format is not installed.
        StateError: bytes are lost.
    """
    one_of("to", to, WRITERS)
    with required(to, "export", f"exporting to {to}"):
        importlib.import_module(to)
    module, write = WRITERS[to]
    fix = "`loopwise debug verify` lists the damaged steps; wait if the run is still being written"
    with fix_of_errors(fix):
        return write(saved, Path(folder), importlib.import_module(module))


def _tensorboard(saved: SavedRun, folder: Path, module: Any) -> int:
    written, writers = 0, {}
    try:
        for step in saved.steps():
            record = saved.record(step)
            mode, when = record["mode"], record["time"]
            if mode not in writers:
                writers[mode] = module.SummaryWriter(str(folder / mode))
            for name in saved.names(step=step):
                for tag, value in _summaries(saved, name, step):
                    if isinstance(value, float):
                        writers[mode].add_scalar(tag, value, step, when)
                    else:
                        writers[mode].add_histogram(tag, value.numpy(), step, walltime=when)
                    written += 1
    finally:
        for writer in writers.values():
            writer.close()
    return written


def _summaries(saved: SavedRun, name: str, step: int) -> Iterator[tuple[str, float | torch.Tensor]]:
    """Yield tags for TensorBoard, each with a number or a float64 tensor to make a histogram of."""
    for key, number in saved.statistics(name, step).items():
        yield f"{name}/{key}", number
    try:
        value = saved.value(name, step)
    except InputError:  # only statistics were saved
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
        tensors: dict[str, torch.Tensor] = {}
        for name in saved.names(step=step):
            try:
                value = saved.value(name, step)
            except InputError:  # only statistics were saved
                continue
            tensors[name] = torch.view_as_real(value) if value.dtype == torch.complex128 else value
        record = saved.record(step)
        metadata = {key: str(record[key]) for key in ("step", "mode", "mode_step")}
        module.save_file(tensors, folder / f"step-{step:08}.safetensors", {"run": saved.path, **metadata})
        written += len(tensors)
    return written


WRITERS: dict[str, tuple[str, Callable[[SavedRun, Path, Any], int]]] = {
    "tensorboard": ("torch.utils.tensorboard", _tensorboard),
    "safetensors": ("safetensors.torch", _safetensors),
}
"""Format, which is the name of its package -> the module that writes it, and the function that uses the module."""

"""Modes, kinds of tensors and schedules by mode."""

from __future__ import annotations

import re
import traceback
from collections.abc import Mapping

from loopwise.errors import InputError
from loopwise.schedule import Schedule

MODES = ("train", "eval", "predict")
KINDS = ("scalar", "weight", "bias", "gradient", "input", "output", "loss", "optimizer_state", "custom")
"""Kinds of tensors; ``loss`` is an output of one of torch's loss modules, ``custom`` a tensor from ``Watch.save``."""
SCALARS = ("losses", "metrics")
"""Built-in collections of scalars."""
Save = Schedule | Mapping[str, Schedule]
"""Steps to save: a schedule, or one by mode."""


def pattern(text: str, seen: str) -> re.Pattern[str]:
    """Return a compiled regular expression.

    Args:
        text: the expression.
        seen: description of the argument, for the error.

    Raises:
        InputError: the expression is invalid.
    """
    try:
        return re.compile(text)
    except (re.error, TypeError) as error:
        raise InputError(
            seen,
            "a regular expression",
            str(error),
            "escape brackets and dots that are meant literally (re.escape)",
        ) from None


def check_save(save: Save | None) -> None:
    """Validate that ``save`` is a schedule, a schedule by mode, or ``None``.

    Raises:
        InputError: it is of another type.
    """
    if save is None or isinstance(save, Schedule):
        return
    if isinstance(save, Mapping) and all(m in MODES and isinstance(s, Schedule) for m, s in save.items()):
        return
    raise InputError(
        f"save={save!r}",
        f"a schedule such as every(100), or a dict from modes ({', '.join(MODES)}) to schedules",
        "a number, or an unknown mode",
        "from loopwise.debug import every; save=every(100)",
    )


def due(save: Save, mode: str, step: int) -> bool:
    """Return whether a step is saved.

    Args:
        save: the schedule.
        mode: the step's mode.
        step: the step's number, counted in its mode.
    """
    if isinstance(save, Schedule):
        return save(step)
    return mode in save and save[mode](step)


def place(error: BaseException) -> str:
    """Return `` at file:line`` of the statement that raised an exception, or an empty text."""
    frames = traceback.extract_tb(error.__traceback__)
    return f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""

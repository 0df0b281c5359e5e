"""Words that all of debug shares: modes, kinds of tensors, schedules by mode."""

from __future__ import annotations

import re
import traceback
from collections.abc import Mapping

from loopwise.errors import InputError
from loopwise.schedule import Schedule

MODES = ("train", "eval", "predict")


KINDS = ("scalar", "weight", "bias", "gradient", "input", "output", "loss", "optimizer_state", "custom")
"""What a tensor is; ``loss`` is the output of one of torch's loss modules, ``custom`` what the user saves by hand."""


Save = Schedule | Mapping[str, Schedule]


def pattern(text: str, seen: str) -> re.Pattern[str]:
    """A regular expression.

    Raises:
        InputError: it is none; ``seen`` says what was given.
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
    """``save`` is a schedule, or one by mode."""
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
    """Whether ``step``, counted in ``mode``, is saved."""
    if isinstance(save, Schedule):
        return save(step)
    return mode in save and save[mode](step)


def place(error: BaseException) -> str:
    """Where an exception was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    return f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""

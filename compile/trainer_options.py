"""Validation of the options of ``TrainStep`` that the adapters of trainers pass on."""

from __future__ import annotations

from typing import Any

import torch

from loopwise import validate
from loopwise.errors import InputError

from . import options as checks

PASSED_ON = ("precision", "autotune", "memory", "max_seconds", "plan", "verify", "run", "resume")
"""Arguments of ``TrainStep`` that a trainer does not decide itself."""


def validate_passed_on(options: Any, shown: str, example: str) -> None:
    """Refuse unknown options and wrong values, in the words of the adapter's own argument.

    Args:
        options: the options, by name.
        shown: the options as the user wrote them.
        example: a correct call.
    """
    if not isinstance(options, dict) or set(options) - set(PASSED_ON):
        raise InputError(
            shown,
            f"some of the options {', '.join(PASSED_ON)}",
            "an unknown option; clipping, accumulation and the optimizer are the Trainer's own",
            f"pass for instance {example}, and the rest to the Trainer",
        )
    try:
        checks.validate_choices(options.get("precision", "exact"), options.get("autotune", "default"))
        checks.validate_plan(options.get("plan"))
        validate.one_of("verify", options.get("verify", True), (True, False))
        if options.get("max_seconds") is not None:
            validate.positive_number("max_seconds", options["max_seconds"], "number of seconds", 60)
        if options.get("memory") is not None:
            checks.bytes_of(options["memory"], torch.device("cpu"))
    except InputError as error:
        seen, expected, cause, fix = error.args
        raise InputError(f"{shown}: {seen}", expected, cause, fix) from None

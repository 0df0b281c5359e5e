"""Report metrics from a Python program, without a regular expression."""

from __future__ import annotations

import json
import math

from loopwise.errors import InputError


def report(**metrics: float) -> None:
    """Print metrics on one line of stdout, which a tuner reads by their names.

    The line is ``{"loopwise": {"name": number, ...}}``; a program in any language can print it.

    Args:
        metrics: name -> number; tensors and arrays of one element are numbers too.

    Raises:
        InputError: no metric, or a value that is no number.
    """
    try:
        values = {name: float(value) for name, value in metrics.items()}
    except (TypeError, ValueError) as error:
        raise InputError(
            f"report() of a value that is no number: {error}",
            "numbers by name",
            "a text, or a tensor of several elements",
            "pass for instance report(loss=loss.item())",
        ) from None
    if not values:
        raise InputError(
            "report() without a metric", "at least one", "a typo", "pass for instance report(loss=0.5)"
        )
    plain = {name: value if math.isfinite(value) else str(value) for name, value in values.items()}
    print(json.dumps({"loopwise": plain}), flush=True)

"""Read a number in the forms in which training scripts print them."""

from __future__ import annotations

import re

_NUMBER = re.compile(
    r"""[-+]?(?:
        (?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d*)?(?:[eE][-+]?\d+)?   # 12, 1,234, 5., 1.5e-4
        | \.\d+(?:[eE][-+]?\d+)?                               # .5
        | nan | inf(?:inity)?
    )""",
    re.VERBOSE | re.IGNORECASE | re.ASCII,
)
_AROUND = " \t'\"`"
_AFTER = ",;:)]}%" + _AROUND


def number(text: str) -> float | None:
    """Return the number that ``text`` is, or ``None``.

    Quotes around it, a percent sign and punctuation after it are left out, and so are commas between thousands.  NaN and
    infinity are numbers.  ``1_000``, ``0x1F``, ``None`` and ``-`` are none, although Python reads the first of them.
    """
    text = text.strip(_AROUND).rstrip(_AFTER).lstrip("([{")
    if not _NUMBER.fullmatch(text):
        text = text.rstrip("." + _AFTER)  # the end of a sentence
        if not _NUMBER.fullmatch(text):
            return None
    return float(text.replace(",", ""))

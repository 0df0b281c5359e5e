"""Suggest a regular expression for a metric that no line of a log matches."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable
from typing import NamedTuple

from .numbers import number

NUMBER = r"([-+]?(?:[\d.]+(?:[eE][-+]?\d+)?|nan|inf))"
"""Group that matches a number, for suggestions."""
_FOUND = re.compile(r"[-+]?(?:\d[\d,]*\.?\d*(?:[eE][-+]?\d+)?|\.\d+|nan|inf)\b", re.IGNORECASE)
_GAP = 12
"""Most characters between the name of a metric and its number."""


class Hint(NamedTuple):
    """Line of a log that tells a metric, and an expression that matches it."""

    line: str
    regex: str


def words(expression: str) -> list[str]:
    """Return the words that stand for themselves in a regular expression, the longest first."""
    plain = re.sub(r"\\[a-zA-Z]|\[[^\]]*\]|\(\?[a-zA-Z<=!:]+|[{(|)}*+?.^$\\]", " ", expression)
    return sorted(set(re.findall(r"[^\W\d]\w+", plain)), key=len, reverse=True)


def hint(name: str, expression: str, lines: Iterable[str]) -> Hint | None:
    """Return the last line in which a number follows a word of the metric, and an expression for it; else ``None``.

    The words are those of the expression, then those of the metric's name.
    """
    texts = list(lines)
    for word in [*words(expression), *sorted(re.findall(r"[^\W\d]\w+", name), key=len, reverse=True)]:
        for whole, line in itertools.product((r"\b", ""), reversed(texts)):  # whole words first
            for place in re.finditer(whole + re.escape(word) + whole, line, re.IGNORECASE):
                found = _FOUND.search(line, place.end())
                between = line[place.end() : found.start()] if found else ""
                if found is None or len(between) > _GAP or re.search(r"\w{2}", between.replace("tensor", "")):
                    continue
                if number(found[0]) is not None:
                    return Hint(line, _suggested(line, place.start(), place.group(), between))
    return None


def _suggested(line: str, start: int, word: str, between: str) -> str:
    before = line[start - 1 : start]
    whole = r"\b" if word[:1].isalnum() and not re.match(r"\w", before) else ""
    gap = re.sub(r"(?:\\ |\s)+", r"\\s+", re.escape(between))
    return f"{whole}{re.escape(word)}{gap}{NUMBER}"

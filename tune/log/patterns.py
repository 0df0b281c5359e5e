"""Search lines for the regular expressions of metrics, in time that is bounded for every expression."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from typing import Any

from loopwise.errors import InputError
from loopwise.extras import required

with required("google-re2", "tune", "metrics from logs", "re2"):
    import re2
with required("regex", "tune", "metrics from logs"):
    import regex

TIMEOUT = 0.5
"""Seconds that an expression which RE2 refuses may take for one line."""
TIMEOUTS = 3
"""Number of lines after which such an expression is given up."""
logger = logging.getLogger("loopwise.tune")


class Pattern:
    """Regular expression whose first group, or the one named ``value``, is a number.

    RE2 takes the expression if it can: its time grows with the length of the line only.  Expressions with lookaround,
    backreferences or atomic groups are taken by ``regex``, with a limit of time for each line.

    Args:
        text: the expression, in the syntax of Python's ``re``.

    Raises:
        InputError: an expression that is not valid, or without a group.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        try:
            groups, names = _groups(text)
        except (re.error, regex.error) as error:
            raise InputError(
                f"the regular expression {text!r}: {error}",
                "an expression in the syntax of Python's re",
                "an unbalanced bracket, or a character such as ( or + that should be escaped",
                "put a backslash before characters that stand for themselves",
            ) from None
        if not groups:
            example = text + r"(\S+)"
            raise InputError(
                f"the regular expression {text!r}, which has no group",
                "one group in parentheses around the number",
                "the parentheses were forgotten, or escaped",
                f"write for instance {example!r}",
            )
        self.group: int = names.get("value", 1)
        self._re2 = _by_re2(text)
        self._regex = None if self._re2 is not None else regex.compile(text)
        self.timeouts = 0

    @property
    def bounded(self) -> bool:
        """True if RE2 takes the expression."""
        return self._re2 is not None

    def values(self, line: bytes) -> Iterator[str | None]:
        """Yield the text of the group in every match of a line; ``None``: the group took no part."""
        if (
            self._re2 is not None
        ):  # bytes take half the time of a text, whose offsets would be counted in characters
            for match in self._re2.finditer(line):
                group = match.group(self.group)
                yield None if group is None else group.decode(errors="replace")
        else:
            for match in self._matches(line.decode()):
                yield match.group(self.group)

    def spans(self, line: bytes) -> Iterator[tuple[int, int]]:
        """Yield the place of the group in every match of a line, in characters; (-1, -1): the group took no part."""
        for match in self._matches(line.decode()):
            yield match.span(self.group)

    def _matches(self, text: str) -> Iterator[Any]:
        if self._re2 is not None:
            yield from self._re2.finditer(text)
        elif self._regex is not None and self.timeouts < TIMEOUTS:
            try:
                yield from self._regex.finditer(text, timeout=TIMEOUT)
            except TimeoutError:
                self.timeouts += 1
                if self.timeouts == TIMEOUTS:
                    logger.warning(
                        "the regular expression %r took more than %s s for each of %s lines, and is given up; write it "
                        "without nested repetitions",
                        self.text,
                        TIMEOUT,
                        TIMEOUTS,
                    )


class Patterns:
    """Several expressions, searched together.

    Args:
        patterns: the expressions.
    """

    def __init__(self, patterns: Sequence[Pattern]) -> None:
        self.patterns = list(patterns)
        self._set = re2.Set.SearchSet(_options())
        for pattern in self.patterns:
            self._set.Add(pattern.text if pattern.bounded else re2.escape(required_text(pattern.text)))
        self._set.Compile()

    def found(self, line: bytes) -> list[int]:
        """Return the numbers of the expressions that a line may match, in order."""
        hits = self._set.Match(line) if self.patterns else None
        return [] if hits is None else sorted(hits)


def required_text(text: str) -> str:
    """Return the longest text that every match of an expression contains; empty: it is not known.

    Only characters outside of groups and classes count, and none that may be repeated or left out.
    """
    runs, depth, place, in_class = [""], 0, 0, False
    if "(?" in text.replace("(?:", "").replace("(?=", "").replace("(?!", "").replace("(?<", "").replace(
        "(?P<", ""
    ):
        return ""  # flags, comments or conditions
    while place < len(text):
        character, escaped = text[place], text[place] == "\\"
        place += 1
        if escaped:
            character, place = text[place : place + 1], place + 1
        if in_class:
            in_class = escaped or character != "]" or text[place - 2 : place - 1] in ("[", "^")
        elif escaped and character.isalnum():
            runs.append("")
        elif escaped:
            runs[-1] += character if not depth else ""
        elif character in "([":
            in_class, depth = character == "[", depth + (character == "(")
            runs.append("")
        elif character == ")":
            depth -= 1
        elif character in "?*{":
            runs[-1] = runs[-1][:-1]
            runs.append("")
            place = text.find("}", place) + 1 if character == "{" else place
        elif character == "|" and not depth:
            return ""
        elif character in "+.^$|":
            runs.append("")
        elif not depth:
            runs[-1] += character
    return max(runs, key=len)


def _options() -> Any:
    options = re2.Options()
    options.log_errors = False
    return options


def _by_re2(text: str) -> Any:
    try:
        return re2.compile(text, _options())
    except re2.error:
        return None


def _groups(text: str) -> tuple[int, dict[str, int]]:
    compiled = regex.compile(text)
    return compiled.groups, dict(compiled.groupindex)

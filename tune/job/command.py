"""The command line and the environment of a trial."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
from collections.abc import Iterable, Mapping
from typing import Any

from loopwise.errors import InputError

NAME = r"[A-Za-z_][\w.-]*"
_PLACE = re.compile(rf"\{{\{{({NAME})\}}\}}|\{{(flag:)?({NAME})\}}")


def placeholders(text: str) -> set[str]:
    """Return the names of the parameters in a command or a value; ``{{name}}`` stands for itself."""
    return {name for _, _, name in _PLACE.findall(text) if name}


def literal(text: str) -> str:
    """Return a text in which nothing is a placeholder."""
    return re.sub(rf"\{{({NAME})\}}", r"{{\1}}", text)


def text_of(value: Any) -> str:
    """Return a value as an argument: ``true`` and ``false`` for booleans, the shortest exact form of numbers."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def misspelt(text: str, names: Iterable[str]) -> str | None:
    """Return what looks like the placeholder of a parameter and is none, such as ``{ lr }``; else ``None``."""
    for name in names:
        looks = re.search(rf"(?<!\{{)\{{(?:flag:)?\s*{re.escape(name)}(?![\w.-])[^{{}}]*\}}(?!\}})", text)
        if looks is not None and not _PLACE.fullmatch(looks[0]):
            return looks[0]
    return None


def filled(text: str, values: Mapping[str, Any]) -> str:
    """Return a text with the values of its placeholders."""

    def value(match: re.Match[str]) -> str:
        if match[1]:
            return f"{{{match[1]}}}"
        return _flag(match[3], values) if match[2] else text_of(values[match[3]])

    return _PLACE.sub(value, text)


def _flag(name: str, values: Mapping[str, Any]) -> str:
    on = values[name] not in (False, None, "", "false")
    return f"--{name.replace('_', '-')}" if on else ""


def arguments(command: str, values: Mapping[str, Any]) -> list[str]:
    """Return the arguments of a command, the program first, with the values of its placeholders."""
    result = []
    for word in shlex.split(command):
        flag = re.fullmatch(rf"\{{flag:({NAME})\}}", word)
        if flag is None:
            result.append(filled(word, values))
        elif text := _flag(flag[1], values):
            result.append(text)
    return result


def script_of(command: str) -> str:
    """Return the file name of the script that a command runs, or of its program."""
    words = shlex.split(command)
    scripts = [word for word in words if word.endswith(".py")]
    return os.path.basename((scripts or words or [""])[0])


def validate_program(command: str, folder: str) -> None:
    """Raise an error unless the program of a command can be executed in ``folder``.

    Raises:
        InputError: no such program, or a file that is not executable.
    """
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise InputError(
            f"the command {command!r}: {error}",
            "words as in a shell",
            "a quotation mark without its partner",
            "close the quotation, or put a backslash before the mark",
        ) from None
    program = words[0] if words else ""
    path = os.path.join(folder, program) if "/" in program else program
    if program and not placeholders(program) and shutil.which(path) is None:
        exists = os.path.exists(path)
        raise InputError(
            f"the program {program!r} of the command" + (", which is not executable" if exists else ""),
            "a program on the path, or an executable file",
            "an interpreter was left out" if exists else "a typo, or another environment",
            f"write for instance '{_interpreter(path)} {program}', or call chmod +x"
            if exists
            else "use the path of the program",
        )


def _interpreter(path: str) -> str:
    """Return the program that a script names in its first line, or by its ending, that runs it."""
    with contextlib.suppress(OSError), open(path, "rb") as file:
        first = file.readline(200).decode(errors="replace")
        if first.startswith("#!") and first[2:].split():
            return os.path.basename(first.split()[-1])
    return "bash" if path.endswith(".sh") else "python"

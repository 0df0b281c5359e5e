"""The command line and the environment of a trial."""

from __future__ import annotations

import os
import re
import shlex
import shutil
from collections.abc import Mapping
from typing import Any

from loopwise.errors import InputError

_PLACE = re.compile(r"\{(flag:)?([^{}\s]+)\}")


def placeholders(text: str) -> set[str]:
    """Return the names of the parameters in a command or a value."""
    return {name for _, name in _PLACE.findall(text)}


def text_of(value: Any) -> str:
    """Return a value as an argument: ``true`` and ``false`` for booleans, the shortest exact form of numbers."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def filled(text: str, values: Mapping[str, Any]) -> str:
    """Return a text with the values of its placeholders."""
    return _PLACE.sub(lambda match: text_of(values[match[2]]), text)


def arguments(command: str, values: Mapping[str, Any]) -> list[str]:
    """Return the arguments of a command, the program first, with the values of its placeholders."""
    result = []
    for word in shlex.split(command):
        flag = re.fullmatch(r"\{flag:([^{}\s]+)\}", word)
        if flag is None:
            result.append(filled(word, values))
        elif values[flag[1]] not in (False, None, "", "false"):
            result.append(f"--{flag[1].replace('_', '-')}")
    return result


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
            f"write for instance 'python {program}'" if exists else "use the path of the program",
        )

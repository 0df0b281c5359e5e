"""Read job files, with errors that name the place in the file."""

from __future__ import annotations

import re
from typing import Any

import pydantic
import yaml

from loopwise.errors import InputError

from .job import Job


class _Loader(yaml.SafeLoader):
    """Loader that reads ``1e-5`` as a number, as YAML 1.2 does; in YAML 1.1 it is a text."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(?:\d+\.\d*|\.\d+|\d+)(?:[eE][-+]?\d+)|[-+]?\d+\.\d*|[-+]?\.\d+"),
    list("-+0123456789."),
)


def read_job(path: str) -> Job:
    """Return the job that a YAML or JSON file describes.

    Raises:
        InputError: the file is missing or no YAML, or a field is wrong; the error names each place.
    """
    try:
        with open(path, encoding="utf-8") as file:
            content = yaml.load(file, _Loader)
    except FileNotFoundError:
        raise InputError(
            f"the job file {path!r}, which does not exist",
            "a YAML file",
            "a typo, or another folder",
            "check the path",
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(
            f"the job file {path!r}: {error}",
            "YAML",
            "an unbalanced quotation or wrong indentation",
            "mend that line",
        ) from None
    return job_of(content, path)


def job_of(content: Any, place: str) -> Job:
    """Return the job that a mapping describes.

    Args:
        content: the fields of ``Job``.
        place: the file, for messages.

    Raises:
        InputError: a field is wrong.
    """
    if not isinstance(content, dict):
        raise InputError(
            f"{place} with {type(content).__name__} at the top",
            "a mapping with command, parameters, metrics, objective and limits",
            "an empty file, or a list",
            "see docs/tune.md",
        )
    try:
        return Job.model_validate(content)
    except pydantic.ValidationError as error:
        problems = [_problem(detail) for detail in error.errors()]
        raise InputError(
            f"{place}: " + "; ".join(problems),
            "the fields of a tuning job, each of its type",
            "a typo, or a value of another type",
            "correct the named places",
        ) from None


def _problem(detail: Any) -> str:
    path = ".".join(
        str(part) for part in detail["loc"] if part not in ("continuous", "integer", "categorical")
    )
    message = detail["msg"].removeprefix("Value error, ")
    seen = detail.get("input")
    shown = (
        f" (seen: {seen!r})"
        if path and not isinstance(seen, (dict, list, tuple)) and detail["type"] != "missing"
        else ""
    )
    return f"{path or 'job'}: {message}{shown}"

"""Read job files, with errors that name the place in the file."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from loopwise.errors import InputError
from loopwise.extras import required
from loopwise.storage.json_lines import DAMAGED, texts

from .job import Job
from .limits import Hyperband, Limits, WarmStart
from .metrics import Metric, Objective
from .parameters import Categorical, Continuous, Integer
from .resources import Cluster, Resources

with required("pydantic", "tune", "tuning"):
    import pydantic
with required("pyyaml", "tune", "job files", "yaml"):
    import yaml


class _Loader(yaml.SafeLoader):
    """Loader of YAML 1.2: ``1e-5`` is a number, ``on`` and ``yes`` are texts, ``010`` is ten; a key stands once."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for place, key in enumerate(keys):
            if key in keys[:place]:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} stands twice", node.value[place][0].start_mark
                )
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {}  # those of YAML 1.1
_NUMBERS = list("-+0123456789.")
for _kind, _form, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", _NUMBERS),
    (
        "float",
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        _NUMBERS,
    ),
    ("merge", r"<<", ["<"]),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(f"(?:{_form})$"), _first)


def _whole(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    text = node.value
    return int(text, 8 if text.startswith("0o") else 16 if text.startswith("0x") else 10)


_Loader.add_constructor("tag:yaml.org,2002:int", _whole)


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
    except OSError as error:
        raise InputError(
            f"the job file {path!r}: {error.strerror}",
            "a YAML file that can be read",
            "a folder, or missing rights",
            "check the path",
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(
            f"the job file {path!r}: {error}",
            "YAML",
            "an unbalanced quotation, wrong indentation, or a key that stands twice",
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
        raise InputError(
            f"{place}: {problems_of(error)}",
            "the fields of a tuning job, each of its type",
            "a typo, or a value of another type",
            "correct the named places",
        ) from None


def problems_of(error: pydantic.ValidationError) -> str:
    """Return what is wrong, each with its place and what was seen."""
    details = error.errors()
    places = [detail["loc"] for detail in details]
    return "; ".join(
        dict.fromkeys(
            _problem(detail, error.title == Job.__name__)
            for detail in details
            if not _follows(detail, places)  # a list counts as too short without its wrong elements
        )
    )


def _follows(detail: Any, places: list[Any]) -> bool:
    own = detail["loc"]
    return detail["type"] == "too_short" and any(len(p) > len(own) and p[: len(own)] == own for p in places)


_MESSAGES = {
    "union_tag_not_found": "the field type is missing: 'continuous', 'integer' or 'categorical'",
    "tuple_type": "Input should be a list",
    "dict_type": "Input should be a mapping",
    "model_type": "Input should be a mapping",
    "model_attributes_type": "Input should be a mapping",
    "extra_forbidden": "there is no such field",
}


_PARTS: dict[str, type[pydantic.BaseModel]] = {
    "continuous": Continuous,
    "integer": Integer,
    "categorical": Categorical,
    "metrics": Metric,
    "objective": Objective,
    "objectives": Objective,
    "limits": Limits,
    "hyperband": Hyperband,
    "warm_start": WarmStart,
    "resources": Resources,
    "cluster": Cluster,
}


def _fields(place: list[Any]) -> list[str]:
    """Return the fields of the part of a job in which an unknown field stands; empty: of no part of a job."""
    if len(place) == 1:
        return list(Job.model_fields)
    part = _PARTS.get(place[2] if place[0] == "parameters" else place[0])
    return list(part.model_fields) if part is not None else []


def _problem(detail: Any, in_job: bool) -> str:
    place = list(detail["loc"])
    message = _MESSAGES.get(detail["type"], detail["msg"].removeprefix("Value error, "))
    message = re.sub("^(Tuple|Dictionary) should", "Input should", message).replace(" after validation", "")
    if detail["type"] == "extra_forbidden" and in_job and (known := _fields(place)):
        message = f"there is no such field; valid are {', '.join(known)}"
    if (
        place
        and place[0] in ("static", "parameters")
        and place[-1] in ("str", "int", "float", "bool")
        and place[2:]
    ):
        place.pop()  # one message for each type that a value may have
        message = "Input should be a text, a number, true or false"
    path = ".".join(str(part) for part in place if part not in ("continuous", "integer", "categorical"))
    seen = detail.get("input")
    shown = (
        f" (seen: {seen!r})"
        if path
        and path != "storage"
        and not isinstance(seen, (dict, list, tuple))
        and detail["type"] != "missing"
        else ""
    )
    return f"{path or 'job'}: {message}{shown}"


def stored(path: Path) -> dict[str, Any]:
    """Return what a folder holds of its job: ``job``, ``folder`` in which programs start, and ``name``.

    Raises:
        InputError: the file is damaged.
    """
    try:
        content: dict[str, Any] = json.loads(path.read_text())
        texts([content["folder"], content["name"]])
        return content | {"job": dict(content["job"])}
    except DAMAGED as error:
        raise InputError(
            f"{str(path)!r}: {error!r:.200}",
            "the job that a tuner wrote there",
            "the file was cut or edited",
            "give another folder, or a copy of the file that is whole",
        ) from error

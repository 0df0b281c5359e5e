"""Extension of griffe: the fields of pydantic models are parameters of the class, as griffe has them for dataclasses."""

from __future__ import annotations

from typing import Any

import griffe

BASE = "Strict"
"""Name of the class from which the models of ``loopwise.tune`` derive."""


class Fields(griffe.Extension):
    """Give each model a constructor with its fields, so that its signature and the types in its docstring are known."""

    def on_class_members(self, *, cls: griffe.Class, **_: Any) -> None:
        if BASE not in map(str, cls.bases):
            return
        fields = [
            griffe.Parameter(
                name, annotation=field.annotation, kind=griffe.ParameterKind.keyword_only, default=field.value
            )
            for name, field in cls.attributes.items()
            if field.annotation is not None and not name.startswith("_")
        ]
        itself = griffe.Parameter("self", kind=griffe.ParameterKind.positional_or_keyword)
        cls.set_member("__init__", griffe.Function("__init__", parameters=griffe.Parameters(itself, *fields)))

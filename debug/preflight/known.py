"""Findings that are known: suppressions by rule and module, and baseline files.

A baseline is a JSON file ``{"preflight_baseline": 1, "findings": [{"rule": ..., "tensors": [...], "what": ...}]}``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Sequence

from loopwise.errors import InputError
from loopwise.storage.files import open_regular, replace_file
from loopwise.validate import one_of

from ..rules import RULES, Finding

KEY = "preflight_baseline"
VERSION = 1
KINDS = ("input ", "output ", "weight ", "gradient ", "update ")
"""Words before the names of modules in the names of tensors."""


def is_known(suppress: Sequence[str], baseline: str | os.PathLike[str] | None) -> Callable[[Finding], bool]:
    """Return a function that tells whether a finding is suppressed or in the baseline.

    Args:
        suppress: names of rules, or ``rule:module``.
        baseline: path of a baseline file, or ``None``.

    Raises:
        InputError: a rule is unknown, or the file is no baseline.
    """
    if isinstance(suppress, str):
        suppress = (suppress,)
    pairs = [entry.partition(":")[::2] for entry in suppress]
    for rule, _ in pairs:
        one_of("suppress", rule, RULES, fix="pass suppress=['samples_mixed', 'missing_gradient:encoder']")
    stored = read_baseline(baseline) if baseline is not None else {}

    def known(finding: Finding) -> bool:
        for rule, module in pairs:
            if rule == finding.rule and (not module or _all_within(module, finding.tensors)):
                return True
        return finding.rule in stored and stored[finding.rule].issuperset(finding.tensors or ("",))

    return known


def _all_within(module: str, tensors: Iterable[str]) -> bool:
    names = [next((name[len(kind) :] for kind in KINDS if name.startswith(kind)), name) for name in tensors]
    return bool(names) and all(name == module or name.startswith(f"{module}.") for name in names)


def write_baseline(path: str | os.PathLike[str], findings: Iterable[Finding]) -> None:
    """Write the findings as a baseline."""
    entries = [{"rule": f.rule, "tensors": list(f.tensors), "what": f.what} for f in findings]
    replace_file(path, (json.dumps({KEY: VERSION, "findings": entries}, indent=1) + "\n").encode())


def read_baseline(path: str | os.PathLike[str]) -> dict[str, set[str]]:
    """Return the tensors of the known findings by rule; the empty name stands for findings without tensors.

    Raises:
        InputError: there is no such file, or it is no baseline.
    """
    try:
        with open_regular(path) as file:
            content = json.loads(file.read())
        if content[KEY] != VERSION:
            raise ValueError(f"version {content[KEY]!r}")
        stored: dict[str, set[str]] = {}
        for entry in content["findings"]:
            stored.setdefault(str(entry["rule"]), set()).update(map(str, entry["tensors"] or ("",)))
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise InputError(
            f"baseline={str(path)!r}: {error!r}",
            "a file that write_baseline of an earlier report wrote",
            "there is no such file yet, or it is another file",
            f"preflight(...).write_baseline({str(path)!r})",
        ) from error
    return stored

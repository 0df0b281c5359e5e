"""Fuzzing: damaged and hostile files of every kind in a run folder give a clear error, or the part that can be read.

Each input is one file of a whole run, changed by a few mutations that depend on the seed alone: flipped bits, cuts,
insertions, huge numbers, values of other types, repeated parts, deep nesting.  Readers are called as users call them.  A raw
error, more than 500 MiB of memory beside the file, or a file touched outside of the run is a failure; the first inputs that
fail are printed.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import random
import resource
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from loopwise.errors import LoopwiseError

from .. import harness
from ..record import Row
from .fuzz_inputs import mutated, write_run
from .fuzz_readers import READERS, WHOLE, Touched, whole_page

CLAIM = "debug_fuzz"
QUICK = False
INPUTS = dict.fromkeys(READERS, 2000) | {"index": 1500, "segment": 500, "state": 1000}
"""Inputs of each kind in one run of the benchmark, which is five times that by default."""
MEMORY = 500
"""MiB beside the file."""
SHOWN = 5
"""Failures of a kind that are printed."""


@dataclass
class Result:
    """Outcome of some inputs of one kind."""

    inputs: int = 0
    refused: int = 0
    """Inputs of which a reader raised a clear error."""
    raw: list[str] = field(default_factory=list)
    """Raw errors, with the number of the input."""
    memory: float = 0.0
    """MiB that the readers took beside what was in use before."""
    touched: list[str] = field(default_factory=list)


def peak() -> float:
    """Return the largest MiB that this process has used so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


class Fuzzer:
    """Inputs of all kinds in one folder.

    Args:
        folder: an empty folder.
    """

    def __init__(self, folder: Path) -> None:
        self._run = folder / "run"
        os.environ["LOOPWISE_CACHE"] = str(self._run)
        write_run(self._run)
        self._kinds = {kind: sorted(self._run.glob(pattern)) for kind, (pattern, _) in READERS.items()}
        missing = [kind for kind, files in self._kinds.items() if not files]
        assert not missing, f"the run has no files of {missing}"
        self._whole = {file: file.read_bytes() for files in self._kinds.values() for file in files}
        self._others = [data.split(b"\n")[0] for data in self._whole.values() if len(data) < 2**16]
        self._touched = Touched(self._run)
        for kind in READERS:  # imports, and the memory of a whole run
            self._read(kind, True)
        self._touched.events.clear()  # caches of compiled code of Python

    def run(self, kind: str, count: int, seed: int) -> Result:
        """Read ``count`` inputs of a kind; what fails is in the result."""
        result, before = Result(), peak()
        for number in range(count):
            draws = random.Random(f"{kind} {seed} {number}")
            file = draws.choice(self._kinds[kind])
            try:
                file.write_bytes(mutated(self._whole[file], draws, self._others))
                self._read(kind, number % WHOLE == 0, result)
            except Exception:
                result.raw.append(f"{kind}, seed {seed}, input {number}: {traceback.format_exc()[-1500:]}")
            finally:
                file.write_bytes(self._whole[file])
            result.inputs += 1
            grown = peak() - before
            if result.memory < MEMORY <= grown:
                result.raw.append(f"{kind}, seed {seed}, input {number}: {grown:.0f} MiB")
            result.memory = max(result.memory, grown)
        result.touched, self._touched.events = self._touched.events, []
        return result

    def _read(self, kind: str, whole: bool, result: Result | None = None) -> None:
        refused = False
        with self._touched.watching(), warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            for reader in (*READERS[kind][1], *([whole_page] if whole else [])):
                try:
                    reader(self._run)
                except LoopwiseError:
                    refused = True
        if result is not None:
            result.refused += refused


GROUPS = {
    "steps": ("run", "index", "segment", "findings"),
    "profile": ("system", "phases", "operators"),
    "parts": ("epochs", "compile", "tune", "feed", "plan", "state"),
}
"""Case -> kinds of files, which one process reads."""


def fuzz(group: str, seed: int) -> dict[str, float]:
    """Return the counts of one run of some kinds, and print its first failures."""
    counts = {"inputs": 0.0, "refused": 0.0, "memory": 0.0}
    failures: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        fuzzer = Fuzzer(Path(folder))
        for kind in GROUPS[group]:
            result = fuzzer.run(kind, INPUTS[kind] // (10 if QUICK else 1), seed)
            counts["inputs"] += result.inputs
            counts["refused"] += result.refused
            counts["memory"] = max(counts["memory"], result.memory)
            counts[f"raw {kind}"], counts[f"touched {kind}"] = len(result.raw), len(result.touched)
            failures += [*result.raw, *result.touched][:SHOWN]
    for text in failures:
        print(text)
    return counts


def cases(device: str) -> dict[str, Callable[[int], dict[str, float]]]:
    """Return the cases: name -> function that runs the case with a seed."""
    return {group: functools.partial(fuzz, group) for group in GROUPS}


def rows(runs: harness.Runs) -> list[Row]:
    """Return the rows of the record."""
    total: Counter[str] = Counter()
    for quantities in runs.values():
        for name, values in quantities.items():
            total[name.partition(" ")[0]] += sum(values)
    memory = max(max(quantities["memory"]) for quantities in runs.values())
    return [
        Row("damaged files", [total["inputs"]], None, "", "", None),
        Row("of them refused by a clear error", [total["refused"]], None, "", "", None),
        Row("raw errors", [total["raw"]], None, "", "", "ours <= 0"),
        Row("most memory beside the file", [memory], None, "", "MiB", f"ours <= {MEMORY}"),
        Row("files touched outside", [total["touched"]], None, "", "", "ours <= 0"),
    ]


if __name__ == "__main__":
    harness.main(sys.modules[__name__])

"""Crash safety: writers are killed at random moments by SIGKILL, and no committed step may be lost or damaged.

A writer saves tiny steps as fast as it can, in segments of a few blocks, until it is killed.  Then each step of the
index is read by code that knows only the documented format, and compared to the bit with the saved values, which are
a function of the step's number.  Each run is resumed and killed again.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .. import harness
from ..record import ROOT, Row

CLAIM = "debug_crash"
QUICK = False
KILLS = 40
"""Of one run of the benchmark, which is five times that by default."""
ROUNDS = 5
"""Kills of one folder."""
FULL = 6000
"""Bytes of a segment, which is about five blocks."""
GROWTH = 20_000
"""Bytes by which the index grows at most before the kill; 170 a step."""
PAUSE = 0.004
"""Seconds at most from there to the kill; a step takes about one millisecond."""
LARGE = 250_000
"""Numbers of the extra tensor of some steps, whose block is likely to be cut."""


# -- the writer -------------------------------------------------------------------------------------


def weight(step: int) -> np.ndarray:
    """Return the weight that a step saves."""
    return np.arange(step, step + 200, dtype="<f4").reshape(1, 200) / 7


def extra(step: int) -> np.ndarray:
    """Return a tensor whose size changes from step to step, so that layouts change."""
    return np.arange(LARGE if step % 4 == 3 else step % 13, dtype="<i8") * step


def write(path: str, first: int) -> None:
    """Save steps, beginning with ``first``, until the process is killed."""
    import torch

    from loopwise.debug import Collection, Watch, every
    from loopwise.debug.capture import writer
    from loopwise.debug.store import segments
    from loopwise.run import Run

    class Small(segments.Segments):
        def __init__(self, run: Run, **more: Any) -> None:
            super().__init__(run, full=FULL, **more)

    writer.Segments = Small
    model = torch.nn.Linear(200, 1, bias=False)
    extras = Collection("extras", include="^extra$")
    run = Run(path, resume=True)
    watch = Watch(model, run=run, save=every(1), collections=["losses", "weights", extras])
    step = first
    watch.load_state_dict({"step": first, "steps": {"train": first}})
    while True:
        with torch.no_grad():
            model.weight.copy_(torch.from_numpy(weight(step)))
        watch.save("extra", torch.from_numpy(extra(step)))
        watch.step(loss=step / 3)
        step += 1


def breed() -> None:
    """Fork a writer for each line of input (a path and a first step); print its process id, and 0 after its death."""
    import torch

    import loopwise.debug  # noqa: F401  # seconds, that a fork does not need

    torch.set_num_threads(1)
    print("ready", flush=True)
    for line in sys.stdin:
        path, first = line.split()
        child = os.fork()
        if not child:
            try:
                write(path, int(first))
            finally:
                os._exit(1)
        print(child, flush=True)
        _, status = os.waitpid(child, 0)
        print(0 if os.WIFSIGNALED(status) else "the writer ended by itself", flush=True)


# -- the reader -------------------------------------------------------------------------------------


@dataclass
class Found:
    """Steps in the folder of a killed writer."""

    steps: list[int] = field(default_factory=list)
    corrupt: list[int] = field(default_factory=list)
    """Steps of which a byte is not as it was saved."""
    lost: int = 0
    """Steps that have no record, though a later one has."""
    torn: int = 0
    """Index files that end in a part of a record, and segments that end in bytes of no block."""


def lines(folder: Path) -> Iterator[tuple[list[bytes], bytes]]:
    """Return the lines of each index file, and the bytes after the last line."""
    files = folder.glob("index.rank0.*.jsonl")
    for file in sorted(files, key=lambda file: int(file.name.split(".")[2])):
        *whole, tail = file.read_bytes().split(b"\n")
        yield whole, tail


def look(folder: Path) -> Found:
    """Read every step of a folder."""
    contents, layouts, ends = Found(), {}, {}
    for whole, tail in lines(folder):
        contents.torn += bool(tail)
        for record in map(json.loads, whole):
            if "step" not in record:
                layouts[record["layout"]] = record["groups"]
                continue
            contents.steps.append(record["step"])
            ends[record["segment"]] = record["offset"] + record["length"]
            if not is_right(folder, record, layouts[record["layout"]]):
                contents.corrupt.append(record["step"])
    contents.lost = len(set(range(max(contents.steps, default=-1) + 1)) - set(contents.steps))
    for file in folder.glob("tensors.rank0.*.seg"):
        contents.torn += file.stat().st_size > ends.get(int(file.name.split(".")[2]), 0)
    return contents


def is_right(folder: Path, record: dict, groups: list[dict]) -> bool:
    step = record["step"]
    with open(folder / f"tensors.rank0.{record['segment']}.seg", "rb") as file:
        file.seek(record["offset"])
        block = file.read(record["length"])
    values = {"loss": np.array([step / 3]), "weight": weight(step), "extra": extra(step)}
    names = []
    for group in groups:
        if "rows" in group:
            members = [
                (name, "float64", [1], group["offset"] + 8 * i, 8) for i, name in enumerate(group["rows"])
            ]
        else:
            members = [tuple(entry) for entry in group["tensors"]]
        for name, dtype, shape, offset, length in members:
            names.append(name)
            there = np.frombuffer(block[offset : offset + length], dtype)
            if there.size != np.prod(shape) or not np.array_equal(there.reshape(shape), values[name]):
                return False
    whole = len(block) == record["length"] and zlib.crc32(block) == record["crc32"]
    return whole and sorted(names) == sorted(values)


# -- the kills --------------------------------------------------------------------------------------


def size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("index.rank0.*.jsonl"))


def kill(breeder: subprocess.Popen, path: str, first: int, growth: int, pause: float) -> int:
    """Start a writer and kill it after its index has grown; return the number of records seen before."""
    folder = Path(path) / "debug"
    before = size(folder)
    breeder.stdin.write(f"{path} {first}\n")
    breeder.stdin.flush()
    writer = int(breeder.stdout.readline())
    end = time.monotonic() + 60
    while size(folder) < before + growth and time.monotonic() < end:
        pass
    end = time.perf_counter() + pause
    while time.perf_counter() < end:
        pass
    seen = sum(line.startswith(b'{"step"') for whole, _ in lines(folder) for line in whole)
    os.kill(writer, signal.SIGKILL)
    if (said := breeder.stdout.readline().strip()) != "0":
        raise RuntimeError(said)
    return seen


@contextlib.contextmanager
def breeding() -> Iterator[subprocess.Popen]:
    """Start a process that forks writers, and end it afterwards."""
    command = [sys.executable, "-m", "benchmarks.debug.crash", "child"]
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=ROOT, **pipes) as breeder:
        if breeder.stdout.readline() != "ready\n":
            raise RuntimeError("no writers can be begun")
        yield breeder
        breeder.stdin.close()
        breeder.wait(60)


def kills(count: int, seed: int, breeder: subprocess.Popen | None = None) -> dict[str, float]:
    """Kill ``count`` writers and return the counts over all of them."""
    if breeder is None:
        with breeding() as breeder:
            return kills(count, seed, breeder)
    draws, total = (
        random.Random(seed),
        Counter(dict.fromkeys(("kills", "steps", "corrupt", "lost", "torn"), 0)),
    )
    contents = Found()
    with tempfile.TemporaryDirectory() as folder:
        for number in range(count):
            path = f"{folder}/{number // ROUNDS}"
            before = contents if number % ROUNDS else Found()
            first = len(before.steps)
            seen = kill(breeder, path, first, draws.randrange(1, GROWTH), draws.uniform(0, PAUSE))
            contents = look(Path(path) / "debug")
            corrupt, lost = len(contents.corrupt), contents.lost + max(0, seen - len(contents.steps))
            torn = contents.torn - before.torn
            total.update(kills=1, corrupt=corrupt, lost=lost, steps=len(contents.steps) - first, torn=torn)
    return total


def cases(device: str) -> dict[str, Callable[[int], dict[str, float]]]:
    """Return the cases: name -> function that runs the case with a seed."""
    return {"writer": functools.partial(kills, KILLS // 4 if QUICK else KILLS)}


def rows(runs: harness.Runs) -> list[Row]:
    """Return the rows of the record."""
    counts = runs["writer"]
    return [
        Row("writers killed", [sum(counts["kills"])], None, "", "", None),
        Row("steps committed by them", [sum(counts["steps"])], None, "", "", None),
        Row("records and blocks cut by the kill", [sum(counts["torn"])], None, "", "", None),
        Row("committed steps lost", [sum(counts["lost"])], None, "", "", "ours <= 0"),
        Row("committed steps damaged", [sum(counts["corrupt"])], None, "", "", "ours <= 0"),
    ]


if __name__ == "__main__":
    if sys.argv[1:2] == ["child"]:
        breed()
    else:
        harness.main(sys.modules[__name__])

"""Cost of watching a training run, compared with smdebug: steps with hooks, saved steps, statistics, the disk.

A bare and a watched model train in turns in one process, some steps each, on one thread; the writer has the machine's
other cores.  Times are wall-clock times: the writer's work counts only if it slows training down.  Every run reads its
saved tensors back and compares them.
"""

from __future__ import annotations

import functools
import mmap
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .. import harness
from ..harness import CACHE, Runs
from ..peers import installed
from ..record import Row
from .watched import SETTINGS, TINY, Ours, Setting, Smdebug, Training

CLAIM = "debug_overhead"
QUICK = False
MB = 1e6
BLOCK = 40 * 2**20
"""Bytes of a write, when the disk is measured."""
PLACES = {"disk": CACHE, "memory": Path("/dev/shm")}
GAUGE = 2**30
"""Bytes of a file by which a disk is measured."""
ROOM = 6e9
"""Bytes that a place must have free."""


# -- timing -----------------------------------------------------------------------------------------


def overhead(name: str, setting: str, place: str, peer: bool, seed: int) -> dict[str, float]:
    """Run a bare and a watched training in turns, and return the overhead."""
    torch.set_num_threads(1)
    what = TINY if name == "small" else SETTINGS[setting]
    bare, watched = Training(name, seed), Training(name, seed)
    measures = setting == "n1" and name != "small"
    disk = [sequential(PLACES[place], GAUGE)] if measures else []
    with tempfile.TemporaryDirectory(dir=PLACES[place]) as folder:
        watcher = (Smdebug if peer else Ours)(watched, f"{folder}/run", what)
        graphs = compile_both(bare, watched, peer) if what.compiled else None
        quantities = summary(alternate(bare, watched, watcher, what), what)
        verify(bare, watched, watcher, what)
    if graphs is not None:
        quantities |= graphs()
    if measures:
        quantities |= average([*disk, sequential(PLACES[place], GAUGE)])
    return quantities | {"bytes": watched.saved_bytes}


def alternate(
    bare: Training, watched: Training, watcher: Any, what: Setting
) -> list[tuple[float, float, bool]]:
    """Return for each block the seconds of a bare and a watched step, and whether a step was saved."""
    blocks = []
    for block in range(1 + (what.quick if QUICK else what.blocks)):
        saved = what.interval > 0 and block * what.steps % what.interval == 0
        times = [0.0, 0.0]
        for turn in (0, 1) if block % 2 else (1, 0):
            times[turn] = timed((bare, watched)[turn], what, watcher if turn and saved else None)
            os.sync()  # neither finds the other's pages unwritten
        blocks.append((times[0], times[1], saved))
    return blocks[1:]  # the first block warms up


def timed(training: Training, what: Setting, watcher: Any) -> float:
    """Return the seconds of a step over a block, with the writing of the saved steps.

    If each step is saved, the writer is as far behind at the end of the block as at its beginning.
    """
    for _ in range(what.lead):
        training()
    start = time.perf_counter()
    for _ in range(what.steps):
        training()
    taken = time.perf_counter() - start
    if watcher is not None:
        watcher.drain((training.taken - 1) // what.interval * what.interval)
    return (taken if what.interval == 1 else time.perf_counter() - start) / what.steps


def summary(blocks: list[tuple[float, float, bool]], what: Setting) -> dict[str, float]:
    """Return the overhead by the medians of blocks with and without a saved step, weighted by their share."""
    bare, watched, _ = zip(*blocks, strict=True)
    share = min(1.0, what.steps / what.interval) if what.interval else 0.0
    groups = [[w / b for b, w, saved in blocks if saved is kind] for kind in (True, False)]
    ratio = sum(
        part * statistics.median(group)
        for part, group in zip((share, 1 - share), groups, strict=True)
        if part and group
    )
    return {
        "overhead, %": 100 * (ratio - 1),
        "overhead, mean, %": 100 * (sum(watched) / sum(bare) - 1),
        "bare, ms": 1e3 * statistics.median(bare),
        "watched, ms": 1e3 * statistics.median(watched),
        "difference, ms": 1e3 * statistics.median(w - b for b, w, _ in blocks),
    }


def verify(bare: Training, watched: Training, watcher: Any, what: Setting) -> None:
    """Train until a saved step, and compare the tensors that are read back with those of the bare model."""
    layer = [name for name, module in watched.model.named_modules() if isinstance(module, nn.Linear)][-1]
    while what.interval and bare.taken % what.interval:
        bare(), watched()
    bare.backward()
    watched()
    steps = watcher.close()
    expected = [step for step in range(watched.taken) if what.interval and step % what.interval == 0]
    assert steps == expected, f"{len(steps)} steps are saved, not {len(expected)}: {steps[-3:]}"
    assert bare.taken == watched.taken - 1
    weight = bare.model.get_submodule(layer).weight
    tensors = {"weight": weight, "gradient": weight.grad, "output": watched.outputs}
    if what.of == ("health",):
        steps = []  # there are statistics of everything, and no tensors
    for which in ("output",) if what.compiled else ("weight", "gradient") if steps else ():
        tensor = tensors[which].detach()
        if what.statistics:
            tensor = torch.stack([tensor.min(), tensor.max(), tensor.mean(), tensor.std(), tensor.norm()])
        saved = watcher.read(steps[-1], which, layer).to(tensor.dtype)
        torch.testing.assert_close(saved, tensor, rtol=1e-3, atol=1e-3 * float(tensor.abs().max()))


def compile_both(bare: Training, watched: Training, peer: bool) -> Callable[[], dict[str, float]]:
    """Compile both models, smdebug's not as one graph, and return a function that counts the graphs."""
    from torch._dynamo.utils import counters

    if peer:  # or the bare model's graph would serve both; Watch sees to that itself
        torch._dynamo.config.skip_nnmodule_hook_guards = False
    counters.clear()
    bare.forward = torch.compile(bare.model, fullgraph=True)
    bare()
    alone = counters["stats"]["unique_graphs"]
    assert alone == 1, counters
    watched.forward = torch.compile(watched.model, fullgraph=not peer)
    watched()
    return lambda: {
        "extra graphs": counters["stats"]["unique_graphs"] - 2 * alone,
        "graph breaks": sum(counters["graph_break"].values()),
    }


# -- the disk ---------------------------------------------------------------------------------------


def sequential(folder: Path, total: int) -> dict[str, float]:
    """Return the MB/s of one thread that writes blocks of 40 MiB to a new file."""
    block = mmap.mmap(-1, BLOCK)
    block.write(os.urandom(BLOCK))
    quantities = {}
    for kind, flag in {"os.write": 0, "O_DIRECT": getattr(os, "O_DIRECT", 0)}.items():
        path = f"{folder}/sequential-{os.getpid()}"
        try:
            file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | flag)
            start, written = time.perf_counter(), 0
            while written < total:
                written += os.write(file, block)
            quantities[f"{kind}, MB/s"] = written / MB / (time.perf_counter() - start)
            os.fsync(file)
            quantities[f"{kind} and fsync, MB/s"] = written / MB / (time.perf_counter() - start)
            os.close(file)
        except OSError:  # no O_DIRECT on this file system
            pass
        finally:
            Path(path).unlink(missing_ok=True)
    return quantities


def average(runs: list[dict[str, float]]) -> dict[str, float]:
    return {key: statistics.mean(run[key] for run in runs) for key in runs[0]}


def sustained(peer: bool, seed: int) -> dict[str, float]:
    """Return the MB/s at which weights and gradients of every step are written, in a training with little else."""
    torch.set_num_threads(1)
    training = Training("mlp", seed, samples=1)
    steps = 13 if QUICK else 50
    total = steps * training.saved_bytes
    disk = sequential(PLACES["disk"], total)
    with tempfile.TemporaryDirectory(dir=PLACES["disk"]) as folder:
        watcher = (Smdebug if peer else Ours)(training, f"{folder}/run", SETTINGS["n1"])
        for _ in range(3):
            training()
        watcher.drain(training.taken - 1)
        os.sync()
        start = time.perf_counter()
        for _ in range(steps):
            training()
        watcher.drain(training.taken - 1)
        written = time.perf_counter() - start
        for file in Path(folder).rglob("*.*"):
            if file.is_file():
                os.fsync(number := os.open(file, os.O_RDONLY))
                os.close(number)
        synced = time.perf_counter() - start
        assert len(watcher.close()) == training.taken
    rates = average([disk, sequential(PLACES["disk"], total)])
    return rates | {"written, MB/s": total / MB / written, "written and fsync, MB/s": total / MB / synced}


# -- the claim --------------------------------------------------------------------------------------


def places() -> list[str]:
    """Return the folders for runs that have enough free space."""
    CACHE.mkdir(exist_ok=True)
    return [name for name, path in PLACES.items() if path.is_dir() and shutil.disk_usage(path).free > ROOM]


def cases(device: str) -> dict[str, Callable[[int], dict[str, float]]]:
    """Return the cases, all on the CPU: name -> function that runs the case with a seed."""
    functions: dict[str, Callable[[int], dict[str, float]]] = {}
    for at, peer in {"": False, "@smdebug": True}.items():
        if peer and not installed("smdebug"):
            continue
        for name in ("mlp", "conv"):
            for setting in SETTINGS:
                if peer and setting == "rules":
                    continue
                functions[f"{name}.{setting}{at}"] = functools.partial(overhead, name, setting, "disk", peer)
            if "memory" in places():
                functions[f"{name}.memory{at}"] = functools.partial(overhead, name, "n1", "memory", peer)
        functions[f"small.n1{at}"] = functools.partial(overhead, "small", "n1", "disk", peer)
        functions[f"sustained.mlp{at}"] = functools.partial(sustained, peer)
    ours = [case for case in functions if "@" not in case]
    return {each: functions[each] for case in ours for each in (case, f"{case}@smdebug") if each in functions}


LABELS = {
    "idle": ("hooks registered, no step saved", 1),
    "n100": ("weights and gradients of every 100th step", 1),
    "rules": ("statistics for rules, and all rules, every 100th step", 1),
    "n10": ("weights and gradients of every 10th step", 5),
    "statistics": ("5 statistics of weights and gradients, every step", 10),
    "compiled": ("5 statistics of outputs, every step, compiled, fullgraph", 8),
}
"""Setting -> what the row is called, and the overhead that it may have, in %."""


def rows(runs: Runs) -> list[Row]:
    table: list[Row] = []
    for case, values in runs.items():
        if "@" in case:
            continue
        name, _, setting = case.partition(".")
        peer = runs.get(f"{case}@smdebug", {})
        if name == "sustained":
            table += _sustained(values, peer)
        elif name == "small":
            each, others = ([1e3 / 256 * v for v in r.get("difference, ms", [])] for r in (values, peer))
            label = "256 small tensors (0.14 MB), every step: a tensor"
            table.append(Row(label, each, others or None, "smdebug", "us", "ours <= 10"))
        elif setting in ("n1", "memory"):
            table += _every_step(name, setting, values, peer)
        else:
            table += _overhead(name, setting, values, peer)
    return table


def _overhead(
    name: str, setting: str, values: dict[str, list[float]], peer: dict[str, list[float]]
) -> list[Row]:
    label, bar = LABELS[setting]
    key = "overhead, %"
    table = [Row(f"{name}: {label}", values[key], peer.get(key), "smdebug", "%", f"ours <= {bar}")]
    if setting == "n100":
        key = "overhead, mean, %"
        table.append(Row(f"{name}: {label}, plain mean", values[key], peer.get(key), "smdebug", "%", None))
    if setting == "compiled":
        for key, bar_of in {"extra graphs": "ours <= 0", "graph breaks": "ours <= 0"}.items():
            table.append(Row(f"{name}: {key}", values[key], peer.get(key), "smdebug", "count", bar_of))
    return table


def _every_step(
    name: str, setting: str, values: dict[str, list[float]], peer: dict[str, list[float]]
) -> list[Row]:
    """Return the row of saving every step; its bar depends on whether the disk needs longer for a step than training."""
    fastest = [max(each) for each in zip(*(values[k] for k in values if "MB/s" in k), strict=True)]
    needs = [1e3 * size / MB / speed for size, speed in zip(values["bytes"], fastest, strict=True)]
    limited = statistics.median(needs) > statistics.median(values["bare, ms"])
    label = f"{name}: weights and gradients of every step, {'disk' if setting == 'n1' else setting}"
    key, bar = "overhead, %", None if limited else "ours <= 25"
    return [
        Row(label, values[key], peer.get(key), "smdebug", "%", bar),
        Row(
            f"{label}: a step",
            values["watched, ms"],
            needs,
            f"bytes at the fastest write, {statistics.median(fastest):.0f} MB/s",
            "ms",
            "ratio <= 1.1" if limited else None,
        ),
    ]


def _sustained(values: dict[str, list[float]], peer: dict[str, list[float]]) -> list[Row]:
    """Return the rows beside each way to write; ``os.write`` through the page cache is the usual disk bandwidth."""
    label, key, synced = "sustained write", "written, MB/s", "written and fsync, MB/s"
    table = [
        Row(label, values[key], values["os.write, MB/s"], "os.write", "MB/s", "ratio >= 0.9"),
        Row(
            f"{label}, on disk",
            values[synced],
            values["os.write and fsync, MB/s"],
            "os.write and fsync",
            "MB/s",
            "ratio >= 0.9",
        ),
    ]
    if direct := values.get("O_DIRECT and fsync, MB/s"):
        table.append(Row(f"{label}, on disk", values[synced], direct, "O_DIRECT and fsync", "MB/s", None))
    if peer:
        table.append(Row(label, values[key], peer[key], "smdebug", "MB/s", None))
    return table


if __name__ == "__main__":
    harness.main(sys.modules[__name__])

"""Files of a run folder, and mutations of them."""

from __future__ import annotations

import json
import re
import time
import warnings
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import nn

from loopwise.compile import Plan
from loopwise.compile.plan import remember
from loopwise.debug import Collection, Profile, Watch, every
from loopwise.debug.profiler.windows import COLUMNS
from loopwise.run import Run
from loopwise.sift import SiftingDataLoader
from loopwise.sift.frameworks.plain import save

KEY = "key"
"""Key of the stored plan."""
NUMBERS = (
    "-1", "0.5", "1e15", "1e308", "1e999", "-1e999", "NaN", "4294967296", "9223372036854775807", "9223372036854775808",
    "1" + "0" * 30, "9" * 5000, "true", "null", '"x"', '"NaN"', '"Infinity"', "[]", "{}", "[[1]]", '"quint8"', '""',
)  # fmt: skip
"""Texts that take the place of a number."""
NUMBER = re.compile(rb"(?<![\w.\"])-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?")
STRING = re.compile(rb'"[^"\\]{1,40}"')
LARGEST = 2**16
"""Bytes by which a mutation makes a file larger at most."""


def write_run(folder: Path) -> None:
    """Write a run with files of every kind, as the parts write them."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-4)
    raw = Collection("gradients", raw=True, statistics=("quantiles",))
    collections = ("losses", "metrics", "health", "weights", raw)
    profile = Profile(interval=0.1)
    with (
        warnings.catch_warnings(),
        Run(str(folder)) as run,
        Watch(
            net,
            optimizer,
            run=run,
            save=every(1),
            collections=collections,
            profile=profile,
            on_finding=lambda _: None,
        ) as watch,
    ):
        warnings.simplefilter("ignore")
        for step in range(4):  # gradients are not set to zero: a finding
            loss = nn.functional.cross_entropy(net(100 * torch.randn(6, 4)), torch.arange(6) % 3)
            loss.backward()
            optimizer.step()
            time.sleep(0.3 if step == 0 else 0.0)
            watch.step(loss=loss, accuracy=0.5)
        _write_records(run)
    loader = SiftingDataLoader(
        torch.utils.data.DataLoader([(torch.zeros(4), 0)] * 8, batch_size=4), net, _losses, keep=0.5
    )
    save({"loader": loader.state_dict(), "done": 0}, str(folder / "sift_0.pt"), "the state of the loader")
    loader.close()
    (folder / "plans").mkdir()
    plan = Plan(graph="inductor", passes=("loss_head",))
    remember(KEY, plan, [{"plan": "captured", "reason": "slower"}])


def _losses(model: nn.Module, batch: Any) -> torch.Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


def _write_records(run: Run) -> None:
    """Write the records of the other parts."""
    names = ("seen", "skipped", "scored", "kept", "dropped", "cut", "not_finite", "batches", "trained")
    seconds = {f"{phase}_seconds": 1.5 for phase in ("loading", "scoring", "selecting", "training")}
    form = {
        "form": "eager",
        "ms": 12.5,
        "least": 12.0,
        "most": 14.0,
        "MiB": 210.0,
        "compile s": 0.0,
        "verdict": "",
    }
    refused = form | {
        "form": "captured",
        "ms": None,
        "least": None,
        "most": None,
        "verdict": "its loss differs",
    }
    plan = {"graph": "inductor", "passes": ["loss_head"], "regions": False}
    trial = {
        "values": {"lr": 0.1, "kind": "a"},
        "state": "finished",
        "reason": "",
        "metrics": {"loss": 0.5},
        "job": "",
    }
    trial |= {
        "objective": 0.5,
        "reports": [1.0, 0.5],
        "attempts": 1,
        "seconds": 3.0,
        "goals": {"loss": "minimize"},
    }
    diagnosis = {
        "verdict": "more workers",
        "text": "Take 4 workers.",
        "cpu": 0.01,
        "waiting": 0.0,
        "slowest": 0.1,
    }
    diagnosis |= {"step": 0.02, "handover": 0.001, "bytes": 1000, "processors": 2}
    for number in range(3):
        run.append(
            "sift", "epochs", {"epoch": number, "complete": True, **dict.fromkeys(names, 40), **seconds}
        )
        run.append("compile", "events", {"batch": number, "text": "a batch of another shape"})
        run.append("tune", "trials", trial | {"number": number, "objective": 0.5 - number / 10})
        run.append("tune", "parents", trial | {"number": number, "job": "other", "compared": True})
    record = {
        "batch": 2,
        "plan": plan,
        "source": "measured",
        "forms": [form, form, refused],
        "remarks": ["in 20 s"],
    }
    run.append("compile", "plans", record)
    operators = [["aten::addmm", 0.01, 0.0, 4, 1024, 0], ["aten::relu", 0.001, 0.0, 2, 512, 0]]
    window = {"step": 2, "steps": 1, "seconds": 0.1, "trace": "trace.rank0.step2.json.gz", "columns": COLUMNS}
    run.append("debug", "operators", window | {"rows": operators})
    run.append("feed", "diagnosis", diagnosis | {"steps": [[2, 0.02, 0.03], [4, 0.01, None]]})


def mutated(data: bytes, random: Random, others: list[bytes]) -> bytes:
    """Return a damaged file.

    Args:
        data: the file.
        random: source of all choices.
        others: contents of files of other kinds.
    """
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        data = random.choice(MUTATIONS)(data, random, others)
    return data


def _flip(data: bytes, random: Random, others: list[bytes]) -> bytes:
    changed = bytearray(data)
    for _ in range(random.choice((1, 1, 2, 8)) if data else 0):
        changed[random.randrange(len(data))] ^= 1 << random.randrange(8)
    return bytes(changed)


def _cut(data: bytes, random: Random, others: list[bytes]) -> bytes:
    return data[: random.randrange(len(data) + 1)]


def _remove(data: bytes, random: Random, others: list[bytes]) -> bytes:
    start, stop = _piece(data, random)
    return data[:start] + data[stop:]


def _insert(data: bytes, random: Random, others: list[bytes]) -> bytes:
    at = random.randrange(len(data) + 1)
    start, stop = _piece(data, random)
    part = random.choice(
        (random.randbytes(random.randrange(20)), data[start:stop], b"\0" * 100, b"[" * 50_000, b"\n")
    )
    part *= random.choice((1, 1, 2, 100))
    return data[:at] + part[:LARGEST] + data[at:]


def _replace_number(data: bytes, random: Random, others: list[bytes]) -> bytes:
    return _replace(data, random, NUMBER, random.choice(NUMBERS).encode())


def _replace_string(data: bytes, random: Random, others: list[bytes]) -> bytes:
    texts = ["1", "null", '"../../outside"', '"quint8"', '""', "[]", '"\\ud800"', json.dumps("x" * 300)]
    return _replace(data, random, STRING, random.choice(texts).encode())


def _replace(data: bytes, random: Random, pattern: re.Pattern[bytes], text: bytes) -> bytes:
    places = list(pattern.finditer(data))
    if not places:
        return data
    place = random.choice(places)
    return data[: place.start()] + text + data[place.end() :]


def _exchange_lines(data: bytes, random: Random, others: list[bytes]) -> bytes:
    lines = data.split(b"\n")
    at = random.randrange(len(lines))
    lines[at] = random.choice((random.choice(lines), b"", b"[]", b"7", lines[at] + lines[at], *others)[:6])
    return b"\n".join(lines)[: len(data) + LARGEST]


def _change_value(data: bytes, random: Random, others: list[bytes]) -> bytes:
    """Replace, drop or repeat a value somewhere in a line of JSON."""
    lines = data.split(b"\n")
    at = random.randrange(len(lines))
    try:
        value = json.loads(lines[at])
    except (ValueError, RecursionError):
        return data
    parents = list(_containers(value))
    if not parents:
        return data
    parent = random.choice(parents)
    key = random.choice(list(parent) if isinstance(parent, dict) else range(len(parent)))
    kind = random.randrange(4)
    if kind == 0:
        del parent[key]
    elif kind == 1 and isinstance(parent, list):
        parent.extend([parent[key]] * random.choice((1, 3, 1000)))
    else:
        parent[key] = random.choice(
            (None, True, -1, 10**30, 1e300, "x", [], {}, [[]], parents[0], {"a": {"b": []}}, 2**40)
        )
    try:
        lines[at] = json.dumps(value, separators=(",", ":")).encode()
    except (ValueError, RecursionError):  # a value that holds itself
        return data
    return b"\n".join(lines)


def _containers(value: Any) -> Any:
    if isinstance(value, (dict, list)):
        if value:
            yield value
        for item in value.values() if isinstance(value, dict) else value:
            yield from _containers(item)


def _piece(data: bytes, random: Random) -> tuple[int, int]:
    start = random.randrange(len(data) + 1)
    return start, min(len(data), start + random.choice((1, 4, 30, 1000)))


MUTATIONS = (
    _flip, _cut, _remove, _insert, _replace_number, _replace_number, _replace_string, _exchange_lines, _change_value,
    _change_value, _change_value,
)  # fmt: skip

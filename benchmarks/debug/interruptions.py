"""Interruptions: Ctrl-C, SIGTERM, SIGKILL, a full disk and forks at random moments end no training in a hang or in damage.

A process trains with a Watch that saves each step, and is interrupted after a random time.  It has to end within seconds,
what it committed has to be readable and right, and no process may be left.  A Ctrl-C may come twice.
"""

from __future__ import annotations

import functools
import os
import random
import resource
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable

from .. import harness
from ..record import Row

CLAIM = "debug_interruptions"
QUICK = False
COUNTS = {"ctrl_c": 200, "sigterm": 40, "kill": 40, "full_disk": 10, "fork": 10}
"""Interruptions of each kind in one run of the benchmark, which is five times that by default."""
SECONDS = 0.4
"""Longest time from the first step to the interruption."""
PATIENCE = 60.0
"""Seconds until the end after which a process counts as hung."""
TWICE = 0.2
"""Share of the interruptions by Ctrl-C that come twice."""
ROOM = (2_000, 400_000)
"""Least and largest size that a file may have on a full disk, in bytes."""
STEPS = 60
"""Steps of a training that is not ended by the interruption."""


def train(
    path: str, ready: int, steps: int, at: int = -1, action: Callable[[object], None] = lambda watch: None
) -> None:
    """Train with a Watch; the weight is the number of the step, and so is the loss.

    Args:
        path: folder of the run.
        ready: descriptor that gets a byte when the first step is done.
        steps: number of steps.
        at: step before which ``action`` is called with the Watch.
    """
    import torch

    from loopwise.debug import Watch, every

    model = torch.nn.Linear(300, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    collections = ["losses", "weights", "gradients", "inputs", "health"]
    with Watch(model, optimizer, run=path, save=every(1), collections=collections, on_finding=[]) as watch:
        for step in range(steps):
            if step == at:
                action(watch)
            with torch.no_grad():
                model.weight.fill_(float(step))
            optimizer.zero_grad()
            (model(torch.randn(4, 300)) ** 2).mean().backward()
            optimizer.step()
            watch.step(loss=float(step))
            if not step:
                os.write(ready, b"1")


def fork_inside(watch: object) -> None:
    """Fork a process that uses the Watch of this one and leaves its ``with``."""
    child = os.fork()
    if not child:
        try:
            with watch:  # type: ignore[attr-defined]
                for _ in range(5):
                    watch.step(loss=-1.0)  # type: ignore[attr-defined]
        finally:
            os._exit(0)
    os.waitpid(child, 0)


def body(kind: str, path: str, ready: int, draws: random.Random) -> None:
    """Be the process that is interrupted."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if kind == "sigterm":
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))
    if kind == "full_disk":
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (draws.randint(*ROOM),) * 2)
    endless = kind in ("ctrl_c", "sigterm", "kill")
    at, action = (draws.randrange(STEPS), fork_inside) if kind == "fork" else (-1, lambda watch: None)
    train(path, ready, 10**9 if endless else STEPS, at, action)


def interrupt(kind: str, path: str, draws: random.Random) -> tuple[bool, float]:
    """Start a process, interrupt it, and return whether it hung, and the seconds until its end."""
    pipe = os.pipe()
    child = os.fork()
    if not child:
        os.setpgid(0, 0)
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, 1)
        os.dup2(devnull, 2)
        try:
            body(kind, path, pipe[1], draws)
        except (KeyboardInterrupt, SystemExit):
            pass
        finally:
            os._exit(0)
    os.close(pipe[1])
    os.read(pipe[0], 1)  # empty if the process ended before its first step
    os.close(pipe[0])
    time.sleep(draws.uniform(0, SECONDS))
    start = time.monotonic()
    number = {"ctrl_c": signal.SIGINT, "sigterm": signal.SIGTERM, "kill": signal.SIGKILL}.get(kind)
    if number is not None:
        os.kill(child, number)
        if kind == "ctrl_c" and draws.random() < TWICE:
            time.sleep(draws.uniform(0, 0.02))
            os.kill(child, number)
    while os.waitpid(child, os.WNOHANG)[0] == 0:
        if time.monotonic() - start > PATIENCE:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return True, PATIENCE
        time.sleep(0.002)
    return False, time.monotonic() - start


def is_group_empty(group: int) -> bool:
    """Return whether no process of a group is left."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return True
    return False


def judge(path: str) -> tuple[int, int]:
    """Return the number of steps that can be read, and of those that are damaged."""
    from loopwise.debug import open_run

    saved = open_run(path)
    damaged = {fault.step for fault in saved.verify()}
    for step in saved.steps():
        right = saved.has("loss", step) and float(saved.value("loss", step)) == step
        if saved.has("weight", step):
            right = right and bool((saved.value("weight", step) == step).all())
        if not right:
            damaged.add(step)
    return len(saved.steps()), len(damaged)


def interruptions(kind: str, count: int, seed: int) -> dict[str, float]:
    """Interrupt ``count`` trainings in a way and return what was seen."""
    import torch

    torch.set_num_threads(1)
    draws, total, slowest = random.Random(f"{kind} {seed}"), Counter[str](), 0.0
    with tempfile.TemporaryDirectory() as folder, open(os.devnull, "wb") as nobody:
        train(f"{folder}/first", nobody.fileno(), 2)  # what is imported and compiled now, forks have already
        judge(f"{folder}/first")
        for number in range(count):
            path = f"{folder}/{number}"
            hung, seconds = interrupt(kind, path, random.Random(draws.random()))
            steps, damaged = judge(path) if os.path.exists(f"{path}/run.json") else (0, 0)
            slowest = max(slowest, seconds)
            total.update(interruptions=1, hangs=int(hung), steps=steps, damaged=damaged)
    return {key: total[key] for key in ("interruptions", "hangs", "steps", "damaged")} | {"slowest": slowest}


def cases(device: str) -> dict[str, Callable[[int], dict[str, float]]]:
    """Return the cases: name -> function that runs the case with a seed."""
    share = 10 if QUICK else 1
    return {
        kind: functools.partial(interruptions, kind, max(1, count // share)) for kind, count in COUNTS.items()
    }


def rows(runs: harness.Runs) -> list[Row]:
    """Return the rows of the record."""
    table = []
    for kind in COUNTS:
        seen = runs[kind]
        table += [
            Row(f"{kind}: interruptions", [sum(seen["interruptions"])], None, "", "", None),
            Row(f"{kind}: hangs", [sum(seen["hangs"])], None, "", "", "ours <= 0"),
            Row(
                f"{kind}: damaged steps of those committed", [sum(seen["damaged"])], None, "", "", "ours <= 0"
            ),
            Row(f"{kind}: steps committed", [sum(seen["steps"])], None, "", "", None),
            Row(f"{kind}: slowest end", [max(seen["slowest"])], None, "s", "", "ours <= 15"),
        ]
    return table


if __name__ == "__main__":
    harness.main(sys.modules[__name__])

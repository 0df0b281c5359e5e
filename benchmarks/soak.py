"""The long run: all parts on for 20 minutes, with faults at random; memory and handles stay flat, nothing is lost.

The training is a process that is stopped by SIGTERM and goes on from its checkpoint.  Inside of it workers are killed, batches
become NaN, the disk is full for two seconds, and Ctrl-C comes, each at random; the loop answers as a user's would: it goes back to
its checkpoint.  The disk is a file system of its own in memory, which only root can make; others run without that fault.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import torch

from . import harness
from .record import Row
from .sift.training import metric
from .tasks import TASKS
from .tasks.task import as_is

CLAIM = "soak"
QUICK = False
MINUTES, LIVES = 20.0, 4
"""Minutes in all, and processes that follow each other."""
FAULTS = ("worker", "nan", "disk", "interrupt")
BETWEEN = float(os.environ.get("LOOPWISE_SOAK_BETWEEN", "12"))
"""Mean seconds between two faults."""
FULL, SIZE = 2.0, 256
"""Seconds for which the disk is full, and its MiB."""
CHECKPOINT = 20
"""Steps between two checkpoints."""
WARM_UP = 75.0
"""Seconds of a process before its memory is looked at."""
BAR = 1.01


class LongTraining:
    """Training of the digits with all parts, which goes back to its checkpoint after a fault.

    Args:
        folder: folder of the checkpoint, the run and the notes.
        faults: inject faults.
    """

    def __init__(self, folder: Path, faults: bool) -> None:
        from loopwise.compile import Plan, TrainStep
        from loopwise.debug import Watch, every
        from loopwise.feed import RemoteDataLoader
        from loopwise.sift import SiftingDataLoader

        torch.set_num_threads(1)
        torch.manual_seed(0)
        self.filler = folder / "filler"
        self.filler.unlink(missing_ok=True)
        self.folder, self.checkpoint, self.task = folder, folder / "checkpoint.pt", TASKS["digits"]
        self.data, self.model, self.step_number = self.task.data(), self.task.model(), 0
        self.optimizer = self.task.optimizer(self.model.parameters())
        self.feed = RemoteDataLoader(
            self.data.train, self.task.batch_size, shuffle=True, num_workers=2, collate_fn=as_is
        )
        self.loader = SiftingDataLoader(self.feed, self.model, self.task.losses, keep=0.5, seed=0)
        self.step = TrainStep(self.model, self.task.losses, self.optimizer, plan=Plan(graph="captured"))
        goes_on = self.checkpoint.exists()
        self.watch = Watch(self.model, self.optimizer, run=folder / "run", save=every(25), resume=goes_on)
        self.random = random.Random(os.getpid())
        self.counts: Counter[str] = Counter()
        self.faults, self.next_fault, self.free_at = faults, time.monotonic() + BETWEEN, math.inf
        if goes_on:
            self.go_back()
        else:
            self.save()

    def train(self, seconds: float) -> None:
        """Train for so many seconds."""
        end = self.began = time.monotonic()
        end += seconds
        while time.monotonic() < end:
            try:
                self._pass(end)
            except KeyboardInterrupt:
                self.go_back()
        self.finish()

    def _pass(self, end: float) -> None:
        for inputs, targets in self.loader:
            batch = inputs * math.nan if self._fault() == "nan" else inputs
            loss = self.step((batch, targets))
            self.watch.step(loss=loss)
            self.step_number += 1
            if not math.isfinite(float(loss.detach())):
                self.go_back()
                return
            if self.step_number % CHECKPOINT == 0:
                self.save()
                self._note()
            if time.monotonic() > end:
                return

    def _fault(self) -> str:
        """Inject a fault if its time has come; return its name."""
        now = time.monotonic()
        if now > self.free_at:
            self.filler.unlink()
            self.free_at = math.inf
        if not self.faults or now < self.next_fault:
            return ""
        self.next_fault = now + self.random.expovariate(1 / BETWEEN)
        name = self.random.choice(
            FAULTS if os.path.ismount(self.folder) else [one for one in FAULTS if one != "disk"]
        )
        self.counts[name] += 1
        if name == "worker" and (workers := self._workers()):
            os.kill(self.random.choice(workers).pid, signal.SIGKILL)
        elif name == "disk":
            self.free_at = now + FULL
            self._fill()
        elif name == "interrupt":
            os.kill(os.getpid(), signal.SIGINT)
        return name

    def _fill(self) -> None:
        """Fill the disk."""
        with self.filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(2**16))

    def _workers(self) -> list[psutil.Process]:
        """Return the loader's workers that are alive."""
        alive = []
        for child in psutil.Process().children():
            with contextlib.suppress(psutil.Error):
                if child.status() != psutil.STATUS_ZOMBIE and "resource_tracker" not in " ".join(
                    child.cmdline()
                ):
                    alive.append(child)
        return alive

    def save(self) -> None:
        """Write the checkpoint, unless the disk is full."""
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step_number,
        }
        state |= {"loader": self.loader.state_dict(), "watch": self.watch.state_dict()}
        new = self.checkpoint.with_suffix(".new")
        with contextlib.suppress(OSError, RuntimeError):
            torch.save(state, new)
            os.replace(new, self.checkpoint)

    def go_back(self) -> None:
        """Go back to the checkpoint."""
        state = torch.load(self.checkpoint, weights_only=False)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.loader.load_state_dict(state["loader"])
        self.watch.load_state_dict(state["watch"])
        self.step_number = state["step"]

    def _note(self) -> None:
        """Write what the process holds."""
        own = psutil.Process()
        line = {"pid": own.pid, "seconds": time.monotonic() - self.began, "step": self.step_number}
        line |= {"rss": own.memory_info().rss, "handles": own.num_fds(), "threads": own.num_threads()}
        line |= {"workers": len(self._workers()), "faults": dict(self.counts)}
        with contextlib.suppress(OSError), (self.folder / "notes.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")

    def finish(self) -> None:
        """End the training and write its accuracy."""
        self.filler.unlink(missing_ok=True)
        self.save()
        self.watch.close()
        self.loader.close()
        self.step.close()
        value = metric(self.task, self.model, self.data.test, "cpu")
        (self.folder / "accuracy.json").write_text(json.dumps({"accuracy": value, "steps": self.step_number}))


@contextlib.contextmanager
def small_disk() -> Iterator[str]:
    """Return a folder, on a file system of its own if this process may mount one."""
    with tempfile.TemporaryDirectory() as name:
        command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}m", "loopwise-soak", name]
        mounted = subprocess.run(command, capture_output=True).returncode == 0
        try:
            yield name
        finally:
            if mounted:
                subprocess.run(["umount", name], check=True)


def soak(faults: bool, device: str, seed: int) -> dict[str, float]:
    """Train in processes that follow each other, and measure."""
    minutes = MINUTES / 10 if QUICK else MINUTES
    share = 60 * minutes / LIVES
    with small_disk() as name:
        folder = Path(name)
        for life in range(LIVES):
            last = life == LIVES - 1
            command = [
                sys.executable,
                "-m",
                "benchmarks.soak",
                "--folder",
                name,
                "--seconds",
                str(share if last else 10 * share),
            ]
            process = subprocess.Popen(
                [*command, *(["--faults"] if faults else [])], stderr=subprocess.PIPE, text=True
            )
            try:
                _, errors = process.communicate(timeout=None if last else share)
            except subprocess.TimeoutExpired:
                process.terminate()
                _, errors = process.communicate()
            if process.returncode not in ((0,) if last else (-signal.SIGTERM,)):
                raise RuntimeError(errors[-4000:])
        return _measured(folder)


def _measured(folder: Path) -> dict[str, float]:
    from loopwise.debug import open_run

    notes = [json.loads(line) for line in (folder / "notes.jsonl").read_text().splitlines()]
    lives = {note["pid"]: [one for one in notes if one["pid"] == note["pid"]] for note in notes}
    found: dict[str, float] = json.loads((folder / "accuracy.json").read_text())
    for name in ("rss", "handles", "threads"):
        ratios = []
        for of in lives.values():
            warm = [one[name] for one in of if one["seconds"] > (2 if QUICK else WARM_UP)]
            part = max(1, len(warm) // 4)
            if warm:
                ratios.append(statistics.median(warm[-part:]) / statistics.median(warm[:part]))
        found[name] = max(ratios)
    last = [of[-1]["faults"] for of in lives.values()]
    found |= {name: float(sum(of.get(name, 0) for of in last)) for name in FAULTS}
    found |= {"lives": len(lives), "workers": max(note["workers"] for note in notes)}
    saved = open_run(folder / "run")
    steps = saved.steps()
    due = range(0, int(found["steps"]) - 25, 25)
    found |= {"saved": len(set(steps) & set(due)), "due": len(due), "torn": saved.torn}
    return found


def cases(device: str) -> dict[str, Callable[[int], dict[str, float]]]:
    """Return the cases: name -> function that runs the case with a seed."""
    return {"faults": lambda seed: soak(True, device, seed), "calm": lambda seed: soak(False, device, seed)}


def rows(runs: harness.Runs) -> list[Row]:
    """Return the rows of the record."""
    if "faults" not in runs:
        return []
    found = runs["faults"]
    injected = [sum(of) for of in zip(*(found[name] for name in FAULTS), strict=True)]
    table = [
        Row(f"faults injected ({', '.join(FAULTS)})", injected, None, "", "", None),
        Row(
            "SIGTERM, and on from the checkpoint", [lives - 1 for lives in found["lives"]], None, "", "", None
        ),
    ]
    for name, words in (("rss", "memory"), ("handles", "open files"), ("threads", "threads")):
        title = f"{words} at the end of a process, of that after its warm-up, the worst process"
        table.append(Row(title, found[name], None, "", "", f"ours <= {BAR}"))
    if "calm" in runs:
        title = "memory at the end of a process without faults, of that after its warm-up, the worst process"
        table.append(Row(title, runs["calm"]["rss"], None, "", "", f"ours <= {BAR}"))
    table.append(
        Row("steps due for saving that are in the run", found["saved"], found["due"], "due", "", None)
    )
    table.append(Row("records that cannot be read", found["torn"], None, "", "", "ours <= 0"))
    if "calm" in runs:
        table.append(Row("accuracy", found["accuracy"], runs["calm"]["accuracy"], "without faults", "", None))
    return table


def program() -> None:
    """Run one process of the training."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--faults", action="store_true")
    args = parser.parse_args()
    warnings.simplefilter("default")
    signal.signal(signal.SIGINT, signal.default_int_handler)
    LongTraining(args.folder, args.faults).train(args.seconds)


if __name__ == "__main__":
    if "--folder" in sys.argv:
        program()
    else:
        harness.main(sys.modules[__name__])

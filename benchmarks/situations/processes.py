"""Situations of two ranks, judged in a pair of processes."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict
from typing import Any

import torch
import torch.distributed as dist

from ..record import ROOT
from .judge import VERDICTS, Verdict, judge

WORLD = 2
PATIENCE = 600
"""Seconds that both processes may take for all situations."""


def judge_on_ranks(names: list[str]) -> list[Verdict]:
    """Judge situations of two ranks in one pair of processes, and return the worse verdict of both ranks for each."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            "-c",
            "from benchmarks.situations import processes; processes.main()",
            *names,
        ]
        shared = os.environ | {"STORE": f"{folder}/store", "WORLD_SIZE": str(WORLD), "LOOPWISE_CACHE": folder}
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        processes = [
            subprocess.Popen(command, cwd=ROOT, env=shared | {"RANK": str(rank)}, **pipes)
            for rank in range(WORLD)
        ]
        try:
            outputs = [process.communicate(timeout=PATIENCE) for process in processes]
        finally:
            for process in processes:
                process.kill()
    verdicts = []
    for number, name in enumerate(names):
        found = []
        for out, errors in outputs:
            lines = [line for line in out.splitlines() if line.startswith("{")]
            lost = Verdict(name, "CRASH", message=(errors.strip().splitlines() or ["the process ended"])[-1])
            found.append(Verdict(**json.loads(lines[number])) if number < len(lines) else lost)
        verdicts.append(max(found, key=lambda verdict: VERDICTS.index(verdict.verdict)))
    return verdicts


def main() -> None:
    """Judge the situations named on the command line as one rank."""
    torch.set_num_threads(1)
    rank = int(os.environ["RANK"])
    dist.init_process_group("gloo", init_method=f"file://{os.environ['STORE']}", rank=rank, world_size=WORLD)
    for name in sys.argv[1:]:
        with contextlib.redirect_stdout(sys.stderr):
            verdict = judge(name)
        print(json.dumps(asdict(verdict)), flush=True)
    dist.barrier()
    dist.destroy_process_group()

"""Run all benchmarks for GPUs in slices of time: ``python -m benchmarks.gpu --minutes 8``, again until none is left."""

from __future__ import annotations

import argparse
import importlib
import time

import torch

from . import harness

MODULES = ["benchmarks.sift.overhead", "benchmarks.compile.gpu"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--minutes", type=float, default=8, help="no run starts after this many minutes (default: 8)"
    )
    parser.add_argument("--seeds", type=int, default=5, help="runs of every case (default: 5)")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit(
            "no GPU that torch can use on this machine; python -m benchmarks.sift.overhead runs on the CPU"
        )
    until = time.monotonic() + 60 * args.minutes
    modules = [importlib.import_module(name) for name in MODULES]
    left = [module.CLAIM for module in modules if not harness.run(module, args.seeds, False, until=until)]
    print(f"left for the next call: {', '.join(left)}" if left else "all claims measured")


if __name__ == "__main__":
    main()

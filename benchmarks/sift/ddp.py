"""Sifting in 2 and 4 gloo processes over random data: equal counts, no hang, and no loss of another sample."""

from __future__ import annotations

import functools
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable

from .. import harness
from ..record import ROOT, Row

CLAIM = "sift_ddp"
QUICK = False
RUNS = 200
KEEP = 0.5


def run(number: int, rank: int, world: int) -> tuple[list[int], int, int, int]:
    """Sift three epochs in a random setting, in which the weights stay.

    Returns:
        Batches of each epoch, samples scored, samples kept, and remembered losses that are another sample's.
    """
    import torch
    from torch import nn
    from torch.nn.parallel import DistributedDataParallel
    from torch.utils.data import DataLoader, DistributedSampler, IterableDataset, TensorDataset

    from loopwise.sift import RelativeLoss, SiftingDataLoader

    class Shard(IterableDataset):
        def __iter__(self):
            yield from ((torch.randn(6), i % 3) for i in range(sizes[rank]))

    torch.manual_seed(number)
    shape = random.Random(number)
    sizes = [shape.randint(1, 200) for _ in range(world)]
    model = DistributedDataParallel(nn.Linear(6, 3))
    kind, data = shape.choice(["stream", "shared", "own"]), None
    if kind == "stream":
        loader = DataLoader(Shard(), 8)
    elif kind == "shared":
        data = TensorDataset(torch.randn(sum(sizes), 6), torch.arange(sum(sizes)) % 3)
        loader = DataLoader(data, 8, sampler=DistributedSampler(data))
    else:
        draws = torch.Generator().manual_seed(1000 * number + rank)
        data = TensorDataset(torch.randn(sizes[rank], 6, generator=draws), torch.arange(sizes[rank]) % 3)
        loader = DataLoader(data, 8, shuffle=True)
    criterion = nn.CrossEntropyLoss(reduction="none")
    score_every = shape.choice([1, "auto"])
    policy = RelativeLoss(KEEP)
    sifting = SiftingDataLoader(
        loader, model, loss=criterion, policy=policy, score_every=score_every, seed=number
    )
    counts = []
    for _ in range(3):
        counts.append(0)
        for x, y in sifting:
            criterion(model(x), y).mean().backward()
            counts[-1] += 1
    report = sifting.report()
    foreign = 0
    if data is not None and not report.scored:
        losses = criterion(model.module(data.tensors[0]), data.tensors[1]).detach()
        remembered = sifting._history.losses[: len(losses)]
        known = remembered.isfinite()
        foreign = int(((remembered - losses[: len(remembered)]).abs()[known] > 1e-4).sum())
    return counts, report.scored, report.scored - report.dropped + report.cut if report.scored else 0, foreign


def child(rank: int, world: int, seed: int, runs: int, store: str) -> None:
    """Run all settings as one rank; rank 0 prints the counts of all ranks."""
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    counts = [run(seed * runs + number, rank, world) for number in range(runs)]
    everything: list = [None] * world
    dist.all_gather_object(everything, counts)
    if rank == 0:
        unequal = sum(len({json.dumps(one[number][0]) for one in everything}) > 1 for number in range(runs))
        scored = sum(one[number][1] for one in everything for number in range(runs))
        kept = sum(one[number][2] for one in everything for number in range(runs))
        foreign = sum(one[number][3] for one in everything for number in range(runs))
        result = {"runs": runs, "unequal": unequal, "share": kept / scored, "foreign": foreign}
        print(json.dumps(result), flush=True)
    dist.barrier()
    os._exit(0)  # torch can abort while it tears down a hundred DDP models' threads at exit


def measure(world: int, seed: int) -> dict[str, float]:
    """Run ``RUNS`` random settings in ``world`` processes; a hang ends in an error after ten minutes."""
    runs = RUNS // 10 if QUICK else RUNS
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "benchmarks.sift.ddp", "child"]
        tail = [str(world), str(seed), str(runs), os.path.join(folder, "store")]
        others = [
            subprocess.Popen([*command, str(rank), *tail], cwd=ROOT, stdout=subprocess.DEVNULL)
            for rank in range(1, world)
        ]
        done = subprocess.run(
            [*command, "0", *tail], cwd=ROOT, stdout=subprocess.PIPE, text=True, timeout=600, check=True
        )
        codes = [other.wait(60) for other in others]
    if any(codes):
        raise RuntimeError(f"ranks ended with {codes}")
    return json.loads(done.stdout.splitlines()[-1])


def cases(device: str) -> dict[str, Callable[[int], dict[str, float]]]:
    """Return the cases: name -> function that runs the case with a seed."""
    return {f"{world} ranks": functools.partial(measure, world) for world in (2, 4)}


def rows(runs: harness.Runs) -> list[Row]:
    """Return the rows of the record."""
    table = []
    for name, quantities in runs.items():
        total, unequal = [sum(quantities["runs"])], [sum(quantities["unequal"])]
        table.append(Row(f"{name}: random runs without a hang", total, None, "", "", "ours >= 1000"))
        table.append(Row(f"{name}: runs with unequal counts", unequal, None, "", "", "ours <= 0"))
        foreign = [sum(quantities["foreign"])]
        table.append(Row(f"{name}: losses remembered for another sample", foreign, None, "", "", "ours <= 0"))
        asked = [KEEP] * len(quantities["share"])
        table.append(Row(f"{name}: share kept", quantities["share"], asked, "asked for", "", None))
    return table


if __name__ == "__main__":
    if sys.argv[1:2] == ["child"]:
        rank, world, seed, runs, store = sys.argv[2:]
        child(int(rank), int(world), int(seed), int(runs), store)
    else:
        harness.main(sys.modules[__name__])

"""Cases of sifting on several ranks, and the process that runs them one after the other in one process group.

A test calls ``Ranks(folder, world).run(case)`` with the name of a function of this file, or of another one, and gets the
results of all ranks.  The processes start once for many cases, because importing torch takes longer than most cases.
"""

import copy
import json
import os
import random
import runpy
import select
import subprocess
import sys
import traceback

import forks
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset, DistributedSampler, IterableDataset, TensorDataset

PATIENCE = 900
"""Seconds to wait for a case on a busy machine; a hang is the only reason to reach them."""
CRITERION = nn.CrossEntropyLoss(reduction="none")


class Ranks:
    """Processes of one gloo group that run cases."""

    def __init__(self, folder, world):
        self.errors = [open(folder / f"errors-{world}-{rank}", "w+") for rank in range(world)]  # noqa: SIM115
        store = f"file://{folder}/store-{os.urandom(4).hex()}"
        self.processes = [
            subprocess.Popen(
                [forks.python(), __file__, store],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self.errors[rank],
                text=True,
                env=os.environ | {"RANK": str(rank), "WORLD_SIZE": str(world)},
            )
            for rank in range(world)
        ]

    def run(self, case, *arguments, file=__file__):
        """Return the results of a function of ``file`` on all ranks; a failure on one of them ends them all."""
        for process in self.processes:
            process.stdin.write(json.dumps([file, case, arguments]) + "\n")
            process.stdin.flush()
        waiting, results = {p.stdout: rank for rank, p in enumerate(self.processes)}, {}
        while waiting:
            ready, _, _ = select.select(list(waiting), [], [], PATIENCE)
            assert ready, f"{case} hangs"
            for stream in ready:
                line = stream.readline()
                result = json.loads(line) if line else {"error": self._error(waiting[stream])}
                if isinstance(result, dict):
                    self.close()
                    raise AssertionError(f"rank {waiting[stream]}: {result['error']}")
                results[waiting.pop(stream)] = result
        return [results[rank] for rank in range(len(self.processes))]

    def _error(self, rank):
        self.errors[rank].seek(0)
        return self.errors[rank].read()

    def close(self):
        for process in self.processes:
            process.kill()
            process.wait()
            process.stdin.close()
            process.stdout.close()
        for file in self.errors:
            file.close()


def rank():
    return dist.get_rank()


class Shard(IterableDataset):
    def __init__(self, n):
        self.n = n

    def __iter__(self):
        yield from ((torch.randn(6), i % 3) for i in range(self.n))


def samples(n, seed=0):
    return TensorDataset(
        torch.randn(n, 6, generator=torch.Generator().manual_seed(seed)), torch.arange(n) % 3
    )


def distributed(data, **options):
    return DataLoader(data, 8, sampler=DistributedSampler(data, **options))


def replica(model=None):
    return DistributedDataParallel(nn.Linear(6, 3) if model is None else model)


def sift(*arguments, **options):
    from loopwise.sift import SiftingDataLoader

    return SiftingDataLoader(*arguments, **options)


def top(keep):
    from loopwise.sift import TopLoss

    return TopLoss(keep)


def relative(keep):
    from loopwise.sift import RelativeLoss

    return RelativeLoss(keep)


def train(loader, model, epochs, accumulate=1, optimizer=None):
    """Return the number of batches of each epoch."""
    counts = []
    for _ in range(epochs):
        counts.append(0)
        for x, y in loader:
            if optimizer is not None:
                optimizer.zero_grad()
            if (counts[-1] + 1) % accumulate:
                with model.no_sync():
                    CRITERION(model(x), y).mean().backward()
            else:
                CRITERION(model(x), y).mean().backward()
            if optimizer is not None:
                optimizer.step()
            counts[-1] += 1
    return counts


def equal_counts():
    """Return the number of batches of each epoch of 20 trainings over random data, options and draws."""
    results = []
    for seed in range(20):
        torch.manual_seed(seed)
        draw = random.Random(seed)
        sizes = [draw.choice([5, 17, 40, 41, 64]) for _ in range(dist.get_world_size())]
        kind = draw.choice(["iterable", "sampler", "remembered"])
        options = {"policy": draw.choice([relative(0.5), top(0.3), relative(0.8)])}
        options |= {"score_every": 0 if kind == "remembered" else 1, "delay": draw.choice([0, 0, 3])}
        if kind == "iterable":
            drop_last = draw.random() < 0.3 and min(sizes) > 8
            loader = DataLoader(Shard(sizes[rank()]), 8, drop_last=drop_last)
        else:
            loader = distributed(samples(sum(sizes), seed), drop_last=draw.random() < 0.5)
        model = replica()
        loader = sift(loader, model, CRITERION, seed=seed, **options)
        results.append(train(loader, model, 2, accumulate=draw.choice([1, 1, 3])))
    return results


class Broken(Dataset):
    """Dataset of which rank 1 misses a sample."""

    def __len__(self):
        return 64

    def __getitem__(self, i):
        if rank() == 1 and i == 40:
            raise KeyError("sample 40 is missing")
        return torch.randn(6), i % 3


def bad_batch():
    """Return the error of a missing sample and the number of batches before it."""
    model = replica()
    loader = sift(DataLoader(Broken(), 8), model, CRITERION, policy=top(0.9), pool=1, score_every=1)
    count = 0
    try:
        for x, y in loader:
            CRITERION(model(x), y).mean().backward()
            count += 1
    except Exception as error:
        return [type(error).__name__, str(error), count]


def global_losses():
    """Return counts of an epoch planned by the losses of all ranks, and the number of losses from other ranks."""
    data = samples(64)
    model = replica()
    loader = sift(distributed(data), model, CRITERION, policy=top(0.5), seed=0)
    first = train(loader, model, 1)
    losses = CRITERION(model.module(data.tensors[0]), data.tensors[1])
    loader.set_epoch(1)
    kept = []
    for x, y in loader:
        kept += [int((data.tensors[0] == row).all(1).nonzero()) for row in x]
        CRITERION(model(x), y).mean().backward()
    worst = set(losses.topk(32).indices.tolist())
    scored = sift(distributed(data), model, CRITERION, policy=relative(0.5), score_every=1)
    train(scored, model, 2)
    return [first, set(kept) <= worst, len(kept), scored.policy._past._others.numel()]


def own_shards():
    """Return the number of remembered losses that are not the sample's own, with a shard of the data on each rank."""
    torch.manual_seed(0)
    data = samples(80)
    shard = TensorDataset(*(values[40 * rank() :][:40] for values in data.tensors))
    model = replica()
    loader = sift(DataLoader(shard, 8, shuffle=True), model, CRITERION, policy=top(0.5))
    kept = []
    for epoch in range(2):  # the weights stay, so that remembered losses can be compared
        for x, y in loader:
            losses = CRITERION(model(x), y)
            kept += losses.tolist() if epoch else []
    expected = CRITERION(model.module(shard.tensors[0]), shard.tensors[1]).detach()
    remembered = loader._history.losses[:40]
    median = expected.topk(20).values.min().item()
    return [int((remembered - expected).abs().gt(1e-5).sum()), min(kept) > median - 1e-5]


def one_rank_cannot_read():
    """Return counts of epochs in which rank 1 trains on mixed inputs once, so that its losses cannot be read."""
    import warnings

    model = replica()
    loader = sift(DataLoader(samples(64, rank()), 8, shuffle=True), model, CRITERION, policy=top(0.5))
    counts = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for epoch in range(5):
            counts.append(0)
            for x, y in loader:
                inputs = 0.5 * x + 0.5 * x.roll(1, 0) if epoch == 1 and rank() else x
                CRITERION(model(inputs), y).mean().backward()
                counts[-1] += 1
    return counts


def share():
    """Return the numbers of kept and seen samples."""
    data = samples(4000)
    loader = sift(
        DataLoader(data, 50, sampler=DistributedSampler(data)),
        nn.Linear(6, 3),
        CRITERION,
        policy=relative(0.4),
        score_every=1,
    )
    for _ in loader:
        pass
    return [loader.report().kept, loader.report().seen]


def resumed_training(stop=None, state=None, score_every=1):
    """Train for two epochs, or until ``stop``; return batches, states if stopped, and the model."""
    torch.manual_seed(0)
    model = replica(nn.Sequential(nn.Linear(6, 6), nn.Dropout(), nn.Linear(6, 3)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loader = distributed(samples(90, 1))
    loader = sift(loader, model, CRITERION, policy=relative(0.6), seed=3, score_every=score_every)
    if state:
        model.load_state_dict(state[0])
        loader.load_state_dict(state[1])
    sums = []
    while loader.epoch < 2:
        for x, y in loader:
            optimizer.zero_grad()
            CRITERION(model(x), y).mean().backward()
            optimizer.step()
            sums.append(round(float(x.sum()), 6))
            if len(sums) == stop:
                states = copy.deepcopy(model.state_dict()), copy.deepcopy(loader.state_dict())
                return sums, states, model
    return sums, None, model


def resume():
    """Return for each step whether the training resumed there is the uninterrupted one."""
    same = []
    for score_every in (0, 1):
        sums, _, model = resumed_training(score_every=score_every)
        for stop in range(1, len(sums) - 1, 2):
            _, state, _ = resumed_training(stop, score_every=score_every)
            rest, _, again = resumed_training(state=state, score_every=score_every)
            equal = all(map(torch.equal, model.state_dict().values(), again.state_dict().values()))
            same.append(rest == sums[stop:] and equal)
    return same


def network(sharded, nested=True):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    if not sharded:
        return replica(model)
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    if nested:
        fully_shard(model[0], mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def batches(count):
    draws = torch.Generator().manual_seed(rank())
    return [(torch.randn(8, 6, generator=draws), torch.arange(8) % 3) for _ in range(count)]


def sharded_step_losses():
    """Return counts of a sharded model sifted by its training losses, and the error of scoring with auto=True."""
    model = network(sharded=True, nested=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loader = distributed(samples(64))
    sifting = sift(loader, model, CRITERION, policy=top(0.5))
    counts = train(sifting, model, 3, optimizer=optimizer)
    try:
        sift(loader, model, CRITERION, score_every=1, auto=True)
    except Exception as error:
        return [counts, sifting.report().scored, str(error)]


def sharded_and_replicated():
    """Return sums of the batches that a replicated and a sharded model train on."""
    results = []
    for sharded in (False, True):
        model = network(sharded)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        loader = sift(batches(12), model, CRITERION, policy=top(0.4), pool=1, delay=2, seed=0)
        sums = []
        for _ in range(2):
            for x, y in loader:
                sums.append(round(x.sum().item(), 3))
                optimizer.zero_grad()
                CRITERION(model(x), y).mean().backward()
                optimizer.step()
        results.append(sums)
    return results


def sharded_uneven():
    """Return the number of batches of each epoch, with different data and keep probabilities on each rank."""
    model = network(sharded=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loader = sift(
        batches(20 - 7 * rank()),
        model,
        CRITERION,
        policy=lambda losses: torch.full((len(losses),), 1.0 if rank() else 0.3),
        seed=0,
    )
    counts = train(loader, model, 3, optimizer=optimizer)
    report = loader.report()
    assert report.seen == report.kept + report.dropped, report
    return counts


def sharded_bad_batch():
    """Return the first line of the error, and what the rank posted for each batch."""
    data = batches(8)
    if rank():
        data[5] = (data[5][0], data[5][1][:3])
    model = network(sharded=True)
    loader = sift(data, model, CRITERION, policy=top(0.5), pool=1)
    posts, coordination = [], loader._pipeline.coordination
    post = coordination.post
    coordination.post = lambda has_batch, trouble="": (posts.append(has_batch), post(has_batch, trouble))
    try:
        for x, y in loader:
            CRITERION(model(x), y).mean().backward()
    except Exception as error:
        return [str(error).splitlines()[0], posts]


def main(store):
    torch.set_num_threads(1)
    number, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group("gloo", init_method=store, rank=number, world_size=world)
    results = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # trainers print
    for line in sys.stdin:
        torch.manual_seed(0)
        try:
            file, case, arguments = json.loads(line)
            functions = globals() if file == __file__ else runpy.run_path(file)
            result = functions[case](*arguments)
        except BaseException:
            result = {"error": traceback.format_exc()}
        print(json.dumps(result), file=results, flush=True)


if __name__ == "__main__":
    main(sys.argv[1])

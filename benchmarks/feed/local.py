"""Batches of workers on this machine, beside DataLoader with the same workers: throughput, processor time, first batch."""

from __future__ import annotations

import io
import random
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import psutil
import torch
from torch.utils.data import DataLoader, Dataset

from .. import harness
from ..record import Row

CLAIM = "feed_local"
QUICK = False
WORKERS, ROUNDS, EPOCHS = 2, 3, 10_000
"""Worker processes, rounds of both loaders in turns, and batches of the long run."""
SCALING = (1, 2, 4, 8)
"""Numbers of workers that wait."""


class Stacked(Dataset[Any]):
    """Images that take no time to load, so that only collation and transport are left."""

    def __init__(self, dtype: torch.dtype, batches: int) -> None:
        self.image, self.length = torch.ones(3, 224, 224, dtype=dtype), 64 * batches

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Any:
        return self.image, index


class Small(Dataset[Any]):
    """Batches of 256 tensors of 256 bytes."""

    def __init__(self, batches: int) -> None:
        self.tensor, self.length = torch.ones(64), batches

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Any:
        return [self.tensor.clone() for _ in range(256)]


class Photographs(Dataset[Any]):
    """Decoding, random crop, colour and normalisation of JPEG images of 320 x 240 pixels."""

    def __init__(self, batches: int) -> None:
        from PIL import Image

        self.length, self.files = 32 * batches, []
        for number in range(8):
            noise = torch.rand(12, 16, 3, generator=torch.Generator().manual_seed(number))
            image = Image.fromarray((noise * 255).byte().numpy()).resize((320, 240))
            file = io.BytesIO()
            image.save(file, "JPEG", quality=90)
            self.files.append(file.getvalue())

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Any:
        from PIL import Image, ImageEnhance
        from torchvision.transforms.functional import to_tensor

        image = Image.open(io.BytesIO(self.files[index % 8])).convert("RGB")
        left, top = random.randrange(96), random.randrange(16)
        image = ImageEnhance.Color(image.crop((left, top, left + 224, top + 224))).enhance(
            random.uniform(0.6, 1.4)
        )
        return (to_tensor(image) - 0.45) / 0.22, index


class Waiting(Dataset[Any]):
    """Samples that wait for 10 ms, as for a disk or a network."""

    def __init__(self, batches: int) -> None:
        self.length = 8 * batches

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Any:
        time.sleep(0.01)
        return torch.ones(64), index


def same(sample: Any) -> Any:
    """Return the batch as the dataset made it."""
    return sample


def seconds_of_processors() -> float:
    """Return the processor time of this process and its living children, in seconds."""
    process = psutil.Process()
    times = [each.cpu_times() for each in (process, *process.children())]
    return sum(each.user + each.system for each in times)


def interleaved(dataset: Dataset[Any], **options: Any) -> dict[str, float]:
    """Time epochs of both loaders in turns; workers live on, and the first epoch of each is only for its first batch."""
    from loopwise.feed import RemoteDataLoader

    loaders: dict[str, DataLoader[Any]] = {}
    results: dict[str, float] = {}
    for name, make in (("theirs", DataLoader), ("ours", RemoteDataLoader)):
        loaders[name] = make(dataset, num_workers=WORKERS, persistent_workers=True, **options)
        start = time.perf_counter()
        iterator = iter(loaders[name])
        next(iterator)
        results[f"{name}: first"] = time.perf_counter() - start
        for _ in iterator:
            pass
    rates: dict[str, list[float]] = {"theirs": [], "ours": []}
    costs: dict[str, list[float]] = {"theirs": [], "ours": []}
    for _ in range(1 if QUICK else ROUNDS):
        for name, loader in loaders.items():
            before, start, count = seconds_of_processors(), time.perf_counter(), 0
            for _ in loader:
                count += 1
            rates[name].append(count / (time.perf_counter() - start))
            costs[name].append(1e3 * (seconds_of_processors() - before) / count)
    for name in loaders:
        results[f"{name}: batches/s"] = statistics.median(rates[name])
        results[f"{name}: ms"] = statistics.median(costs[name])
    return results


def stacked(dtype: torch.dtype, batches: int) -> Callable[[int], dict[str, float]]:
    """Return a case of images that take no time to load."""
    return lambda seed: interleaved(Stacked(dtype, batches // 4 if QUICK else batches), batch_size=64)


def small(seed: int) -> dict[str, float]:
    """Compare batches of many small tensors."""
    return interleaved(Small(40 if QUICK else 150), batch_size=None, collate_fn=same)


def augmented(seed: int) -> dict[str, float]:
    """Compare batches whose preparation takes nearly all of the time."""
    return interleaved(Photographs(8 if QUICK else 30), batch_size=32)


def waiting(seed: int) -> dict[str, float]:
    """Load batches that wait, by more and more workers, which live on from one epoch to the next."""
    from loopwise.feed import RemoteDataLoader

    results = {}
    for workers in SCALING:
        batches = workers * (15 if QUICK else 50)
        loader = RemoteDataLoader(Waiting(batches), 8, num_workers=workers, persistent_workers=True)
        for _ in range(2):
            start = time.perf_counter()
            count = sum(1 for _ in loader)
            results[f"{workers}: batches/s"] = count / (time.perf_counter() - start)
        del loader
    return results


def long(seed: int) -> dict[str, float]:
    """Load many batches, and compare memory and descriptors after the first tenth with those at the end."""
    from loopwise.feed import RemoteDataLoader

    count = EPOCHS // 10 if QUICK else EPOCHS
    dataset = Stacked(torch.uint8, count)
    dataset.image = torch.ones(3, 32, 32, dtype=torch.uint8)
    process, marks = psutil.Process(), []
    for number, _ in enumerate(RemoteDataLoader(dataset, 64, num_workers=WORKERS), 1):
        if number in (count // 10, count - 5):
            everyone = (process, *process.children())
            marks.append(
                (sum(each.memory_info().rss for each in everyone), sum(each.num_fds() for each in everyone))
            )
    (memory, descriptors), (memory_end, descriptors_end) = marks
    return {"MiB more": (memory_end - memory) / 2**20, "descriptors more": descriptors_end - descriptors}


def cases(device: str) -> dict[str, Callable[[int], dict[str, float]]]:
    """Return the cases by name."""
    return {
        "uint8": stacked(torch.uint8, 100),
        "float32": stacked(torch.float32, 40),
        "small": small,
        "augmented": augmented,
        "waiting": waiting,
        "long": long,
    }


def rows(runs: harness.Runs) -> list[Row]:
    """Return the rows of the record."""
    table = []
    names = {
        "uint8": "64 x 3 x 224 x 224 uint8",
        "float32": "64 x 3 x 224 x 224 float32",
        "small": "256 tensors of 256 bytes",
        "augmented": "32 JPEG images, decoded and augmented",
    }
    throughput = {"uint8": 1.5, "float32": 1.5, "small": 10, "augmented": 1.0}
    for case, name in names.items():
        run = runs[case]
        bar = f"ratio >= {throughput[case]}"
        table.append(
            Row(name, run["ours: batches/s"], run["theirs: batches/s"], "DataLoader", "batches/s", bar)
        )
        bar = "ratio <= 0.5" if case in ("uint8", "float32") else None
        table.append(
            Row(
                f"{name}: processor time a batch", run["ours: ms"], run["theirs: ms"], "DataLoader", "ms", bar
            )
        )
        bar = "ratio <= 1.2" if case == "uint8" else None
        table.append(
            Row(f"{name}: first batch", run["ours: first"], run["theirs: first"], "DataLoader", "s", bar)
        )
    rates = [runs["waiting"][f"{workers}: batches/s"] for workers in SCALING]
    for workers, found in zip(SCALING[1:], rates[1:], strict=True):
        linear = [workers * alone for alone in rates[0]]
        name = f"preprocessing that waits, {workers} workers"
        table.append(Row(name, found, linear, "linear", "batches/s", "ratio >= 0.95"))
    name = f"{EPOCHS:,} batches: growth of"
    table.append(Row(f"{name} memory", runs["long"]["MiB more"], None, "", "MiB", "ours <= 20"))
    table.append(Row(f"{name} descriptors", runs["long"]["descriptors more"], None, "", "", "ours <= 0"))
    return table


if __name__ == "__main__":
    harness.main(sys.modules[__name__])

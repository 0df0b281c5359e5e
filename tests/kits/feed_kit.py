"""Datasets for the tests of feed, at module level so that any start method can pickle them, and comparisons."""

import os
import random
import signal

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from loopwise.feed import RemoteDataLoader


class Augmented(Dataset):
    """Samples that draw from all three generators; the tensor is large enough for shared memory from two a batch."""

    def __init__(self, length=22, side=64):
        self.length, self.side = length, side

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        noise = torch.rand(self.side, self.side) + index
        return {
            "image": noise,
            "draws": (random.random(), np.random.rand()),
            "name": f"sample {index}",
            "index": index,
        }


class Fetching(Augmented):
    """The same by ``__getitems__``."""

    def __getitems__(self, indices):
        return [self[index] for index in indices]


class Stream(IterableDataset):
    """Streams of unequal length, by worker, with random numbers."""

    def __init__(self, lengths=(5, 1, 9, 4)):
        self.lengths, self.epoch = lengths, 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __iter__(self):
        info = get_worker_info()
        for number in range(self.lengths[info.id]):
            yield torch.tensor([self.epoch, info.id, number]), torch.rand(()), random.random()


class Counting(IterableDataset):
    """A stream with a state."""

    def __init__(self, length):
        self.length, self.at, self.iterated = length, 0, 0

    def state_dict(self):
        return {"at": self.at}

    def load_state_dict(self, state):
        self.at = state["at"]

    def __iter__(self):
        while self.at < self.length:
            self.at += 1
            self.iterated += 1
            yield torch.tensor([self.at, self.iterated])
        self.at = 0


class Failing(Dataset):
    """Samples that do something bad at some indices: name of what, by index."""

    def __init__(self, length, bad, folder=None):
        self.length, self.bad, self.folder = length, bad, folder

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        kind = self.bad.get(index)
        if kind == "once":
            marker = os.path.join(self.folder, str(index))
            kind = None if os.path.exists(marker) else "kill"
            open(marker, "w").close()
        if kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif kind == "exit":
            os._exit(0)
        elif kind == "stop":
            raise StopIteration
        elif kind is not None:
            raise kind
        return torch.full((64, 64), float(index)) + torch.rand(())


def pair(*arguments, seed=3, theirs=None, times=1, **options):
    """Return the epochs of DataLoader and of ours; options that DataLoader does not know go into ``theirs``."""
    epochs = []
    for make, extra in ((DataLoader, {}), (RemoteDataLoader, theirs or {})):
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)
        loader = make(*arguments, **options, **extra)
        epochs.append([list(loader) for _ in range(times)])
        epochs[-1].append(torch.rand(()))
    return epochs


def equal(one, other):
    """Return whether two batches or lists of batches are equal bit by bit, types included."""
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and one.shape == other.shape and torch.equal(one, other)
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(equal, one, other))
    return one == other

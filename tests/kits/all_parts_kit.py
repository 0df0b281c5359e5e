"""Trainings with several parts: 20 steps with any of them, and a program that goes on from its checkpoint.

``python all_parts_kit.py FOLDER STEPS`` trains for a number of steps in all, and writes a line for each step with digests of
its batch and of the weights after it.
"""

import contextlib
import hashlib
import itertools
import json
import os
import shutil
import sys
from pathlib import Path

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from loopwise import random_state
from loopwise.compile import Plan, TrainStep
from loopwise.debug import Watch, every
from loopwise.feed import RemoteDataLoader
from loopwise.ranks import world_size
from loopwise.sift import SiftingDataLoader

CHECKPOINT = 5
"""Steps between two checkpoints."""
PARTS = ("sift", "compile", "debug", "feed")
SUBSETS = [parts for count in range(1, 5) for parts in itertools.combinations(PARTS, count)]
STEPS = 20
CRITERION = nn.CrossEntropyLoss(reduction="none")


class Noisy(TensorDataset):
    """Samples with noise at each access, by which lost random state would be seen."""

    def __init__(self, noise, *tensors):
        super().__init__(*tensors)
        self.noise = noise

    def __getitem__(self, index):
        x, y = super().__getitem__(index)
        return x + self.noise * torch.randn(x.shape) if self.noise else x, y


def data(samples=240, noise=0.1):
    torch.manual_seed(0)
    x = torch.randn(samples, 8)
    return Noisy(noise, x, (x @ torch.randn(8, 3)).argmax(1))


def network():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 3))


def trained(parts, folder, autocast=False):
    """Train with some parts; return the weights and buffers, the losses and the loader's random state afterwards."""
    net = network()
    model = DistributedDataParallel(net) if world_size() > 1 else net
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    mixed = torch.autocast("cpu", torch.bfloat16) if autocast else contextlib.nullcontext()
    torch.manual_seed(2)
    kind = RemoteDataLoader if "feed" in parts else DataLoader
    workers = {"num_workers": 1} if "feed" in parts and not autocast else {}
    dataset, order = (
        TensorDataset(*data().tensors),
        {"shuffle": True, "generator": torch.Generator().manual_seed(3)},
    )
    if world_size() > 1:
        order = {"sampler": DistributedSampler(dataset, seed=3)}
    loader = kind(dataset, batch_size=8, **order, **workers)
    with contextlib.ExitStack() as stack:
        if "sift" in parts:
            loader = SiftingDataLoader(loader, model, CRITERION, keep=1.0)
            stack.callback(loader.close)
        step = None
        if "compile" in parts:
            step = TrainStep(
                model,
                lambda model, batch: CRITERION(model(batch[0]).float(), batch[1]),
                optimizer,
                plan=Plan(graph="captured"),
            )
            stack.callback(step.close)
        watch = None
        if "debug" in parts:
            watch = stack.enter_context(Watch(model, optimizer, run=folder / "run", save=every(4)))
        losses = []
        while len(losses) < STEPS:
            for x, y in loader:
                with mixed:
                    if step is not None:
                        loss = step((x, y))
                    else:
                        loss = CRITERION(model(x).float(), y).mean()
                if step is None:
                    loss.backward()
                    optimizer.step()
                    optimizer.zero_grad()
                if watch is not None:
                    watch.step(loss=loss)
                losses.append(float(loss.detach()))
                if len(losses) == STEPS:
                    break
    return net.state_dict(), losses, torch.get_rng_state()


def digest(tensors):
    return hashlib.sha256(b"".join(t.detach().contiguous().numpy().tobytes() for t in tensors)).hexdigest()[
        :16
    ]


class Training:
    """The parts of the training, and their common checkpoint."""

    def __init__(self, folder, runs="run"):
        self.folder, self.steps = Path(folder), 0
        self.model = network()
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=0.01)
        torch.manual_seed(2)
        feeding = RemoteDataLoader(data(), batch_size=8, shuffle=True, num_workers=2)
        self.loader = SiftingDataLoader(feeding, self.model, CRITERION, keep=0.5, seed=3)
        self.step = TrainStep(self.model, CRITERION, self.optimizer, plan=Plan(graph="captured"))
        goes_on = (self.folder / "checkpoint.pt").exists()
        if not goes_on:
            shutil.rmtree(self.folder / runs, ignore_errors=True)
        self.watch = Watch(
            self.model,
            self.optimizer,
            run=self.folder / runs,
            save=every(3),
            resume=goes_on,
        )
        torch.manual_seed(4)
        if goes_on:
            self._go_on()

    def train(self, steps):
        """Train until so many steps have been done in all."""
        while self.steps < steps:
            for batch in self.loader:
                loss = self.step(batch)
                self.watch.step(loss=loss)
                self.steps += 1
                self._note(batch)
                if self.steps % CHECKPOINT == 0:
                    self._save()
                if self.steps >= steps:
                    break
        self.watch.close()
        self.loader.close()
        self.step.close()

    def _note(self, batch):
        line = {
            "step": self.steps,
            "batch": digest(batch),
            "weights": digest(self.model.state_dict().values()),
        }
        with (self.folder / "steps.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")

    def _save(self):
        state = {
            "steps": self.steps,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "loader": self.loader.state_dict(),
            "watch": self.watch.state_dict(),
            "random": random_state.get(),
        }
        torch.save(state, self.folder / "new.pt")
        os.replace(self.folder / "new.pt", self.folder / "checkpoint.pt")

    def _go_on(self):
        state = torch.load(self.folder / "checkpoint.pt", weights_only=False)
        self.steps = state["steps"]
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.loader.load_state_dict(state["loader"])
        self.watch.load_state_dict(state["watch"])
        random_state.set(state["random"])


def noted(folder):
    """Return the last line of each step."""
    lines = [json.loads(line) for line in (Path(folder) / "steps.jsonl").read_text().splitlines()]
    return {line["step"]: (line["batch"], line["weights"]) for line in lines}


if __name__ == "__main__":
    torch.set_num_threads(1)
    Training(sys.argv[1]).train(int(sys.argv[2]))

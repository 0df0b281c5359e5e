"""Real handwritten digits, trained by a plain loop, by the same loop with sift, and with sift, compile and debug.

The data are scikit-learn's digits, enlarged to 32x32 pixels and shifted and rotated at random; the model is a small
convolutional network.  The task is chosen so that a step costs something and the data become redundant: nothing can
be saved on a network that learns the digits in a second.  The last training writes a run, whose page shows what
happened in it.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import time
from dataclasses import dataclass, field
from pathlib import Path

import click
import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from loopwise.compile import TrainStep
from loopwise.debug import Finding, Watch, every
from loopwise.errors import LoopwiseError
from loopwise.extras import required
from loopwise.report import report
from loopwise.run import Run
from loopwise.sift import SiftingDataLoader

with required("scikit-learn", "demo", "the digits example", "sklearn"):
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split
with required("torchvision", "demo", "the digits example"):
    from torchvision import transforms

LEFT = "was chosen, left later: "
"""How a row of a step's explanation begins whose variant was given up after it was chosen."""
SEARCH = 30.0
"""Seconds that the choice of the step may take, where the default is up to 60: five epochs have few steps to repay it."""
LOOPS = {"plain": "plain loop", "sift": "+ sift", "all": "+ compile, debug"}
"""Value of ``--only`` -> column of the table."""


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line; the default run folder is one that does not exist yet."""
    parser = argparse.ArgumentParser(description="Handwritten digits, by a plain loop and with Loopwise")
    add = parser.add_argument
    add("--epochs", type=int, default=5, metavar="N", help="epochs to train (default: 5)")
    add("--batch-size", type=int, default=32, metavar="N", help="samples in a step (default: 32)")
    add("--lr", type=float, default=2e-3, metavar="LR", help="learning rate (default: 2e-3)")
    add(
        "--keep", type=float, default=0.4, metavar="K", help="share of the samples to train on (default: 0.4)"
    )
    add("--seed", type=int, default=1, metavar="S", help="random seed (default: 1)")
    add("--only", choices=list(LOOPS), help="train by one of the loops")
    add(
        "--run",
        metavar="DIR",
        help="folder of the last training (default: runs/digits, or runs/digits-2, ...)",
    )
    args = parser.parse_args(argv)
    if args.run is None:
        trial = os.environ.get("LOOPWISE_TRIAL")  # trials of `loopwise tune` run at the same time
        name = "runs/digits" if trial is None else f"runs/digits-trial{trial}"
        folders = itertools.chain([name], (f"{name}-{n}" for n in itertools.count(2)))
        args.run = next(folder for folder in folders if not Path(folder).exists())
    return args


class Digits(TensorDataset):
    """Digits with a random shift and rotation at every access."""

    augment = transforms.RandomAffine(degrees=12, translate=(0.12, 0.12))

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        image, label = super().__getitem__(index)
        return self.augment(image), label


def data() -> tuple[Digits, torch.Tensor, torch.Tensor]:
    """Return training set, test images (n, 1, 32, 32) in [0, 1] and test labels (n,) of a fixed stratified split."""
    images, labels = load_digits(return_X_y=True)
    images = torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 16
    images = nn.functional.interpolate(images, size=32, mode="bilinear")
    train, test = train_test_split(range(len(labels)), test_size=0.25, stratify=labels, random_state=0)
    labels = torch.tensor(labels)
    return Digits(images[train], labels[train]), images[test], labels[test]


def block(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]


def network() -> nn.Module:
    layers = [*block(1, 32), *block(32, 32), nn.MaxPool2d(2), *block(32, 64), *block(64, 64), nn.MaxPool2d(2)]
    layers += [*block(64, 128), *block(128, 128), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10)]
    return nn.Sequential(*layers)


@torch.no_grad()
def accuracy(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    model.eval()
    share = (model(images).argmax(1) == labels).float().mean().item()
    model.train()
    return share


@dataclass
class Result:
    """Numbers of one training."""

    accuracy: float = 0.0
    seconds: float = 0.0
    searching: float = 0.0
    """Seconds in which the step was chosen, part of ``seconds``."""
    scoring: float = 0.0
    """Seconds in which samples were scored, part of ``seconds``."""
    seen: int = 0
    trained: int = 0
    findings: list[Finding] = field(default_factory=list)
    step: TrainStep | None = None


def train(args: argparse.Namespace, loop: str, progress: Progress) -> Result:
    """Train by one of the loops."""
    torch.manual_seed(args.seed)
    dataset, test_images, test_labels = data()
    model, result = network(), Result()
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.epochs)
    criterion, losses = nn.CrossEntropyLoss(), nn.CrossEntropyLoss(reduction="none")
    loader = DataLoader(dataset, batch_size=args.batch_size, shuffle=True)
    bar = progress.add_task(f"{LOOPS[loop]:16}", total=args.epochs * len(dataset))
    with contextlib.ExitStack() as stack:
        run = stack.enter_context(Run(args.run)) if loop == "all" else None
        if loop != "plain":
            loader = SiftingDataLoader(loader, model, losses, keep=args.keep, run=run)
        if loop == "all":
            result.step = TrainStep(model, losses, optimizer, max_seconds=SEARCH, run=run)
            watch = stack.enter_context(
                Watch(model, optimizer, run=run, save=every(10), on_finding=result.findings.append)
            )
        start = time.perf_counter()
        model.train()
        for epoch in range(args.epochs):
            total, count = torch.zeros(()), 0
            for images, labels in loader:
                if loop == "all":
                    result.searching += prepare(result.step, (images, labels))
                    loss = result.step((images, labels))
                    watch.step(loss=loss)
                else:
                    optimizer.zero_grad()
                    loss = criterion(model(images), labels)
                    loss.backward()
                    optimizer.step()
                total += loss.detach() * len(labels)
                count += len(labels)
                result.trained += len(labels)
                progress.update(bar, completed=result.trained if loop == "plain" else loader.report().seen)
            schedule.step()
            progress.update(bar, completed=(epoch + 1) * len(dataset))
            if args.only:
                share = accuracy(model, test_images, test_labels)
                line = f"epoch {epoch + 1} loss={total / count:.4f} accuracy={share:.4f}"
                progress.console.print(line, markup=False, highlight=False)
        result.seconds = time.perf_counter() - start
    if loop != "plain":
        result.scoring = loader.report().scoring_seconds
    result.accuracy, result.seen = accuracy(model, test_images, test_labels), args.epochs * len(dataset)
    return result


def prepare(step: TrainStep, batch: object) -> float:
    """Let the step choose its plan, which it would otherwise do in its first call, and return the seconds taken."""
    if step.plan is not None:
        return 0.0
    start = time.perf_counter()
    step.prepare(batch)
    return time.perf_counter() - start


def table(results: dict[str, Result], epochs: int) -> Table:
    """Return a table with a column for each training."""
    rows = {
        "correct on test digits": lambda r: f"{r.accuracy:.2%}",
        "digits seen": lambda r: f"{r.seen:,}",
        "digits through backward": lambda r: f"{r.trained:,}",
        "seconds per epoch": lambda r: f"{(r.seconds - r.searching) / epochs:.1f}",
        "  of these to score digits": lambda r: f"{r.scoring / epochs:.1f}",
        "seconds to choose the step, once": lambda r: f"{r.searching:.1f}",
        "seconds in all": lambda r: f"{r.seconds:.1f}",
    }
    shown = Table("", *(LOOPS[loop] for loop in results))
    for name, cell in rows.items():
        shown.add_row(name, *map(cell, results.values()))
    return shown


def outcome(step: TrainStep) -> str:
    """Describe the choice of the step in a sentence."""
    rows = step.explain().rows
    best = next((row for row in rows if row["verdict"] == "chosen"), None)
    left = next((row for row in rows if row["verdict"].startswith(LEFT)), None)
    if left is not None:
        reason = left["verdict"].removeprefix(LEFT)
        return (
            f"compile: the variant {left['form']!r} was chosen, and left later for the usual step: {reason}."
        )
    tried = [row for row in rows if row["ms"] is not None]
    if best is None or best is rows[0] or tried[:1] == [best]:
        return "compile: no other variant of the step was faster on this machine, so it stays as it is."
    if best["ms"] is None:
        return f"compile: the variant {best['form']!r} of the step was the fastest in an earlier run, and is used again."
    return (
        f"compile: the fastest variant of the step is {best['form']!r}, with {best['ms']:.0f} ms for forward and "
        f"backward of a batch instead of {tried[0]['ms']:.0f} ms."
    )


def main(argv: list[str] | None = None) -> None:
    """Train by each loop and compare."""
    args = arguments(argv)
    console = Console()
    with Progress(console=console) as progress:
        results = {loop: train(args, loop, progress) for loop in ([args.only] if args.only else LOOPS)}
    console.print(table(results, args.epochs))
    if "all" in results:
        console.print(outcome(results["all"].step), markup=False, highlight=False)
        findings = results["all"].findings
        for finding in findings or ["debug: no finding, the training is healthy."]:
            console.print(str(finding), markup=False, highlight=False)
        console.print(f"page of the last training: {report(args.run)}", markup=False, soft_wrap=True)


@click.command("demo", context_settings={"ignore_unknown_options": True}, add_help_option=False)
@click.argument("argv", nargs=-1, type=click.UNPROCESSED)
def command(argv: tuple[str, ...]) -> None:
    """Run this script as ``loopwise demo``, with the script's options."""
    try:
        main(list(argv))
    except LoopwiseError as error:
        raise click.ClickException(str(error)) from error


if __name__ == "__main__":
    main()

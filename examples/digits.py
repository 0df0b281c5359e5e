"""Real handwritten digits, trained twice: by a plain loop, and by the same loop sifted and watched.

A small convolutional network on scikit-learn's digits, enlarged to 32x32 and shifted and rotated at random.  The
workload is chosen so that a training step costs something and the data gets redundant: a network
that learns the digits in a second leaves nothing to save.  What the second training did is one page in the end.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import time
from pathlib import Path

import click
import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from loopwise.compile import TrainStep
from loopwise.debug import Collection, Watch, every
from loopwise.errors import LoopwiseError, MissingExtra
from loopwise.report import report
from loopwise.run import Run
from loopwise.sift import SiftingDataLoader

try:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split
    from torchvision import transforms
except ImportError as error:
    raise MissingExtra.of(str(error.name).split(".")[0], "demo", "the digits example") from None


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Handwritten digits, plain and sifted")
    parser.add_argument("--epochs", type=int, default=10, metavar="N", help="epochs to train (default: 10)")
    parser.add_argument(
        "--batch-size", type=int, default=32, metavar="N", help="samples a step (default: 32)"
    )
    parser.add_argument("--lr", type=float, default=2e-3, metavar="LR", help="learning rate (default: 2e-3)")
    parser.add_argument(
        "--keep", type=float, default=0.4, metavar="K", help="share trained on (default: 0.4)"
    )
    parser.add_argument("--seed", type=int, default=1, metavar="S", help="random seed (default: 1)")
    parser.add_argument("--only", choices=["plain", "sifted"], help="train one of the two")
    parser.add_argument(
        "--run",
        metavar="DIR",
        help="folder of the second training (default: runs/digits, or runs/digits-2, ...)",
    )
    parser.add_argument("--compile", action="store_true", help="train by a measured, compiled step")
    args = parser.parse_args(argv)
    if args.run is None:
        places = itertools.chain(["runs/digits"], (f"runs/digits-{n}" for n in itertools.count(2)))
        args.run = next(place for place in places if not Path(place).exists())
    return args


class Digits(TensorDataset):
    """Digits with a random shift and rotation at every access."""

    augment = transforms.RandomAffine(degrees=12, translate=(0.12, 0.12))

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        image, label = super().__getitem__(index)
        return self.augment(image), label


def data() -> tuple[Digits, torch.Tensor, torch.Tensor]:
    """Training set, test images (n, 1, 32, 32) in [0, 1], test labels (n,); a fixed stratified split."""
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
    right = (model(images).argmax(1) == labels).float().mean().item()
    model.train()
    return right


def train(args: argparse.Namespace, sifted: bool, progress: Progress) -> dict[str, object]:
    torch.manual_seed(args.seed)
    dataset, test_images, test_labels = data()
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.epochs)
    criterion = nn.CrossEntropyLoss()
    losses = nn.CrossEntropyLoss(reduction="none")
    step = TrainStep(model, losses, optimizer) if args.compile else None
    inside, findings = contextlib.ExitStack(), []
    run = inside.enter_context(Run(args.run)) if sifted else None
    if sifted:
        saved = [Collection("losses", save=every(1)), "health"]
        watch = Watch(
            model, optimizer, run=run, save=every(20), collections=saved, on_finding=findings.append
        )
        inside.enter_context(watch)

    loader = DataLoader(dataset, batch_size=args.batch_size, shuffle=True)
    if sifted:
        loader = SiftingDataLoader(loader, model, loss=losses, keep=args.keep, run=run)

    trained = 0
    bar = progress.add_task("sifted" if sifted else "plain ", total=args.epochs * len(dataset))
    start = time.perf_counter()
    model.train()
    with inside:
        for epoch in range(args.epochs):
            for images, labels in loader:
                if step is not None:
                    loss = step((images, labels))
                    if sifted:
                        loader.record(step.losses)
                else:
                    optimizer.zero_grad()
                    loss = criterion(model(images), labels)
                    loss.backward()
                    optimizer.step()
                if sifted:
                    watch.step(loss=loss)
                trained += len(labels)
                seen = loader.report().seen if sifted else trained
                progress.update(bar, completed=seen)
            schedule.step()
            progress.update(bar, completed=(epoch + 1) * len(dataset))
    seconds = time.perf_counter() - start
    if step is not None:
        progress.console.print(str(step.explain()), markup=False, highlight=False)

    return {
        "accuracy": accuracy(model, test_images, test_labels),
        "seconds": seconds,
        "seen": args.epochs * len(dataset),
        "trained": trained,
        "scoring": loader.report().scoring_seconds if sifted else 0.0,
        "findings": findings,
    }


def main(argv: list[str] | None = None) -> None:
    args = arguments(argv)
    kinds = [args.only] if args.only else ["plain", "sifted"]
    console = Console()
    with Progress(console=console) as progress:
        results = {kind: train(args, kind == "sifted", progress) for kind in kinds}
    table = Table("", *kinds)
    table.add_row("test accuracy", *(f"{results[kind]['accuracy']:.2%}" for kind in kinds))
    table.add_row("seconds", *(f"{results[kind]['seconds']:.1f}" for kind in kinds))
    table.add_row("samples seen", *(f"{results[kind]['seen']:,}" for kind in kinds))
    table.add_row("samples through backward", *(f"{results[kind]['trained']:,}" for kind in kinds))
    table.add_row("seconds spent scoring", *(f"{results[kind]['scoring']:.1f}" for kind in kinds))
    base = results[kinds[0]]["seconds"]
    table.add_row("speed-up", *(f"{base / results[kind]['seconds']:.2f} x" for kind in kinds))
    console.print(table)
    if "sifted" in results:
        for finding in results["sifted"]["findings"]:
            console.print(str(finding), markup=False)
        console.print(f"what the sifted training did: {report(args.run)}")


@click.command("demo", context_settings={"ignore_unknown_options": True}, add_help_option=False)
@click.argument("argv", nargs=-1, type=click.UNPROCESSED)
def command(argv: tuple[str, ...]) -> None:
    """The ``loopwise demo`` subcommand; its options are this script's."""
    try:
        main(list(argv))
    except LoopwiseError as error:
        raise click.ClickException(str(error)) from error


if __name__ == "__main__":
    main()

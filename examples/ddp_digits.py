"""Handwritten digits under DistributedDataParallel, on any number of processes: sift, compile and debug in one run.

python examples/ddp_digits.py
torchrun --nproc_per_node 2 examples/ddp_digits.py
"""

import argparse
import os

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from loopwise import SiftingDataLoader, TrainStep, Watch
from loopwise.extras import required
from loopwise.report import report

with required("scikit-learn", "demo", "the DDP example", "sklearn"):
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split


def data():
    """Return training set, test images (n, 1, 8, 8) in [0, 1] and test labels (n,) of a fixed stratified split."""
    images, labels = load_digits(return_X_y=True)
    images = torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 16
    train, test = train_test_split(range(len(labels)), test_size=0.25, stratify=labels, random_state=0)
    labels = torch.tensor(labels)
    return TensorDataset(images[train], labels[train]), images[test], labels[test]


def network():
    return nn.Sequential(
        *(nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.AdaptiveAvgPool2d(2)),
        *(nn.Flatten(), nn.Linear(256, 10)),
    )


@torch.no_grad()
def accuracy(model, images, labels):
    model.eval()
    share = (model(images).argmax(1) == labels).float().mean()
    model.train()
    return share


def train(args, rank, ranks):
    """Train on this rank's share of the data; return the ``Watch``."""
    torch.manual_seed(args.seed)
    dataset, test_images, test_labels = data()
    net = network()
    model = DistributedDataParallel(net) if ranks > 1 else net
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.epochs)
    criterion = nn.CrossEntropyLoss(reduction="none")

    sampler = DistributedSampler(dataset, ranks, rank, seed=args.seed)
    loader = DataLoader(dataset, args.batch_size // ranks, sampler=sampler)
    loader = SiftingDataLoader(loader, model, criterion, keep=0.5, run=args.run)
    step = TrainStep(model, criterion, optimizer, run=args.run)
    with Watch(model, optimizer, run=args.run, on_finding=print) as watch:
        for epoch in range(args.epochs):
            sampler.set_epoch(epoch)
            total = torch.zeros(2)
            for images, labels in loader:
                loss = step((images, labels))
                watch.step(loss=loss)
                total += torch.stack([loss.detach() * len(labels), torch.tensor(float(len(labels)))])
            schedule.step()
            if ranks > 1:
                dist.all_reduce(total)
            if rank == 0:
                with watch.mode("eval"):
                    share = accuracy(net, test_images, test_labels)
                print(f"epoch {epoch + 1} loss={total[0] / total[1]:.4f} accuracy={share:.4f}")
    loader.close()
    step.close()
    return watch


def main(argv=None):
    """Train; print the findings and the page of the run on rank 0."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--epochs", type=int, default=10)
    add("--batch-size", type=int, default=32, help="samples in a step of all processes together")
    add("--lr", type=float, default=3e-3)
    add("--seed", type=int, default=1)
    add("--run", default="runs/ddp_digits", help="folder of the run; a second run gets one beside it")
    args = parser.parse_args(argv)

    rank, ranks = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if ranks > 1:
        dist.init_process_group("gloo")
    watch = train(args, rank, ranks)
    if rank == 0:
        print(f"{len(watch.findings)} findings; page: {report(watch.run.url)}")
    if ranks > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()

"""Handwritten digits in Lightning's Trainer: three callbacks sift, compile and watch one training and share its run.

python examples/lightning_digits.py
loopwise debug findings runs/lightning_digits
"""

import argparse

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from loopwise.compile.lightning import CompilingCallback
from loopwise.debug.lightning import WatchCallback
from loopwise.extras import required
from loopwise.report import report
from loopwise.sift.lightning import SiftingCallback

with required("lightning", "lightning", "the Lightning example"):
    from lightning.pytorch import LightningModule, Trainer, seed_everything
with required("scikit-learn", "demo", "the Lightning example", "sklearn"):
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split


class Digits(LightningModule):
    """Convolutional network for images of 8x8 pixels."""

    def __init__(self, lr, epochs):
        super().__init__()
        self.lr, self.epochs = lr, epochs
        self.net = nn.Sequential(
            *(nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.AdaptiveAvgPool2d(2)),
            *(nn.Flatten(), nn.Linear(256, 10)),
        )
        self.criterion = nn.CrossEntropyLoss()  # SiftingCallback takes the samples' losses from it

    def forward(self, images):
        return self.net(images)

    def training_step(self, batch, index):
        images, labels = batch
        loss = self.criterion(self(images), labels)
        self.log("loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch, index):
        images, labels = batch
        self.log("accuracy", (self(images).argmax(1) == labels).float().mean())

    def on_train_epoch_end(self):
        metrics = self.trainer.callback_metrics
        print(f"epoch {self.current_epoch + 1} loss={metrics['loss']:.4f} accuracy={metrics['accuracy']:.4f}")

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.lr)
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.epochs)]


def data():
    """Return training set and test set of a fixed stratified split; images are (1, 8, 8) in [0, 1]."""
    images, labels = load_digits(return_X_y=True)
    images = torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 16
    train, test = train_test_split(range(len(labels)), test_size=0.25, stratify=labels, random_state=0)
    labels = torch.tensor(labels)
    return TensorDataset(images[train], labels[train]), TensorDataset(images[test], labels[test])


def arguments(argv):
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--epochs", type=int, default=10)
    add("--batch-size", type=int, default=32)
    add("--lr", type=float, default=3e-3)
    add("--seed", type=int, default=1)
    add("--run", default="runs/lightning_digits", help="folder of the run; a second run gets one beside it")
    return parser.parse_args(argv)


def main(argv=None):
    """Train, and print the findings and the page of the run."""
    args = arguments(argv)
    seed_everything(args.seed)
    train, test = data()
    watching = WatchCallback(run=args.run, on_finding=print)
    trainer = Trainer(
        max_epochs=args.epochs,
        callbacks=[SiftingCallback(keep=0.5, run=args.run), CompilingCallback(run=args.run), watching],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    loader = DataLoader(train, args.batch_size, shuffle=True)
    trainer.fit(Digits(args.lr, args.epochs), loader, DataLoader(test, batch_size=256))
    print(f"{len(watching.findings)} findings; page: {report(watching.run.url)}")


if __name__ == "__main__":
    main()

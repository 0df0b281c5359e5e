"""Modules, trainings and expected values that the tests of the Lightning callback share."""

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import nn
from torch.utils.data import ConcatDataset, DataLoader, TensorDataset

from loopwise.debug import every, open_run
from loopwise.debug.lightning import WatchCallback

ALL = ["losses", "metrics", "weights", "biases", "gradients", "outputs"]
NAMES = [f"net.{layer}.{kind}" for layer in (0, 2) for kind in ("weight", "bias")]


def data(n=32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return TensorDataset(torch.randn(n, 6, generator=generator), torch.arange(n) % 3)


class Module(LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
        self.criterion = nn.CrossEntropyLoss()

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, index):
        loss = self.criterion(self(batch[0]), batch[1])
        self.log("train_loss", loss, on_step=True, on_epoch=True)
        if index == 1:
            self.log("seldom", 7.0 + self.global_step)
        return loss

    def validation_step(self, batch, _):
        loss = self.criterion(self(batch[0]), batch[1])
        self.log("val_loss", loss)
        return {"loss": loss, "seen": len(batch[1])}

    test_step = validation_step

    def predict_step(self, batch, _):
        return self(batch[0])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.5, momentum=0.9)

    def train_dataloader(self):
        return DataLoader(data(), batch_size=8)

    def val_dataloader(self):
        return DataLoader(data(16, seed=1), batch_size=8)

    test_dataloader = predict_dataloader = val_dataloader


class Act(Callback):
    """Callback that calls a function at the end of one training batch, or of its epoch."""

    def __init__(self, at, what, epoch=False):
        self.at, self.what, self.epoch, self.batches = at, what, epoch, 0

    def on_train_batch_end(self, trainer, *_):
        self.batches += 1
        if self.batches == self.at and not self.epoch:
            self.what(trainer)

    def on_train_epoch_end(self, trainer, *_):
        if self.batches == self.at and self.epoch:
            self.what(trainer)


def trainer(folder, *callbacks, **options):
    settings = {"max_epochs": 2, "limit_val_batches": 0, "logger": False, "accelerator": "cpu"}
    settings |= {"enable_progress_bar": False, "enable_model_summary": False, "default_root_dir": str(folder)}
    settings |= {"enable_checkpointing": any(isinstance(c, ModelCheckpoint) for c in callbacks)}
    return Trainer(callbacks=list(callbacks), **(settings | options))


def watching(folder, **options):
    return WatchCallback(run=folder / "run", **({"save": every(1), "collections": ALL} | options))


def fit(folder, *callbacks, module=None, checkpoint=None, **options):
    module = module or Module()
    trainer(folder, *callbacks, **options).fit(module, ckpt_path=checkpoint)
    return module


def truth(accumulate=1, clip=None, autocast=None, epochs=2):
    """Train by hand; return the loss of each batch, with parameters and gradients before each update, and the module."""
    module = Module()
    optimizer = module.configure_optimizers()
    records = []
    for index, (x, y) in enumerate(list(module.train_dataloader()) * epochs):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast is not None):
            loss = module.criterion(module(x), y)
        (loss / accumulate).backward()
        record = {"loss": loss.detach().clone()}
        if (index + 1) % accumulate == 0:
            if clip:
                nn.utils.clip_grad_norm_(module.parameters(), clip)
            for name, parameter in module.named_parameters():
                record[name] = parameter.detach().clone()
                record[f"gradient/{name}"] = parameter.grad.clone()
            optimizer.step()
            optimizer.zero_grad()
        records.append(record)
    return records, module


def assert_saved(saved_run, expected, exactly=True):
    assert not exactly or saved_run.steps("train") == list(range(len(expected)))
    for step, record in enumerate(expected):
        assert saved_run.has("gradient/net.0.weight", step) == ("net.0.weight" in record)
        for name, value in record.items():
            saved = saved_run.value(name, step)
            torch.testing.assert_close(saved, value.to(saved.dtype), rtol=0, atol=0, msg=f"{name} at {step}")


def same_weights(one, other):
    return all(
        torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    )


def scalars(saved_run, name, mode):
    return dict(zip(*(column.tolist() for column in saved_run.series(name, mode=mode)), strict=True))


def contents(folder):
    """Return the saved values of a run by mode and step."""
    saved_run = open_run(folder / "run")
    return {
        (mode, step): {
            name: saved_run.value(name, step, mode=mode).tolist()
            for name in saved_run.names(step=step, mode=mode)
        }
        for mode in saved_run.modes
        for step in saved_run.steps(mode)
    }


def save(trainer):
    trainer.save_checkpoint(trainer.default_root_dir + "/saved.ckpt")


def fail(trainer):
    raise ZeroDivisionError


class Again(Module):
    """Module with one batch only: Lightning does not continue in the middle of an epoch."""

    def train_dataloader(self):
        return DataLoader(ConcatDataset([data(8)] * 4), batch_size=8)

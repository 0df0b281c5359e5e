"""A LightningModule as users write it, trained with and without ``CompilingCallback``."""

import lightning.pytorch as lightning
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from loopwise.compile import Plan
from loopwise.compile.lightning import CompilingCallback

CAPTURED = Plan(graph="captured")
QUIET = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}


class Module(lightning.LightningModule):
    """Module as users write it: loss, log and a counter in one step; BatchNorm and dropout; a schedule."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        layers = [nn.Linear(6, 16), nn.BatchNorm1d(16), nn.GELU(), nn.Dropout(0.2), nn.Linear(16, 3)]
        self.net = nn.Sequential(*layers)
        self.seen = 0

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, index):
        loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
        self.seen += len(batch[0])
        self.log("loss", loss, on_step=True, on_epoch=True)
        self.log_dict({"index": float(index)})
        return loss

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.01)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]


class Validated(Module):
    def validation_step(self, batch, index):
        self.log("val_loss", nn.functional.cross_entropy(self(batch[0]), batch[1]))


def data():
    generator = torch.Generator().manual_seed(0)
    return DataLoader(TensorDataset(torch.randn(48, 6, generator=generator), torch.arange(48) % 3), 16)


def fit(*callbacks, module=None, checkpoints=False, **options):
    """Train for two epochs; return the trainer and the module."""
    module = Module() if module is None else module
    settings = {"max_epochs": 2, "enable_checkpointing": checkpoints, "callbacks": list(callbacks)}
    trainer = lightning.Trainer(**QUIET | settings | options)
    torch.manual_seed(1)
    trainer.fit(module, data(), data() if isinstance(module, Validated) else None)
    return trainer, module


def metrics(trainer):
    return {name: value.item() for name, value in trainer.callback_metrics.items()}


def assert_same(make=Module, plan=CAPTURED, **options):
    """Compare a compiled training with the plain one, metrics included; return both modules and the callback."""
    plain, expected = fit(module=make(), **options)
    callback = CompilingCallback(plan=plan)
    trainer, module = fit(callback, module=make(), **options)
    assert callback.step.plan == plan, callback.explain()
    torch.testing.assert_close(module.state_dict(), expected.state_dict())
    assert module.state_dict().keys() == expected.state_dict().keys()
    assert metrics(trainer) == pytest.approx(metrics(plain), rel=1e-5)
    assert module.seen == expected.seen
    assert trainer.global_step == plain.global_step
    return expected, module, callback

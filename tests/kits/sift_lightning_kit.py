"""A module, a callback and a training that the tests of sifting in Lightning share."""

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Module(LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.2), nn.Linear(8, 3))
        self.criterion = nn.CrossEntropyLoss()
        self.sizes, self.validated = [], 0

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, _):
        x, y = batch
        self.sizes.append(len(y))
        return self.criterion(self(x), y)

    def validation_step(self, batch, _):
        self.validated += 1

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters())

    def train_dataloader(self):
        data = TensorDataset(
            torch.randn(80, 6, generator=torch.Generator().manual_seed(0)), torch.arange(80) % 3
        )
        return DataLoader(data, 8, shuffle=True)

    def val_dataloader(self):
        return DataLoader(TensorDataset(torch.zeros(1, 6), torch.zeros(1, dtype=torch.int64)))


class StopAt(Callback):
    def __init__(self, step):
        self.step = step

    def on_train_batch_end(self, trainer, module, *_):
        if trainer.global_step == self.step:
            trainer.save_checkpoint(trainer.default_root_dir + "/stopped.ckpt")
            raise KeyboardInterrupt


def fit(tmp_path, sifting, *callbacks, checkpoint=None, epochs=3, module=None, **options):
    torch.manual_seed(1)
    module = module or Module()
    defaults = {
        "max_epochs": epochs,
        "callbacks": [*([sifting] if sifting else []), *callbacks],
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": any(isinstance(c, ModelCheckpoint) for c in callbacks),
        "default_root_dir": str(tmp_path),
        "accelerator": "cpu",
    }
    trainer = Trainer(**(defaults | options))
    trainer.fit(module, ckpt_path=checkpoint)
    return module

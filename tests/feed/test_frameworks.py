"""The loader inside of sift and Lightning."""

import pytest
import torch
from feed_kit import equal
from torch import nn
from torch.utils.data import DataLoader, SequentialSampler, TensorDataset

from loopwise.feed import RemoteDataLoader
from loopwise.sift import SiftingDataLoader, TopLoss

lightning = pytest.importorskip(
    "lightning.pytorch"
)  # here, since its import sets variables of the environment


def sifted(make):
    torch.manual_seed(0)
    dataset = TensorDataset(torch.randn(48, 4), torch.randint(0, 3, (48,)))
    model = nn.Linear(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    criterion = nn.CrossEntropyLoss(reduction="none")
    loader = SiftingDataLoader(
        make(dataset, 8, shuffle=True, num_workers=1), model, loss=criterion, policy=TopLoss(0.5), seed=0
    )
    assert loader.score_every == 0  # epochs are planned, and samples left out are not loaded
    epochs = []
    for _ in range(3):
        epochs.append([])
        for inputs, targets in loader:
            losses = criterion(model(inputs), targets)
            loader.record_losses(losses.detach())
            losses.mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            epochs[-1].append((inputs, targets))
    loader.close()
    return epochs


def test_sift_plans_epochs_as_with_dataloader():
    theirs, ours = sifted(DataLoader), sifted(RemoteDataLoader)
    assert [len(epoch) for epoch in ours][1:] == [3, 3]
    assert equal(ours, theirs)


@pytest.mark.filterwarnings("ignore")  # of Lightning
def test_lightning_trains_with_it_and_makes_it_again_with_another_sampler():
    from lightning.pytorch.utilities.data import _update_dataloader

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.layer, self.seen = nn.Linear(4, 1), []

        def training_step(self, batch, number):
            self.seen.append(batch[1].tolist())
            return self.layer(batch[0]).mean()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    dataset = TensorDataset(torch.randn(12, 4), torch.arange(12))
    loader = RemoteDataLoader(
        dataset, 4, num_workers=1, seeding="sample", prefetch_bytes=10_000, on_crash="skip"
    )
    module = Module()
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = lightning.Trainer(max_epochs=2, accelerator="cpu", enable_model_summary=False, **options)
    trainer.fit(module, loader)
    assert module.seen == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]] * 2
    again = _update_dataloader(loader, SequentialSampler(dataset))
    assert type(again) is RemoteDataLoader
    assert (again.seeding, again.prefetch_bytes, again.on_crash) == ("sample", 10_000, "skip")

"""Limits, intervals, reloads, streams and searches of a Lightning Trainer that sifts: as for a plain loader."""

import time

import pytest
import torch
from lightning.pytorch.callbacks import LearningRateFinder
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from sift_lightning_kit import Module, fit
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from loopwise.errors import InputError
from loopwise.run import Run
from loopwise.sift import TopLoss
from loopwise.sift.lightning import SiftingCallback

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's own, about workers and loggers


class Counting(Module):
    """A module that notes the steps of each epoch, and whose learning rate makes one cycle in the estimated steps."""

    def __init__(self, length=80):
        super().__init__()
        self.length, self.steps, self.validated_at, self.loaders = length, [], [], 0

    def on_train_epoch_start(self):
        self.steps.append(0)

    def training_step(self, batch, _):
        self.steps[-1] += 1
        return super().training_step(batch, _)

    def on_validation_epoch_end(self):
        self.validated_at.append(sum(self.steps))

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), 0.1)
        total = self.trainer.estimated_stepping_batches
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=total)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def train_dataloader(self):
        self.loaders += 1
        return DataLoader(self.data(), 8, shuffle=True)

    def data(self):
        return TensorDataset(torch.randn(self.length, 6), torch.arange(self.length) % 3)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"limit_train_batches": 0.5},
        {"limit_train_batches": 3},
        {"val_check_interval": 0.4},
        {"val_check_interval": 4},
        {"val_check_interval": 7, "check_val_every_n_epoch": None},
        {"check_val_every_n_epoch": 2},
        {"reload_dataloaders_every_n_epochs": 1},
        {"reload_dataloaders_every_n_epochs": 2},
        {"accumulate_grad_batches": 4},
        {"max_steps": 17},
        {"max_steps": 17, "max_epochs": -1},
        {"fast_dev_run": True},
        {"num_sanity_val_steps": 0},
        {"limit_train_batches": 0.5, "val_check_interval": 0.5, "reload_dataloaders_every_n_epochs": 2},
    ],
    ids=lambda options: ",".join(f"{name}={value}" for name, value in options.items()),
)
def test_limits_and_intervals_are_those_of_a_plain_loader_of_that_length(tmp_path, options):
    plain, sifted = Counting(40), Counting(80)
    sifting = SiftingCallback(keep=0.5)
    for module, callback in ((plain, None), (sifted, sifting)):
        fit(tmp_path, callback, module=module, **options)
    assert sifted.steps == plain.steps
    assert sifted.validated_at == plain.validated_at
    assert sifted.loaders == plain.loaders
    rates = [module.trainer.optimizers[0].param_groups[0]["lr"] for module in (plain, sifted)]
    assert rates[0] == rates[1]
    assert sifted.trainer.global_step == plain.trainer.global_step
    assert sifting.loader.report().trained == sum(sifted.sizes)


def test_overfit_batches_trains_on_the_same_batches_unsifted(tmp_path):
    class Noting(Counting):
        def data(self):
            return TensorDataset(torch.zeros(80, 6), torch.arange(80) % 3)

        def training_step(self, batch, _):
            self.labels = [*getattr(self, "labels", []), batch[1].tolist()]
            return super().training_step(batch, _)

    sifting = SiftingCallback(keep=0.5)
    with pytest.warns(UserWarning, match="leaves them as they are"):
        module = fit(tmp_path, sifting, module=Noting(), overfit_batches=2)
    first = [(torch.arange(80) % 3)[start : start + 8].tolist() for start in (0, 8)]
    assert module.labels == first * 3
    assert sifting.loader is None


def test_reloading_the_same_data_keeps_the_losses(tmp_path):
    class Same(Counting):
        tensors = torch.randn(80, 6), torch.arange(80) % 3

        def data(self):
            return TensorDataset(*self.tensors)

    sifting = SiftingCallback(policy=TopLoss(0.5), run=tmp_path / "run")
    module = fit(tmp_path, sifting, module=Same(), epochs=6, reload_dataloaders_every_n_epochs=2)
    assert module.loaders == 3
    assert module.steps == [5] * 6
    report = sifting.loader.report()
    assert report.scored == 0
    assert report.dropped >= 40  # sifted by the losses from before it was loaded again
    assert Run.existing(tmp_path / "run").info()["state"] == "finished"


def test_reloading_other_data_scores_it(tmp_path):
    sifting = SiftingCallback(policy=TopLoss(0.5))
    with pytest.warns(UserWarning, match="the reloaded train loader has other data"):
        module = fit(tmp_path, sifting, module=Counting(), epochs=4, reload_dataloaders_every_n_epochs=1)
    assert module.steps == [5] * 4
    report = sifting.loader.report()
    assert report.scored == 240  # all passes but the first, which trains on half of the data and remembers it
    assert report.trained == 160


def test_a_stream_is_scored_and_an_epoch_is_a_pass(tmp_path):
    class Stream(IterableDataset):
        def __iter__(self):
            generator = torch.Generator().manual_seed(0)
            for i in range(80):
                yield torch.randn(6, generator=generator), i % 3

    class Streaming(Counting):
        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

        def train_dataloader(self):
            return DataLoader(Stream(), 8)

    module = fit(tmp_path, SiftingCallback(policy=TopLoss(0.5)), module=Streaming(), epochs=2)
    assert module.steps == [5, 5]
    module = fit(
        tmp_path, SiftingCallback(policy=TopLoss(0.5)), module=Streaming(), epochs=2, limit_train_batches=3
    )
    assert module.steps == [3, 3]
    with pytest.raises(MisconfigurationException, match="val_check_interval"):  # as for a plain stream
        fit(tmp_path, SiftingCallback(), module=Streaming(), val_check_interval=0.5)


@pytest.mark.parametrize(
    ("options", "scored"),
    [
        ({"max_epochs": 2}, 160),
        ({"max_epochs": 3}, 0),
        ({"max_epochs": 3, "limit_train_batches": 3}, 160),
        ({"max_epochs": -1, "max_steps": 9}, 160),
        ({"max_epochs": -1, "max_steps": 11}, 0),
    ],
)
def test_samples_that_are_seen_once_are_scored(tmp_path, options, scored):
    sifting = SiftingCallback(policy=TopLoss(0.5))
    module = fit(tmp_path, sifting, module=Counting(), **options)
    report = sifting.loader.report()
    assert (report.scored > 0) == (scored > 0)
    assert report.trained == sum(module.sizes)


class Dicts(Counting):
    """A module whose batches are dicts, and which normalises its input."""

    def data(self):
        x, y = torch.randn(self.length, 6) * 3 + 1, torch.arange(self.length) % 3
        return [{"x": a, "y": b} for a, b in zip(x, y, strict=True)]

    def training_step(self, batch, index):
        return super().training_step(((batch["x"] - 1) / 3, batch["y"]), index)


@pytest.mark.parametrize("reload", [0, 1])
def test_the_criterion_of_the_module_records(tmp_path, reload):
    sifting = SiftingCallback(policy=TopLoss(0.5))
    module = Dicts()
    module.criterion = sifting.criterion(module.criterion)
    keys = set(Dicts().state_dict())
    tensors = module.data()
    module.data = lambda: tensors
    fit(tmp_path, sifting, module=module, epochs=4, reload_dataloaders_every_n_epochs=reload)
    assert module.steps == [5] * 4
    report = sifting.loader.report()
    assert report.scored == 0
    assert report.dropped >= 80
    assert set(module.state_dict()) == keys


def test_several_recording_criteria_are_refused(tmp_path):
    sifting, module = SiftingCallback(), Counting()
    module.criterion = sifting.criterion(module.criterion)
    module.second = sifting.criterion(nn.CrossEntropyLoss())
    with pytest.raises(InputError, match="seen: 2 criteria that record losses"):
        fit(tmp_path, sifting, module=module)


def test_a_recording_criterion_gives_the_same_training(tmp_path):
    plain, recording = Counting(), Counting()
    sifting = SiftingCallback(keep=1.0)
    recording.criterion = sifting.criterion(recording.criterion)
    recording.net.load_state_dict(plain.net.state_dict())
    for module, callback in ((plain, None), (recording, sifting)):
        fit(tmp_path, callback, module=module)
    assert plain.sizes == recording.sizes
    for one, other in zip(plain.parameters(), recording.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("manual", [False, True])
def test_the_loss_of_a_batch_is_the_score_of_its_samples(tmp_path, manual):
    class Contrastive(Counting):
        automatic_optimization = not manual

        def training_step(self, batch, _):
            self.steps[-1] += 1
            self.sizes.append(len(batch[1]))
            out = nn.functional.normalize(self(batch[0]), dim=1)
            loss = nn.functional.cross_entropy(out @ out.T, torch.arange(len(out)))
            if manual:
                self.manual_backward(loss)
                self.optimizers().step()
            return {"loss": loss}

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    sifting = SiftingCallback("batch")
    module = fit(tmp_path, sifting, module=Contrastive(), epochs=4)
    assert module.steps == [10] * 4
    report = sifting.loader.report()
    assert report.scored == 0
    assert report.dropped > 0


def test_manual_optimization(tmp_path):
    class Manual(Counting):
        automatic_optimization = False

        def training_step(self, batch, _):
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(super().training_step(batch, _))
            optimizer.step()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    sifting = SiftingCallback(policy=TopLoss(0.5))
    module = fit(tmp_path, sifting, module=Manual(), epochs=4)
    assert module.steps == [5] * 4
    assert module.trainer.global_step == 20
    assert sifting.loader.report().dropped == 80


def test_two_fits_of_one_callback(tmp_path):
    sifting = SiftingCallback(policy=TopLoss(0.5))
    for _ in range(2):
        module = fit(tmp_path, sifting, module=Counting(), epochs=4)
        assert module.steps == [5] * 4
        assert sifting.loader.report().trained == 160
    loaders = DataLoader(Counting().data(), 8)
    assert len(module.trainer.fit_loop._data_source.dataloader()) == 10  # Lightning's own again
    assert len(loaders) == 10


def test_a_search_for_the_learning_rate_leaves_no_losses_behind(tmp_path):
    class Finding(Counting):
        def __init__(self):
            super().__init__()
            self.lr = 0.1

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), self.lr)

    sifting = SiftingCallback(policy=TopLoss(0.5))
    finder = LearningRateFinder(num_training_steps=7, update_attr=False)
    module = fit(tmp_path, sifting, finder, module=Finding(), epochs=4, enable_checkpointing=True)
    assert module.steps[-4:] == [5] * 4
    assert sifting.loader.report().trained == 160


def test_the_time_of_validation_is_no_training_step(tmp_path):
    class Slow(Module):
        def validation_step(self, batch, _):
            time.sleep(0.5)

    sifting = SiftingCallback(policy=TopLoss(0.5))
    start = time.perf_counter()
    fit(tmp_path, sifting, module=Slow(), num_sanity_val_steps=0)
    assert sifting.loader.report().training_seconds < time.perf_counter() - start - 0.9

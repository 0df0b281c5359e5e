"""The callback in a real Lightning Trainer: sifting, resume to the bit, the module's loss, options, the run."""

import os
import time

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, LearningRateFinder, ModelCheckpoint
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from loopwise.errors import InputError, StateError
from loopwise.run import Run, read
from loopwise.sift import RelativeLoss, SiftingDataLoader, TopLoss
from loopwise.sift.lightning import SiftingCallback
from loopwise.sift.loader import DEFAULTS

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's own, about workers and loggers


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


@pytest.mark.parametrize("score_every", ["auto", 1])
def test_a_trainer_sifts(tmp_path, score_every):
    sifting = SiftingCallback(policy=TopLoss(0.5), score_every=score_every)
    module = fit(tmp_path, sifting, epochs=4)
    assert module.sizes == [8] * 20
    assert module.validated == 4 + 1  # once an epoch, and the sanity check
    report = sifting.loader.report()
    assert report.seen == (240 if score_every == "auto" else 320)
    assert report.dropped == (80 if score_every == "auto" else 160)


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


@pytest.mark.parametrize(
    ("loader", "seen"),
    [
        (lambda plain: {"a": plain, "b": plain}, "2 train loaders"),
        (
            lambda plain: SiftingDataLoader(plain, nn.Linear(1, 1), nn.MSELoss(reduction="none")),
            "a train loader that is a SiftingDataLoader, and a SiftingCallback",
        ),
    ],
)
def test_other_train_loaders_are_refused(tmp_path, loader, seen):
    class Other(Module):
        def train_dataloader(self):
            return loader(super().train_dataloader())

    with pytest.raises(InputError, match=f"seen: {seen}"):
        fit(tmp_path, SiftingCallback(), module=Other())


@pytest.mark.parametrize("score_every", ["auto", 1])
@pytest.mark.parametrize("step", [3, 12])
def test_resume_to_the_bit(tmp_path, score_every, step):
    def sifting():
        return SiftingCallback(policy=TopLoss(0.7), score_every=score_every, seed=1)

    whole = fit(tmp_path, sifting())
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        fit(tmp_path, sifting(), StopAt(step))
    again = fit(tmp_path, sifting(), checkpoint=str(tmp_path / "stopped.ckpt"))
    assert len(again.sizes) == len(whole.sizes) - step
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_resume_from_the_end_of_an_epoch_with_a_limit(tmp_path):
    def sifting():
        return SiftingCallback(policy=TopLoss(0.7), seed=1)

    kept = ModelCheckpoint(str(tmp_path), filename="{epoch}", save_top_k=-1)
    whole = fit(tmp_path, sifting(), kept, epochs=5, limit_train_batches=5)
    again = fit(
        tmp_path, sifting(), checkpoint=str(tmp_path / "epoch=2.ckpt"), epochs=5, limit_train_batches=5
    )
    assert len(whole.sizes) == 25
    assert again.sizes == whole.sizes[15:]
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_the_time_of_validation_is_no_training_step(tmp_path):
    class Slow(Module):
        def validation_step(self, batch, _):
            time.sleep(0.5)

    sifting = SiftingCallback(policy=TopLoss(0.5))
    start = time.perf_counter()
    fit(tmp_path, sifting, module=Slow(), num_sanity_val_steps=0)
    assert sifting.loader.report().training_seconds < time.perf_counter() - start - 0.9


def test_checkpoints_of_lightning_hold_the_state(tmp_path):
    fit(tmp_path, SiftingCallback(keep=0.5), ModelCheckpoint(str(tmp_path), save_last=True))
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)  # no code in it
    assert len(saved["callbacks"]["SiftingCallback"]["ranks"]) == 1


def test_a_checkpoint_of_another_number_of_ranks(tmp_path):
    fit(tmp_path, SiftingCallback(keep=0.5), ModelCheckpoint(str(tmp_path), save_last=True), epochs=1)
    saved = torch.load(tmp_path / "last.ckpt", weights_only=False)
    states = saved["callbacks"]["SiftingCallback"]["ranks"]
    saved["callbacks"]["SiftingCallback"]["ranks"] = [state | {"world": 2} for state in states * 2]
    torch.save(saved, tmp_path / "last.ckpt")
    with pytest.raises(
        StateError, match="seen: the state of rank 0 of 2\nexpected: the state of rank 0 of 1"
    ):
        fit(tmp_path, SiftingCallback(keep=0.5), checkpoint=str(tmp_path / "last.ckpt"))


def test_a_module_without_criterion_says_what_to_pass(tmp_path):
    class Bare(Module):
        def __init__(self):
            super().__init__()
            del self.criterion

    module = Bare()
    trainer = Trainer(
        max_epochs=1, callbacks=[SiftingCallback()], logger=False, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, accelerator="cpu",
    )  # fmt: skip
    with pytest.raises(InputError) as error:
        trainer.fit(module)
    assert str(error.value) == (
        "seen: 0 criteria in Bare: none\nexpected: one attribute that is one of torch's losses\n"
        "likely cause: the loss is computed by a function in training_step, or there are several\n"
        "fix: pass SiftingCallback(loss=nn.CrossEntropyLoss(reduction='none')) or a function"
    )


@pytest.mark.parametrize(
    ("options", "seen", "expected", "cause", "fix"),
    [
        (
            {"keep": 0},
            "keep=0 in SiftingCallback(...)",
            "the share of samples to train on, a number in (0, 1]",
            "a percentage or a count instead of a fraction",
            "pass a fraction, for instance keep=0.5 in SiftingCallback(...)",
        ),
        (
            {"polcy": TopLoss()},
            "polcy in SiftingCallback(...)",
            f"options of SiftingDataLoader: {', '.join(DEFAULTS)}",
            "a typo",
            "use one of these names",
        ),
        (
            {"run": 3},
            "run= of type int in SiftingCallback(...)",
            "a folder, an fsspec URL such as s3://bucket/run, or a Run",
            "arguments that changed places",
            "pass run='runs/example' in SiftingCallback(...)",
        ),
        (
            {"loss": nn.CrossEntropyLoss},
            "loss=CrossEntropyLoss, a class",
            "a criterion that returns one loss per sample, or a function of (model, batch)",
            "the class was passed, not an instance",
            "pass loss=nn.CrossEntropyLoss(reduction='none')",
        ),
        (
            {"model": "net"},
            "model of type str",
            "a function from the LightningModule to the network that training_step calls",
            "a value was passed in place of a function, or arguments changed places",
            "pass model=lambda module: module.net",
        ),
    ],
)
def test_options_are_checked_when_the_callback_is_made(options, seen, expected, cause, fix):
    with pytest.raises(InputError) as error:
        SiftingCallback(**options)
    assert str(error.value) == f"seen: {seen}\nexpected: {expected}\nlikely cause: {cause}\nfix: {fix}"


@pytest.mark.parametrize(("stops", "state"), [(False, "finished"), (True, "failed")])
def test_the_run_is_closed_when_the_fit_ends(tmp_path, stops, state):
    sifting = SiftingCallback(keep=0.5, run=tmp_path / "run")
    if stops:
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            fit(tmp_path, sifting, StopAt(12))
    else:
        fit(tmp_path, sifting, epochs=2)
    assert Run.existing(tmp_path / "run").info()["state"] == state
    records, _ = read(str(tmp_path / "run"), "sift", "epochs")
    assert [record["epoch"] for record in records][:1] == [0]


def trained_on_two_ranks(folder):
    """Return the number of steps and of samples, of states in a checkpoint, and a sum of the weights."""
    rank = os.environ["RANK"]
    os.environ |= {
        "TORCHELASTIC_RUN_ID": "test",
        "LOCAL_RANK": rank,
        "GROUP_RANK": "0",
        "LOCAL_WORLD_SIZE": "2",
    }
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}  # the group exists already
    sifting = SiftingCallback(policy=RelativeLoss(0.5), score_every=1, seed=0)
    module = fit(folder, sifting, epochs=2, devices=2, strategy="ddp")
    states = sifting.state_dict()["ranks"]
    weights = float(module.net[0].weight.sum())
    return [len(module.sizes), sifting.loader.report().seen, len(states), weights]


def test_under_ddp_all_ranks_step_together(two, tmp_path):
    first, second = two("trained_on_two_ranks", str(tmp_path), file=__file__)
    assert first[0] == second[0] >= 4
    assert first[2] == 2
    assert first[3] == second[3]
    assert first[1] + second[1] == pytest.approx(160, abs=32)

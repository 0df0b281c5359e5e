"""The callback in a real Lightning Trainer: sifting, resume to the bit, the module's loss, options, the run."""

import os

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from loopwise.errors import InputError, StateError
from loopwise.run import Run, read
from loopwise.sift import RelativeLoss, TopLoss
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


def fit(tmp_path, sifting, *callbacks, checkpoint=None, epochs=3, **options):
    torch.manual_seed(1)
    module = Module()
    trainer = Trainer(
        max_epochs=epochs,
        callbacks=[sifting, *callbacks],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=any(isinstance(c, ModelCheckpoint) for c in callbacks),
        default_root_dir=str(tmp_path),
        accelerator="cpu",
        **options,
    )
    trainer.fit(module, ckpt_path=checkpoint)
    return module


@pytest.mark.parametrize("score_every", ["auto", 1])
def test_a_trainer_sifts(tmp_path, score_every):
    sifting = SiftingCallback(policy=TopLoss(0.5), score_every=score_every)
    module = fit(tmp_path, sifting)
    epochs = [80, 40, 40] if score_every == "auto" else [40, 40, 40]
    assert sum(module.sizes) == sum(epochs)
    assert set(module.sizes) == {8}
    assert module.validated == 3 + 1  # once an epoch, and the sanity check
    report = sifting.loader.report()
    assert (report.epochs, report.seen) == (3, 240)


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


def test_checkpoints_of_lightning_hold_the_state(tmp_path):
    fit(tmp_path, SiftingCallback(keep=0.5), ModelCheckpoint(str(tmp_path), save_last=True))
    saved = torch.load(tmp_path / "last.ckpt", weights_only=False)
    assert "ranks" in saved["callbacks"]["SiftingCallback"]


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

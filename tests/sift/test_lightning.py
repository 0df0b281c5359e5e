"""The callback in a real Lightning Trainer: sifting, resume to the bit, the module's loss, options, the run."""

import os

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from sift_lightning_kit import Module, StopAt, fit
from torch import nn

from loopwise.errors import InputError, StateError
from loopwise.run import Run, read
from loopwise.sift import RelativeLoss, SiftingDataLoader, TopLoss
from loopwise.sift.lightning import SiftingCallback
from loopwise.sift.loader import DEFAULTS

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's own, about workers and loggers


@pytest.mark.parametrize("score_every", ["auto", 1])
def test_a_trainer_sifts(tmp_path, score_every):
    sifting = SiftingCallback(policy=TopLoss(0.5), score_every=score_every)
    module = fit(tmp_path, sifting, epochs=4)
    assert module.sizes == [8] * 20
    assert module.validated == 4 + 1  # once an epoch, and the sanity check
    report = sifting.loader.report()
    assert report.seen == (240 if score_every == "auto" else 320)
    assert report.dropped == (80 if score_every == "auto" else 160)


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

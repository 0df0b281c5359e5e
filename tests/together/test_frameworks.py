"""Every combination of sift, compile and debug in Lightning and in Hugging Face: as the trainer without them.

Nothing is left out (``keep=1.0``).  The step computes by the captured graph.
"""

import itertools

import pytest
import torch
import transformers
from all_parts_kit import data, network
from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader

from loopwise.compile import Plan
from loopwise.compile.lightning import CompilingCallback
from loopwise.compile.transformers import CompilingTrainerMixin
from loopwise.debug import every, open_run
from loopwise.debug.lightning import WatchCallback as LightningWatch
from loopwise.debug.transformers import WatchCallback
from loopwise.sift.lightning import SiftingCallback
from loopwise.sift.transformers import SiftingTrainerMixin

pytestmark = pytest.mark.filterwarnings("ignore")  # the trainers' own
SUBSETS = [
    parts for count in range(1, 4) for parts in itertools.combinations(("sift", "compile", "debug"), count)
]
CAPTURED = Plan(graph="captured")
STEPS = 20


class Module(LightningModule):
    def __init__(self):
        super().__init__()
        self.net, self.criterion = network(), nn.CrossEntropyLoss()

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, _):
        x, y = batch
        return self.criterion(self(x), y)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.01)


def in_lightning(parts, folder, precision, steps=STEPS, checkpoint=None):
    torch.manual_seed(2)
    loader = DataLoader(data(noise=0), batch_size=8, shuffle=True, generator=torch.Generator().manual_seed(3))
    callbacks = {
        "sift": lambda: SiftingCallback(keep=1.0, run=folder / "run"),
        "compile": lambda: CompilingCallback(plan=CAPTURED, run=folder / "run"),
        "debug": lambda: LightningWatch(run=folder / "run", save=every(4)),
    }
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    quiet |= {"enable_checkpointing": False, "accelerator": "cpu", "precision": precision}
    module = Module()
    trainer = Trainer(max_steps=steps, callbacks=[callbacks[part]() for part in parts], **quiet)
    trainer.fit(module, loader, ckpt_path=checkpoint)
    assert trainer.global_step == steps
    trainer.save_checkpoint(folder / f"{steps}.ckpt")
    return module.net.state_dict()


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = network()

    def forward(self, x, labels):
        logits = self.net(x)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


class OfAllParts(CompilingTrainerMixin, SiftingTrainerMixin, transformers.Trainer):
    pass


def collate(samples):
    return {"x": torch.stack([x for x, _ in samples]), "labels": torch.stack([y for _, y in samples])}


def in_hugging_face(parts, folder, precision, steps=STEPS, checkpoint=None):
    fixed = {"use_cpu": True, "report_to": [], "save_steps": STEPS // 2, "disable_tqdm": True, "seed": 3}
    fixed |= {"remove_unused_columns": False, "bf16": precision != "32-true"}
    arguments = transformers.TrainingArguments(
        str(folder / "out"), per_device_train_batch_size=8, max_steps=steps, learning_rate=0.01, **fixed
    )
    watching = [WatchCallback(run=folder / "run", save=every(4))] if "debug" in parts else []
    model = Classifier()
    trainer = OfAllParts(
        model,
        arguments,
        train_dataset=data(noise=0),
        data_collator=collate,
        callbacks=watching,
        sift={"keep": 1.0, "run": folder / "run"} if "sift" in parts else False,
        compile={"plan": CAPTURED, "run": folder / "run"} if "compile" in parts else False,
    )
    trainer.train(resume_from_checkpoint=checkpoint)
    assert trainer.state.global_step == steps
    return model.net.state_dict()


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Return weights after a training without parts, by function and precision."""
    folder = tmp_path_factory.mktemp("plain")
    return {
        (train, precision): train((), folder, precision)
        for train in (in_lightning, in_hugging_face)
        for precision in ("32-true", "bf16-mixed")
    }


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("parts", SUBSETS, ids="+".join)
@pytest.mark.parametrize("train", [in_lightning, in_hugging_face])
def test_the_parts_train_as_the_trainer_without_them(plain, tmp_path, train, parts, precision):
    weights, expected = train(parts, tmp_path, precision), plain[train, precision]
    exact = {"rtol": 0, "atol": 0} if "compile" not in parts else {"rtol": 1e-2, "atol": 1e-4}
    torch.testing.assert_close(weights, expected, **exact)
    if "debug" in parts:
        saved = open_run(tmp_path / "run")
        assert saved.steps()[0] == 0
        assert set(range(0, STEPS, 4)) <= set(saved.steps())
        assert saved.info["state"] == "finished"


@pytest.mark.parametrize(
    ("train", "checkpoint"), [(in_lightning, "10.ckpt"), (in_hugging_face, "out/checkpoint-10")]
)
def test_a_training_that_goes_on_from_a_checkpoint_goes_on_in_the_run_of_all_parts(
    tmp_path, train, checkpoint, recwarn
):
    train(("sift", "compile", "debug"), tmp_path, "32-true", STEPS // 2)
    recwarn.clear()
    train(("sift", "compile", "debug"), tmp_path, "32-true", checkpoint=tmp_path / checkpoint)
    assert not any("not resumable" in str(warning.message) for warning in recwarn)
    assert [folder.name for folder in tmp_path.glob("run*")] == ["run"]
    assert set(range(0, STEPS, 4)) <= set(open_run(tmp_path / "run").steps())

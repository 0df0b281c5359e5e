"""Loggers of trainers get the numbers and findings of a ``Watch`` by its callback."""

import csv

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning_kit import Module, fit, watching
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from transformers import Trainer, TrainingArguments

from loopwise.debug import open_run
from loopwise.debug.transformers import WatchCallback
from loopwise.errors import InputError

pytestmark = pytest.mark.filterwarnings("ignore", "error:loopwise")  # all but ours, not those of frameworks


class Equal(Module):
    """Module with a fault that a rule finds at the first step."""

    def __init__(self):
        super().__init__()
        nn.init.constant_(self.net[0].weight, 0.5)


def events(folder):
    (path,) = {path.parent for path in folder.rglob("*tfevents*")}
    accumulator = EventAccumulator(str(path)).Reload()
    return {
        tag: {event.step: event.value for event in accumulator.Scalars(tag)}
        for tag in accumulator.Tags()["scalars"]
    }


def losses(folder):
    saved = open_run(folder / "run")
    return {step: float(saved.value("loss", step)) for step in saved.steps("train")}


def test_lightnings_tensorboard_gets_training_steps_and_findings(tmp_path):
    logger = TensorBoardLogger(tmp_path / "tb")
    callback = watching(tmp_path, collections=["losses", "metrics", "health"], save=None, on_finding=[])
    fit(tmp_path, callback, logger=logger, module=Equal(), limit_val_batches=0)
    values = events(tmp_path / "tb")
    assert values["watch/train/loss"] == pytest.approx(losses(tmp_path))
    assert set(values["watch/train/gradient_norm"]) == set(losses(tmp_path))
    assert values["watch/finding/poor_weight_initialization/severity"] == {0: 2.0}
    assert not [tag for tag in values if tag.startswith(("watch/std", "watch/eval"))]


def test_another_logger_of_lightning_is_called_on_the_training_thread_at_its_steps(tmp_path):
    logger = CSVLogger(tmp_path / "csv")
    callback = watching(tmp_path, collections=["losses", "metrics", "health"], save=None, on_finding=[])
    fit(tmp_path, callback, logger=logger, module=Equal(), log_every_n_steps=2)
    (path,) = (tmp_path / "csv").rglob("metrics.csv")
    rows = list(csv.DictReader(path.open()))
    ours = {int(row["step"]): float(row["watch/train/loss"]) for row in rows if row.get("watch/train/loss")}
    assert ours
    assert set(ours.values()) <= set(losses(tmp_path).values())
    assert ours[max(ours)] == losses(tmp_path)[max(losses(tmp_path))]
    assert {row["watch/finding/poor_weight_initialization"] for row in rows} >= {"2.0"}


def test_no_loggers_and_own_loggers(tmp_path):
    logger = TensorBoardLogger(tmp_path / "tb")
    fit(tmp_path, watching(tmp_path, loggers=()), logger=logger)
    assert not [tag for tag in events(tmp_path / "tb") if tag.startswith("watch/")]
    with pytest.raises(InputError) as caught:
        watching(tmp_path, loggers="tensorboard")
    assert "loggers='tensorboard'" in str(caught.value)


def test_hugging_faces_tensorboard_gets_training_steps_and_findings(tmp_path, monkeypatch):
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(4, 3)
            nn.init.constant_(self.net.weight, 0.5)

        def forward(self, x, labels):
            return {"loss": nn.functional.cross_entropy(self.net(x), labels)}

    torch.manual_seed(0)
    data = [{"x": torch.randn(4), "labels": i % 3} for i in range(24)]
    settings = {"max_steps": 6, "use_cpu": True, "report_to": ["tensorboard"], "save_strategy": "no"}
    settings |= {"logging_steps": 1, "disable_tqdm": True, "per_device_train_batch_size": 4}
    watch = WatchCallback(run=tmp_path / "run", on_finding=[])
    arguments = TrainingArguments(str(tmp_path / "out"), **settings)
    Trainer(Model(), arguments, train_dataset=data, callbacks=[watch]).train()
    values = events(tmp_path / "out")
    assert values["watch/train/gradient_norm"].keys() == set(range(6))
    assert {step: values["watch/train/loss"][step] for step in range(1, 6)} == pytest.approx(
        {step: values["train/loss"][step] for step in range(1, 6)}
    )
    assert values["watch/finding/poor_weight_initialization/severity"]

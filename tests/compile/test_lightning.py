"""``CompilingCallback``: the training of plain Lightning, and nothing of it left in the module."""

import copy
import io

import pytest
import torch
from compiling_kit import CAPTURED, Module, Validated, assert_same, fit
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging
from torch import nn

from loopwise.compile import Plan
from loopwise.compile.lightning import CompilingCallback

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:(lightning|torch)", "ignore::FutureWarning")


def test_the_training_is_that_of_plain_lightning():
    _, module, callback = assert_same(Validated)
    assert module.seen == 96
    assert "recompiled" in str(callback.explain())  # for the index and the counter, not at each batch
    assert len([line for line in str(callback.explain()).splitlines() if "recompiled" in line]) <= 2


@pytest.mark.parametrize(
    "options",
    [
        {"accumulate_grad_batches": 2, "gradient_clip_val": 0.1},
        {"precision": "bf16-mixed"},
        {"precision": "64-true"},
    ],
    ids=str,
)
def test_accumulation_clipping_and_precision_stay_lightnings(options):
    assert_same(**options)


def test_autocast_does_not_reach_backward_passes_of_trials():
    states = []

    class Seen(torch.autograd.Function):
        @staticmethod
        def forward(context, x):
            states.append(torch.is_autocast_enabled("cpu"))
            return x.clone()

        @staticmethod
        def backward(context, gradient):
            states.append(torch.is_autocast_enabled("cpu"))
            return gradient

    class Watched(Module):
        def training_step(self, batch, index):
            return Seen.apply(super().training_step(batch, index))

    fit(CompilingCallback(plan=Plan()), module=Watched(), precision="bf16-mixed", max_steps=1)
    assert states == [True, False] * (len(states) // 2)


class Outputs(Module):
    """Module that returns more than the loss, which its next hook reads."""

    def training_step(self, batch, index):
        output = self(batch[0])
        loss = nn.functional.cross_entropy(output, batch[1])
        return {"loss": loss, "output": output, "nested": {"twice": [output * 2, 7]}}

    def on_train_batch_end(self, outputs, batch, index):
        self.log("size", outputs["output"].square().mean() + outputs["nested"]["twice"][0].sum())
        self.log("seven", float(outputs["nested"]["twice"][1]))
        self.log("its_loss", outputs["loss"])


class Skipping(Module):
    """Module that leaves batches out, the first one among them."""

    def training_step(self, batch, index):
        return None if index % 3 == 0 else nn.functional.cross_entropy(self(batch[0]), batch[1])


class OneArgument(Module):
    def training_step(self, batch):
        return super().training_step(batch, 0)


class ReadsTheTrainer(Module):
    def training_step(self, batch, index):
        self.log("rate", self.optimizers().param_groups[0]["lr"])
        self.log("step", float(self.global_step))
        return super().training_step(batch, index) * (1.0 if self.current_epoch else 0.5)


@pytest.mark.parametrize("make", [Outputs, Skipping, OneArgument, ReadsTheTrainer])
def test_what_a_training_step_returns_and_reads(make):
    assert_same(make)


def test_a_metric_counts_each_batch_once():
    torchmetrics = pytest.importorskip("torchmetrics")

    class Measured(Module):
        def __init__(self):
            super().__init__()
            self.accuracy = torchmetrics.MeanMetric()

        def training_step(self, batch, index):
            loss = super().training_step(batch, index)
            self.accuracy.update(loss.detach())
            self.log("mean", self.accuracy, on_step=False, on_epoch=True)
            return loss

    assert_same(Measured)


class Looking(Callback):
    """Callback that copies and pickles the module wherever other callbacks do."""

    def __init__(self):
        self.attributes = []

    def look(self, trainer, module, *_):
        copied = copy.deepcopy(module)
        assert copied.training_step.__self__ is copied
        torch.save(module, io.BytesIO())
        self.attributes.append((sorted(vars(module)), list(module.state_dict())))

    on_train_batch_end = on_train_epoch_end = on_before_optimizer_step = on_before_zero_grad = look


def test_the_module_holds_nothing_of_it():
    plain, compiled = Looking(), Looking()
    fit(plain)
    fit(CompilingCallback(plan=CAPTURED), compiled)
    assert plain.attributes == compiled.attributes


def test_an_average_of_the_weights_and_checkpoints(tmp_path):
    files = []
    for number, callbacks in enumerate(([], [CompilingCallback(plan=CAPTURED)])):
        fit(EMAWeightAveraging(), *callbacks, checkpoints=True, default_root_dir=tmp_path / str(number))
        (file,) = (tmp_path / str(number)).rglob("*.ckpt")
        files.append(torch.load(file, weights_only=False))
    torch.testing.assert_close(files[0]["state_dict"], files[1]["state_dict"])
    assert files[0].keys() == files[1].keys()


def test_autotune_false_is_what_yaml_reads_for_off():
    assert CompilingCallback(autotune=False).options == {"autotune": "off"}

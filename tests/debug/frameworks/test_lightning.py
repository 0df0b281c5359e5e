"""The callback in a real Lightning Trainer, against plain loops."""

import pytest
import torch
from lightning_kit import (
    ALL,
    NAMES,
    Module,
    assert_saved,
    data,
    fit,
    same_weights,
    scalars,
    trainer,
    truth,
    watching,
)
from torch import nn

from loopwise.debug import Collection, open_run
from loopwise.errors import InputError

pytestmark = pytest.mark.filterwarnings("ignore", "error:loopwise")  # all but ours, not those of Lightning


OPTIONS = [
    {},
    {"accumulate_grad_batches": 2},
    {"gradient_clip_val": 0.1},
    {"precision": "bf16-mixed"},
    {"accumulate_grad_batches": 4, "gradient_clip_val": 0.05},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_steps_hold_what_the_update_used(tmp_path, options):
    expected, plain = truth(
        options.get("accumulate_grad_batches", 1), options.get("gradient_clip_val"), options.get("precision")
    )
    module = fit(tmp_path, watching(tmp_path), **options)
    assert same_weights(module, plain)
    saved_run = open_run(tmp_path / "run")
    assert saved_run.info["state"] == "finished"
    assert_saved(saved_run, expected)


def test_a_scaler_is_passed_on(tmp_path):
    """Precision float16 of a CPU: gradients are saved unscaled."""
    module = fit(tmp_path, watching(tmp_path), precision="16-mixed", max_epochs=1)
    saved_run = open_run(tmp_path / "run")
    gradients = [saved_run.value("gradient/net.0.weight", step) for step in saved_run.steps()]
    weights = [
        *(saved_run.value("net.0.weight", step) for step in saved_run.steps()),
        module.net[0].weight.detach(),
    ]
    momentum = torch.zeros_like(gradients[0])
    for step, gradient in enumerate(gradients):
        momentum = 0.9 * momentum + gradient
        torch.testing.assert_close(weights[step + 1], weights[step] - 0.5 * momentum)


def test_names_are_those_of_the_module(tmp_path):
    fit(tmp_path, watching(tmp_path), max_epochs=1)
    saved_run = open_run(tmp_path / "run")
    assert saved_run.names(collection="weights") == NAMES[::2]
    assert saved_run.names(collection="biases") == NAMES[1::2]
    assert set(saved_run.names(collection="gradients")) == {f"gradient/{name}" for name in NAMES}
    assert {"net.0.output.0", "net.1.output.0", "net.2.output.0", "output.0"} <= set(
        saved_run.names(collection="outputs")
    )
    assert set(saved_run.names(collection="losses")) == {"loss", "train_loss", "criterion.output.0"}


def test_a_metric_belongs_to_the_step_that_logged_it(tmp_path):
    fit(tmp_path, watching(tmp_path))
    saved_run = open_run(tmp_path / "run")
    expected, _ = truth()
    losses = scalars(saved_run, "train_loss", "train")
    assert losses == {step: record["loss"].item() for step, record in enumerate(expected)}
    assert scalars(saved_run, "seldom", "train") == {1: 8.0, 5: 12.0}


def test_evaluations_are_steps_of_their_own(tmp_path):
    module = fit(tmp_path, watching(tmp_path), limit_val_batches=1.0, num_sanity_val_steps=2)
    saved_run = open_run(tmp_path / "run")
    assert saved_run.steps() == list(range(8 + 2 * 3))
    assert saved_run.steps("train") == list(range(8))
    assert saved_run.steps("eval") == list(range(6))
    assert list(scalars(saved_run, "train_loss", None)) == [0, 1, 2, 3, 7, 8, 9, 10]
    losses = scalars(saved_run, "loss", "eval")
    assert list(losses) == [0, 1, 3, 4]
    assert scalars(saved_run, "val_loss", "eval") == {
        2: pytest.approx((losses[0] + losses[1]) / 2),
        5: pytest.approx((losses[3] + losses[4]) / 2),
    }
    assert scalars(saved_run, "seen", "eval") == dict.fromkeys([0, 1, 3, 4], 8)
    outputs = torch.cat([saved_run.value("net.2.output.0", step, mode="eval") for step in (3, 4)])
    torch.testing.assert_close(outputs, module(data(16, seed=1).tensors[0]))  # batches of 8, and one of 16
    assert not saved_run.names("gradient", step=4)
    assert saved_run.names("gradient", step=3)
    assert not saved_run.names("#1", step=7)


def test_test_and_predict_go_on_in_the_run(tmp_path):
    collections = [Collection("losses", include="val_loss$"), Collection("last", include="net.2.output")]
    whole = trainer(
        tmp_path, watching(tmp_path, collections=collections), limit_val_batches=1.0, max_epochs=1
    )
    module = Module()
    whole.validate(module)
    whole.fit(module)
    whole.test(module)
    whole.predict(module)
    saved_run = open_run(tmp_path / "run")
    assert saved_run.steps() == list(range(3 + 4 + 3 + 3 + 2))
    assert [len(saved_run.steps(mode)) for mode in ("train", "eval", "predict")] == [4, 9, 2]
    assert saved_run.value("net.2.output.0", 1, mode="predict").shape == (8, 3)
    losses = scalars(saved_run, "val_loss", None)
    assert list(losses) == [2, 9, 12]
    assert losses[12] == losses[9] != losses[2]
    assert saved_run.info["state"] == "finished"


class Manual(Module):
    automatic_optimization = False

    def training_step(self, batch, _):
        for optimizer in self.optimizers():
            loss = self.criterion(self(batch[0]), batch[1])
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
        return loss

    def configure_optimizers(self):
        return [torch.optim.SGD(self.net[0].parameters(), lr=0.1), torch.optim.Adam(self.net[2].parameters())]


def test_manual_optimization_with_two_optimizers(tmp_path):
    fit(tmp_path, watching(tmp_path, collections=[*ALL, "optimizer_state"]), module=Manual())
    plain = Manual()
    optimizers, expected = plain.configure_optimizers(), []
    for x, y in list(plain.train_dataloader()) * 2:
        record = {}
        for layer, optimizer in zip((0, 2), optimizers, strict=True):
            record["loss"] = loss = plain.criterion(plain(x), y)
            optimizer.zero_grad()
            loss.backward()
            for kind, parameter in plain.net[layer].named_parameters():
                record[f"net.{layer}.{kind}"] = parameter.detach().clone()
                record[f"gradient/net.{layer}.{kind}"] = parameter.grad.clone()
            optimizer.step()
        expected.append({name: value.detach() for name, value in record.items()})
    saved_run = open_run(tmp_path / "run")
    assert_saved(saved_run, expected)
    assert saved_run.has("optimizer/exp_avg/net.2.weight", 1)


def test_a_compiled_module(tmp_path):
    module = Module()
    trainer(tmp_path, watching(tmp_path), max_epochs=1).fit(torch.compile(module, backend="aot_eager"))
    expected, plain = truth(epochs=1)
    saved_run = open_run(tmp_path / "run")
    assert saved_run.steps() == [0, 1, 2, 3]
    torch.testing.assert_close(module.state_dict(), plain.state_dict())
    for step, record in enumerate(expected):
        assert saved_run.value("net.2.output.0", step).shape == (8, 3)
        for name, value in record.items():
            saved = saved_run.value(name, step)
            torch.testing.assert_close(saved, value.to(saved.dtype), rtol=1e-5, atol=1e-6)


def test_training_is_the_same_to_the_bit(tmp_path):
    class Dropping(Module):
        def __init__(self):
            super().__init__()
            self.net.append(nn.Dropout(0.3))

    options = {"limit_val_batches": 1.0}
    bare = fit(tmp_path, module=Dropping(), **options)
    before = set(vars(bare.net[0])), [len(m._forward_hooks) for m in bare.modules()]
    watched = fit(tmp_path, watching(tmp_path), module=Dropping(), **options)
    assert same_weights(bare, watched)
    assert before == (set(vars(watched.net[0])), [len(m._forward_hooks) for m in watched.modules()])


class Faulty(Module):
    """Module whose last layer is replaced after the optimizer was made."""

    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        self.net[2] = nn.Linear(8, 3)
        return optimizer


def test_a_finding_stops_the_trainer(tmp_path):
    quiet = {"collections": ["health"], "on_finding": lambda _: None}
    module = fit(tmp_path, watching(tmp_path, stop_on="critical", **quiet), module=Faulty(), max_epochs=50)
    assert module.trainer.global_step < 200
    found = open_run(tmp_path / "run").findings()
    assert [finding.tensors for finding in found if finding.rule == "unheld_parameter"] == [
        ("net.2.weight", "net.2.bias")
    ]
    with pytest.raises(InputError, match="stop_on='fatal'"):
        watching(tmp_path, stop_on="fatal")

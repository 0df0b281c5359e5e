"""The callback in a real Lightning Trainer, against plain loops."""

import copy
import json

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import nn
from torch.utils.data import ConcatDataset, DataLoader, TensorDataset

from loopwise.debug import Collection, Trial, every
from loopwise.debug.lightning import WatchCallback
from loopwise.errors import InputError, StateError

pytestmark = pytest.mark.filterwarnings("ignore", "error:loopwise")  # all but ours, not those of Lightning
ALL = ["losses", "metrics", "weights", "biases", "gradients", "outputs"]
NAMES = [f"net.{layer}.{kind}" for layer in (0, 2) for kind in ("weight", "bias")]


def data(n=32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return TensorDataset(torch.randn(n, 6, generator=generator), torch.arange(n) % 3)


class Module(LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
        self.criterion = nn.CrossEntropyLoss()

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, index):
        loss = self.criterion(self(batch[0]), batch[1])
        self.log("train_loss", loss, on_step=True, on_epoch=True)
        if index == 1:
            self.log("seldom", 7.0 + self.global_step)
        return loss

    def validation_step(self, batch, _):
        loss = self.criterion(self(batch[0]), batch[1])
        self.log("val_loss", loss)
        return {"loss": loss, "seen": len(batch[1])}

    test_step = validation_step

    def predict_step(self, batch, _):
        return self(batch[0])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.5, momentum=0.9)

    def train_dataloader(self):
        return DataLoader(data(), batch_size=8)

    def val_dataloader(self):
        return DataLoader(data(16, seed=1), batch_size=8)

    test_dataloader = predict_dataloader = val_dataloader


class Act(Callback):
    """Does something at the end of a training batch, or of an epoch."""

    def __init__(self, at, what, epoch=False):
        self.at, self.what, self.epoch, self.batches = at, what, epoch, 0

    def on_train_batch_end(self, trainer, *_):
        self.batches += 1
        if self.batches == self.at and not self.epoch:
            self.what(trainer)

    def on_train_epoch_end(self, trainer, *_):
        if self.batches == self.at and self.epoch:
            self.what(trainer)


def trainer(folder, *callbacks, **options):
    settings = {"max_epochs": 2, "limit_val_batches": 0, "logger": False, "accelerator": "cpu"}
    settings |= {"enable_progress_bar": False, "enable_model_summary": False, "default_root_dir": str(folder)}
    settings |= {"enable_checkpointing": any(isinstance(c, ModelCheckpoint) for c in callbacks)}
    return Trainer(callbacks=list(callbacks), **(settings | options))


def watching(folder, **options):
    return WatchCallback(run=folder / "run", **({"save": every(1), "collections": ALL} | options))


def fit(folder, *callbacks, module=None, checkpoint=None, **options):
    module = module or Module()
    trainer(folder, *callbacks, **options).fit(module, ckpt_path=checkpoint)
    return module


def truth(accumulate=1, clip=None, autocast=None, epochs=2):
    """By batch: loss; and where there is an update, parameters and gradients right before it."""
    module = Module()
    optimizer = module.configure_optimizers()
    found = []
    for index, (x, y) in enumerate(list(module.train_dataloader()) * epochs):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast is not None):
            loss = module.criterion(module(x), y)
        (loss / accumulate).backward()
        record = {"loss": loss.detach().clone()}
        if (index + 1) % accumulate == 0:
            if clip:
                nn.utils.clip_grad_norm_(module.parameters(), clip)
            for name, parameter in module.named_parameters():
                record[name] = parameter.detach().clone()
                record[f"gradient/{name}"] = parameter.grad.clone()
            optimizer.step()
            optimizer.zero_grad()
        found.append(record)
    return found, module


def assert_saved(trial, expected, exactly=True):
    assert not exactly or trial.steps("train") == list(range(len(expected)))
    for step, record in enumerate(expected):
        assert trial.has("gradient/net.0.weight", step) == ("net.0.weight" in record)
        for name, value in record.items():
            saved = trial.value(name, step)
            torch.testing.assert_close(saved, value.to(saved.dtype), rtol=0, atol=0, msg=f"{name} at {step}")


def same_weights(one, other):
    return all(
        torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    )


def scalars(trial, name, mode):
    return dict(zip(*(found.tolist() for found in trial.series(name, mode=mode)), strict=True))


def contents(folder):
    """What a run saved, by mode and step of the mode."""
    trial = Trial(folder / "run")
    return {
        (mode, step): {
            name: trial.value(name, step, mode=mode).tolist() for name in trial.names(step=step, mode=mode)
        }
        for mode in trial.modes
        for step in trial.steps(mode)
    }


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
    trial = Trial(tmp_path / "run")
    assert trial.info["state"] == "finished"
    assert_saved(trial, expected)


def test_a_scaler_is_passed_on(tmp_path):
    """On a CPU float16 is the same but for its scaler: gradients are saved unscaled."""
    module = fit(tmp_path, watching(tmp_path), precision="16-mixed", max_epochs=1)
    trial = Trial(tmp_path / "run")
    gradients = [trial.value("gradient/net.0.weight", step) for step in trial.steps()]
    weights = [*(trial.value("net.0.weight", step) for step in trial.steps()), module.net[0].weight.detach()]
    momentum = torch.zeros_like(gradients[0])
    for step, gradient in enumerate(gradients):
        momentum = 0.9 * momentum + gradient
        torch.testing.assert_close(weights[step + 1], weights[step] - 0.5 * momentum)


def test_names_are_those_of_the_module(tmp_path):
    fit(tmp_path, watching(tmp_path), max_epochs=1)
    trial = Trial(tmp_path / "run")
    assert trial.names(collection="weights") == NAMES[::2]
    assert trial.names(collection="biases") == NAMES[1::2]
    assert set(trial.names(collection="gradients")) == {f"gradient/{name}" for name in NAMES}
    assert {"net.0.output.0", "net.1.output.0", "net.2.output.0", "output.0"} <= set(
        trial.names(collection="outputs")
    )
    assert set(trial.names(collection="losses")) == {"loss", "train_loss", "criterion.output.0"}


def test_a_metric_belongs_to_the_step_that_logged_it(tmp_path):
    fit(tmp_path, watching(tmp_path))
    trial = Trial(tmp_path / "run")
    expected, _ = truth()
    losses = scalars(trial, "train_loss", "train")
    assert losses == {step: record["loss"].item() for step, record in enumerate(expected)}
    assert scalars(trial, "seldom", "train") == {1: 8.0, 5: 12.0}


def test_evaluations_are_steps_of_their_own(tmp_path):
    module = fit(tmp_path, watching(tmp_path), limit_val_batches=1.0, num_sanity_val_steps=2)
    trial = Trial(tmp_path / "run")
    assert trial.steps() == list(range(8 + 2 * 3))
    assert trial.steps("train") == list(range(8))
    assert trial.steps("eval") == list(range(6))
    assert list(scalars(trial, "train_loss", None)) == [0, 1, 2, 3, 7, 8, 9, 10]
    losses = scalars(trial, "loss", "eval")
    assert list(losses) == [0, 1, 3, 4]
    assert scalars(trial, "val_loss", "eval") == {
        2: pytest.approx((losses[0] + losses[1]) / 2),
        5: pytest.approx((losses[3] + losses[4]) / 2),
    }
    assert scalars(trial, "seen", "eval") == dict.fromkeys([0, 1, 3, 4], 8)
    outputs = torch.cat([trial.value("net.2.output.0", step, mode="eval") for step in (3, 4)])
    assert torch.equal(outputs, module(data(16, seed=1).tensors[0]))
    assert not trial.names("gradient", step=4)
    assert trial.names("gradient", step=3)
    assert not trial.names("#1", step=7)


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
    trial = Trial(tmp_path / "run")
    assert trial.steps() == list(range(3 + 4 + 3 + 3 + 2))
    assert [len(trial.steps(mode)) for mode in ("train", "eval", "predict")] == [4, 9, 2]
    assert trial.value("net.2.output.0", 1, mode="predict").shape == (8, 3)
    losses = scalars(trial, "val_loss", None)
    assert list(losses) == [2, 9, 12]
    assert losses[12] == losses[9] != losses[2]
    assert trial.info["state"] == "finished"


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
    trial = Trial(tmp_path / "run")
    assert_saved(trial, expected)
    assert trial.has("optimizer/exp_avg/net.2.weight", 1)


def test_a_compiled_module(tmp_path):
    module = Module()
    trainer(tmp_path, watching(tmp_path), max_epochs=1).fit(torch.compile(module, backend="aot_eager"))
    expected, plain = truth(epochs=1)
    trial = Trial(tmp_path / "run")
    assert trial.steps() == [0, 1, 2, 3]
    torch.testing.assert_close(module.state_dict(), plain.state_dict())
    for step, record in enumerate(expected):
        assert trial.value("net.2.output.0", step).shape == (8, 3)
        for name, value in record.items():
            saved = trial.value(name, step)
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


def save(trainer):
    trainer.save_checkpoint(trainer.default_root_dir + "/saved.ckpt")


def fail(trainer):
    raise ZeroDivisionError


class Again(Module):
    """The same batch all the time: Lightning does not go on amid an epoch's data."""

    def train_dataloader(self):
        return DataLoader(ConcatDataset([data(8)] * 4), batch_size=8)


@pytest.mark.parametrize("first", [True, False], ids=["checkpoint first", "watch first"])
@pytest.mark.parametrize("at", [5, 6, 7, "epoch"])
def test_a_resumed_fit_leaves_the_records_of_a_whole_one(tmp_path, at, first):
    options = {"max_epochs": 3, "limit_val_batches": 1.0}
    fit(tmp_path / "whole", watching(tmp_path / "whole"), module=Again(), **options)
    part = tmp_path / "part"
    act = Act(8, save, epoch=True) if at == "epoch" else Act(at, save)
    with pytest.raises(ZeroDivisionError):
        fit(part, *[act, watching(part)][:: 1 if first else -1], Act(9, fail), module=Again(), **options)
    assert Trial(part / "run").info["state"] == "failed"
    fit(part, watching(part), module=Again(), checkpoint=str(part / "saved.ckpt"), **options)
    assert contents(part) == contents(tmp_path / "whole")
    assert Trial(part / "run").info["state"] == "finished"


def test_resuming_from_a_checkpoint_of_lightning_amid_an_epoch(tmp_path):
    steps = {"every_n_train_steps": 3, "save_top_k": -1, "filename": "{step}"}
    fit(tmp_path, watching(tmp_path), ModelCheckpoint(tmp_path, **steps), max_epochs=1)
    first = contents(tmp_path)
    saved = torch.load(tmp_path / "step=3.ckpt", weights_only=False)
    assert saved["callbacks"]["WatchCallback"] == {"step": 3, "steps": {"train": 3}}
    fit(tmp_path, watching(tmp_path), checkpoint=str(tmp_path / "step=3.ckpt"), max_epochs=2)
    again = contents(tmp_path)
    assert list(again) == [("train", step) for step in range(8)]
    assert [again[key] for key in list(first)[:3]] == [first[key] for key in list(first)[:3]]


def test_a_checkpoint_without_counters_begins_a_new_run_at_its_batch(tmp_path):
    fit(tmp_path, ModelCheckpoint(tmp_path, save_last=True), max_epochs=1)
    fit(tmp_path, watching(tmp_path), checkpoint=str(tmp_path / "last.ckpt"), max_epochs=2)
    assert Trial(tmp_path / "run").steps("train") == [4, 5, 6, 7]


def test_fitting_once_more_goes_on(tmp_path):
    again, module = trainer(tmp_path, watching(tmp_path), max_epochs=1), Module()
    again.fit(module)
    again.fit_loop.max_epochs = 2
    again.fit(module)
    trial = Trial(tmp_path / "run")
    assert trial.steps("train") == list(range(8))
    assert_saved(trial, truth()[0][:4], exactly=False)


@pytest.mark.parametrize("how", ["should_stop", "max_steps"])
def test_ending_early_is_an_end(tmp_path, how):
    options = {"max_steps": 3} if how == "max_steps" else {}
    stop = Act(3, lambda trainer: setattr(trainer, "should_stop", how == "should_stop"))
    fit(tmp_path, stop, watching(tmp_path), **options)
    trial = Trial(tmp_path / "run")
    assert trial.info["state"] == "finished"
    assert_saved(trial, truth()[0][:3])


def test_an_exception_leaves_a_failed_run_with_all_its_steps(tmp_path):
    module = Module()
    with pytest.raises(ZeroDivisionError):
        fit(tmp_path, watching(tmp_path), Act(3, fail), module=module)
    trial = Trial(tmp_path / "run")
    assert trial.info["state"] == "failed"
    assert_saved(trial, truth()[0][:3])
    assert trial.check() == []
    assert not any(part._forward_hooks for part in module.modules())


def test_another_run_is_not_written_over(tmp_path):
    fit(tmp_path, watching(tmp_path))
    before = contents(tmp_path)
    with pytest.raises(StateError, match="already holds a run"):
        fit(tmp_path, watching(tmp_path))
    assert contents(tmp_path) == before
    assert json.loads((tmp_path / "run" / "run.json").read_text())["state"] == "finished"


def test_wrong_options_are_refused_before_a_folder_is_made(tmp_path):
    with pytest.raises(InputError, match="policy='wait'"):
        fit(tmp_path, watching(tmp_path, policy="wait"))
    assert not (tmp_path / "run").exists()


def test_what_fails_in_reading_metrics_is_said_and_training_goes_on(tmp_path):
    class Odd(Module):
        def training_step(self, batch, index):
            return {"loss": super().training_step(batch, index), 3: torch.ones(()), "text": "x", "many": [1]}

    class Put(Callback):
        def __init__(self, value):
            self.value = value

        def on_train_batch_end(self, trainer, *_):
            trainer.accumulate_grad_batches = self.value

    module = fit(tmp_path, watching(tmp_path), module=Odd())
    assert same_weights(module, truth()[1])
    assert Trial(tmp_path / "run").names(step=0, collection="metrics") == ["3"]
    (tmp_path / "other").mkdir()
    with pytest.warns(RuntimeWarning, match="loopwise.debug: TypeError"):
        module = fit(tmp_path / "other", Put(None), watching(tmp_path / "other"), Put(1))
    assert same_weights(module, truth()[1])


def test_tensors_of_ones_own(tmp_path):
    watch = watching(tmp_path, collections=[Collection("mine", include="mine")])
    fit(tmp_path, Act(2, lambda _: watch.watch.save("mine", torch.arange(3))), watch)
    trial = Trial(tmp_path / "run")
    assert trial.steps() == [1]
    assert trial.value("mine", 1).tolist() == [0, 1, 2]
    assert watch.watch is None


def test_under_ddp_rank_0_writes_averaged_gradients(ranks, tmp_path):
    code = f"""
    import importlib.util, pathlib, warnings
    warnings.simplefilter("ignore")
    os.environ |= {{"TORCHELASTIC_RUN_ID": "test", "LOCAL_RANK": os.environ["RANK"], "GROUP_RANK": "0"}}
    os.environ |= {{"LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}}  # the group exists
    spec = importlib.util.spec_from_file_location("t", {__file__!r})
    t = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(t)
    folder = pathlib.Path({str(tmp_path)!r})
    module = t.fit(folder, t.watching(folder), strategy="ddp", devices=2, max_epochs=1, use_distributed_sampler=False)
    print(json.dumps([float(p.sum()) for p in module.parameters()]))
    """
    first, second = ranks(code)
    trial = Trial(tmp_path / "run")
    assert first == second
    assert trial.ranks == [0]
    assert_saved(trial, copy.deepcopy(truth(epochs=1)[0]))

"""The callback in a real Hugging Face Trainer, against plain loops."""

import gc
import subprocess
import textwrap

import forks
import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from loopwise.debug import Collection, every, open_run
from loopwise.debug.transformers import WatchCallback
from loopwise.errors import InputError

pytestmark = pytest.mark.filterwarnings("ignore", "error:loopwise")  # all but ours, not those of the Trainer
LOSS = Collection("batch", include=r"^(#\d+\.)?output\.loss$")
ALL = ["losses", "metrics", "weights", "biases", "gradients", LOSS]
TEXTS = [{"input_ids": torch.arange(5, 11) + i % 7, "labels": i % 2} for i in range(32)]


def bert(dropout=0.0):  # in float64: sums in another order make no difference to speak of
    shape = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    off = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    torch.manual_seed(0)
    model = BertForSequenceClassification(
        BertConfig(vocab_size=20, max_position_embeddings=8, **shape, **off)
    )
    return model.double()


class Ordered(Trainer):
    """Trainer that keeps the order of samples, so that a plain loop sees the same."""

    def _get_train_sampler(self, *_):
        return torch.utils.data.SequentialSampler(self.train_dataset)


def trainer(folder, *callbacks, model=None, data=TEXTS, **options):
    settings = {"per_device_train_batch_size": 4, "max_steps": 6, "learning_rate": 0.1, "use_cpu": True}
    settings |= {"report_to": [], "save_strategy": "no", "disable_tqdm": True, "logging_strategy": "no"}
    settings |= {"per_device_eval_batch_size": 8, "max_grad_norm": 0.0, "optim": "sgd"}
    return Ordered(
        model or bert(),
        TrainingArguments(str(folder), **(settings | options)),
        train_dataset=data,
        eval_dataset=data[:16],
        callbacks=list(callbacks),
    )


def watching(folder, **options):
    return WatchCallback(run=folder / "run", **({"save": every(1), "collections": ALL} | options))


def train(folder, *callbacks, resume=None, **options):
    whole = trainer(folder, *callbacks, **options)
    whole.train(resume_from_checkpoint=None if resume is None else str(folder / f"checkpoint-{resume}"))
    return whole.model


def truth(accumulate=1, clip=0.0, steps=6):
    """Return for each update the losses of its batches, and parameters and gradients right before it."""
    model = bert().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    found = []
    for step in range(steps):
        record = {}
        for batch in range(step * accumulate, (step + 1) * accumulate):
            samples = [TEXTS[i % 32] for i in range(4 * batch, 4 * batch + 4)]
            ids = torch.stack([sample["input_ids"] for sample in samples])
            labels = torch.tensor([sample["labels"] for sample in samples])
            loss = model(input_ids=ids, labels=labels).loss
            loss.backward()  # not divided: the Trainer leaves that to the model, and this one does not
            call = batch - step * accumulate
            record[f"#{call}.output.loss" if call else "output.loss"] = loss.detach()
        if clip:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        for name, parameter in model.named_parameters():
            record[name] = parameter.detach().clone()
            record[f"gradient/{name}"] = parameter.grad.clone()
        optimizer.param_groups[0]["lr"] = 0.1 * (1 - step / steps)
        optimizer.step()
        optimizer.zero_grad()
        found.append(record)
    return found, model


def assert_saved(saved_run, expected):
    for step, record in enumerate(expected):
        for name, value in record.items():
            saved = saved_run.value(name, step, mode="train")
            torch.testing.assert_close(saved, value, rtol=1e-7, atol=1e-9, msg=f"{name} at {step}")


def scalars(saved_run, name, mode="train"):
    return dict(zip(*(found.tolist() for found in saved_run.series(name, mode=mode)), strict=True))


def contents(folder):
    """Return the saved values of a run by mode and step of the mode, without measured times."""
    saved_run = open_run(folder / "run")
    return {
        (mode, step, saved_run.has("loss", step, mode=mode)): {
            name: saved_run.value(name, step, mode=mode).tolist()
            for name in saved_run.names(
                r"^(?!.*(runtime|per_second|train_loss|total_flos))", step=step, mode=mode
            )
        }
        for mode in saved_run.modes
        for step in saved_run.steps(mode)
    }


def same_weights(one, other):
    return all(
        torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    )


class At(TrainerCallback):
    """Callback that does something at the end of an update."""

    def __init__(self, step, what):
        self.step, self.what = step, what

    def on_step_end(self, args, state, control, **_):
        if state.global_step == self.step:
            self.what(control)


def fail(_):
    raise ZeroDivisionError


@pytest.mark.parametrize(
    "options", [{}, {"gradient_accumulation_steps": 2}, {"max_grad_norm": 0.01}], ids=str
)
def test_steps_hold_what_the_update_used(tmp_path, options):
    expected, plain = truth(options.get("gradient_accumulation_steps", 1), options.get("max_grad_norm", 0.0))
    model = train(tmp_path, watching(tmp_path), **options)
    torch.testing.assert_close(model.state_dict(), plain.state_dict())
    saved_run = open_run(tmp_path / "run")
    assert saved_run.info["state"] == "finished"
    assert_saved(saved_run, expected)
    names = {name for name, _ in plain.named_parameters()}
    assert set(saved_run.names(collection="weights") + saved_run.names(collection="biases")) == names
    assert set(saved_run.names(collection="gradients")) == {f"gradient/{name}" for name in names}


def test_logged_values_belong_to_the_step_of_the_log(tmp_path):
    whole = trainer(tmp_path, watching(tmp_path), logging_strategy="steps", logging_steps=2)
    whole.train()
    saved_run = open_run(tmp_path / "run")
    logs = [entry for entry in whole.state.log_history if "loss" in entry]
    assert saved_run.steps("train") == list(range(7))
    for name in ("loss", "grad_norm", "learning_rate"):
        assert scalars(saved_run, name) == {entry["step"]: entry[name] for entry in logs}
    assert list(scalars(saved_run, "loss")) == [2, 4, 6]
    assert list(scalars(saved_run, "train_loss")) == [6]
    batches = [saved_run.value("output.loss", step).item() for step in range(6)]
    assert scalars(saved_run, "loss")[4] == pytest.approx(sum(batches[2:4]) / 2, abs=1e-4)
    assert saved_run.names(collection="losses") == ["loss", "train_loss"]


@pytest.mark.parametrize(
    "strategy", [{"eval_strategy": "steps", "eval_steps": 3}, {"eval_strategy": "epoch"}]
)
def test_evaluations_are_steps_of_their_own(tmp_path, strategy):
    collections = [*ALL, Collection("logits", include=r"output\.logits")]
    options = strategy | {"max_steps": -1, "num_train_epochs": 2, "logging_strategy": "epoch"}
    data = TEXTS[:16] if "eval_steps" not in strategy else TEXTS[:12]
    whole = trainer(tmp_path, watching(tmp_path, collections=collections), data=data, **options)
    whole.train()
    saved_run = open_run(tmp_path / "run")
    batches = len(data) // 8 + bool(len(data) % 8)
    assert len(saved_run.steps("eval")) == 2 * (batches + 1)
    assert len(saved_run.steps("train")) == whole.state.global_step + 1
    assert saved_run.steps() == list(range(len(saved_run.steps("train")) + len(saved_run.steps("eval"))))
    found = [entry["eval_loss"] for entry in whole.state.log_history if "eval_loss" in entry]
    assert scalars(saved_run, "eval_loss", "eval") == {batches: found[0], 2 * batches + 1: found[1]}
    assert not saved_run.names("gradient", step=0, mode="eval")
    assert not saved_run.names("#")
    last = [saved_run.value("output.logits", batches + 1 + step, mode="eval") for step in range(batches)]
    ids = torch.stack([sample["input_ids"] for sample in data])
    assert torch.cat(last).allclose(whole.model(ids).logits)
    assert len(scalars(saved_run, "loss")) == 2


def test_an_evaluation_that_nothing_announces_stays_out_of_the_training_steps(tmp_path):
    late = At(2, lambda control: setattr(control, "should_evaluate", True))
    train(tmp_path, watching(tmp_path), late)
    saved_run = open_run(tmp_path / "run")
    assert_saved(saved_run, truth()[0])
    assert not saved_run.names("#")
    assert list(scalars(saved_run, "eval_loss", "eval")) == [1]


def test_training_is_the_same_to_the_bit(tmp_path):
    options = {"eval_strategy": "steps", "eval_steps": 2, "logging_strategy": "steps", "logging_steps": 1}
    bare = train(tmp_path, model=bert(0.2), **options)
    watched = train(tmp_path, watching(tmp_path), model=bert(0.2), **options)
    assert same_weights(bare, watched)
    assert not any(module._forward_hooks for module in watched.modules())


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_resumed_training_leaves_the_records_of_a_whole_one(tmp_path, accumulate, kept):
    options = {"gradient_accumulation_steps": accumulate, "max_steps": 8, "save_strategy": "steps"}
    options |= {"save_steps": 4, "eval_strategy": "steps", "eval_steps": 2, "logging_strategy": "steps"}
    options |= {"logging_steps": 2, "restore_callback_states_from_checkpoint": kept}
    whole, part = tmp_path / "whole", tmp_path / "part"
    train(whole, watching(whole), **options)
    failing = trainer(part, first := watching(part), At(7, fail), **options)
    with pytest.raises(ZeroDivisionError):
        failing.train()
    assert first.watch is not None  # the Trainer tells no callback of the exception
    train(part, watching(part), resume=4, **options)
    assert first.watch is None
    assert open_run(part / "run").info["state"] == "finished"
    assert contents(part) == contents(whole)


def test_a_checkpoint_without_counters_begins_a_new_run_at_its_step(tmp_path):
    train(tmp_path, save_strategy="steps", save_steps=3)
    train(tmp_path, watching(tmp_path), resume=3)
    assert open_run(tmp_path / "run").steps("train") == [3, 4, 5, 6]


@pytest.mark.parametrize("how", ["should_training_stop", "should_epoch_stop"])
def test_stopping_is_an_end(tmp_path, how):
    train(
        tmp_path,
        At(3, lambda control: setattr(control, how, True)),
        watching(tmp_path),
        max_steps=-1,
        num_train_epochs=1,
    )
    saved_run = open_run(tmp_path / "run")
    assert saved_run.info["state"] == "finished"
    assert_saved(saved_run, truth(steps=24)[0][:1])
    assert saved_run.steps("train") == [0, 1, 2, 3]


def test_an_exception_leaves_a_failed_run_with_all_its_steps(tmp_path):
    failing = trainer(tmp_path, watching(tmp_path), At(4, fail))
    with pytest.raises(ZeroDivisionError):
        failing.train()
    model = failing.model
    del failing
    gc.collect()
    saved_run = open_run(tmp_path / "run")
    assert saved_run.info["state"] == "failed"
    assert saved_run.steps() == [0, 1, 2, 3]
    assert_saved(saved_run, truth()[0][:4])
    assert not any(module._forward_hooks for module in model.modules())


def test_an_exception_that_ends_the_process_leaves_a_failed_run(tmp_path):
    code = f"""
    import importlib.util, pathlib, warnings
    warnings.simplefilter("ignore")
    spec = importlib.util.spec_from_file_location("t", {__file__!r})
    t = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(t)
    folder = pathlib.Path({str(tmp_path)!r})
    t.train(folder, t.watching(folder), t.At(2, t.fail))
    """
    ended = subprocess.run([forks.python(), "-c", textwrap.dedent(code)], capture_output=True, text=True)
    assert "ZeroDivisionError" in ended.stderr.splitlines()[-1]
    saved_run = open_run(tmp_path / "run")
    assert saved_run.info["state"] == "failed"
    assert saved_run.steps() == [0, 1]


def test_training_anew_does_not_write_over_a_run(tmp_path):
    whole = trainer(tmp_path, watching(tmp_path))
    whole.train()
    before = contents(tmp_path)
    whole.train()
    assert {path: data for path, data in contents(tmp_path).items() if "run-2" not in str(path)} == before
    for name in ("run", "run-2"):
        assert open_run(tmp_path / name).info["state"] == "finished"


def test_wrong_options_are_refused_when_the_callback_is_made(tmp_path):
    with pytest.raises(InputError, match="on_backlog='wait'"):
        watching(tmp_path, on_backlog="wait")
    with pytest.raises(InputError, match="argument='polcy'"):
        watching(tmp_path, polcy="block")
    assert not (tmp_path / "run").exists()


def test_evaluating_outside_of_training_is_not_watched(tmp_path):
    whole = trainer(tmp_path, watching(tmp_path))
    whole.evaluate()
    whole.train()
    whole.evaluate()
    assert open_run(tmp_path / "run").modes == ["train"]


def test_a_compiled_model(tmp_path):
    train(tmp_path, watching(tmp_path), torch_compile=True, torch_compile_backend="aot_eager", max_steps=3)
    saved_run = open_run(tmp_path / "run")
    expected, _ = truth(steps=3)
    assert_saved(
        saved_run, [{n: v for n, v in record.items() if "classifier" in n} for record in expected[:1]]
    )
    assert saved_run.names("gradient/bert.encoder.layer.0.attention.self.query.weight")
    assert saved_run.value("output.loss", 2).ndim == 0


def test_a_finding_stops_the_trainer(tmp_path):
    quiet = {"collections": ["health"], "on_finding": lambda _: None}
    whole = trainer(
        tmp_path, watching(tmp_path, stop_on="critical", **quiet), max_steps=200, learning_rate=0.0
    )
    whole.train()
    assert whole.state.global_step < 200
    assert "unchanged_tensor" in {finding.rule for finding in open_run(tmp_path / "run").findings()}

"""Trainers that compute their loss from the model's outputs: compiled without the loss, compared, and measured in turns."""

import itertools

import pytest
import torch
from hugging_face_kit import SENTENCES, bert
from torch import nn
from transformers import BertForSequenceClassification, Trainer, TrainerCallback, TrainingArguments
from transformers.modeling_outputs import SequenceClassifierOutput

from loopwise.compile import Plan, outputs
from loopwise.compile.graph.passes import PASSES
from loopwise.compile.transformers import CompilingTrainerMixin
from loopwise.compile.verify import compared
from loopwise.errors import InputError
from loopwise.run.folder import read
from loopwise.torch_internals import compiled_call
from loopwise.warnings import LoopwiseWarning

pytestmark = pytest.mark.filterwarnings("ignore")  # the trainers' own
CAPTURED = Plan(graph="captured", passes=tuple(PASSES))


class FromLogits(Trainer):
    """Trainer with a weighted loss of the logits, as Hugging Face's documents show."""

    def compute_loss(self, model, inputs, return_outputs=False, **_):
        made = model(**inputs)
        if model.training:
            assert isinstance(made, SequenceClassifierOutput)
        weight = torch.tensor([1.0, 3.0])
        loss = nn.functional.cross_entropy(made.logits, inputs["labels"], weight=weight)
        return (loss, made) if return_outputs else loss


class Compiling(CompilingTrainerMixin, Trainer):
    pass


class CompilingFromLogits(CompilingTrainerMixin, FromLogits):
    pass


def halved(made, labels, **_):
    return nn.functional.cross_entropy(made.logits, labels) / 2


TRAINERS = {
    "compute_loss": (FromLogits, CompilingFromLogits, {}, {}),
    "compute_loss_func": (Trainer, Compiling, {}, {"compute_loss_func": halved}),
    "label smoothing": (Trainer, Compiling, {"label_smoothing_factor": 0.1}, {}),
}


def trained(kind, folder, settings, options, steps=3):
    fixed = {"use_cpu": True, "report_to": [], "save_strategy": "no", "disable_tqdm": True}
    arguments = TrainingArguments(
        str(folder), per_device_train_batch_size=4, max_steps=steps, seed=3, **fixed, **settings
    )
    trainer = kind(
        bert(dropout=0.1), arguments, train_dataset=SENTENCES, eval_dataset=SENTENCES[:8], **options
    )
    loss = trainer.train().training_loss
    return trainer, loss


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("name", TRAINERS)
def test_a_trainer_that_needs_outputs_trains_as_without_the_mixin(tmp_path, name, accumulate):
    """Dropout is on: the compiled model draws the same numbers."""
    plain, compiling, settings, options = TRAINERS[name]
    settings = settings | {"gradient_accumulation_steps": accumulate}
    one, expected = trained(plain, tmp_path, settings, options)
    options = options | {"compile": {"plan": CAPTURED, "run": tmp_path / "run"}}
    other, loss = trained(compiling, tmp_path, settings, options)
    assert loss == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(one.model.state_dict(), other.model.state_dict(), rtol=1e-4, atol=1e-6)
    assert other.explain().plan == CAPTURED
    assert other.compile_step is None
    assert [row["verdict"] for row in other.explain().rows] == ["not timed", "chosen"]
    assert other.evaluate()["eval_loss"] == pytest.approx(one.evaluate()["eval_loss"], rel=1e-5)
    [plan], _ = read(tmp_path / "run", "compile", "plans")
    assert plan["source"] == "not measured"


def test_the_model_is_compiled_only_in_the_losses_of_training(tmp_path):
    seen = []

    class Seen(TrainerCallback):
        def on_step_end(self, args, state, control, model, **_):
            seen.append(compiled_call(model))

    trainer, _ = trained(
        CompilingFromLogits, tmp_path, {}, {"compile": {"plan": CAPTURED}, "callbacks": [Seen()]}
    )
    assert seen == [None] * 3
    assert trainer.model.__class__ is BertForSequenceClassification


class Clock:
    """Clock that the test moves."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        return self.now


@pytest.mark.parametrize(("eager_seconds", "chosen"), [(3.0, "captured"), (1.0, "eager")])
def test_the_faster_form_is_chosen_in_turns_over_training_steps(monkeypatch, eager_seconds, chosen):
    """Sizes of batches vary: the times are compared by element."""
    clock = Clock()
    monkeypatch.setattr(outputs, "time", clock)
    monkeypatch.setattr(outputs, "DEFAULT", CAPTURED)
    model = nn.Linear(4, 4)
    compiled = outputs.CompiledOutputs(model)
    sizes = itertools.cycle([2, 6, 4])
    for _ in range(outputs.UNTIMED + 2 * outputs.TURNS):
        batch = {"x": torch.ones(next(sizes), 4)}
        with compiled.training_step(batch):
            with compiled.forward_passes():
                eager = compiled_call(model) is None
                model(batch["x"]).sum().backward()
            clock.now += len(batch["x"]) * (eager_seconds if eager else 2.0)
    explanation = compiled.explain()
    assert explanation.plan.graph == chosen
    assert {row["verdict"] for row in explanation.rows} == {"chosen", "not faster"}
    assert "measured in turns" in explanation.source
    with compiled.forward_passes():
        assert (compiled_call(model) is None) == (chosen == "eager")


@pytest.mark.parametrize("autotune", ["default", "off"])
def test_a_compiled_model_that_is_refused_is_not_measured(monkeypatch, autotune):
    """Its steps ran eagerly, were timed against eager ones, and were then called the faster ones."""
    monkeypatch.setattr(outputs, "DEFAULT", CAPTURED)
    monkeypatch.setattr(compared, "difference", lambda *args: "gradient/weight is off")
    model = nn.Linear(4, 4)
    compiled = outputs.CompiledOutputs(model, autotune=autotune)
    message = "Linear runs eagerly: gradient/weight is off"
    with (
        pytest.warns(LoopwiseWarning, match=message),
        compiled.training_step(torch.ones(2, 4)),
        compiled.forward_passes(),
    ):
        model(torch.ones(2, 4)).sum().backward()
    eager, refused = compiled.explain().rows
    assert (eager["verdict"], refused["verdict"]) == ("chosen", "wrong: gradient/weight is off")
    assert compiled.explain().plan.graph == "eager"
    with compiled.forward_passes():
        assert compiled_call(model) is None


@pytest.mark.parametrize("option", ["memory", "precision", "verify", "max_seconds"])
def test_options_that_need_the_loss_are_refused_when_the_trainer_is_made(tmp_path, option):
    value = {"memory": "1GiB", "precision": "mixed", "verify": False, "max_seconds": 5.0}[option]
    with pytest.raises(InputError, match=f"compute_loss of FromLogits.*{option} needs both") as error:
        trained(CompilingFromLogits, tmp_path, {}, {"compile": {option: value}})
    assert "return the loss from compile_loss(model, batch)" in str(error.value)

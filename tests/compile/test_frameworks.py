"""``optimize`` and ``TrainStep`` in the trainers of Hugging Face, Lightning and Accelerate."""

from pathlib import Path

import lightning.pytorch as lightning
import pytest
import torch
from hugging_face_kit import SENTENCES, SHAPE, bert
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from loopwise.compile import Plan, TrainStep, optimize
from loopwise.compile.graph.passes import PASSES
from loopwise.compile.transformers import CompilingTrainerMixin
from loopwise.errors import InputError
from loopwise.run import Run

pytestmark = pytest.mark.filterwarnings("ignore")  # the trainers' own
CAPTURED = Plan(graph="captured", passes=tuple(PASSES))


class CompilingTrainer(CompilingTrainerMixin, Trainer):
    pass


def llama():
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(vocab_size=50, intermediate_size=16, **SHAPE, num_key_value_heads=2))


def arguments(folder, **options):
    fixed = {"use_cpu": True, "report_to": [], "save_strategy": "no", "disable_tqdm": True}
    return TrainingArguments(str(folder), per_device_train_batch_size=4, max_steps=3, **fixed, **options)


TEXTS = [{"input_ids": torch.arange(5, 13) + i % 7, "labels": torch.arange(5, 13) + i % 7} for i in range(32)]


def test_hugging_face(tmp_path):
    losses = {}
    for compiled in (False, True):
        model = bert()
        if compiled:
            optimize(model, plan=CAPTURED)
        losses[compiled] = Trainer(model, arguments(tmp_path), train_dataset=SENTENCES).train().training_loss
    assert losses[True] == pytest.approx(losses[False], rel=1e-4)


@pytest.mark.parametrize(("make", "data"), [(bert, SENTENCES), (llama, TEXTS)])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_compiling_trainer_trains_as_the_plain_one(tmp_path, make, data, accumulate):
    """The Trainer of a Llama still divides by the number of tokens of the whole update."""
    weights, losses = [], []
    for options in (False, {"plan": CAPTURED}):
        settings = arguments(tmp_path, gradient_accumulation_steps=accumulate)
        trainer = CompilingTrainer(make(), settings, train_dataset=data, eval_dataset=data, compile=options)
        losses.append([trainer.train().training_loss, trainer.evaluate()["eval_loss"]])
        weights.append(trainer.model.state_dict())
    assert trainer.compile_step.plan == CAPTURED
    assert "loss head at" in str(trainer.explain())
    assert "not materialised" in str(trainer.explain())
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert weights[0].keys() == weights[1].keys()
    torch.testing.assert_close(*weights)


class FromLogits(Trainer):
    """Trainer that computes its loss from the model's logits, as TRL's trainers do."""

    def compute_loss(self, model, inputs, **_):
        return nn.functional.cross_entropy(model(**inputs).logits, inputs["labels"])


class CompilingFromLogits(CompilingTrainerMixin, FromLogits):
    pass


@pytest.mark.parametrize("kind", [CompilingTrainer, CompilingFromLogits])
def test_the_run_ends_with_the_training(tmp_path, kind):
    """Not when the trainer is freed: its page would say that the training goes on."""
    options = (
        {"plan": CAPTURED, "run": tmp_path / "run"} if kind is CompilingTrainer else {"run": tmp_path / "run"}
    )
    trainer = kind(bert(), arguments(tmp_path), train_dataset=SENTENCES, compile=options)
    trainer.train()
    assert Run.existing(tmp_path / "run").state() == "finished"
    trainer.train()


class OwnLoss(CompilingTrainerMixin):
    """Mixin with an own loss to compile."""

    def compile_loss(self, model, batch):
        return model(**batch).loss


def test_a_loss_to_compile_is_refused_beside_one_of_outputs(tmp_path):
    class Smoothed(OwnLoss, Trainer):
        pass

    settings = arguments(tmp_path, label_smoothing_factor=0.1)
    with pytest.raises(InputError, match="with label_smoother"):
        Smoothed(bert(), settings, train_dataset=SENTENCES, compile={})


class Penalized(Trainer):
    """Trainer that computes its loss from the model's."""

    def compute_loss(self, model, inputs, **_):
        outputs = model(**inputs)
        assert getattr(outputs, "aux_loss", None) is None
        assert not hasattr(outputs, "aux_loss")
        assert outputs.get("logits") is None
        assert "logits" not in outputs
        assert outputs[0] is outputs["loss"] is outputs.loss
        return outputs.loss * 2


def test_a_trainer_that_needs_other_outputs_than_its_loss_to_compile_is_told_so(tmp_path):
    class First(OwnLoss, Penalized):
        pass

    class Second(OwnLoss, FromLogits):
        pass

    def train(kind):
        options = {"train_dataset": SENTENCES, "compile": {"plan": Plan()}}
        return kind(bert(), arguments(tmp_path), **options).train().training_loss

    plain = Trainer(bert(), arguments(tmp_path), train_dataset=SENTENCES).train().training_loss
    assert train(First) == pytest.approx(2 * plain, rel=0.2)
    with pytest.raises(InputError, match=r"seen: outputs\['logits'\] in compute_loss"):
        train(Second)


@pytest.mark.parametrize(
    ("options", "seen", "fix"),
    [
        ({"tune": "fast"}, "compile={'tune': 'fast'}", "pass for instance compile={'autotune': 'default'}"),
        ({"clip": 1.0}, "compile={'clip': 1.0}", "pass for instance compile={'autotune': 'default'}"),
        (None, "compile=None", "pass for instance compile={'autotune': 'default'}"),
        ({"autotune": "slow"}, "compile={'autotune': 'slow'}: autotune='slow'", "pass for"),
        ({"plan": "eager"}, "compile={'plan': 'eager'}: plan of type str", "pass Plan"),
        ({"memory": "6 barrels"}, "compile={'memory': '6 barrels'}: memory=", "pass for"),
    ],
)
def test_options_of_the_mixin_are_validated_when_the_trainer_is_made(tmp_path, options, seen, fix):
    with pytest.raises(InputError) as error:
        CompilingTrainer(bert(), arguments(tmp_path), train_dataset=SENTENCES, compile=options)
    assert str(error.value).startswith(f"seen: {seen}")
    assert f"\nfix: {fix}" in str(error.value)


class Manual(lightning.LightningModule):
    """Module whose whole step is a ``TrainStep``."""

    automatic_optimization = False

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 16), nn.GELU(), nn.Linear(16, 3))
        self.whole = None

    def training_step(self, batch, _):
        if self.whole is None:
            self.whole = TrainStep(self.net, nn.CrossEntropyLoss(), self.optimizers(), plan=CAPTURED)
        self.log("loss", self.whole(batch))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Automatic(Manual):
    """Module whose loss comes from a ``TrainStep``; Lightning does the rest."""

    automatic_optimization = True

    def __init__(self, plan):
        super().__init__()
        self.whole = TrainStep(self.net, nn.CrossEntropyLoss(), plan=plan)

    def on_train_batch_start(self, batch, _):
        self.whole.prepare(batch)

    def training_step(self, batch, _):
        loss = self.whole.forward(batch)
        self.log("loss", loss)
        return loss


def fitted(module, folder, **options):
    torch.manual_seed(0)
    data = DataLoader(TensorDataset(torch.randn(32, 6), torch.arange(32) % 3), 8)
    off = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = lightning.Trainer(max_epochs=2, default_root_dir=folder, accelerator="cpu", **off, **options)
    trainer.fit(module, data)
    return trainer


def test_lightning_by_whole_steps_and_by_losses(tmp_path):
    states = []
    for make in (lambda: Automatic(Plan()), lambda: Automatic(CAPTURED), Manual):
        torch.manual_seed(0)
        module = make()
        trainer = fitted(module, tmp_path, enable_checkpointing=make is Manual)
        assert trainer.global_step == 8
        assert "loss" in trainer.callback_metrics
        states.append(module.state_dict())
    assert module.whole.plan == CAPTURED
    for state in states[1:]:
        assert state.keys() == states[0].keys()
        torch.testing.assert_close(state, states[0])
    assert list(tmp_path.rglob("*step=8.ckpt"))


def test_lightning_under_ddp(ranks, tmp_path):
    """Preparing runs backward passes, which Lightning's own DDP wrapper must not count."""
    code = f"""
    import sys, warnings
    warnings.simplefilter("ignore")
    sys.path.insert(0, {str(Path(__file__).parent)!r})
    os.environ |= {{"TORCHELASTIC_RUN_ID": "test", "LOCAL_RANK": os.environ["RANK"], "GROUP_RANK": "0"}}
    os.environ |= {{"LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}}  # the group exists
    from loopwise.errors import StateError
    from test_frameworks import CAPTURED, Automatic, Plan, fitted
    states = []
    for plan in (Plan(), CAPTURED):
        torch.manual_seed(0)
        module = Automatic(plan)
        fitted(module, {str(tmp_path)!r}, enable_checkpointing=False, strategy="ddp", devices=2)
        states.append(module.state_dict())
    assert module.whole.plan == CAPTURED, module.whole.explain()
    torch.testing.assert_close(*states)
    try:
        Automatic(CAPTURED).whole.forward((torch.randn(4, 6), torch.arange(4) % 3))
        said = ""
    except StateError as error:
        said = str(error).splitlines()[0]
    print(json.dumps([said, *(value.sum().item() for value in states[1].values())]))
    """
    first, second = ranks(code)
    assert first == second
    assert first[0] == "seen: forward() of a training step that has no plan yet, under several ranks"


def test_lightning_with_optimize(tmp_path):
    class Module(lightning.LightningModule):
        def __init__(self, compiled):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(6, 16), nn.GELU(), nn.Linear(16, 3))
            if compiled:
                optimize(self.net, plan=CAPTURED)
            self.criterion = nn.CrossEntropyLoss()

        def training_step(self, batch, _):
            return self.criterion(self.net(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    states = []
    for compiled in (False, True):
        torch.manual_seed(0)
        module = Module(compiled)
        data = DataLoader(TensorDataset(torch.randn(32, 6), torch.arange(32) % 3), 8)
        trainer = lightning.Trainer(
            max_epochs=2,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=compiled,
            default_root_dir=tmp_path,
            accelerator="cpu",
        )
        trainer.fit(module, data)
        states.append(module.state_dict())
    assert states[0].keys() == states[1].keys()
    for name, value in states[0].items():
        torch.testing.assert_close(value, states[1][name])
    (checkpoint,) = tmp_path.rglob("*.ckpt")
    assert "net.0.weight" in torch.load(checkpoint, weights_only=False)["state_dict"]


def test_accelerate():
    from accelerate import Accelerator

    states = []
    for prepared in (True, False):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(6, 16), nn.GELU(), nn.Linear(16, 3))
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        if prepared:
            net, optimizer = Accelerator(cpu=True).prepare(net, optimizer)
        step = TrainStep(net, nn.CrossEntropyLoss(), optimizer, plan=CAPTURED if prepared else Plan())
        for _ in range(3):
            step((torch.ones(4, 6), torch.arange(4) % 3))
        states.append(net.state_dict())
    torch.testing.assert_close(*states)

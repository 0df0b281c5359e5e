"""The mixin in a real Hugging Face Trainer: dict batches, padding, steps, resume, options."""

import os

import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    Trainer,
    TrainingArguments,
)

from loopwise.errors import InputError
from loopwise.run import read
from loopwise.sift import TopLoss
from loopwise.sift.loader import DEFAULTS
from loopwise.sift.transformers import SiftingTrainerMixin

pytestmark = pytest.mark.filterwarnings("ignore")  # the Trainer's own


class SiftingTrainer(SiftingTrainerMixin, Trainer):
    def training_step(self, model, inputs, *args, **kwargs):
        self.sizes = [*getattr(self, "sizes", []), len(inputs["labels"])]
        return super().training_step(model, inputs, *args, **kwargs)


def samples(n=48):
    generator = torch.Generator().manual_seed(0)
    return [
        {"input_ids": torch.randint(5, 50, (4 + i % 5,), generator=generator).tolist(), "labels": i % 3}
        for i in range(n)
    ]


def collate(batch):
    longest = max(len(s["input_ids"]) for s in batch)
    ids = torch.tensor([s["input_ids"] + [0] * (longest - len(s["input_ids"])) for s in batch])
    return {
        "input_ids": ids,
        "attention_mask": (ids > 0).long(),
        "labels": torch.tensor([s["labels"] for s in batch]),
    }


def bert():
    torch.manual_seed(0)
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=50,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            num_labels=3,
            max_position_embeddings=16,
        )
    )


def trainer(tmp_path, model=None, data=None, sift=None, **options):
    defaults = {
        "per_device_train_batch_size": 4,
        "num_train_epochs": 3,
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "logging_strategy": "no",
        "seed": 1,
    }
    args = TrainingArguments(str(tmp_path), **(defaults | options))
    sift = {"policy": TopLoss(0.5), "seed": 3} if sift is None else sift
    collator = collate if data is None else None
    return SiftingTrainer(
        model or bert(), args, train_dataset=data or samples(), data_collator=collator, sift=sift
    )


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_trainer_sifts(tmp_path, accumulate):
    run = trainer(tmp_path, gradient_accumulation_steps=accumulate)
    result = run.train()
    assert len(run.sift_loader) == 6
    assert result.global_step == 18 // accumulate
    assert run.sizes == [4] * 18
    report = run.sift_loader.loader.report()
    assert report.trained == 72
    assert report.scored == report.seen == 144


def test_a_language_model_with_tokens_as_labels(tmp_path):
    model = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_positions=16, n_embd=16, n_layer=1, n_head=2))
    data = [{"input_ids": row, "labels": row} for row in torch.randint(0, 50, (32, 12)).tolist()]
    run = trainer(tmp_path, model, data, num_train_epochs=1)
    batch = {"input_ids": torch.tensor([data[0]["input_ids"]]), "labels": torch.tensor([data[0]["labels"]])}
    model.eval()
    assert run.sift_loss(model, batch).item() == pytest.approx(model(**batch).loss.item(), rel=1e-5)
    assert run.train().global_step == 4


@pytest.mark.parametrize("accumulate", [1, 2])
def test_resume_to_the_bit(tmp_path, accumulate):
    options = {"gradient_accumulation_steps": accumulate}
    step = 8 // accumulate
    whole = trainer(tmp_path, **options, save_strategy="steps", save_steps=step)
    whole.train()
    again = trainer(tmp_path, **options)
    again.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
    assert len(again.sizes) == 18 - step * accumulate
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name]), name


def test_without_sifting_nothing_changes(tmp_path):
    run = trainer(tmp_path, sift=False, num_train_epochs=1)
    assert run.train().global_step == 12
    assert run.sift_loader is None


def test_a_loss_and_a_run_among_the_options(tmp_path):
    losses = []

    def loss(model, batch):
        losses.append(
            nn.functional.cross_entropy(model(**batch)["logits"], batch["labels"], reduction="none")
        )
        return losses[-1]

    run = trainer(tmp_path, sift={"loss": loss, "run": tmp_path / "run"}, num_train_epochs=1)
    run.train()
    assert sum(map(len, losses)) == 48
    run.sift_loader.loader.close()  # the last pass over the data may be unfinished
    records, _ = read(str(tmp_path / "run"), "sift", "epochs")
    assert [(record["epoch"], record["seen"]) for record in records] == [(0, 48)]
    assert trainer(tmp_path, sift=True)._sift_options == {}


@pytest.mark.parametrize(
    ("sift", "seen", "expected", "cause", "fix"),
    [
        (
            {"keep": 0.5, "score_every": 0},
            "score_every=0 in a Hugging Face Trainer",
            "score_every=1",
            "its loader hides the samples' indices",
            "drop it, or train by a plain loop",
        ),
        (
            0.5,
            "sift=0.5",
            "False, True, or a dict of options of SiftingDataLoader",
            "a share instead of an option with a name, or None for False",
            "pass for instance sift={'keep': 0.5}",
        ),
        (
            {"keep": 50},
            "keep=50 in sift={...}",
            "the share of samples to train on, a number in (0, 1]",
            "a percentage or a count instead of a fraction",
            "pass a fraction, for instance keep=0.5 in sift={...}",
        ),
        (
            {"kep": 0.5},
            "kep in sift={...}",
            f"options of SiftingDataLoader: {', '.join(DEFAULTS)}",
            "a typo",
            "use one of these names",
        ),
    ],
)
def test_options_are_checked_when_the_trainer_is_made(tmp_path, sift, seen, expected, cause, fix):
    with pytest.raises(InputError) as error:
        trainer(tmp_path, sift=sift)
    assert str(error.value) == f"seen: {seen}\nexpected: {expected}\nlikely cause: {cause}\nfix: {fix}"


def test_accelerate_prepares_first(tmp_path):
    from accelerate import Accelerator
    from torch.utils.data import DataLoader, TensorDataset

    from loopwise.sift import SiftingDataLoader

    accelerator = Accelerator(cpu=True)
    model = torch.nn.Linear(6, 3)
    data = TensorDataset(torch.randn(40, 6), torch.arange(40) % 3)
    model, optimizer, loader = accelerator.prepare(
        model, torch.optim.SGD(model.parameters(), lr=0.1), DataLoader(data, 8, shuffle=True)
    )
    criterion = torch.nn.CrossEntropyLoss(reduction="none")
    loader = SiftingDataLoader(loader, model, loss=criterion, policy=TopLoss(0.5))
    for x, y in loader:
        optimizer.zero_grad()
        accelerator.backward(criterion(model(x), y).mean())
        optimizer.step()
    assert loader.report().trained == 20
    state = loader.state_dict()
    loader.load_state_dict(state)


def trained_on_two_ranks(folder):
    """Return steps, sizes, samples seen and sums of the weights, of a training and of its resumed copy."""
    rank = int(os.environ["RANK"])
    os.environ |= {"LOCAL_RANK": str(rank), "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}
    sift = {"policy": lambda losses: torch.full((len(losses),), 0.3 + 0.4 * rank), "seed": 3}
    whole = trainer(folder, sift=sift, num_train_epochs=2, save_strategy="steps", save_steps=4)
    whole.train()
    again = trainer(folder, sift=sift, num_train_epochs=2)
    again.train(resume_from_checkpoint=f"{folder}/checkpoint-4")
    weights, resumed = ([p.sum().item() for p in run.model.parameters()] for run in (whole, again))
    return [whole.state.global_step, whole.sizes, whole.sift_loader.loader.report().seen, weights, resumed]


def test_a_trainer_under_ddp(two, tmp_path):
    first, second = two("trained_on_two_ranks", str(tmp_path), file=__file__)
    assert first[0] == second[0] == len(first[1])
    assert len(first[1]) == len(second[1])
    assert first[3] == second[3]
    assert first[3] == first[4]
    assert first[2] >= 24

"""The mixin in a real Hugging Face Trainer: dict batches, padding, steps, resume, options."""

import itertools
import os
import warnings

import pytest
import torch
from torch import nn
from torch.utils.data import IterableDataset
from transformers import (
    BatchEncoding,
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    Trainer,
    TrainingArguments,
)

from loopwise.errors import InputError
from loopwise.run import Run, read
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


def trainer(
    tmp_path, model=None, data=None, sift=None, kind=None, collator=None, compute_loss_func=None, **options
):
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
    return (kind or SiftingTrainer)(
        model or bert(),
        args,
        train_dataset=data or samples(),
        data_collator=collator or (collate if data is None else None),
        compute_loss_func=compute_loss_func,
        sift=sift,
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


def test_a_training_that_fails_leaves_nothing_open(tmp_path):
    class Failing(SiftingTrainer):
        def training_step(self, *args, **options):
            if self.state.global_step == 2:
                raise RuntimeError("planned")
            return super().training_step(*args, **options)

    run = trainer(tmp_path, kind=Failing, sift={"run": tmp_path / "run"})
    with pytest.raises(RuntimeError, match="planned"):
        run.train()
    assert not run.accelerator.gradient_state.in_dataloader
    assert Run.existing(tmp_path / "run").info()["state"] == "failed"


@pytest.mark.parametrize(("accumulate", "step", "batches"), [(1, 8, 10), (2, 4, 10), (4, 3, 8)])
def test_resume_to_the_bit(tmp_path, accumulate, step, batches):
    options = {
        "gradient_accumulation_steps": accumulate,
        "logging_strategy": "steps",
        "logging_steps": 1,
        "lr_scheduler_type": "cosine",
    }
    whole = trainer(tmp_path, **options, save_strategy="steps", save_steps=step)
    whole.train()
    again = trainer(tmp_path, **options)
    again.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
    assert len(again.sizes) == batches
    assert (
        again.state.log_history[:-1] == whole.state.log_history[:-1]
    )  # steps, epochs, losses, learning rates
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name]), name


def test_resume_from_a_checkpoint_without_sifting(tmp_path):
    plain = trainer(tmp_path, sift=False, save_strategy="steps", save_steps=15)
    plain.train()
    again = trainer(tmp_path, sift={"keep": 1.0})
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-15"))
    assert len(again.sizes) == 36 - 15


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
    assert Run.existing(tmp_path / "run").info()["state"] == "finished"
    records, _ = read(str(tmp_path / "run"), "sift", "epochs")
    assert [(record["epoch"], record["seen"]) for record in records] == [(0, 48)]
    assert trainer(tmp_path, sift=True)._sift_options == {}
    assert trainer(tmp_path, sift={"compile": "auto"})._sift_options == {"compile": False}
    assert trainer(tmp_path, sift={"compile": True, "loss": loss})._sift_options["compile"]
    assert SiftingTrainer(bert(), train_dataset=samples(), sift=None)._sift_options is None


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
            {"compile": True},
            "compile=True in a Hugging Face Trainer",
            "compile=False, or loss= as well",
            "the losses of samples are read inside the Trainer's loss, in eager mode",
            "drop it, or pass loss=, a function of (model, batch) that returns one loss per sample",
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


def tokens(n=32, length=12):
    rows = torch.randint(3, 50, (n, length), generator=torch.Generator().manual_seed(0)).tolist()
    return [
        {"input_ids": row, "labels": [*row[:6], *([-100] * (i % 4)), *row[6 + i % 4 :]]}
        for i, row in enumerate(rows)
    ]


def gpt2():
    torch.manual_seed(0)
    sizes = {"vocab_size": 50, "n_positions": 16, "n_embd": 16, "n_layer": 1, "n_head": 2}
    return GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0))


class Weighted(SiftingTrainer):
    """A Trainer with weights of the classes, in the way of Hugging Face's documentation."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        loss = nn.CrossEntropyLoss(torch.tensor([1.0, 4.0, 1.0]))(outputs["logits"], labels)
        return (loss, outputs) if return_outputs else loss


def halved(outputs, labels, num_items_in_batch=None):
    return nn.functional.cross_entropy(outputs["logits"], labels) / 2


@pytest.mark.parametrize(
    ("kind", "model", "data", "options"),
    [
        (SiftingTrainer, bert, samples, {"label_smoothing_factor": 0.2}),
        (SiftingTrainer, gpt2, tokens, {"label_smoothing_factor": 0.2}),
        (SiftingTrainer, bert, samples, {"compute_loss_func": halved}),
        (Weighted, bert, samples, {}),
        (SiftingTrainer, gpt2, tokens, {}),
    ],
)
def test_a_sample_is_scored_by_the_loss_of_the_trainer(tmp_path, kind, model, data, options):
    model, data = model(), data()
    run = trainer(tmp_path, model, data, kind=kind, collator=collate, **options)
    batch = collate(data[:8])
    model.eval()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("error", "loopwise")
        losses = run.sift_loss(model, batch)
        alone = [run.compute_loss(model, collate(data[i : i + 1])) for i in range(8)]
        whole = run.compute_loss(model, dict(batch))
    if kind is Weighted:  # the weight of a sample's class is part of its loss
        weights = torch.tensor([1.0, 4.0, 1.0])[batch["labels"]]
        torch.testing.assert_close((losses.sum() / weights.sum()), whole)
        alone = [loss * weight for loss, weight in zip(alone, weights, strict=True)]
    torch.testing.assert_close(losses, torch.stack(alone), rtol=1e-4, atol=1e-5)
    assert "labels" in batch
    assert run.train().global_step == len(run.sift_loader) * 3
    assert run.sift_loader.loader.report().scored


class Stream(IterableDataset):
    def __init__(self, n):
        self.n = n

    def __iter__(self):
        for i in itertools.islice(itertools.count(), self.n):
            yield {"input_ids": [5 + i % 40, 6, 7], "labels": i % 3}


@pytest.mark.parametrize("n", [None, 48])
def test_a_stream_is_scored(tmp_path, n):
    run = trainer(tmp_path, data=Stream(n), collator=collate, max_steps=15)
    assert run.train().global_step == 15
    assert run.sizes == [4] * 15
    report = run.sift_loader.loader.report()
    assert report.scored == report.seen >= 120


def test_a_stream_resumes_to_the_bit(tmp_path):
    options = {"max_steps": 10, "collator": collate}
    whole = trainer(tmp_path, data=Stream(None), save_strategy="steps", save_steps=4, **options)
    whole.train()
    again = trainer(tmp_path, data=Stream(None), **options)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert len(again.sizes) == 6
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name]), name


def test_epochs_of_the_options_are_those_of_the_trainer(tmp_path):
    run = trainer(
        tmp_path, sift={"policy": TopLoss(0.5), "epochs": 8, "anneal": 0.25, "seed": 0}, num_train_epochs=8
    )
    assert run.train().global_step == 48
    report = run.sift_loader.loader.report()
    assert report.scored == 6 * 48  # the passes of the first six epochs; then all samples in two epochs
    assert report.kept == 6 * 24 + 48


def test_a_checkpoint_is_read_without_running_code(tmp_path):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "run by the checkpoint"),)

    options = {"save_strategy": "steps", "save_steps": 4, "num_train_epochs": 1}
    trainer(tmp_path, **options).train()
    file = tmp_path / "checkpoint-4" / "sift_0.pt"
    state = torch.load(file, weights_only=True)
    torch.save(state | {"loader": Trap()}, file)
    with pytest.raises(InputError, match="UnpicklingError"):
        trainer(tmp_path, **options).train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert not (tmp_path / "run by the checkpoint").exists()


def test_batches_of_a_tokenizer_are_saved_as_dicts(tmp_path):
    def encoding(batch):
        return BatchEncoding(collate(batch))

    options = {"collator": encoding, "num_train_epochs": 1, "sift": {"policy": TopLoss(0.3), "batch_size": 4}}
    whole = trainer(tmp_path, **options, save_strategy="steps", save_steps=2)
    whole.train()
    again = trainer(tmp_path, **options)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name]), name


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

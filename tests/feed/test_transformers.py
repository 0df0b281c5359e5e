"""The mixin in a real Hugging Face Trainer: the training of a plain one, to the bit."""

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments

from loopwise.errors import InputError
from loopwise.feed import RemoteDataLoader
from loopwise.feed.transformers import FeedingTrainerMixin

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


class FeedingTrainer(FeedingTrainerMixin, Trainer):
    pass


class Noisy(Dataset):
    """Samples with random numbers."""

    def __len__(self):
        return 22

    def __getitem__(self, index):
        return {"x": torch.rand(4) + index, "labels": torch.tensor(float(index % 2))}


class Linear(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(4, 1)

    def forward(self, x, labels):
        logits = self.layer(x)[:, 0]
        return {"loss": nn.functional.mse_loss(logits, labels), "logits": logits}


class Bases(TrainerCallback):
    """Types of the loaders in use."""

    def __init__(self):
        self.types = set()

    def on_step_end(self, args, state, control, train_dataloader=None, **_):
        self.types.add(type(train_dataloader.base_dataloader))

    def on_prediction_step(self, args, state, control, eval_dataloader=None, **_):
        self.types.add(type(eval_dataloader.base_dataloader))


def trained(kind, folder, resume=None, **options):
    """Return the weights and the evaluation after a training, and the types of its loaders."""
    arguments = TrainingArguments(
        str(folder),
        per_device_train_batch_size=4,
        num_train_epochs=2,
        learning_rate=1e-3,
        save_strategy="steps" if resume is None else "no",
        save_steps=8,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        logging_strategy="no",
        seed=1,
        max_steps=9 if resume is None else -1,
        dataloader_num_workers=2,
    )
    bases = Bases()
    trainer = kind(
        Linear(), arguments, train_dataset=Noisy(), eval_dataset=Noisy(), callbacks=[bases], **options
    )
    trainer.train(resume_from_checkpoint=resume)
    loss = trainer.evaluate()["eval_loss"]
    return [*trainer.model.state_dict().values(), torch.tensor(loss)], bases.types


def test_a_training_is_that_of_a_plain_trainer_also_when_it_is_resumed(tmp_path):
    results = {}
    for kind, options in ((Trainer, {}), (FeedingTrainer, {"feed": {"workers": 1}})):
        folder = tmp_path / kind.__name__
        whole, types = trained(kind, folder, **options)
        assert (RemoteDataLoader in types) == (kind is FeedingTrainer)
        assert len(types) == 1
        rest, resumed_types = trained(kind, folder, resume=str(folder / "checkpoint-8"), **options)
        assert resumed_types == types
        results[kind] = whole + rest
    assert all(map(torch.equal, results[Trainer], results[FeedingTrainer]))


def test_options_are_checked(tmp_path):
    def error(feed, workers=2):
        arguments = TrainingArguments(
            str(tmp_path), use_cpu=True, dataloader_num_workers=workers, report_to=[]
        )
        with pytest.raises(InputError) as caught:
            FeedingTrainer(Linear(), arguments, train_dataset=Noisy(), feed=feed)
        return str(caught.value)

    assert error({"num_workers": 3}) == (
        "seen: feed={'num_workers': 3}\n"
        "expected: False, True, or a dict of options among group, prefetch_bytes, workers, seeding, on_crash\n"
        "likely cause: an option that is misspelt, or that DataLoader has, too\n"
        "fix: pass what DataLoader has in TrainingArguments, such as dataloader_num_workers"
    )
    assert error("data").startswith("seen: feed='data'\n")
    assert error(True, workers=0) == (
        "seen: feed=True with dataloader_num_workers=0\n"
        "expected: dataloader_num_workers of at least 1\n"
        "likely cause: dataloader_num_workers was left out; batches are then loaded in the training process\n"
        "fix: pass TrainingArguments(dataloader_num_workers=8), for instance"
    )

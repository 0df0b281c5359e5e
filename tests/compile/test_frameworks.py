"""``optimize`` in the real trainers: Hugging Face's and Lightning's."""

import lightning.pytorch as lightning
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

from loopwise.compile import Plan, optimize
from loopwise.compile.passes import PASSES

pytestmark = pytest.mark.filterwarnings("ignore")  # the trainers' own
CAPTURED = Plan(graph="captured", passes=tuple(PASSES))


def test_hugging_face(tmp_path):
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    data = [{"input_ids": torch.arange(5, 13) + i % 7, "labels": i % 2} for i in range(16)]
    losses = {}
    for compiled in (False, True):
        torch.manual_seed(0)
        model = BertForSequenceClassification(
            BertConfig(vocab_size=50, max_position_embeddings=16, **shape, **dropout)
        )
        if compiled:
            optimize(model, plan=CAPTURED)
        arguments = TrainingArguments(
            str(tmp_path),
            per_device_train_batch_size=4,
            max_steps=3,
            use_cpu=True,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
        )
        losses[compiled] = Trainer(model, arguments, train_dataset=data).train().training_loss
    assert losses[True] == pytest.approx(losses[False], rel=1e-4)


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

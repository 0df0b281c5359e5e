"""Situations of the other ways in: ``optimize``, ``backend="loopwise"``, Lightning and Hugging Face."""

from __future__ import annotations

import logging
import tempfile
import warnings
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from ..parts import (
    CLASSES,
    Classifier,
    F,
    Transformer,
    batchnorm,
    cross_entropy,
    images,
    mlp,
    rows,
    sgd,
    tokens,
)
from ..situation import Run, situation
from .structures import Checkpointed


def optimized(run: Run, net: nn.Module, data: list[Any] | None = None) -> None:
    """Train a model that ``optimize`` compiled in place by the usual loop."""
    model = run.optimize(run.model(net))
    step = run.usual(model, cross_entropy(), sgd(model))
    for batch in rows() if data is None else data:
        step(batch)
    run.keep(draw=torch.rand(2))


@situation()
def optimize_dropout(run: Run) -> None:
    """Compile a model with dropout by ``optimize``."""
    optimized(run, Classifier(nn.Dropout(0.3)))


@situation(slow=True)
def optimize_batch_norm(run: Run) -> None:
    """Compile a model with BatchNorm by ``optimize``."""
    optimized(run, batchnorm(), images())


@situation(slow=True)
def optimize_attention(run: Run) -> None:
    """Compile a transformer, whose attention a pass rewrites, by ``optimize``."""
    optimized(run, Transformer(), tokens())


@situation(slow=True)
def optimize_checkpointed(run: Run) -> None:
    """Compile a model with activation checkpoints and dropout by ``optimize``."""
    optimized(run, Classifier(Checkpointed(False)))


@situation(slow=True)
def optimize_checkpointed_reentrant(run: Run) -> None:
    """Compile a model with reentrant checkpoints and dropout by ``optimize``."""
    optimized(run, Classifier(Checkpointed(True)))


@situation()
def optimize_function(run: Run) -> None:
    """Compile the loss with the model inside, a function, by ``optimize``."""
    model = run.model(mlp())

    def function(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(model(x), y)

    compiled = run.optimize(function)

    def loss(model: nn.Module, batch: Any) -> torch.Tensor:
        return compiled(*batch)

    step = run.usual(model, loss, sgd(model))
    for batch in rows():
        step(batch)


@situation(slow=True)
def optimize_evaluated(run: Run) -> None:
    """Compile a model by ``optimize`` and evaluate it without gradients between the batches."""
    model = run.optimize(run.model(batchnorm()))
    step, scores = run.usual(model, cross_entropy(), sgd(model)), []
    for x, y in images():
        step((x, y))
        with torch.no_grad():
            scores.append(F.cross_entropy(model.eval()(x), y))
        model.train()
    run.keep(scores=torch.stack(scores))


@situation("inductor", slow=True)
def backend_dropout(run: Run) -> None:
    """Compile a model with dropout by ``torch.compile(backend="loopwise")``."""
    model = run.model(Classifier(nn.Sequential(nn.Dropout(0.3), nn.LayerNorm(16))))
    compiled = torch.compile(model, backend="loopwise") if run.ours else model
    run.ways.append("backend")
    step = run.usual(compiled, cross_entropy(), sgd(model))
    for batch in rows():
        step(batch)


@situation("inductor", slow=True)
def backend_checkpointed(run: Run) -> None:
    """Compile a checkpointed model with dropout by ``torch.compile(backend="loopwise")``."""
    model = run.model(Classifier(Checkpointed(False)))
    compiled = torch.compile(model, backend="loopwise") if run.ours else model
    run.ways.append("backend")
    step = run.usual(compiled, cross_entropy(), sgd(model))
    for batch in rows():
        step(batch)


def fitted(run: Run, net: nn.Module, loader: DataLoader, **options: Any) -> None:
    """Train by Lightning, in our form with the callback."""
    import lightning

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.seen = net, 0

        def training_step(self, batch: Any, number: int) -> torch.Tensor:
            loss = F.cross_entropy(self.net(batch[0]), batch[1])
            self.seen += len(batch[0])
            self.log("loss", loss, on_epoch=True, on_step=False)
            return loss

        def configure_optimizers(self) -> Any:
            optimizer = sgd(self)
            schedule = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    callbacks: list[Any] = []
    if run.ours:
        from loopwise.compile.lightning import CompilingCallback

        callbacks = [CompilingCallback(**run.options)]
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "accelerator": "cpu",
    }
    trainer = lightning.Trainer(
        max_epochs=2, enable_model_summary=False, callbacks=callbacks, **quiet, **options
    )
    module = Module()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")
        trainer.fit(module, loader)
    run.steps += [callback.step for callback in callbacks]
    run.keep(seen=module.seen, loss=trainer.callback_metrics["loss"].double().float())


def loader(batches: list[Any]) -> DataLoader:
    """Return a loader of the samples of all batches, the last batch being smaller."""
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    return DataLoader(TensorDataset(x, y), batch_size=len(batches[0][0]) + 1)


@situation(slow=True)
def lightning_callback(run: Run) -> None:
    """Train by Lightning's ``Trainer``, with ``self.log``, dropout, a counter and a schedule."""
    fitted(run, run.model(Classifier(nn.Dropout(0.2))), loader(rows(10)))


@situation(slow=True)
def lightning_accumulated(run: Run) -> None:
    """Train by Lightning's ``Trainer`` with accumulation and clipping."""
    net = run.model(Classifier(nn.Tanh()))
    fitted(run, net, loader(rows(10)), accumulate_grad_batches=2, gradient_clip_val=0.1)


@situation(slow=True)
def hugging_face_trainer(run: Run) -> None:
    """Train a small GPT-2 by Hugging Face's ``Trainer``, with accumulation."""
    from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

    size = {"vocab_size": 40, "n_positions": 16, "n_embd": 16, "n_layer": 1, "n_head": 2}
    model = run.model(GPT2LMHeadModel(GPT2Config(**size, use_cache=False)))
    data = [{"input_ids": x[0], "labels": x[0]} for x, _ in tokens(40)]
    kind, more = Trainer, {}
    if run.ours:
        from loopwise.compile.transformers import CompilingTrainerMixin

        class Compiling(CompilingTrainerMixin, Trainer):
            pass

        kind, more = Compiling, {"compile": dict(run.options)}
    with tempfile.TemporaryDirectory() as folder:
        settings = {"report_to": [], "save_strategy": "no", "disable_tqdm": True, "use_cpu": True, "seed": 1}
        arguments = TrainingArguments(
            folder, per_device_train_batch_size=4, gradient_accumulation_steps=2, max_steps=8, **settings
        )
        trainer = kind(model, arguments, train_dataset=data, **more)
        trainer.train()
    if run.ours:
        run.steps.append(trainer.compile_step)
    run.keep(logits=CLASSES)

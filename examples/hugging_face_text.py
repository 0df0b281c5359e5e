"""Language model of bytes in Hugging Face's Trainer: two mixins and a callback sift, compile and watch one training.

The text is the standard library's sources, and the model is made from a configuration, so nothing is downloaded.

python examples/hugging_face_text.py
"""

import argparse
import sysconfig
from pathlib import Path

import numpy as np
import torch

from loopwise.compile.transformers import CompilingTrainerMixin
from loopwise.debug.transformers import WatchCallback
from loopwise.extras import required
from loopwise.report import report
from loopwise.sift.transformers import SiftingTrainerMixin

with required("transformers", "transformers", "the Hugging Face example"):
    from transformers import (
        GPT2Config,
        GPT2LMHeadModel,
        PrinterCallback,
        Trainer,
        TrainerCallback,
        TrainingArguments,
        set_seed,
    )

LENGTH = 64
"""Bytes of a sample."""


class TextTrainer(SiftingTrainerMixin, CompilingTrainerMixin, Trainer):
    """Trainer that chooses its samples and compiles its loss."""


class Lines(TrainerCallback):
    """Printer of one line for each epoch."""

    def on_evaluate(self, args, state, control, metrics=None, **objects):
        loss = next(entry["loss"] for entry in reversed(state.log_history) if "loss" in entry)
        print(f"epoch {round(state.epoch)} loss={loss:.4f} accuracy={metrics['eval_accuracy']:.4f}")


def data(count):
    """Return samples to train on and, from other files, to test on; the model shifts the labels itself."""
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    tests = files[::10]
    return samples([file for file in files if file not in tests], count), samples(tests, count // 8)


def samples(files, count):
    """Return windows of the files' bytes, at even distances."""
    text = torch.frombuffer(bytearray(b"".join(file.read_bytes() for file in files)), dtype=torch.uint8)
    starts = torch.linspace(0, len(text) - LENGTH, count).long().tolist()
    windows = [text[start : start + LENGTH].long() for start in starts]
    return [{"input_ids": window, "labels": window} for window in windows]


def accuracy(prediction):
    """Return the share of bytes that are predicted from those before them."""
    guesses, labels = prediction
    return {"accuracy": float(np.mean(guesses[:, :-1] == labels[:, 1:]))}


def arguments(argv):
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--epochs", type=int, default=4)
    add("--batch-size", type=int, default=32)
    add("--lr", type=float, default=3e-3)
    add("--seed", type=int, default=1)
    add("--samples", type=int, default=2048)
    add("--run", default="runs/hugging_face_text", help="folder of the run; a second run gets one beside it")
    return parser.parse_args(argv)


def main(argv=None):
    """Train, and print the findings and the page of the run."""
    args = arguments(argv)
    set_seed(args.seed)
    train, test = data(args.samples)
    sizes = {"vocab_size": 256, "n_positions": LENGTH, "n_embd": 64, "n_layer": 2, "n_head": 4}
    configuration = GPT2Config(**sizes, bos_token_id=None, eos_token_id=None)
    model = GPT2LMHeadModel(configuration)
    watching = WatchCallback(run=args.run, on_finding=print)
    trainer = TextTrainer(
        model,
        TrainingArguments(
            num_train_epochs=args.epochs,
            per_device_train_batch_size=args.batch_size,
            learning_rate=args.lr,
            lr_scheduler_type="cosine",
            eval_strategy="epoch",
            logging_steps=16,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            dataloader_pin_memory=False,
            seed=args.seed,
        ),
        train_dataset=train,
        eval_dataset=test,
        compute_metrics=accuracy,
        preprocess_logits_for_metrics=lambda logits, labels: logits.argmax(-1),
        callbacks=[watching, Lines()],
        sift={
            "auto": True,
            "run": args.run,
        },  # it lets go where losses do not tell what is left to learn, as here
        compile={"run": args.run},
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    print(f"{len(watching.findings)} findings; page: {report(watching.run.url)}")


if __name__ == "__main__":
    main()

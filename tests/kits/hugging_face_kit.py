"""Small models and data for the trainers of Hugging Face and TRL, all without a download."""

import os

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

os.environ.setdefault("HF_HUB_OFFLINE", "1")
TEXTS = [f"the number {n} and its square {n * n}, then {'x' * (n % 9)}" for n in range(64)]


SENTENCES = [{"input_ids": torch.arange(5, 13) + i % 7, "labels": i % 2} for i in range(64)]
SHAPE = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


def bert(dropout=0.0):
    torch.manual_seed(0)
    rates = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    sizes = {"vocab_size": 50, "max_position_embeddings": 16, "intermediate_size": 16}
    return BertForSequenceClassification(BertConfig(**sizes, **SHAPE, **rates))


def tokenizer():
    letters = {letter: n for n, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    for word in ("<pad>", "<eos>", "<unk>"):
        letters[word] = len(letters)
    made = Tokenizer(models.BPE(letters, [], unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    )


def trainer(kind, folder, settings=None, **options):
    """Return a trainer of a class with ``SFTTrainer`` among its bases, with four updates to do."""
    import datasets
    import trl

    words = tokenizer()
    torch.manual_seed(0)
    sizes = {"vocab_size": len(words), "intermediate_size": 32, "num_key_value_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(**sizes, **SHAPE))
    fixed = {"use_cpu": True, "report_to": [], "save_strategy": "no", "disable_tqdm": True, "bf16": False}
    fixed |= {"per_device_train_batch_size": 4, "max_steps": 4, "logging_steps": 1}
    arguments = trl.SFTConfig(str(folder), **fixed, **(settings or {}))
    data = datasets.Dataset.from_dict({"text": TEXTS})
    return kind(model, arguments, train_dataset=data, eval_dataset=data, processing_class=words, **options)


def logs(of):
    """Return what a trainer logged, without times."""
    return [
        {name: entry[name] for name in entry if "time" not in name and "per_second" not in name}
        for entry in of.state.log_history
        if "train_runtime" not in entry
    ]

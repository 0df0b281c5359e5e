"""Losses of samples in a model's own loss: every head of Hugging Face, other losses, the slow way, refusals."""

import warnings

import pytest
import torch
import transformers
from torch import nn
from torch.nn import functional
from transformers import GPT2Config, GPT2LMHeadModel, T5Config

from loopwise import batch as batches
from loopwise.errors import InputError
from loopwise.sift.frameworks.own_losses import OwnLosses

SIZES = {
    "vocab_size": 30,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 16,
}
B, T = 6, 8
IDS = torch.randint(3, 30, (B, T), generator=torch.Generator().manual_seed(0))
FEW = IDS.where(torch.rand(B, T, generator=torch.Generator().manual_seed(1)) < 0.5, -100)
FEW[:, 1] = IDS[:, 1]


def own(model, batch):
    return model(**batch).loss


def bert(head, **options):
    torch.manual_seed(0)
    return getattr(transformers, head)(transformers.BertConfig(**SIZES, **options)).eval()


def gpt2(name="GPT2LMHeadModel"):
    torch.manual_seed(0)
    kind = type(name, (GPT2LMHeadModel,), {})
    config = GPT2Config(
        vocab_size=30, n_positions=16, n_embd=16, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0
    )
    return kind(config).eval()


def t5():
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=30, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0
    )
    return transformers.T5ForConditionalGeneration(config).eval()


def vit():
    torch.manual_seed(0)
    sizes = {name: SIZES[name] for name in list(SIZES)[1:5]}
    config = transformers.ViTConfig(image_size=8, patch_size=4, num_labels=4, **sizes)
    return transformers.ViTForImageClassification(config).eval()


CASES = {
    "single label": lambda: (bert("BertForSequenceClassification", num_labels=4), {"labels": torch.arange(B) % 4}),
    "multi-label": lambda: (
        bert("BertForSequenceClassification", num_labels=4, problem_type="multi_label_classification"),
        {"labels": (IDS[:, :4] % 2).float()},
    ),
    "regression": lambda: (bert("BertForSequenceClassification", num_labels=1), {"labels": torch.randn(B) * 3}),
    "regression of two": lambda: (
        bert("BertForSequenceClassification", num_labels=2, problem_type="regression"),
        {"labels": torch.randn(B, 2)},
    ),
    "question answering": lambda: (
        bert("BertForQuestionAnswering"),
        {"start_positions": torch.arange(B) % T, "end_positions": torch.tensor([3, 5, 7, 7, 1, 6])},
    ),
    "token classification": lambda: (bert("BertForTokenClassification", num_labels=4), {"labels": FEW.where(FEW < 0, FEW % 4)}),
    "masked language model": lambda: (bert("BertForMaskedLM"), {"labels": FEW}),
    "next sentence": lambda: (bert("BertForNextSentencePrediction"), {"labels": torch.arange(B) % 2}),
    "pre-training of two heads": lambda: (
        bert("BertForPreTraining"),
        {"labels": FEW, "next_sentence_label": torch.arange(B) % 2},
    ),
    "causal language model": lambda: (gpt2(), {"labels": FEW}),
    "causal language model by another name": lambda: (gpt2("Decoder"), {"labels": FEW}),
    "sequence to sequence": lambda: (t5(), {"labels": FEW[:, :5].contiguous()}),
}  # fmt: skip


def reference(model, batch, whole=own):
    with torch.no_grad():
        return torch.stack([whole(model, batches.index(batch, torch.tensor([i]), B)) for i in range(B)])


@pytest.mark.parametrize("name", CASES)
def test_every_head_by_one_pass(name):
    model, labels = CASES[name]()
    passes = []
    model.register_forward_pre_hook(lambda *_: passes.append(1))
    batch = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS), **labels}
    losses = OwnLosses(own)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error")
        first = losses(model, batch)
        count = len(passes)
        again = losses(model, batch)
    torch.testing.assert_close(first, reference(model, batch), rtol=1e-4, atol=1e-5)
    assert torch.equal(first, again)
    assert count <= 8  # the batch twice, five samples alone, and the losses
    assert len(passes) - B == count + 1


@pytest.mark.parametrize(
    ("make", "batch"),
    [
        (vit, {"pixel_values": torch.randn(B, 3, 8, 8), "labels": torch.arange(B) % 4}),
        (
            lambda: bert("BertForMultipleChoice"),
            {"input_ids": torch.randint(0, 30, (B, 3, T)), "labels": torch.arange(B) % 3},
        ),
    ],
)
def test_images_and_choices(make, batch):
    model = make()
    with torch.no_grad():
        losses = OwnLosses(own)(model, batch)
    torch.testing.assert_close(losses, reference(model, batch), rtol=1e-4, atol=1e-5)


def test_a_half_precision_model():
    model, labels = CASES["causal language model"]()
    batch = {"input_ids": IDS, **labels}
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error")
        losses = OwnLosses(own)(model.bfloat16(), batch)
    torch.testing.assert_close(losses, reference(model, batch), rtol=1e-2, atol=1e-2)


class Linear(nn.Module):
    """A model whose batches are dicts of ``x`` and ``y``."""

    def __init__(self, outputs=3):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(5, outputs)

    def forward(self, x, **_):
        return self.layer(x)


BATCH = {"x": torch.randn(B, 5, generator=torch.Generator().manual_seed(2)), "y": torch.arange(B) % 3}


def test_class_weights_are_part_of_a_samples_loss():
    weights = torch.tensor([1.0, 5.0, 0.5])

    def whole(model, batch):
        return functional.cross_entropy(model(**batch), batch["y"], weights)

    model = Linear()
    with torch.no_grad():
        losses = OwnLosses(whole)(model, BATCH)
    assert torch.equal(
        losses, functional.cross_entropy(model(**BATCH), BATCH["y"], weights, reduction="none")
    )


@pytest.mark.parametrize(
    "loss",
    [
        lambda out, y: functional.cross_entropy(out, y, label_smoothing=0.1),
        lambda out, y: functional.nll_loss(out.log_softmax(1), y),
        lambda out, y: functional.cross_entropy(out, functional.one_hot(y, 3).float()),
        lambda out, y: nn.HuberLoss()(out[:, 0], y.float()),
        lambda out, y: nn.L1Loss()(out, functional.one_hot(y, 3).float()),
        lambda out, y: nn.BCEWithLogitsLoss(pos_weight=torch.tensor(3.0))(out[:, 0], (y > 0).float()),
        lambda out, y: functional.ctc_loss(
            out.expand(7, B, 3).log_softmax(2), torch.ones(B, 2, dtype=torch.long), torch.full((B,), 7), 1 + y % 2
        ),
        lambda out, y: functional.cross_entropy(out, y) / 7,
        lambda out, y: (functional.cross_entropy(out, y) + functional.mse_loss(out[:, 0], y.float())) / 2,
        lambda out, y: 0.7 * functional.cross_entropy(out, y) + 0.1 * functional.mse_loss(out[:, 0], y.float()),
    ],
)  # fmt: skip
def test_losses_of_torch_by_one_pass(loss):
    def whole(model, batch):
        return loss(model(**batch), batch["y"]) if len(batch["y"]) == B else alone(model, batch)

    def alone(model, batch):  # the case of CTC names the size of the batch
        return loss(model(**batch).expand(B, 3), batch["y"].expand(B))

    model = Linear()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error")
        losses = OwnLosses(whole)(model, BATCH)
        expected = reference(model, BATCH, whole)
    torch.testing.assert_close(losses, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "loss",
    [
        lambda out, y: ((out[:, 0] - y) ** 2).mean(),  # no function of torch's
        lambda out, y: (
            functional.cross_entropy(out, y) + 0.01 * out.exp().mean()
        ),  # a second term of the model's own
        lambda out, y: functional.cross_entropy(out, y) ** 2 / 2 + functional.cross_entropy(out, y) / 2,
    ],
)
def test_other_losses_take_a_pass_for_each_sample_and_say_so(loss):
    def whole(model, batch):
        return loss(model(**batch), batch["y"])

    model = Linear()
    losses = OwnLosses(whole)
    with (
        torch.no_grad(),
        pytest.warns(UserWarning, match="each of the 6 samples of a pool is scored by a pass"),
    ):
        first = losses(model, BATCH)
    assert torch.equal(first, reference(model, BATCH, whole))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        losses(model, BATCH)


def test_rows_in_another_order_than_the_samples_are_not_read():
    def whole(model, batch):  # tokens before samples
        out = model(**batch).reshape(len(batch["y"]), 1, 3).expand(-1, 4, 3).transpose(0, 1)
        return functional.cross_entropy(out.reshape(-1, 3), batch["y"].repeat(4))

    model = Linear()
    with torch.no_grad(), pytest.warns(UserWarning, match="a pass of its own"):
        losses = OwnLosses(whole)(model, BATCH)
    torch.testing.assert_close(losses, reference(model, BATCH, whole))


def test_a_loss_that_compares_samples_is_refused():
    def contrastive(model, batch):
        out = functional.normalize(model(**batch), dim=1)
        return functional.cross_entropy(out @ out.T, torch.arange(len(out)))

    with torch.no_grad(), pytest.raises(InputError) as error:
        OwnLosses(contrastive)(Linear(), BATCH)
    seen, expected, cause, fix = error.value.args
    assert "for a batch, and of 0 on average for its samples alone" in seen
    assert expected == "a loss of the batch that is an average over its samples"
    assert "compares the samples of a batch with each other" in cause
    assert fix == "pass loss=, a function of (model, batch) that returns one loss per sample"


def test_losses_that_are_not_finite_decide_nothing():
    def whole(model, batch):
        return functional.cross_entropy(model(**batch), batch["y"])

    losses, model = OwnLosses(whole), Linear()
    bad = {**BATCH, "x": BATCH["x"].index_fill(0, torch.tensor([2]), float("nan"))}
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error")
        first, second = losses(model, bad), losses(model, BATCH)
    assert torch.isnan(first).tolist() == [False, False, True, False, False, False]
    torch.testing.assert_close(second, reference(model, BATCH, whole))


def test_samples_without_a_label_have_no_loss():
    model, _ = CASES["question answering"]()
    starts, ends = torch.tensor([99, 5, 7, 99, 1, 6]), torch.tensor([99, 5, 7, 99, 1, 6])
    batch = {"input_ids": IDS, "start_positions": starts, "end_positions": ends}
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error")
        losses = OwnLosses(own)(model, batch)
    known = torch.tensor([1, 2, 4, 5])
    torch.testing.assert_close(losses[known], reference(model, batch)[known])
    assert losses[[0, 3]].tolist() == [0, 0]


def test_a_batch_of_one_sample():
    def whole(model, batch):
        return functional.mse_loss(model(**batch).squeeze(), batch["y"].float().squeeze())

    losses, model = OwnLosses(whole), Linear(1)
    one = batches.index(BATCH, torch.tensor([3]), B)
    with torch.no_grad():
        torch.testing.assert_close(losses(model, one), whole(model, one)[None])
        torch.testing.assert_close(losses(model, BATCH), reference(model, BATCH, whole))

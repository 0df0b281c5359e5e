"""``preflight``: whether a model that predicts the next token sees it, and other losses of probabilities."""

import pytest
import torch
from torch import nn
from watch_kit import outcome, rules

from loopwise.debug import preflight

F = nn.functional


class Language(nn.Module):
    """A model of tokens (8, 12) whose outputs have the classes in dimension 1, 2, or flattened positions."""

    def __init__(self, mixing, form=1):
        super().__init__()
        self.embed, self.mixing, self.form = nn.Embedding(11, 16), mixing, form
        self.head = nn.Linear(16, 11)

    def forward(self, x):
        y = self.head(self.mixing(self.embed(x)))
        return y.transpose(1, 2) if self.form == 1 else y.flatten(0, 1) if self.form == 0 else y


class Attention(nn.Module):
    def __init__(self, causal):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
        self.mask = nn.Transformer.generate_square_subsequent_mask(12) if causal else None

    def forward(self, x):
        return self.layer(x, src_mask=self.mask, is_causal=self.mask is not None)


class Recurrence(nn.Module):
    def __init__(self, both):
        super().__init__()
        self.layer = nn.GRU(16, 8 if both else 16, batch_first=True, bidirectional=both)

    def forward(self, x):
        return self.layer(x)[0]


def texts():
    tokens = torch.randint(11, (8, 13), generator=torch.Generator().manual_seed(0))
    return tokens[:, :-1], tokens[:, 1:]


def loss(model, batch):
    inputs, targets = batch
    output = model(inputs)
    if output.ndim == 3 and output.shape[1] == 11:
        return F.cross_entropy(output, targets)
    return F.cross_entropy(output.flatten(0, -2), targets.flatten())


def tried(model, batch):
    return preflight(model, batch, loss, torch.optim.Adam(model.parameters(), 1e-2), steps=20)


@pytest.mark.parametrize("make", [lambda: Attention(False), lambda: Recurrence(True)])
@pytest.mark.parametrize("form", [0, 1, 2])
def test_later_tokens_are_seen(make, form):
    torch.manual_seed(0)
    found = tried(Language(make(), form), texts())
    assert "output_sees_target" in rules(found)
    assert "at the first 6 positions change with the tokens of input 0 after them" in str(found).replace(
        "\n" + " " * 25, " "
    )


@pytest.mark.parametrize("make", [lambda: Attention(True), lambda: Recurrence(False)])
@pytest.mark.parametrize("form", [0, 1, 2])
def test_later_tokens_are_not_seen(make, form):
    torch.manual_seed(0)
    found = tried(Language(make(), form), texts())
    assert "output_sees_target" not in rules(found)
    assert outcome(found, "causality").outcome == "passed"


def test_targets_that_are_no_later_tokens_are_not_looked_at():
    torch.manual_seed(0)
    inputs, targets = texts()
    found = tried(Language(Attention(False)), (inputs, targets.flip(1)))
    assert "causality" not in {result.name for result in found.results}


def test_probabilities_in_a_divergence():
    torch.manual_seed(0)
    x, y = torch.randn(16, 5), F.one_hot(torch.arange(16) % 3, 3).float()
    model = nn.Sequential(nn.Linear(5, 32), nn.ReLU(), nn.Linear(32, 3), nn.Softmax(1))
    wrong = preflight(model, (x, y), nn.KLDivLoss(reduction="batchmean"))
    assert "kl_div expects log-probabilities, but gets outputs above 0" in str(wrong)
    model[-1] = nn.LogSoftmax(1)
    assert "loss_input" not in rules(preflight(model, (x, y), nn.KLDivLoss(reduction="batchmean")))

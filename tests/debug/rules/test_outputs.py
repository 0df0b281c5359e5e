"""Outputs of another shape or range, inputs, dropout and updates that lead nowhere, and targets of language models."""

import pytest
import torch
from torch import nn
from watch_kit import classes, net, numbers, train

F = nn.functional


# -- outputs of another shape or range --------------------------------------------------------------


def flat(step):
    x, y = numbers(1.0)(step)
    return x, y[:, 0]


@pytest.mark.parametrize("criterion", [F.mse_loss, F.smooth_l1_loss, F.huber_loss])
@pytest.mark.filterwarnings("ignore:Using a target size")
def test_outputs_that_the_loss_compares_with_all_targets(tmp_path, criterion):
    finding = train(tmp_path, net(1), flat, criterion, steps=3)["loss_input"]
    assert finding.what.endswith(
        "with the targets of other samples: it expands outputs of (32, 1) to (32, 32)"
    )


@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.filterwarnings("ignore:Using a target size")
def test_targets_that_stand_for_all_outputs_of_a_sample(tmp_path, outputs):
    assert "loss_input" not in train(tmp_path, net(outputs), numbers(1.0), F.mse_loss, steps=3)


@pytest.mark.filterwarnings("ignore:Using a target size")
def test_one_number_that_is_the_output_for_all_samples(tmp_path):
    class Mean(nn.Module):
        def __init__(self):
            super().__init__()
            self.value = nn.Parameter(torch.zeros(1))

        def forward(self, x):
            return self.value * 1.0

    assert "loss_input" not in train(tmp_path, Mean(), flat, F.mse_loss, steps=3)


@pytest.mark.parametrize("last", [nn.Tanh(), nn.ReLU(), nn.Hardtanh()])
@pytest.mark.parametrize(
    "criterion", [F.cross_entropy, lambda y, t: F.cross_entropy(y, t, label_smoothing=0.1)]
)
def test_logits_that_are_bounded(tmp_path, last, criterion):
    finding = train(tmp_path, net(3, last), classes, criterion, steps=3)["loss_input"]
    assert finding.what.endswith(f"gets the outputs of {type(last).__name__.lower()}")


def test_bounded_logits_of_a_binary_loss(tmp_path):
    def batch(step):
        x, y = classes(step)
        return x, F.one_hot(y, 3).float()

    criterion = F.binary_cross_entropy_with_logits
    assert "loss_input" in train(tmp_path, net(3, nn.Tanh()), batch, criterion, steps=3)


def test_logits_that_are_capped_by_a_scaled_tanh_are_usual(tmp_path):
    class Capped(nn.Module):
        def forward(self, x):
            return 30 * torch.tanh(x / 30)

    assert "loss_input" not in train(tmp_path, net(3, Capped()), classes, F.cross_entropy, steps=3)


def positive(step):
    x, _ = classes(step)
    return x, x[:, :1].abs().clamp(0, 1)


@pytest.mark.parametrize(
    ("last", "range"),
    [
        (nn.Sigmoid(), "from 0 to 1"),
        (nn.Tanh(), "from -1 to 1"),
        (nn.ReLU(), "above 0"),
        (nn.Softplus(), "above 0"),
    ],
)
def test_targets_that_outputs_cannot_reach(tmp_path, last, range):
    finding = train(tmp_path / "far", net(1, last), numbers(2.0), F.mse_loss, steps=3)["target_scale"]
    name = type(last).__name__.lower()
    assert finding.what.startswith("the targets are from -")
    assert finding.what.endswith(f", and the outputs those of {name}, {range}")
    assert finding.advice == f"leave {name} out after the last layer, or scale the targets into its range"
    assert "target_scale" not in train(tmp_path / "near", net(1, last), positive, F.mse_loss, steps=3)


# -- inputs, dropout and updates --------------------------------------------------------------------


@pytest.mark.parametrize(("mean", "found"), [(-1.0, True), (0.05, False)])
def test_inputs_that_hardly_differ_from_their_mean(tmp_path, mean, found):
    def batch(step):
        x, y = classes(step)
        return 0.02 * x + mean, y

    findings = train(tmp_path, net(), batch, F.cross_entropy, steps=4)
    assert ("input_not_normalized" in findings) == found
    if found:
        assert findings["input_not_normalized"].what.startswith(
            "the model's input is nearly constant: mean -"
        )


@pytest.mark.parametrize(("p", "found"), [(0.95, True), (0.8, False), (1.0, False)])
def test_dropout_of_nearly_everything(tmp_path, p, found):
    findings = train(tmp_path, net(32, nn.Dropout(p), nn.Linear(32, 3)), classes, F.cross_entropy, steps=3)
    assert ("over_regularization" in findings) == found
    if found:
        assert findings["over_regularization"].what == "3 drops nine values of ten, or more, in training"


def slow(optimizer):
    return lambda parameters: optimizer(parameters, 1e-6)


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
def test_updates_that_lead_nowhere(tmp_path, optimizer):
    findings = train(tmp_path, net(), classes, F.cross_entropy, steps=60, make=slow(optimizer))
    assert " updates moved no weight by more than 0." in findings["weight_update_ratio"].what
    assert "raise the learning rate" in findings["weight_update_ratio"].advice


def test_small_updates_with_a_falling_loss_are_usual(tmp_path):
    def make(parameters):
        return torch.optim.Adam(parameters, 5e-5)

    findings = train(tmp_path, net(), lambda step: classes(0), F.cross_entropy, steps=60, make=make)
    assert "weight_update_ratio" not in findings


def test_a_rate_that_falls_to_zero_has_moved_the_weights_before(tmp_path):
    rates = iter([0.05] * 10 + [1e-9] * 1000)

    class Falling(torch.optim.SGD):
        def step(self, closure=None):
            self.param_groups[0]["lr"] = next(rates)
            return super().step(closure)

    findings = train(tmp_path, net(), classes, F.cross_entropy, steps=60, make=lambda p: Falling(p, 0.05))
    assert "moved no weight" not in str(findings.get("weight_update_ratio"))


# -- targets of language models ---------------------------------------------------------------------


class Tokens(nn.Module):
    def __init__(self, last):
        super().__init__()
        self.embed, self.head, self.last = nn.Embedding(11, 16), nn.Linear(16, 11), last

    def forward(self, x):
        y = self.head(self.embed(x))
        return y.transpose(1, 2) if self.last else y


def test_few_positions_of_a_large_vocabulary_are_compared(monkeypatch, tmp_path):
    monkeypatch.setattr("loopwise.debug.signals.batch_outputs.MOST", 100)
    torch.manual_seed(0)
    assert "targets_are_inputs" in train(tmp_path / "same", Tokens(False), texts(0), token_loss, steps=3)
    assert "targets_are_inputs" not in train(tmp_path / "next", Tokens(False), texts(1), token_loss, steps=3)


def texts(shift, ignored=0):
    def batch(step):
        tokens = torch.randint(11, (8, 13), generator=torch.Generator().manual_seed(step))
        inputs, targets = tokens[:, :-1], tokens[:, shift : shift + 12].clone()
        targets[:, :ignored] = -100
        return inputs, targets

    return batch


def token_loss(output, target):
    output = output if output.shape[1] == 11 else output.transpose(1, 2)
    return F.cross_entropy(output, target)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize(
    ("shift", "ignored", "found"), [(0, 0, True), (0, 4, True), (0, 11, False), (1, 0, False)]
)
def test_targets_that_are_the_input(tmp_path, last, shift, ignored, found):
    torch.manual_seed(0)
    findings = train(tmp_path, Tokens(last), texts(shift, ignored), token_loss, steps=3)
    assert ("targets_are_inputs" in findings) == found

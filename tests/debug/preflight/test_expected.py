"""``preflight``: arguments that say what is expected, the values of losses, suppressions and baselines."""

import json

import pytest
import torch
from torch import nn
from watch_kit import rules

from loopwise.debug import preflight
from loopwise.errors import InputError

F = nn.functional
CROSS = nn.CrossEntropyLoss()


def texts(report):
    return {result.name: result.text for result in report.results}


def tried(model, batch, loss=CROSS, lr=1e-2, **options):
    return preflight(model, batch, loss, torch.optim.Adam(model.parameters(), lr), **options)


def digits():
    torch.manual_seed(0)
    return torch.randn(16, 6), torch.arange(16) % 3


def mlp(*more):
    return nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 3), *more)


# -- frozen parameters ------------------------------------------------------------------------------


def test_a_frozen_module_that_is_trained():
    assert texts(tried(mlp(), digits())).get("frozen") is None
    report = tried(mlp(), digits(), frozen=["0"])
    (finding,) = report.findings
    assert (finding.rule, finding.tensors) == ("frozen_parameter_changes", ("0.weight", "0.bias"))
    model = mlp()
    model[0].requires_grad_(False)
    report = tried(model, digits(), frozen="0")
    assert report.findings == []
    assert texts(report)["frozen"].startswith("2 frozen parameters stay the same in ")


class Moves(nn.Module):
    """A model that writes to a frozen parameter in forward()."""

    def __init__(self):
        super().__init__()
        self.inner, self.scale = nn.Linear(6, 3), nn.Parameter(torch.ones(6), requires_grad=False)

    def forward(self, x):
        if self.training:
            self.scale.data.mul_(0.99)
        return self.inner(x * self.scale)


def test_a_frozen_parameter_that_changes_silently():
    assert "frozen_parameter_changes" in rules(tried(Moves(), digits()))


# -- shapes, ranges, dimensions ---------------------------------------------------------------------


def test_the_expected_output():
    assert tried(mlp(), digits(), output_shape=(None, 3), output_range=(-50, None)).findings == []
    report = tried(mlp(), digits(), output_shape=(None, 4))
    assert "an output of shape (16, 3), not (None, 4)" in str(report)
    report = tried(mlp(), digits(), output_range=(0, 1))
    assert rules(report) == {"unexpected_output"}


class Sequential(nn.Module):
    """A recurrent network of (time, batch, features) with an output for each sample."""

    def __init__(self):
        super().__init__()
        self.inner, self.head = nn.GRU(6, 16), nn.Linear(16, 3)

    def forward(self, x):
        return self.head(self.inner(x)[0][-1])


@pytest.mark.parametrize(
    ("batch_dim", "text"),
    [
        (1, "replacing sample 1 changes no other sample's output"),
        (None, "batch_dim=None: inputs have no dimension of samples"),
        (0, "5 entries in the inputs' first dimension, but 12 targets"),
    ],
)
def test_the_dimension_of_samples(batch_dim, text):
    torch.manual_seed(0)
    report = tried(Sequential(), (torch.randn(5, 12, 6), torch.arange(12) % 3), batch_dim=batch_dim)
    assert report.findings == []
    assert texts(report)["samples"] == text


# -- backward against differences -------------------------------------------------------------------


class Square(torch.autograd.Function):
    """A square with a derivative of our choice."""

    @staticmethod
    def forward(ctx, x, factor):
        ctx.save_for_backward(x)
        ctx.factor = factor
        return x * x

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return ctx.factor * x * grad, None


class Squares(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.first, self.last, self.factor = nn.Linear(6, 16), nn.Linear(16, 3), factor

    def forward(self, x):
        return self.last(Square.apply(self.first(x), self.factor))


@pytest.mark.parametrize("factor", [2.0, 1.0])
def test_backward_written_by_hand(factor):
    torch.manual_seed(0)
    report = tried(Squares(factor), digits(), gradcheck=True)
    if factor == 2.0:
        assert report.findings == []
        assert texts(report)["gradcheck"].startswith("backward agrees with differences of the loss")
    else:
        (finding,) = report.findings
        assert (finding.rule, finding.tensors) == ("wrong_gradient", ("first.weight", "first.bias"))
    assert "gradcheck" not in texts(tried(Squares(factor), digits()))


# -- values of losses -------------------------------------------------------------------------------


def test_a_loss_that_is_no_single_number():
    report = tried(mlp(), digits(), nn.CrossEntropyLoss(reduction="none"))
    (finding,) = report.findings
    assert (finding.rule, finding.severity) == ("loss_not_scalar", "critical")
    assert finding.what == "the loss has the shape (16,); it must be a single number"


def test_a_softmax_that_the_graph_does_not_show():
    class Shares(nn.Module):
        def forward(self, x):
            return x.exp() / x.exp().sum(1, keepdim=True)

    report = tried(mlp(Shares()), digits())
    assert "loss_input" in rules(report)
    assert "outputs that are probabilities already" in str(report)


@pytest.mark.parametrize(("shift", "factor"), [(500.0, 1.0), (0.0, 1e-3)])
def test_targets_of_another_scale(shift, factor):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 1))
    batch = torch.randn(32, 6), shift + factor * torch.randn(32, 1)
    assert "output_scale" in rules(tried(model, batch, nn.MSELoss()))
    assert tried(model, (batch[0], torch.randn(32, 1)), nn.MSELoss()).findings == []


def test_a_batch_of_one_class():
    report = tried(mlp(), (digits()[0], torch.full((16,), 2)))
    assert rules(report) == {"one_class_batch"}
    assert "all 16 targets of the batch are of class 2" in str(report)


def test_a_target_among_the_inputs():
    torch.manual_seed(0)
    y = torch.arange(16) % 3
    model = nn.Linear(3, 3)
    with torch.no_grad():
        model.weight.copy_(5 * torch.eye(3))
    report = tried(model, (F.one_hot(y, 3).float(), y))
    assert rules(report) == {"low_initial_loss"}
    assert report.findings[0].severity == "info"


# -- known findings ---------------------------------------------------------------------------------


def mixing():
    class Mixes(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = mlp()
            self.unused = nn.Linear(3, 3)

        def forward(self, x):
            return self.inner(x - x.mean(0))

    torch.manual_seed(0)
    return Mixes()


def test_suppressions():
    assert rules(tried(mixing(), digits())) == {"samples_mixed", "missing_gradient"}
    report = tried(mixing(), digits(), suppress=["samples_mixed", "missing_gradient:inner"])
    assert rules(report) == {"missing_gradient"}
    assert {f.rule for f in report.suppressed} == {"samples_mixed"}
    assert ", 1 suppressed, in " in str(report)
    assert tried(mixing(), digits(), suppress=["samples_mixed", "missing_gradient:unused"]).findings == []


def test_a_baseline(tmp_path):
    path = tmp_path / "known.json"
    tried(mixing(), digits()).write_baseline(path)
    again = tried(mixing(), digits(), baseline=path)
    assert again.findings == []
    again.raise_if("info")
    again.write_baseline(path)  # keeps what is known
    model = mixing()
    model.other = nn.Linear(2, 2)
    (finding,) = tried(model, digits(), baseline=path).findings
    assert finding.rule == "missing_gradient"
    assert {"other.weight", "other.bias"} <= {*finding.tensors}


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", json.dumps({"preflight_baseline": 2, "findings": []}), "[" * 9999]
)
def test_files_that_are_no_baselines(tmp_path, content):
    path = tmp_path / "known.json"
    path.write_text(content)
    with pytest.raises(InputError, match="write_baseline"):
        tried(mlp(), digits(), baseline=path)

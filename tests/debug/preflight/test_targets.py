"""``preflight``: arguments of losses, inspected before torch fails on them, and bounds of losses."""

import pytest
import torch
from torch import nn

from loopwise.debug import preflight

CROSS = nn.CrossEntropyLoss()


def tried(model, inputs, targets, loss=CROSS):
    return preflight(model, (inputs, targets), loss, torch.optim.Adam(model.parameters(), 1e-3))


def mlp(outputs=3):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, outputs))


def test_targets_whose_lowest_loss_is_not_zero():
    smooth = nn.CrossEntropyLoss(label_smoothing=0.3)
    assert tried(mlp(), torch.randn(12, 6), torch.arange(12) % 3, smooth).findings == []
    shares = torch.full((12, 1), 0.5) + 0.1 * torch.randn(12, 1).clamp(-1, 1)
    assert tried(mlp(1), torch.randn(12, 6), shares, loss=nn.BCEWithLogitsLoss()).findings == []


@pytest.mark.parametrize(
    ("loss", "outputs", "targets", "what", "fix"),
    [
        (CROSS, 3, torch.arange(12) % 3 + 1, "class indices from 1 to 3, but 3 outputs", "targets - 1"),
        (CROSS, 3, torch.arange(12) % 7, "class indices from 0 to 6, but 3 outputs", "7 outputs"),
        (CROSS, 3, torch.arange(12) % 3 - 1, "class indices from -1 to 1", "ignore_index=-1"),
        (CROSS, 3, torch.full((12,), -100), "all targets are -100", "masked"),
        (CROSS, 3, (torch.arange(12) % 3).int(), "class indices of dtype int32", "targets.long()"),
        (CROSS, 3, (torch.arange(12) % 3).float(), "class indices of dtype float32, shape (12,)", "targets.long()"),
        (CROSS, 3, torch.zeros(12, 1).long(), "targets (12, 1) for outputs (12, 3)", "targets.squeeze()"),
        (CROSS, 3, torch.eye(3).repeat(4, 1).long(), "targets (12, 3) for outputs (12, 3)", "argmax(1)"),
        (CROSS, 1, torch.zeros(12).long(), "cross_entropy of one class", "binary_cross_entropy_with_logits"),
        (nn.BCEWithLogitsLoss(), 1, torch.zeros(12), "outputs (12, 1) for targets (12,)", "unsqueeze(-1)"),
        (nn.BCEWithLogitsLoss(), 1, torch.full((12, 1), 2.0), "targets from 2 to 2", "from 0 to 1"),
    ],
)  # fmt: skip
def test_targets_are_inspected_before_torch_fails(loss, outputs, targets, what, fix):
    report = tried(nn.Linear(6, outputs), torch.randn(12, 6), targets, loss=loss)
    (finding,) = report.findings
    assert (finding.rule, finding.severity) == ("bad_targets", "critical")
    assert what in finding.what
    assert fix in finding.advice


@pytest.mark.filterwarnings("ignore:Using a target size")
def test_a_loss_that_broadcasts():
    report = tried(nn.Linear(6, 1), torch.randn(12, 6), torch.randn(12), loss=nn.MSELoss())
    assert "each is compared with all others" in report.findings[0].what


def test_valid_targets():
    soft = torch.rand(12, 3).softmax(1)
    assert tried(mlp(), torch.randn(12, 6), soft).findings == []
    ignoring = nn.CrossEntropyLoss(ignore_index=-1)
    assert tried(mlp(), torch.randn(12, 6), torch.arange(12) % 3 - 1, loss=ignoring).findings == []
    own = tried(mlp(1), torch.randn(12, 6), torch.ones(1), loss=lambda out, y: (out - y).square())
    assert (own.results[1].name, own.results[1].outcome) == ("targets", "left out")

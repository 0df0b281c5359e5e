"""Prediction of memory from allocations, not from a line through two peaks."""

import torch
from torch import nn

from loopwise.compile import Plan, TrainStep, batch_size, fit


def test_the_peak_moves_from_gradients_to_activations_and_is_predicted(monkeypatch):
    """Gradients of large weights make the peak of few samples, activations that of many: no line fits both."""
    monkeypatch.setattr(batch_size, "seconds", lambda *_, **__: {"": [1.0]})  # larger is always better
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(8, 64), nn.GELU(), nn.Linear(64, 512), nn.GELU(), nn.Linear(512, 512), nn.GELU()
    )
    net.append(nn.Linear(512, 3))
    step = TrainStep(net, nn.CrossEntropyLoss(), torch.optim.SGD(net.parameters(), 0.1), plan=Plan())
    result = fit(step, (torch.randn(64, 8), torch.arange(64) % 3), largest=1024)
    peaks = [size.peak / size.samples for size in result.sizes]
    assert peaks[0] > 2 * peaks[-1]  # not proportional
    predicted_sizes = [size for size in result.sizes if size.predicted is not None]
    assert len(predicted_sizes) > 2
    for size in predicted_sizes:
        assert abs(size.predicted / size.peak - 1) < 0.01, size


def test_a_size_with_other_allocations_is_predicted_by_the_line_of_the_peaks():
    from loopwise.compile.batch_size import Size, _predicted

    sizes = [Size(2, 1.0, 100, None, [100]), Size(4, 1.0, 160, None, [100, 60])]
    assert _predicted(sizes, 8) == 280

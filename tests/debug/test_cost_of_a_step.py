"""A step of which only scalars are saved costs few calls, whatever the clock says on a busy machine."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import loopwise
from loopwise.debug import Watch

OURS = tuple(
    str(Path(folder).resolve()) for folder in (*loopwise.__path__, Path(loopwise.debug.__file__).parent)
)
CALLS = 215
"""Calls of functions of ours in such a step; 199 when this was written, and 463 before."""


def step(net, optimizer, watched):
    optimizer.zero_grad()
    loss = net(torch.ones(4, 8)).square().mean()
    loss.backward()
    optimizer.step()
    watched.step(loss=loss)


def counted(files, run, *arguments):
    """Return the number of calls of functions in some files that a call makes."""
    calls = 0

    def count(frame, event, argument):
        nonlocal calls
        calls += event == "call" and frame.f_code.co_filename.startswith(files)

    sys.setprofile(count)
    run(*arguments)
    sys.setprofile(None)
    return calls


class Unwatched:
    def step(self, loss):
        pass


@pytest.mark.parametrize("layers", [4, 40])
def test_neither_layers_nor_evaluations_make_a_step_cost_more(tmp_path, layers):
    torch._dynamo.utils.counters.clear()  # hooks stay on modules once something was compiled in this process
    parts = [part for _ in range(layers) for part in (nn.Linear(8, 8), nn.Dropout(0.1))]
    net, files = nn.Sequential(*parts), (*OURS, str(Path(torch.__file__).parent))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)

    def evaluate():
        with torch.no_grad():
            net(torch.ones(4, 8))

    def counts(watched):
        training = min(counted(files, step, net, optimizer, watched) for _ in range(3))
        evaluate()
        return training, min(counted(files, evaluate) for _ in range(3))

    bare = counts(Unwatched())
    with Watch(net, optimizer, run=tmp_path / "run", on_finding=lambda finding: None) as watched:
        for _ in range(12):
            step(net, optimizer, watched)
        training, evaluation = (with_ours - own for with_ours, own in zip(counts(watched), bare, strict=True))
    assert training < 300  # 218 when this was written, and 364 and 1,520 before
    assert evaluation < 60  # 33, and 127 and 883 before


def test_a_step_that_is_not_saved_makes_few_calls(tmp_path):
    net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 10))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with Watch(net, optimizer, run=tmp_path / "run", on_finding=lambda finding: None) as watched:
        for _ in range(12):
            step(net, optimizer, watched)
        counts = [counted(OURS, step, net, optimizer, watched) for _ in range(7)]  # steps 12 to 18
    assert 50 < min(counts) <= CALLS  # others also hand scalars over, or close a row of the profile

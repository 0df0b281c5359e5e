"""A step of which only scalars are saved costs few calls, whatever the clock says on a busy machine."""

import sys
from pathlib import Path

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


def test_a_step_that_is_not_saved_makes_few_calls(tmp_path):
    net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 10))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    counts = []

    def count(frame, event, argument):
        counts[-1] += event == "call" and frame.f_code.co_filename.startswith(OURS)

    with Watch(net, optimizer, run=tmp_path / "run", on_finding=lambda finding: None) as watched:
        for _ in range(12):
            step(net, optimizer, watched)
        for _ in range(7):  # steps 12 to 18
            counts.append(0)
            sys.setprofile(count)
            step(net, optimizer, watched)
            sys.setprofile(None)
    assert 50 < min(counts) <= CALLS  # others also hand scalars over, or close a row of the profile

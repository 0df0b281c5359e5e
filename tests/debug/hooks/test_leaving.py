"""Watched models that leave the process or become other objects do so as if nobody watched them."""

import copy
import subprocess
import warnings

import forks
import pytest
import torch
from torch import nn

from loopwise.debug import Watch, every, open_run

EVERYTHING = ["losses", "weights", "inputs", "outputs", "gradients", "health"]


@pytest.fixture
def watched(tmp_path):
    """Yield a model, its optimizer and the function that trains it a step, under a Watch."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with Watch(
        net, optimizer, run=tmp_path / "run", save=every(1), collections=EVERYTHING, profile=False
    ) as watch:

        def train():
            optimizer.zero_grad()
            loss = net(torch.randn(8, 4)).square().mean()
            loss.backward()
            optimizer.step()
            watch.step(loss=loss)

        train()
        yield net, optimizer, train
        train()
    saved = open_run(tmp_path / "run")
    assert saved.events == []
    assert all(saved.has("0.output.0", step) for step in saved.steps())
    assert not any("#" in name for name in saved.names())


LOAD = """
import sys
sys.modules["loopwise"] = None
import torch
for path in sys.argv[1:]:
    loaded = torch.load(path, weights_only=False)
model = torch.load(sys.argv[1], weights_only=False)
print(tuple(model(torch.ones(2, 4)).shape), tuple(model(input=torch.ones(1, 4)).shape))
"""


def test_models_and_optimizers_are_saved_and_loaded_without_loopwise(watched, tmp_path):
    net, optimizer, _ = watched
    torch.save(net, tmp_path / "net.pt")
    torch.save(copy.deepcopy(net), tmp_path / "copy.pt")
    torch.save(optimizer, tmp_path / "optimizer.pt")
    paths = [str(tmp_path / name) for name in ("net.pt", "copy.pt", "optimizer.pt")]
    done = subprocess.run([forks.python(), "-c", LOAD, *paths], capture_output=True, text=True)
    assert done.stdout == "(2, 3) (1, 3)\n", done.stderr


@pytest.mark.filterwarnings(
    "ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning"
)
@pytest.mark.parametrize(
    "way",
    [torch.jit.script, lambda net: torch.jit.trace(net, torch.ones(6, 4), check_trace=False)],
    ids=["script", "trace"],
)
def test_scripted_and_traced_models_are_those_of_the_model(watched, way):
    net, _, train = watched
    made = way(net)
    assert torch.equal(made(torch.ones(2, 4)), copy.deepcopy(net)(torch.ones(2, 4)))
    assert "loopwise" not in made.code
    train()


def test_hooks_that_conversion_moves_to_other_modules_do_nothing(watched):
    net, _, train = watched
    other = nn.Linear(4, 8)
    for hook in net[0]._forward_pre_hooks.values():  # as torch.ao.quantization.convert does
        other.register_forward_pre_hook(hook)
    for hook in net[0]._forward_hooks.values():
        other.register_forward_hook(hook)
    assert other(torch.ones(2, 4)).shape == (2, 8)
    train()


def test_a_copy_trains_without_being_saved(watched):
    net, _, train = watched
    other = copy.deepcopy(net)
    other_optimizer = torch.optim.SGD(other.parameters(), lr=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        other(torch.ones(2, 4)).sum().backward()
        other_optimizer.step()
    train()

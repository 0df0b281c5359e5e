"""Activation checkpointing in captured graphs: the random states of the forward pass are kept."""

import copy
import functools
import inspect
import warnings

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from loopwise.compile import Plan, optimize
from loopwise.compile.graph.backend import Backend, Log

pytestmark = pytest.mark.filterwarnings("ignore:Detected that context_fn", "ignore:None of the inputs have")


def save_products(context, operator, *args, **kwargs):
    return CheckpointPolicy.MUST_SAVE if "addmm" in str(operator) else CheckpointPolicy.PREFER_RECOMPUTE


class Net(nn.Module):
    """Two checkpointed blocks with dropout, in one checkpointed function."""

    def __init__(self, **options):
        super().__init__()
        self.options = options
        blocks = [[nn.Linear(8, 64), nn.GELU(), nn.Dropout(), nn.Linear(64, 8)] for _ in range(2)]
        self.blocks = nn.ModuleList(nn.Sequential(*layers) for layers in blocks)

    def inner(self, x):
        for block in self.blocks:
            x = x + checkpoint(block, x, **self.options)
        return x

    def forward(self, x):
        return checkpoint(self.inner, x, **self.options)


SELECTIVE = functools.partial(create_selective_checkpoint_contexts, save_products)


@pytest.mark.parametrize(
    "options",
    [
        {"use_reentrant": False},
        {"use_reentrant": True},
        {"use_reentrant": False, "context_fn": SELECTIVE},
        {"use_reentrant": False, "preserve_rng_state": False},
    ],
    ids=["ordinary", "reentrant", "selective", "other draws"],
)
def test_gradients_of_a_captured_graph_with_checkpointing_and_dropout(options):
    net, x = Net(**options), torch.randn(4, 8, requires_grad=True)
    log, results = Log(), []
    captured = copy.deepcopy(net)
    captured.compile(backend=Backend(Plan(graph="captured"), log))
    for model in (net, captured):
        torch.manual_seed(1)
        loss = model(x).square().sum()
        loss.backward()
        gradients = [parameter.grad for parameter in model.parameters()]
        results.append((loss, gradients, torch.rand(1)))
    assert log.graphs == 1
    for mine, expected in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(mine, expected)


class Held(nn.Module):
    """Block that is checkpointed by a function that the model holds, as in the models of Hugging Face."""

    def __init__(self):
        super().__init__()
        self.run = functools.partial(checkpoint, use_reentrant=False)
        self.block = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))

    def forward(self, x):
        return self.run(self.block, x)


def test_the_mark_of_dynamo_on_checkpoint_is_no_change_of_the_step():
    """TRL's trainers checkpoint by default, and were never compiled: torch marks the function when it is first called."""
    vars(inspect.unwrap(checkpoint)).pop("__dynamo_disable", None)
    net = optimize(Held(), plan=Plan(graph="inductor"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        net(torch.randn(4, 8)).square().mean().backward()

"""Settings of Dynamo that make a captured step do what the eager one does, and that the user's own code never gets."""

import threading

import numpy as np
import pytest
import torch
from torch import nn

from loopwise.compile import Plan, TrainStep
from loopwise.compile.graph.backend import Log, compile_function

CAPTURED = Plan(graph="captured")
NAMES = ("use_numpy_random_stream", "allow_unspec_int_on_nn_module")


def present():
    return [getattr(torch._dynamo.config, name) for name in NAMES]


@pytest.fixture(autouse=True)
def _fresh():
    torch._dynamo.reset()


def test_draws_of_numpy_are_those_of_the_eager_step():
    """Dynamo captured them as draws of torch, and the step was refused or trained on other masks."""

    def loss(model, batch):
        mask = torch.from_numpy(np.random.rand(4, 3) < 0.5)
        return nn.functional.cross_entropy(model(batch[0] * mask), batch[1])

    losses = []
    for plan in (Plan(), CAPTURED):
        torch.manual_seed(0)
        model, batch = nn.Linear(3, 5), (torch.randn(4, 3), torch.arange(4))
        step = TrainStep(model, loss, torch.optim.SGD(model.parameters(), 0.1), plan=plan)
        step.prepare(batch)
        np.random.seed(3)
        losses.append([step(batch).item() for _ in range(4)])
    assert step.plan == CAPTURED, step.explain()
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_settings_are_on_while_dynamo_captures_and_at_no_other_time():
    seen = []

    def look(x):
        seen.append(present())
        return x + 1

    outside = present()
    function = torch.compiler.disable(look)
    assert compile_function(lambda x: function(x) * 2, CAPTURED, Log())(torch.ones(2)).tolist() == [4, 4]
    assert seen == [outside] == [[False, False]]
    assert present() == outside


def test_what_the_user_compiles_meanwhile_keeps_its_settings():
    """A thread of a data loader may compile the user's own function while ours runs."""
    seen = []

    def backend(gm, inputs):
        seen.append(present())
        return gm.forward

    def compile_elsewhere(x):
        thread = threading.Thread(target=torch.compile(lambda x: x * 3, backend=backend), args=(x,))
        thread.start()
        thread.join()
        return x

    outside = torch.compiler.disable(compile_elsewhere)
    compile_function(lambda x: outside(x * 2) + 1, CAPTURED, Log())(torch.ones(2))
    assert seen == [[False, False]]

"""A form draws the random numbers that the eager step draws, no more and no fewer."""

import pytest
import torch
from torch import nn

from loopwise.compile import Plan, TrainStep
from loopwise.compile.graph.passes import PASSES


@pytest.mark.parametrize("draws", ["more", "fewer"])
def test_a_form_that_draws_another_number_of_random_numbers_is_wrong(monkeypatch, draws):
    """Its results are right, but what the model or the data draw later would be others."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(6, 3)

        def forward(self, x):
            return self.layer(x) + 0 * torch.rand(3)

    def planted(gm):
        for node in list(gm.graph.nodes):
            if node.target is torch.rand:
                with gm.graph.inserting_after(node):
                    new = gm.graph.call_function(torch.ones if draws == "fewer" else torch.rand, (3,))
                if draws == "fewer":
                    node.replace_all_uses_with(new)
                    gm.graph.erase_node(node)
        gm.recompile()
        return []

    monkeypatch.setitem(PASSES, "loss_head", planted)
    plan, net = Plan(graph="captured", passes=("loss_head",)), Net()
    step = TrainStep(net, nn.CrossEntropyLoss(), torch.optim.SGD(net.parameters(), 0.1), plan=plan)
    step.prepare((torch.randn(16, 6), torch.arange(16) % 3))
    assert step.plan.graph == "eager"
    assert "its random draws are not those of the eager step" in str(step.explain())

"""Copies and pickles of a training step, and of modules that hold one, train their own weights."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn

from loopwise.compile import Plan, TrainStep

CE = nn.CrossEntropyLoss()
CAPTURED = Plan(graph="captured")


class Holder(nn.Module):
    """Module that holds the step of its own network."""

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(8, 3)
        self.step = TrainStep(self.net, CE, plan=CAPTURED)


def own_loss(model, batch):
    return model.shared(batch)


class Selfish(nn.Module):
    """Module that holds a step of itself."""

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(8, 3)
        self.step = TrainStep(self, own_loss, plan=CAPTURED)

    def shared(self, batch):
        return CE(self.net(batch[0]), batch[1])


def batch():
    torch.manual_seed(1)
    return torch.randn(16, 8), torch.arange(16) % 3


def through_pickle(value):
    return pickle.loads(pickle.dumps(value))


def through_torch_save(value):
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


WAYS = [copy.deepcopy, through_pickle, through_torch_save]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("trained", [False, True])
def test_the_step_of_a_copied_module_trains_the_copy(way, trained):
    torch.manual_seed(0)
    holder = Holder()
    if trained:
        holder.step.forward(batch()).backward()
        holder.zero_grad()
    fold = way(holder)
    assert fold.step.spec.model is fold.net
    fold.step.forward(batch()).backward()
    assert fold.net.weight.grad is not None
    assert holder.net.weight.grad is None
    assert fold.step.plan == CAPTURED


@pytest.mark.parametrize("way", WAYS)
def test_a_copied_step_goes_on_as_the_original_would(way):
    torch.manual_seed(0)
    net = nn.Linear(8, 3)
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1)
    step = TrainStep(net, CE, optimizer, plan=CAPTURED, accumulate=2)
    for _ in range(3):
        step(batch())
    twin = way(step)
    before = [p.detach().clone() for p in net.parameters()]
    for _ in range(3):
        twin(batch())
    assert all(map(torch.equal, before, net.parameters()))
    for _ in range(3):
        step(batch())
    assert all(map(torch.equal, twin.spec.model.parameters(), net.parameters()))


def test_a_module_that_holds_a_step_of_itself_is_copied():
    torch.manual_seed(0)
    module = Selfish()
    twin = copy.deepcopy(module)
    assert twin.step.spec.model is twin
    twin.step.forward(batch()).backward()
    assert twin.net.weight.grad is not None
    assert module.net.weight.grad is None


def test_the_state_dict_of_a_module_that_holds_a_step_is_that_of_its_network():
    assert list(Holder().state_dict()) == ["net.weight", "net.bias"]

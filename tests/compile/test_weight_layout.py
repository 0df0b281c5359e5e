"""Weights change their memory format only together with everything that keeps state of them."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from loopwise.compile import Plan, TrainStep
from loopwise.compile.search import optimizers

CE = nn.CrossEntropyLoss()
CHANNELS_LAST = Plan(layout="channels_last", optimizer="fused")


def network():
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 8, 3), nn.Flatten(), nn.Linear(8 * 16, 3)
    return nn.Sequential(*layers)


def batches(count):
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(8, 3, 8, 8, generator=generator), torch.arange(8) % 3) for _ in range(count)]


def train(net, optimizer, data):
    for x, y in data:
        optimizer.zero_grad()
        CE(net(x), y).backward()
        optimizer.step()


def distance(net, other, start):
    """Return how far two networks are apart, as a share of what the first one has moved."""
    flat = [torch.cat([p.detach().flatten() for p in one.parameters()]) for one in (net, other, start)]
    return float((flat[0] - flat[1]).norm() / (flat[0] - flat[2]).norm())


def resumed(fused):
    """Return a network and its optimizer with the moments of ten ordinary batches, as loaded from a checkpoint."""
    net = network()
    optimizer = torch.optim.AdamW(net.parameters(), 1e-3, fused=fused)
    train(net, optimizer, batches(10))
    fresh = torch.optim.AdamW(net.parameters(), 1e-3, fused=fused)
    fresh.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    return net, fresh


@pytest.mark.parametrize("fused", [None, True])
def test_moments_that_are_older_than_the_layout_follow_it(fused):
    """A fused update on a CPU walks over the memory: moments in another order trained wrong, without a word."""
    plain, optimizer = resumed(fused)
    ours, other = resumed(fused)
    start, data = copy.deepcopy(plain), batches(20)[10:]
    train(plain, optimizer, data)
    step = TrainStep(ours, CE, other, plan=CHANNELS_LAST)
    for batch in data:
        step(batch)
    assert ours[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert distance(plain, ours, start) < 1e-4
    assert step.verify(data[0], steps=5) is None


def test_a_checkpoint_that_is_loaded_later_follows_the_layout_too():
    plain, optimizer = resumed(True)
    ours, other = resumed(True)
    start, data = copy.deepcopy(plain), batches(20)[10:]
    step = TrainStep(ours, CE, other, plan=CHANNELS_LAST)
    step(data[0])
    ours.load_state_dict(plain.state_dict())
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(plain, optimizer, data)
    for batch in data:
        step(batch)
    assert distance(plain, ours, start) < 1e-4


def test_the_layout_stays_where_a_framework_holds_the_optimizer():
    net = network()
    step = TrainStep(net, CE, plan=Plan(layout="channels_last"))
    step.forward(batches(1)[0]).backward()
    assert net[0].weight.is_contiguous()
    assert "channels_last is left off: the optimizer's state, which a framework holds" in str(step.explain())


def test_the_layout_stays_under_ddp(monkeypatch, tmp_path):
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        net = network()
        wrapped = DistributedDataParallel(net)
        optimizer = torch.optim.SGD(net.parameters(), 0.1)
        step = TrainStep(wrapped, CE, optimizer, plan=Plan(layout="channels_last"))
        step(batches(1)[0])
    finally:
        torch.distributed.destroy_process_group()
    assert net[0].weight.is_contiguous()
    assert "DDP's buckets" in str(step.explain())


def test_an_implementation_that_a_plan_remembers_is_compared(monkeypatch):
    real = optimizers.switch

    def broken(optimizer, implementation):
        real(optimizer, implementation)
        if implementation == "foreach":
            optimizer.param_groups[0]["lr"] *= 2

    monkeypatch.setattr(optimizers, "switch", broken)
    net = network()
    step = TrainStep(net, CE, torch.optim.AdamW(net.parameters(), 1e-3), plan=Plan(optimizer="foreach"))
    step(batches(1)[0])
    assert step.plan.optimizer == "as_is"
    assert "foreach optimizer refused: its update is off by" in str(step.explain())

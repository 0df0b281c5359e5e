"""Repeated blocks of many models: compiled once for each kind, with the results of the eager step."""

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from loopwise.compile import Plan, TrainStep
from loopwise.compile.graph import regions
from loopwise.compile.graph.backend import Backend, Log


class Block(nn.Module):
    def __init__(self, width=8, dropout=0.0):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 16), nn.Linear(16, width)
        self.drop = nn.Dropout(dropout)

    def forward(self, x):
        y = self.norm(x)
        y = F.gelu(self.up(y)) * torch.sigmoid(self.up(y))
        return x + self.drop(self.down(y))


class Stack(nn.Module):
    def __init__(self, blocks, width=8):
        super().__init__()
        self.embed, self.blocks, self.head = (
            nn.Embedding(11, width),
            nn.ModuleList(blocks),
            nn.Linear(width, 5),
        )

    def forward(self, tokens):
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(1))


class Bottle(nn.Module):
    """Block of a ResNet: statistics in buffers, activations in place."""

    def __init__(self, width):
        super().__init__()
        self.one, self.two = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
        self.first, self.second = nn.BatchNorm2d(width), nn.BatchNorm2d(width)

    def forward(self, x):
        y = F.relu_(self.first(self.one(x)))
        y = self.second(self.two(y))
        y += x
        return F.relu_(y)


def tokens():
    torch.manual_seed(1)
    return torch.randint(0, 11, (3, 4)), torch.arange(3) % 5


def stages():
    """Return two stages of different width, numbered inside a numbered ``Sequential``."""
    body = [nn.Conv2d(3, 4, 1), nn.Sequential(*(Bottle(4) for _ in range(3)))]
    body += [nn.Conv2d(4, 6, 1), nn.Sequential(*(Bottle(6) for _ in range(3)))]
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5))


def images():
    torch.manual_seed(1)
    return torch.randn(2, 3, 6, 6), torch.arange(2)


def regions_of(model, batch):
    """Return the regions of the captured training step and the graphs that were compiled."""
    cut, compiled = [], []

    def compiler(gm, inputs):
        compiled.append(gm)
        return gm.forward

    def backend(gm, inputs):
        cut.extend(parts := regions.split(gm))
        return regions.compile_regions(gm, inputs, parts, compiler) if parts else gm.forward

    criterion = nn.CrossEntropyLoss()
    twin = copy.deepcopy(model)
    torch._dynamo.reset()

    @torch.compile(backend=backend, fullgraph=True)
    def loss_of(x, y):
        return criterion(twin(x), y)

    torch.manual_seed(2)
    expected = criterion(model(batch[0]), batch[1])
    torch.manual_seed(2)
    loss = loss_of(*batch)
    for value in (expected, loss):
        value.backward()
    torch.testing.assert_close(loss, expected, rtol=0, atol=0)
    for (name, mine), theirs in zip(twin.named_parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=0, atol=0, msg=name)
    torch.testing.assert_close(dict(twin.named_buffers()), dict(model.named_buffers()), rtol=0, atol=0)
    return cut, compiled


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_equal_blocks_are_compiled_once(dropout):
    cut, compiled = regions_of(Stack([Block(dropout=dropout) for _ in range(5)]), tokens())
    assert [region.repeated for region in cut] == [False, *[True] * 5, False]
    assert len(compiled) == 1  # embedding and head are small


class Reshaping(Stack):
    """Model whose head has many operations, but only two that compute, the loss among them; three with ``more``."""

    def __init__(self, blocks, more):
        super().__init__(blocks)
        self.more = more

    def forward(self, tokens):
        x = tokens.flatten().view(3, 4)
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        x = x.flatten(1).view(3, 4, 8).transpose(1, 2).transpose(1, 2).contiguous()
        if self.more:
            x = F.relu(x)
        return self.head(x.flatten(1).view(3, 4, 8)[:, 0])


@pytest.mark.parametrize("more", [False, True])
def test_a_region_with_nothing_to_fuse_is_left_to_eager_kernels(more):
    _, compiled = regions_of(Reshaping([Block() for _ in range(4)], more), tokens())
    assert len(compiled) == 1 + more


def test_stages_of_different_width_are_kinds_of_their_own():
    cut, compiled = regions_of(stages(), images())
    assert sum(region.repeated for region in cut) == 6
    assert len(compiled) == 2


def test_a_block_that_differs_is_compiled_with_its_neighbours():
    blocks = [Block() for _ in range(5)]
    blocks[2] = nn.Sequential(nn.Linear(8, 8), *(nn.Tanh() for _ in range(7)))
    cut, compiled = regions_of(Stack(blocks), tokens())
    assert [region.repeated for region in cut] == [False, True, True, False, True, True, False]
    assert len(compiled) == 2


def test_a_frozen_block_is_another_kind():
    model = Stack([Block() for _ in range(6)])
    model.blocks[1].requires_grad_(False)
    cut, _ = regions_of(model, tokens())
    assert len({region.key for region in cut if region.repeated}) == 1
    assert sum(region.repeated for region in cut) == 5


def test_tied_blocks_are_the_same_kind():
    shared = Block()
    cut, compiled = regions_of(Stack([shared, Block(), shared, Block()]), tokens())
    assert sum(region.repeated for region in cut) == 4
    assert len(compiled) == 1


def test_few_equal_operations_are_not_worth_cutting():
    model = nn.Sequential(*(nn.Sequential(nn.Linear(4, 4), nn.ReLU()) for _ in range(6)), nn.Linear(4, 5))
    assert regions_of(model, (torch.randn(3, 4), torch.arange(3)))[0] == []


def test_a_model_without_repetition_is_left_whole():
    model = Stack([Block()])
    assert regions_of(model, tokens())[0] == []


def test_a_mode_that_spans_regions_forbids_cutting():
    class Around(Stack):
        def forward(self, tokens):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return super().forward(tokens).float()

    assert regions_of(Around([Block() for _ in range(4)]), tokens())[0] == []


def test_a_mode_entered_and_left_inside_a_region_is_allowed():
    class Positions(Stack):
        def forward(self, tokens):
            with torch.no_grad():
                places = torch.linspace(0, 1, 8).sin().exp() * 2 + 1
            x = self.embed(tokens) * places
            for block in self.blocks:
                x = block(x)
            return self.head(x.mean(1))

    cut, _ = regions_of(Positions([Block() for _ in range(4)]), tokens())
    assert sum(region.repeated for region in cut) == 4


def test_a_graph_of_any_size_is_left_whole():
    cut, model = [], Stack([Block() for _ in range(4)])

    def backend(gm, inputs):
        cut.append(regions.split(gm))
        return gm.forward

    compiled = torch.compile(lambda x: model(x).sum(), backend=backend, dynamic=True)
    compiled(tokens()[0])
    assert cut == [[]]


def test_the_backend_logs_the_blocks_compiled_once():
    log = Log()
    model = Stack([Block() for _ in range(6)])
    backend = Backend(Plan(graph="inductor", regions=True), log)
    backend._by_inductor = lambda gm, inputs: gm.forward
    x, y = tokens()
    torch.compile(lambda: F.cross_entropy(model(x), y), backend=backend)().backward()
    assert log.regions == ["6 repeated blocks, 1 compiled: 9 of 58 operations"]


def test_a_step_by_inductor_trains_as_eager():
    """Train by the real compiler, dropout included: same losses, same parameters."""
    torch.manual_seed(0)
    model = Stack([Block(dropout=0.2) for _ in range(4)])
    twin, batch = copy.deepcopy(model), tokens()
    losses, plan = [], Plan(graph="inductor", regions=True)
    for net, chosen in ((model, plan), (twin, Plan())):
        step = TrainStep(net, nn.CrossEntropyLoss(), torch.optim.SGD(net.parameters(), 0.1), plan=chosen)
        step.prepare(batch)
        torch.manual_seed(3)
        losses.append([step(batch).item() for _ in range(4)])
    assert step.plan == Plan()
    torch.testing.assert_close(*losses, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(dict(model.named_parameters()), dict(twin.named_parameters()))


def test_ddp_with_a_graph_for_each_bucket_is_not_cut(ranks):
    """DDP's optimizer asks AOTAutograd about each bucket's graph, which failed for a graph cut into regions."""
    code = f"""
    import copy, sys
    from torch import nn
    from torch._dynamo.backends.debugging import aot_eager
    from torch.nn.parallel import DistributedDataParallel
    sys.path.insert(0, {str(Path(__file__).parent)!r})
    from test_regions import Backend, Block, Plan, Stack, TrainStep
    Backend._by_inductor = lambda self, gm, inputs: aot_eager(gm, inputs)
    torch.manual_seed(0)
    net = Stack([Block(1024) for _ in range(14)], 1024)
    losses = []
    for plan in (Plan(), Plan(graph="inductor", regions=True)):
        model = DistributedDataParallel(copy.deepcopy(net), bucket_cap_mb=1.1)
        step = TrainStep(model, nn.CrossEntropyLoss(), torch.optim.SGD(model.parameters(), 0.1), plan=plan)
        losses.append([step((torch.arange(12).view(3, 4) % 11, torch.arange(3))).item() for _ in range(3)])
    assert step.plan == plan, step.explain()
    print(json.dumps([losses, step._forward_pass.log.regions]))
    """
    for losses, lines in ranks(code):
        assert losses[1] == pytest.approx(losses[0], rel=1e-5)
        assert lines == []

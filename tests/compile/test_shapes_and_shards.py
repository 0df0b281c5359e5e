"""Batches of changing sizes, and blocks compiled before they are sharded."""

import pytest
import torch
from torch import nn

from loopwise.compile import Plan, TrainStep
from loopwise.compile.search.variants import MANY, RARE

CRITERION = nn.CrossEntropyLoss()
CAPTURED = Plan(graph="captured", passes=("loss_head",))


class Reader(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.body, self.head = nn.Embedding(11, 8), nn.Linear(8, 8), nn.Linear(8, 5)

    def forward(self, tokens):
        return self.head(torch.tanh(self.body(self.embed(tokens))).mean(1))


def texts(lengths):
    draws = torch.Generator().manual_seed(1)
    return [(torch.randint(0, 11, (6, n), generator=draws), torch.arange(6) % 5) for n in lengths]


def trained(plan, data):
    torch.manual_seed(0)
    net = Reader()
    step = TrainStep(net, CRITERION, torch.optim.SGD(net.parameters(), 0.1), plan=plan)
    losses = [step(batch).item() for batch in data]
    return step, losses


def test_a_short_last_batch_costs_no_compilation():
    data = texts([9, 9, 9]) + [(x[:2], y[:2]) for x, y in texts([9])]
    step, _ = trained(CAPTURED, data * (RARE // 2))
    assert step._forward_pass.log.graphs == 1


def test_lengths_that_change_all_the_time_are_compiled_for_any_length():
    lengths = [9, *(5 + i * 7 % 31 for i in range(MANY + 25))]
    assert max(lengths.count(n) for n in lengths) < RARE
    step, losses = trained(CAPTURED, texts(lengths))
    assert losses == pytest.approx(trained(Plan(), texts(lengths))[1], rel=1e-4)
    assert step._forward_pass.log.graphs == 2  # the first length, and any
    assert step.plan == CAPTURED
    assert "recompiled: " in str(step.explain())


def test_blocks_compiled_and_then_sharded_train_as_whole_ones(ranks):
    code = """
    import copy
    from torch import nn
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from loopwise.compile import Plan, optimize
    rank = dist.get_rank()
    torch.manual_seed(0)
    block = lambda: nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))
    whole = nn.Sequential(*(block() for _ in range(3)), nn.Linear(8, 3))
    net, mesh = copy.deepcopy(whole), init_device_mesh("cpu", (2,))
    for layer in net[:3]:
        optimize(layer, plan=Plan(graph="captured"))
        fully_shard(layer, mesh=mesh)
    fully_shard(net, mesh=mesh)
    losses = []
    for model in (net, whole):
        optimizer, draws = torch.optim.SGD(model.parameters(), lr=0.1), torch.Generator().manual_seed(rank)
        for _ in range(4):
            x = torch.randn(8, 8, generator=draws)
            loss = nn.functional.cross_entropy(model(x), torch.arange(8) % 3)
            optimizer.zero_grad()
            loss.backward()
            if model is whole:
                for parameter in model.parameters():
                    dist.all_reduce(parameter.grad, op=dist.ReduceOp.SUM)
                    parameter.grad /= 2
            optimizer.step()
            losses.append(loss.item())
    assert net[0]._compiled_call_impl is not None
    print(json.dumps([losses[:4], losses[4:]]))
    """
    for sharded, whole in ranks(code):
        assert sharded == pytest.approx(whole, abs=2e-5)

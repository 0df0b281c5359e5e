"""Two ranks under DDP whose comparisons go different ways: none waits for the other, and they train as in eager."""

import json
import operator
import os
import subprocess
import sys
import warnings
from datetime import timedelta

import forks
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from loopwise.compile import Plan, TrainStep
from loopwise.compile.graph.passes import PASSES

CE = nn.CrossEntropyLoss()


def network(**options):
    torch.manual_seed(0)
    layers = nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4)
    return DistributedDataParallel(nn.Sequential(*layers), **options)


def batches(rank, count=4):
    generator = torch.Generator().manual_seed(rank)
    return [(torch.randn(6, 8, generator=generator), torch.arange(6) % 4) for _ in range(count)]


def plain(model, batch):
    return CE(model(batch[0]), batch[1])


def across_ranks(model, batch):
    """Return a contrastive loss, whose negatives come from the other rank."""
    own, rank = model(batch[0]), dist.get_rank()
    both = [torch.zeros_like(own) for _ in range(2)]
    dist.all_gather(both, own.detach())
    both[rank] = own
    return CE(own @ torch.cat(both).T, torch.arange(len(own)) + rank * len(own))


def factor_on(rank, factor):
    """Return a pass that multiplies the loss on one rank."""

    def rewrite(gm):
        for node in list(gm.graph.nodes):
            wrong = node.op == "call_function" and "cross_entropy" in str(node.target)
            if wrong and dist.get_rank() == rank:
                with gm.graph.inserting_after(node):
                    new = gm.graph.call_function(operator.mul, (node, factor))
                node.replace_all_uses_with(new, delete_user_cb=lambda user, new=new: user is not new)
        gm.recompile()
        return []

    return rewrite


def trained(rank, loss=plain, spoil=None, **options):
    """Return the distance from the eager training, the plan's graph, and the result of ``verify``."""
    model, expected, data = network(**options), network(**options), batches(rank)
    plan = Plan(graph="captured", passes=("loss_head",))
    step = TrainStep(model, loss, torch.optim.SGD(model.parameters(), 0.1), plan=plan)
    optimizer = torch.optim.SGD(expected.parameters(), 0.1)
    for number, batch in enumerate(data):
        if number == 2 and spoil is not None and rank == 0:
            spoil(step)
        step(batch)
        optimizer.zero_grad()
        loss(expected, batch).backward()
        optimizer.step()
    pairs = zip(model.state_dict().values(), expected.state_dict().values(), strict=True)
    apart = max(float((a - b).abs().max()) for a, b in pairs)
    return [apart, step.plan.graph, str(step.verify(data[0]))]


def not_finite(step):
    """Let the compiled pass of a step return infinity."""
    forward = step._forward_pass
    right = forward.compute

    def wrong(batch):
        return right(batch) * float("inf")

    forward.compute = forward.supervisor._compute = wrong


def verified(rank):
    """Return what ``verify`` says on this rank about a form that is wrong on rank 0."""
    PASSES["loss_head"] = factor_on(0, 1.00002)
    plan = Plan(graph="captured", passes=("loss_head",))
    model = network()
    step = TrainStep(model, plain, torch.optim.SGD(model.parameters(), 0.1), plan=plan)
    step.prepare(batches(rank)[0])
    return step.plan.graph


def compared(rank):
    """Return the difference on this rank of a computation that is slightly wrong on rank 0, under communication."""
    from loopwise.compile.verify.numerics import Comparison

    model = network()
    spec = TrainStep(model, plain, torch.optim.SGD(model.parameters(), 0.1)).spec

    def compute(batch):
        return plain(model, batch) * (1.00004 if rank == 0 else 1)

    return Comparison(spec, batches(rank)[0], communicate=True).difference(compute).tensor


def main(rank):
    warnings.simplefilter("ignore")
    dist.init_process_group("gloo", rank=rank, world_size=2, timeout=timedelta(seconds=60))
    real = PASSES["loss_head"]
    results = {"compared": compared(rank), "verified": verified(rank)}
    PASSES["loss_head"] = real
    results["one rank steps back"] = trained(rank, spoil=not_finite)
    results["across ranks"] = trained(rank, across_ranks)
    results["static graph"] = trained(rank, static_graph=True)
    print(json.dumps(results))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    port = 20000 + os.getpid() % 20000
    env = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    env["LOOPWISE_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    run = [forks.python(), __file__]
    ranks = [
        subprocess.Popen([*run, str(r)], env=env | {"RANK": str(r)}, stdout=subprocess.PIPE, text=True)
        for r in range(2)
    ]
    texts = [rank.communicate()[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0]
    return [json.loads(text.splitlines()[-1]) for text in texts]


def test_a_difference_of_one_rank_is_that_of_all(results):
    """The rank that was near the eager step ended its comparison, and the other waited for it."""
    assert [own["compared"] for own in results] == ["loss", "loss"]


def test_a_plan_that_is_wrong_on_one_rank_is_used_by_none(results):
    assert [own["verified"] for own in results] == ["eager", "eager"]


def test_one_rank_does_a_batch_again_without_the_other(results):
    """DDP sends the buffers before each forward pass, which the other rank takes part in once."""
    assert [own["one rank steps back"][:2] for own in results] == [[0, "eager"], [0, "captured"]]


def test_passes_that_communicate_stay_eager(results):
    """A rank that runs one more pass to be sure about a tensor would wait for ever."""
    assert [own["across ranks"] for own in results] == [[0, "eager", "None"]] * 2


def test_a_static_graph_stays_eager(results):
    """DDP learns the graph from its first backward pass, and a trial pass without communication ended in an internal error."""
    assert [own["static graph"] for own in results] == [[0, "eager", "None"]] * 2


if __name__ == "__main__":
    main(int(sys.argv[1]))

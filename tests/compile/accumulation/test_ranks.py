"""Batches with unequal counts under DDP train as one batch of all ranks."""

import textwrap

import pytest

RANKS = """
import functools
from torch import nn
from torch.nn import functional
from accumulation_kit import *
from loopwise.errors import InputError
from torch.nn.parallel import DistributedDataParallel as DDP

rank = dist.get_rank()

def of_rank(loss, counted, accumulate=2, flush=False, given=False, clip=None, sparse=False, **options):
    net = Net(sparse=sparse, unused=options.get("find_unused_parameters", False))
    wrapped = DDP(net, **options)
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    step = TrainStep(wrapped, loss, optimizer, accumulate=accumulate, plan=Plan(), clip=clip)
    for batch in batches(*counted[0], *counted[1])[slice(len(counted[0])) if rank == 0 else slice(len(counted[0]), None)]:
        step(batch, count=count(batch)) if given else step(batch)
    if flush:
        assert step.flush()
    assert not step.flush()
    return net

def joint(counted, accumulate=2, clip=None):
    first, second = len(counted[0]), len(counted[1])
    data = batches(*counted[0], *counted[1])
    ours, theirs = data[:first], data[first:]
    windows = [ours[n:n + accumulate] + theirs[n:n + accumulate] for n in range(0, max(first, second), accumulate)]
    return expected(mean, [joined(window) for window in windows], clip)

def difference(ours, theirs):
    return max(((p - q).abs().max() / q.abs().max()).item() for p, q in zip(ours.parameters(), theirs.parameters()))
"""


def of_ranks(code):
    return RANKS + textwrap.dedent(code)


def test_all_ranks_train_as_one_batch(ranks):
    code = """
    cross = nn.CrossEntropyLoss()
    unequal = [(8, 1, 2, 1), (1, 1, 4, 7)]
    found = {
        "found": difference(of_rank(cross, unequal), joint(unequal)),
        "clipped": difference(of_rank(cross, unequal, clip=0.05), joint(unequal, clip=0.05)),
        "returned": difference(of_rank(with_count, unequal), joint(unequal)),
        "given": difference(of_rank(mean, unequal, given=True, accumulate=1), joint(unequal, 1)),
        "views": difference(of_rank(cross, unequal, gradient_as_bucket_view=True), joint(unequal)),
    }
    for name, counted in {"last": [(8, 0, 2, 1), (1, 1, 4, 0)], "all": [(0, 0, 3, 1), (1, 2, 4, 0)]}.items():
        for unused in (False, True):
            ours = of_rank(with_count, counted, find_unused_parameters=unused)
            found[f"nothing in the {name} {unused}"] = difference(ours, joint(counted))
    for name, counted in {"both": [(8, 1, 2), (1, 1, 4)], "one": [(8, 1, 2, 5, 3), (1, 1, 4, 4, 0)], "fewer": [(8, 1, 2, 1, 5), (1, 1, 4, 7)]}.items():
        found[f"flush on {name}"] = difference(of_rank(cross, counted, flush=True), joint(counted))
    ours = of_rank(cross, [(8, 1, 2), (1, 1, 4)], flush=True, find_unused_parameters=True)
    assert ours.unused.weight.grad is None
    found["flush with unused"] = difference(ours, joint([(8, 1, 2), (1, 1, 4)]))
    sparse = [(8, 1, 2), (1, 1, 4)]
    found["flush of sparse gradients"] = difference(of_rank(cross, sparse, flush=True, sparse=True), joint(sparse))
    equal = [(8, 8, 8), (8, 8, 8)]
    found["flush without counts"] = difference(of_rank(mean, equal, flush=True), joint(equal))
    wrapped = DDP(Net())
    step = TrainStep(wrapped, mean, torch.optim.SGD(wrapped.parameters(), lr=1.0), accumulate=2, plan=Plan())
    try:
        step(DATA[0], count=4 if rank else None)
    except InputError as error:
        print(json.dumps([str(error), found]))
    """
    (refused, first), (refused_too, second) = ranks(of_ranks(code))
    assert all("a count for each batch on every rank, or for none" in text for text in (refused, refused_too))
    assert first == pytest.approx(second, abs=1e-7)
    assert len(first) == 15
    assert max(first.values()) < 1e-5, first

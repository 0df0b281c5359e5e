"""Small language model, batches with unequal numbers of counted tokens, and training by one step and by a plain loop."""

import torch
from torch import nn
from torch.nn import functional

from loopwise.compile import Plan, TrainStep

CLASSES = 7
IGNORED = -100


class Net(nn.Module):
    """Language model without attention: logits of shape (batch, classes, tokens)."""

    def __init__(self, sparse=False, unused=False):
        super().__init__()
        torch.manual_seed(0)
        self.tokens, self.head = nn.Embedding(CLASSES, 5, sparse=sparse), nn.Linear(5, CLASSES)
        if unused:
            self.unused = nn.Linear(2, 2)

    def forward(self, x):
        return self.head(self.tokens(x)).transpose(1, 2)


def batches(*counted, rows=2, tokens=8, ignored=IGNORED):
    """Return a batch for each number, in which so many tokens of each row are counted."""
    draws = torch.Generator().manual_seed(1)
    made = []
    for count in counted:
        x, y = (torch.randint(0, CLASSES, (rows, tokens), generator=draws) for _ in range(2))
        y[:, count:] = ignored
        made.append((x, y))
    return made


def joined(data):
    return tuple(torch.cat(fields) for fields in zip(*data, strict=True))


def mean(model, batch):
    return functional.cross_entropy(model(batch[0]), batch[1])


def with_count(model, batch):
    return mean(model, batch), (batch[1] != IGNORED).sum()


def with_number(model, batch):
    return mean(model, batch), int((batch[1] != IGNORED).sum())


def count(batch):
    return (batch[1] != IGNORED).sum()


def trained(loss, data, *, counts=None, net=None, clip=None, scaler=None, flush=False, **options):
    """Train by one step on all batches of ``data``; return the model."""
    net = Net() if net is None else net
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    step = TrainStep(net, loss, optimizer, clip=clip, scaler=scaler, plan=Plan(), **options)
    for number, batch in enumerate(data):
        step(batch) if counts is None else step(batch, count=counts[number])
    assert flush is False or step.flush() is flush
    assert not step.flush()
    return net


def expected(loss, data, clip=None):
    """Train by the usual loop; return the model."""
    net = Net()
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    for batch in data:
        optimizer.zero_grad()
        loss(net, batch).backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(net.parameters(), clip)
        optimizer.step()
    return net


def same(ours, theirs):
    moved = [(p - q).abs().max() for p, q in zip(theirs.parameters(), Net().parameters(), strict=True)]
    assert min(moved) > 1e-4, "nothing was trained"
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


DATA = batches(8, 1, 2, 1, 3, 8, 8, 5)

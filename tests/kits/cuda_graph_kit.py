"""Small training by replayed and by ordinary steps, to compare both."""

import torch
from torch import nn

from loopwise.compile import Plan, TrainStep

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
PLAN = Plan(cuda_graph=True, optimizer="fused")


def net(dropout=0.0):
    torch.manual_seed(1)
    layers = nn.Linear(6, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(dropout), nn.Linear(8, 3)
    return nn.Sequential(*layers).to(DEVICE)


def batches(count, rows=5):
    draws = torch.Generator().manual_seed(2)
    pairs = [
        (torch.randn(rows, 6, generator=draws), torch.randint(0, 3, (rows,), generator=draws))
        for _ in range(count)
    ]
    return [(x.to(DEVICE), y.to(DEVICE)) for x, y in pairs]


# rates that float32 has: a recording reads them in that
OPTIMIZERS = {
    "adamw": lambda model: torch.optim.AdamW(model.parameters(), lr=2**-7, fused=True),
    "sgd": lambda model: torch.optim.SGD(model.parameters(), lr=0.125, momentum=0.9, fused=True),
    "groups": lambda model: torch.optim.Adam(
        [
            {"params": model[0].parameters(), "lr": 2**-5},
            {"params": [*model[1].parameters(), *model[4].parameters()]},
        ],
        lr=2**-9,
        fused=True,
    ),
}


def trained(cuda_graph, data, make="adamw", *, change=None, criterion=None, dropout=0.0, **options):
    """Train on all batches of ``data``; return the losses, the model, the optimizer and the step."""
    model = net(dropout)
    optimizer = OPTIMIZERS[make](model)
    plan = PLAN.changed(cuda_graph=cuda_graph)
    step = TrainStep(
        model, criterion() if criterion else nn.CrossEntropyLoss(), optimizer, plan=plan, **options
    )
    torch.manual_seed(3)
    losses = []
    for number, batch in enumerate(data):
        if change is not None:
            change(number, step, optimizer)
        losses.append(step(batch))
    return torch.stack(losses), model, optimizer, step


def same(one, other):
    tensors = [[run[0], *run[1].state_dict().values()] for run in (one, other)]
    states = [[v for s in run[2].state.values() for v in s.values()] for run in (one, other)]
    for mine, theirs in zip(tensors[0] + states[0], tensors[1] + states[1], strict=True):
        if DEVICE == "cpu":
            torch.testing.assert_close(mine, theirs, rtol=0, atol=0)
        else:
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


def said(step):
    return [line for line in step.explain().remarks if "CUDA graph" in line]

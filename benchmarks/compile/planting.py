"""Planted passes: wrong and right changes of a captured graph, and the small models that they are planted in."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

F = nn.functional
Change = Callable[[torch.Tensor], torch.Tensor]
HARMLESS = 1e-4
"""A relative change of no tensor by more than this is no wrong pass: float32 is off by up to as much."""


# -- models -----------------------------------------------------------------------------------------


class Residual(nn.Module):
    """Layers around a branch, whose output is added after ``gate``."""

    def __init__(self, branch: nn.Module, gate: nn.Module, width: int = 16) -> None:
        super().__init__()
        self.before, self.branch, self.gate = nn.Linear(8, width), branch, gate
        self.after, self.scale = nn.Linear(width, 5), 1

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.before(x)
        return self.after(x + self.gate(self.branch(x))) * self.scale


class Factor(nn.Module):
    """Factor that begins at zero."""

    def __init__(self) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.alpha * x


class Noise(nn.Module):
    """Noise by one of several random functions, none of which is a Dropout module."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.kind == "randn":
            return x + 0.2 * torch.randn_like(x)
        if self.kind == "gumbel":
            return x * F.gumbel_softmax(x, dim=-1)
        if self.kind == "rand":
            return x * (torch.rand(x.shape[0], 1) < 0.8) / 0.8
        return F.dropout(x, 0.2, self.training)


class Casting(nn.Module):
    """Layer that multiplies in float32 whatever its weight is, so that the model does not run in float64."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width, width) / width**0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.float() @ torch.eye(x.shape[-1], dtype=torch.float32) @ self.weight.float().T


def zeroed(layer: nn.Linear) -> nn.Linear:
    """Return a layer whose weights begin at zero."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def branch(draws: random.Random, width: int = 16) -> nn.Sequential:
    """Return a few layers from ``width`` to ``width`` features."""
    activation = draws.choice([nn.GELU, nn.SiLU, nn.Tanh, nn.Softplus])
    norm = draws.choice([nn.LayerNorm, nn.RMSNorm])
    return nn.Sequential(norm(width), nn.Linear(width, 24), activation(), nn.Linear(24, width))


class Attention(nn.Module):
    """Attention that is written out, over sequences of vectors of 8 features."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.norm, self.head, self.scale = nn.Linear(8, 24), nn.LayerNorm(8), nn.Linear(8, 5), 1
        self.before = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.before(x.unflatten(1, (-1, 8)))
        q, k, v = self.mix(self.norm(x)).chunk(3, -1)
        return self.head((x + (q @ k.mT * 8**-0.5).softmax(-1) @ v).mean(1)) * self.scale


class Images(nn.Module):
    """Convolutions with BatchNorm over vectors of 8 features, taken for images of one row."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.norm = nn.Conv2d(1, 6, (1, 3), bias=False), nn.BatchNorm2d(6)
        self.after, self.scale = nn.Linear(36, 5), 1

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.after(F.silu(self.norm(self.before(x[:, None, None]))).flatten(1)) * self.scale


KINDS = ("dense", "attention", "images", "casting", "random", "random", "zero", "zero")
"""Kinds of models, drawn with equal chances: every fourth draws random numbers, every fourth begins at zero."""


def network(draws: random.Random) -> tuple[str, nn.Module]:
    """Return the kind of a model, and the model; it has a first layer ``before`` and a number ``scale``."""
    torch.manual_seed(draws.randrange(2**31))
    kind = draws.choice(KINDS)
    if kind == "attention":
        return kind, Attention()
    if kind == "images":
        return kind, Images()
    layers = branch(draws)
    if kind == "casting":
        return kind, Residual(nn.Sequential(layers, Casting(16)), nn.Identity())
    if kind == "random":
        noise = Noise(draws.choice(["randn", "gumbel", "rand", "dropout"]))
        return kind, Residual(nn.Sequential(noise, layers), nn.Identity())
    if kind == "zero":
        return kind, Residual(layers, draws.choice([Factor(), zeroed(nn.Linear(16, 16))]))
    return kind, Residual(layers, nn.Identity())


def batch(size: int, draws: random.Random, width: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    """Return inputs and classes."""
    own = torch.Generator().manual_seed(draws.randrange(2**31))
    return torch.randn(size, width, generator=own), torch.randint(0, 5, (size,), generator=own)


# -- changes ----------------------------------------------------------------------------------------


def wrong(draws: random.Random) -> tuple[str, Change]:
    """Return an error of a miscompiled operation: of its value, or of its gradient."""
    by = 10 ** draws.uniform(-2.5, 0) * draws.choice([-1, 1])
    forms: dict[str, Change] = {
        "factor": lambda t: t * (1 + by),
        "offset": lambda t: t + by * t.detach().std(),
        "element": lambda t: torch.where(_middle(t), t * (1 + 10 * by), t),
        "gradient scaled": lambda t: t + by * (t - t.detach()),
        "gradient lost": lambda t: torch.where(_middle(t, rows=True), t.detach(), t),
        "rolled": lambda t: t.roll(1, 0),
        "rounded": lambda t: t + (t.detach().bfloat16().to(t.dtype) - t.detach()),
        "not finite": lambda t: (t - t.detach().amax()).log(),
        "another draw": lambda t: t + 0 * torch.rand(()),
    }
    name = draws.choice(list(forms))
    return name, forms[name]


def wrong_gradient(draws: random.Random) -> tuple[str, Change]:
    """Return an error of a gradient only."""
    by = 10 ** draws.uniform(-2, 0) * draws.choice([-1, 1])
    forms: dict[str, Change] = {
        "gradient scaled": lambda t: t + by * (t - t.detach()),
        "gradient lost": lambda t: torch.where(_middle(t, rows=True), t.detach(), t),
        "gradient doubled": lambda t: 2 * t - t.detach(),
    }
    name = draws.choice(list(forms))
    return name, forms[name]


def right(draws: random.Random) -> tuple[str, Change]:
    """Return a change that computes the same in exact numbers."""
    forms: dict[str, Change] = {
        "identity": lambda t: t * 1.0,
        "halves": lambda t: 0.3 * t + 0.7 * t,
        "thirds": lambda t: (t / 3) * 3,
        "layout": lambda t: t.unsqueeze(-1).contiguous().squeeze(-1),
        "chunks": lambda t: torch.cat([part.clone() for part in t.chunk(3, 0)], 0),
        "float64": lambda t: t.double().to(t.dtype),
    }
    name = draws.choice(list(forms))
    return name, forms[name]


def _linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    out = x @ weight.mT
    return out if bias is None else out + bias


def _layer_norm(
    x: torch.Tensor, shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5
) -> torch.Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred * (centred.square().mean(-1, keepdim=True) + eps).rsqrt() * weight + bias


def _cross_entropy(x: torch.Tensor, y: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
    return -x.log_softmax(-1).gather(-1, y[:, None]).mean()


REWRITES: dict[Any, Callable[..., torch.Tensor]] = {
    F.linear: _linear,
    F.layer_norm: _layer_norm,
    F.cross_entropy: _cross_entropy,
    F.gelu: lambda x, **_: 0.5 * x * (1 + torch.erf(x * 0.5**0.5)),
    F.silu: lambda x, **_: x * x.sigmoid(),
}
"""Operations, and the same written out."""


def written_out(gm: Any) -> list[Any]:
    """Write out all operations of ``REWRITES``, in place."""
    for node in gm.graph.nodes:
        node.target = REWRITES.get(node.target, node.target) if node.op == "call_function" else node.target
    gm.recompile()
    return []


def _middle(t: torch.Tensor, rows: bool = False) -> torch.Tensor:
    """Return a mask of the element, or of the rows, in the middle of a tensor."""
    number = torch.arange(t.numel()).view(t.shape)
    return number > t.numel() // 2 if rows else number == t.numel() // 2


class Planted:
    """Pass that changes the result of one operation of each graph, always the same one.

    Args:
        change: the change.
        place: place of the operation among those that return numbers, from 0 to 1.
        armed: ``False``: graphs stay as they are until it is set to ``True``.
    """

    def __init__(self, change: Change, place: float, armed: bool = True) -> None:
        self.change, self.place, self.armed, self.changed = change, place, armed, 0

    def __call__(self, gm: Any) -> list[Any]:
        nodes = [n for n in gm.graph.nodes if n.op.startswith("call") and _floating(n)]
        if not self.armed or not nodes:
            return []
        node = nodes[int(self.place * len(nodes))]
        with gm.graph.inserting_after(node):
            new = gm.graph.call_function(self.change, (node,))
        node.replace_all_uses_with(new, delete_user_cb=lambda user: user is not new)
        gm.recompile()
        self.changed += 1
        return []


def _floating(node: Any) -> bool:
    value = node.meta.get("example_value")
    return isinstance(value, torch.Tensor) and value.is_floating_point() and value.numel() > 1


# -- effects ----------------------------------------------------------------------------------------


def moved(model: nn.Module, seed: int) -> nn.Module:
    """Return a copy whose weights are moved by a tenth of their size, those that are zero away from zero."""
    model, draws = copy.deepcopy(model), torch.Generator().manual_seed(seed)
    for weight in model.parameters():
        size = float(weight.detach().square().mean().sqrt()) or 0.3
        weight.data += 0.1 * size * torch.randn(weight.shape, generator=draws)
    return model


def effect(model: nn.Module, batch: Any, plan: Any, change: Planted) -> float:
    """Return the largest relative change of loss, gradients, buffers and the next random numbers by a planted pass."""
    from loopwise.compile import TrainStep
    from loopwise.compile.graph import passes
    from loopwise.compile.graph.backend import Log
    from loopwise.compile.search.variants import variant

    name = plan.passes[0]
    before, armed = passes.PASSES[name], change.armed
    passes.PASSES[name], change.armed = change, True
    try:
        results = []
        for form in (type(plan)(), plan):
            twin = copy.deepcopy(model)
            step = TrainStep(twin, nn.CrossEntropyLoss())
            torch.manual_seed(3)
            loss = variant(step.spec, form, Log())(batch)
            loss.backward()
            gradients = {n: p.grad for n, p in twin.named_parameters() if p.grad is not None}
            buffers = {n: b.double() for n, b in twin.named_buffers()}
            results.append({"loss": loss.detach(), "next draw": torch.rand(4), **gradients, **buffers})
    finally:
        passes.PASSES[name], change.armed = before, armed
    right, changed = results
    if right.keys() != changed.keys():
        return math.inf
    least = 1e-3 * max(float(t.double().norm()) for n, t in right.items() if n in gradients)
    return max(_relative(changed[name], tensor, least) for name, tensor in right.items())


def _relative(a: torch.Tensor, b: torch.Tensor, least: float) -> float:
    """Return the relative distance of two tensors, a size below ``least`` counting as that; infinite if one is not finite."""
    if torch.equal(a, b):
        return 0.0
    apart = float((a.double() - b.double()).norm() / max(float(b.double().norm()), least))
    return apart if math.isfinite(apart) else math.inf

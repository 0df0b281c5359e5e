"""Situations in which a training becomes NaN or infinite, named exactly: in the data, the model, its gradient, the loss function.

Each is a loop of four steps whose last one goes wrong, and says what an exact finding has: the step, a text about the place
and, if the place is in the model, the module.  They run eagerly, with ``torch.compile(model, backend="aot_eager")``, which captures
the graphs of forward and backward pass, and with ``torch.compile(model)``, which compiles them by Inductor.
"""

from __future__ import annotations

import functools
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from .. import harness
from ..harness import Runs
from ..record import Row

CLAIM = "nan_situations"
QUICK = False
HOW = {"eager": None, "compiled": "aot_eager", "inductor": "inductor"}
"""Name -> backend of ``torch.compile``."""
LAST = 3
"""Step that goes wrong."""


@dataclass(frozen=True)
class Situation:
    """One situation.

    Attributes:
        train: makes one training step with a model, an optimizer, a ``Watch`` and whether the step goes wrong.
        words: texts that the finding contains.
        inside: function that is a part of the model, and goes wrong itself.
        module: module that the finding names; empty: none.
    """

    train: Callable[[nn.Module, torch.optim.Optimizer, Any, bool], None]
    words: tuple[str, ...]
    inside: Callable[[torch.Tensor, bool], torch.Tensor] | None = None
    module: str = ""


class Inside(nn.Module):
    """Part of a model that goes wrong if ``bad`` is set."""

    def __init__(self, function: Callable[[torch.Tensor, bool], torch.Tensor] | None) -> None:
        super().__init__()
        self.function, self.bad = function, False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if self.function is None else self.function(x, self.bad)


def network(inside: Callable[[torch.Tensor, bool], torch.Tensor] | None) -> nn.Sequential:
    """Return a model with four inputs and three outputs."""
    return nn.Sequential(nn.Linear(4, 8), Inside(inside), nn.Linear(8, 3))


def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return inputs, labels and targets of eight samples."""
    return torch.rand(8, 4), torch.arange(8) % 3, torch.rand(8, 3)


# -- in the model, and in what it is given -----------------------------------------------------------


def usual(model: nn.Module, optimizer: torch.optim.Optimizer, watch: Any, bad: bool) -> None:
    x, labels, _ = batch()
    loss = F.cross_entropy(model(x), labels)
    loss.backward()
    optimizer.step()
    watch.step(loss=loss)


def nan_input(model: nn.Module, optimizer: torch.optim.Optimizer, watch: Any, bad: bool) -> None:
    x, labels, _ = batch()
    x[5, 2] = torch.nan if bad else 1.0
    loss = F.cross_entropy(model(x), labels)
    loss.backward()
    optimizer.step()
    watch.step(loss=loss)


def nan_weight(model: nn.Module, optimizer: torch.optim.Optimizer, watch: Any, bad: bool) -> None:
    x, labels, _ = batch()
    if bad:
        with torch.no_grad():
            list(model.parameters())[2][1, 1] = torch.nan
    loss = F.cross_entropy(model(x), labels)
    loss.backward()
    optimizer.step()
    watch.step(loss=loss)


def fill(x: torch.Tensor, value: float, bad: bool) -> torch.Tensor:
    """Return values from 0.5 to 1.5, the first of them ``value`` in a bad step."""
    y = x.sigmoid() + 0.5
    mask = torch.zeros_like(y, dtype=torch.bool)
    mask[0, 0] = bad
    return torch.where(mask, torch.full_like(y, value), y)


def zeroed(x: torch.Tensor, bad: bool) -> torch.Tensor:
    """Return values whose first one, in a bad step, is 0 and depends on the input."""
    factor = torch.ones_like(x)
    factor[0, 0] = 0.0 if bad else 1.0
    return (x.sigmoid() + 0.5) * factor


MODEL = {
    "logarithm of a negative number": (lambda x, bad: fill(x, -1.0, bad).log(), "log in 1"),
    "logarithm of 0": (lambda x, bad: fill(x, 0.0, bad).log(), "log in 1"),
    "root of a negative number": (lambda x, bad: fill(x, -1.0, bad).sqrt(), "sqrt in 1"),
    "division by 0": (lambda x, bad: x / fill(x, 0.0, bad), "div in 1"),
    "overflow of exp": (lambda x, bad: fill(x, 200.0, bad).exp(), "exp in 1"),
    "power of a negative number": (lambda x, bad: fill(x, -1.0, bad) ** 0.5, "pow in 1"),
    "row masked as a whole": (
        lambda x, bad: x.masked_fill(torch.full_like(x, bad, dtype=torch.bool), -torch.inf).softmax(-1),
        "softmax in 1",
    ),
    "overflow of float16": (lambda x, bad: fill(x, 1e6, bad).half().float(), "_to_copy in 1"),
    "arc cosine beyond 1": (lambda x, bad: fill(x / 10, 2.0, bad).sub(0.6).acos(), "acos in 1"),
    "0 times infinity": (lambda x, bad: x * (fill(x, 0.0, bad).reciprocal()), "reciprocal in 1"),
    "gradient of a root at 0": (lambda x, bad: zeroed(x, bad).sqrt(), "the gradient of Sqrt in 1"),
    "gradient of a power at 0": (lambda x, bad: zeroed(x, bad) ** 0.5, "the gradient of Pow in 1"),
}


# -- in the loss function ----------------------------------------------------------------------------


def nan_target(model: nn.Module, optimizer: torch.optim.Optimizer, watch: Any, bad: bool) -> None:
    x, _, targets = batch()
    if bad:
        targets[3, 1] = torch.nan
    loss = F.mse_loss(model(x), targets)
    loss.backward()
    optimizer.step()
    watch.step(loss=loss)


def infinite_target(model: nn.Module, optimizer: torch.optim.Optimizer, watch: Any, bad: bool) -> None:
    x, _, targets = batch()
    if bad:
        targets[3, 1] = torch.inf
    output = model(x)
    loss = ((output - targets) ** 2).mean()
    loss.backward()
    optimizer.step()
    watch.step(loss=loss)


def infinite_class_weight(model: nn.Module, optimizer: torch.optim.Optimizer, watch: Any, bad: bool) -> None:
    x, labels, _ = batch()
    criterion = nn.CrossEntropyLoss(weight=torch.tensor([1.0, torch.inf if bad else 1.0, 1.0]))
    loss = criterion(model(x), labels)
    loss.backward()
    optimizer.step()
    watch.step(loss=loss)


def nan_class_weight(model: nn.Module, optimizer: torch.optim.Optimizer, watch: Any, bad: bool) -> None:
    x, labels, _ = batch()
    class_weights = torch.tensor([1.0, torch.nan if bad else 1.0, 1.0])
    loss = F.cross_entropy(model(x), labels, weight=class_weights)
    loss.backward()
    optimizer.step()
    watch.step(loss=loss)


def class_weights_of_0(model: nn.Module, optimizer: torch.optim.Optimizer, watch: Any, bad: bool) -> None:
    x, labels, _ = batch()
    criterion = nn.CrossEntropyLoss(weight=torch.zeros(3) if bad else torch.ones(3))
    loss = criterion(model(x), labels)
    loss.backward()
    optimizer.step()
    watch.step(loss=loss)


def all_labels_ignored(model: nn.Module, optimizer: torch.optim.Optimizer, watch: Any, bad: bool) -> None:
    x, labels, _ = batch()
    labels = torch.full_like(labels, -100) if bad else labels
    loss = F.cross_entropy(model(x), labels)
    loss.backward()
    optimizer.step()
    watch.step(loss=loss)


def all_tokens_are_padding(model: nn.Module, optimizer: torch.optim.Optimizer, watch: Any, bad: bool) -> None:
    x, labels, _ = batch()
    criterion = nn.CrossEntropyLoss(ignore_index=0)
    labels = labels * (0 if bad else 1)
    loss = criterion(model(x), labels)
    loss.backward()
    optimizer.step()
    watch.step(loss=loss)


def empty_mask(model: nn.Module, optimizer: torch.optim.Optimizer, watch: Any, bad: bool) -> None:
    x, _, targets = batch()
    mask = torch.zeros(8, 1) if bad else torch.ones(8, 1)
    loss = ((model(x) - targets).square() * mask).sum() / mask.sum()
    loss.backward()
    optimizer.step()
    watch.step(loss=loss)


def mean_of_nothing(model: nn.Module, optimizer: torch.optim.Optimizer, watch: Any, bad: bool) -> None:
    x, _, targets = batch()
    chosen = torch.zeros(8, dtype=torch.bool) if bad else torch.ones(8, dtype=torch.bool)
    errors = (model(x) - targets).square().mean(1)
    loss = errors[chosen].mean()
    loss.backward()
    optimizer.step()
    watch.step(loss=loss)


def logarithm_of_a_probability(
    model: nn.Module, optimizer: torch.optim.Optimizer, watch: Any, bad: bool
) -> None:
    x, labels, _ = batch()
    logits = model(x) + (200.0 if bad else 0.0) * F.one_hot(labels.roll(1), 3)
    loss = -torch.log(logits.softmax(-1)).mean()
    loss.backward()
    optimizer.step()
    watch.step(loss=loss)


def loss_function_of_ones_own(
    model: nn.Module, optimizer: torch.optim.Optimizer, watch: Any, bad: bool
) -> None:
    x, _, targets = batch()

    def negative_log_likelihood(output: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        chance = output.sigmoid() * (0.0 if bad else 1.0)
        return -(targets * chance.log()).mean()

    loss = negative_log_likelihood(model(x), targets)
    loss.backward()
    optimizer.step()
    watch.step(loss=loss)


LOSS = {
    "NaN target": (nan_target, "targets is not finite"),
    "infinite target": (infinite_target, "targets is not finite"),
    "infinite class weight": (infinite_class_weight, "criterion.weight is not finite"),
    "NaN class weight": (nan_class_weight, "class_weights is not finite"),
    "class weights of 0": (class_weights_of_0, "the weights of all these classes are 0"),
    "all labels ignored": (all_labels_ignored, "all labels in labels are ignored (-100)"),
    "all tokens are padding": (all_tokens_are_padding, "all labels in labels are ignored (0)"),
    "empty mask": (empty_mask, "mask.sum() is 0"),
    "mean of nothing": (mean_of_nothing, "errors[chosen] is empty"),
    "logarithm of a probability": (logarithm_of_a_probability, "logits.softmax(-1) has zeros"),
    "loss function of one's own": (loss_function_of_ones_own, "log in negative_log_likelihood("),
}
SITUATIONS = {
    "NaN input": Situation(nan_input, ("the model's input 0 is not finite", "samples 5")),
    "NaN weight": Situation(nan_weight, ("2.weight was not finite before this step",)),
    **{name: Situation(usual, (words,), inside, "1") for name, (inside, words) in MODEL.items()},
    **{name: Situation(train, ("in the loss", words)) for name, (train, words) in LOSS.items()},
}


def findings(situation: Situation, backend: str | None, seed: int) -> list[Any]:
    """Train in a situation, and return the findings."""
    from loopwise.debug import Watch

    torch.manual_seed(seed)
    net = network(situation.inside)
    model: Any = net if backend is None else torch.compile(net, backend=backend)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    quiet = {"rules": False, "collections": ["losses"], "profile": False, "on_finding": lambda finding: None}
    with (
        tempfile.TemporaryDirectory() as folder,
        Watch(model, optimizer, run=f"{folder}/run", **quiet) as watch,
    ):
        for step in range(LAST + 1):
            net[1].bad = step == LAST
            optimizer.zero_grad()
            situation.train(model, optimizer, watch, step == LAST)
    return watch.findings


def judge(situation: Situation, found: list[Any]) -> str:
    """Return ``named``, ``wrong`` if another place is named, or ``unknown``."""
    first = found[0] if found else None
    if first is None:
        return "unknown"
    is_exact = all(word in first.what for word in situation.words) and first.step == LAST
    if is_exact and first.tensors == ((situation.module,) if situation.module else ()):
        return "named"
    says_nothing = "the model gave finite values" in first.what or "its gradient at the model" in first.what
    return "unknown" if says_nothing and first.step == LAST else "wrong"


# -- the claim ----------------------------------------------------------------------------------------


def count(backend: str | None, seed: int) -> dict[str, float]:
    """Count the situations that are named exactly, and those in which another place is named."""
    torch.set_num_threads(1)
    verdicts = []
    for name, situation in SITUATIONS.items():
        torch.compiler.reset()
        found = findings(situation, backend, seed)
        verdicts.append(judge(situation, found))
        if verdicts[-1] != "named":
            print(f"{name}: {verdicts[-1]}: {found}", file=sys.stderr)
    return {"named": verdicts.count("named"), "wrong": verdicts.count("wrong")}


def cases(device: str) -> dict[str, Callable[[int], dict[str, float]]]:
    """Return the cases, all on the CPU: name -> function that runs the case with a seed."""
    return {how: functools.partial(count, backend) for how, backend in HOW.items()}


def rows(runs: Runs) -> list[Row]:
    table = []
    for how in HOW:
        if how in runs:
            values, label = runs[how], f"{len(SITUATIONS)} situations, {how}"
            table.append(Row(f"{label}: named exactly", values["named"], None, "", "count", "ours >= 23"))
            table.append(Row(f"{label}: named wrongly", values["wrong"], None, "", "count", "ours <= 0"))
    return table


if __name__ == "__main__":
    harness.main(sys.modules[__name__])

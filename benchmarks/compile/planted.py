"""Planted passes in situations in which a step trains: does it train on with a wrong one, or give up a right one?"""

from __future__ import annotations

import contextlib
import copy
import os
import random
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from . import planting
from .planting import HARMLESS, Planted, batch, effect, moved, network

COUNT = 100
"""Wrong and right passes each, in a run."""
USUAL, BATCHES = 16, 14
"""Samples of a usual batch, and number of batches of a training."""
PASS = "attention"
"""Pass of the library that is replaced."""


def no_change(model: Any, number: int) -> None:
    """Leave the model as it is: the pass is there from the first batch."""


def frozen(model: Any, number: int) -> None:
    model.before.requires_grad_(number < 3)


def another_number(model: Any, number: int) -> None:
    model.scale = 1 if number < 3 else 2


def another_mode(model: Any, number: int) -> None:
    model.train(number < 3)


def hooked(model: Any, number: int) -> None:
    if number == 3:
        model.before.register_forward_hook(lambda module, inputs, output: output * 1.5)


SITUATIONS: dict[str, Callable[[Any, int], None]] = {
    "first": no_change,
    "recalled": no_change,
    "other shape": no_change,
    "frozen": frozen,
    "attribute": another_number,
    "mode": another_mode,
    "hook": hooked,
}
"""How a planted pass comes in: with the plan that was passed, with a plan from the cache, or with a graph that is compiled
later, since the batches or the model change.  The functions change the model before a batch."""
LATER = ("other shape", "frozen", "attribute", "mode", "hook")


def drawn(draws: random.Random, kind: str) -> tuple[str, str, nn.Module, Any]:
    """Return a situation, a description, a model, and a pass that is wrong or right for this model.

    A wrong pass changes a result; behind weights that begin at zero it changes nothing until they have moved.
    """
    from loopwise.compile import Plan

    plan = Plan(graph="captured", passes=(PASS,))
    while True:
        situation = draws.choice(list(SITUATIONS))
        which, model = network(draws)
        if kind == "right":
            name, change = planting.right(draws)
            form: Any = Planted(change, draws.random())
            if draws.random() < 0.5:
                name, form = "written out", planting.written_out
            return situation, f"{which}, {situation}, {name}", model, form
        name, change = (planting.wrong_gradient if which == "zero" else planting.wrong)(draws)
        form = Planted(change, draws.random(), armed=situation not in LATER)
        changed = copy.deepcopy(model)
        SITUATIONS[situation](changed, BATCHES)
        sample = batch(USUAL, draws)
        seen, later = effect(changed, sample, plan, form), effect(moved(changed, 5), sample, plan, form)
        if later > HARMLESS and (which != "zero" or seen == 0):
            form.changed = 0  # effect() counted graphs as well
            return situation, f"{which}, {situation}, {name}", model, form


def batches_of(situation: str, draws: random.Random) -> Iterator[Any]:
    """Yield the batches of a training; those of another shape come until one of them is compiled."""
    for number in range(BATCHES):
        yield batch(24 if situation == "other shape" and number > 2 else USUAL, draws)


@contextlib.contextmanager
def remembered(plan: Any) -> Iterator[None]:
    """Let the step find the file of an earlier training that measured ``plan``."""
    from loopwise.compile import plan as plans

    recall = plans.recall

    def stored(key: str) -> Any:
        plans.remember(key, plan, [])
        return recall(key)

    plans.recall = stored
    try:
        yield
    finally:
        plans.recall = recall


def train(situation: str, model: nn.Module, form: Any, draws: random.Random) -> tuple[bool, bool, str]:
    """Train a model by a step with the planted pass, and a copy of it by the usual loop, batch by batch.

    Returns:
        Whether the step still trains by its plan, whether the weights were the usual loop's bit by bit after all
        batches, and the reason of going back to the eager step.
    """
    from loopwise.compile import Plan, TrainStep

    plan, twin, criterion = (
        Plan(graph="captured", passes=(PASS,)),
        copy.deepcopy(model),
        nn.CrossEntropyLoss(),
    )
    # with the user's choice of foreach, the step measures no other updates, whose last places differ
    optimizers = [torch.optim.SGD(m.parameters(), 0.1, 0.9, foreach=True) for m in (model, twin)]
    step, equal = (
        TrainStep(model, criterion, optimizers[0], plan=None if situation == "recalled" else plan),
        True,
    )
    data = list(batches_of(situation, draws))
    if situation == "recalled":
        with remembered(plan):
            step.prepare(data[0])
    for number, (x, y) in enumerate(data):
        for net in (model, twin):
            SITUATIONS[situation](net, number)
        if number == 3 and isinstance(form, Planted):
            form.armed = True
        torch.manual_seed(number)
        step((x, y))
        torch.manual_seed(number)
        optimizers[1].zero_grad()
        criterion(twin(x), y).backward()
        optimizers[1].step()
        equal &= all(map(torch.equal, model.state_dict().values(), twin.state_dict().values()))
    assert step.plan is not None
    return step.plan.graph != "eager", equal, str(step.explain())


def judged(kind: str, draws: random.Random) -> tuple[bool, str]:
    """Return whether a drawn pass was dealt with rightly, and what happened; a pass that no graph used is drawn again."""
    from loopwise.compile.graph import passes

    own, before = passes.PASSES[PASS], os.environ.get("LOOPWISE_CACHE")
    while True:
        situation, text, model, form = drawn(draws, kind)
        torch._dynamo.reset()
        try:
            with tempfile.TemporaryDirectory() as folder:
                os.environ["LOOPWISE_CACHE"], passes.PASSES[PASS] = folder, form
                kept, equal, said = train(situation, model, form, draws)
        finally:
            passes.PASSES[PASS] = own
            os.environ.pop("LOOPWISE_CACHE")
            if before is not None:
                os.environ["LOOPWISE_CACHE"] = before
        if kind == "right":
            return kept, f"{text}: given up\n{said}"
        if form.changed:
            return (
                equal and not kept,
                f"{text}: {'kept' if kept else 'given up'}, weights equal: {equal}\n{said}",
            )


def planted(seed: int, count: int = COUNT) -> dict[str, float]:
    """Count the wrong passes that never update a weight, and the right passes that are kept."""
    torch.set_num_threads(1)
    counts = Counter[str]()
    with warnings.catch_warnings(), torch._dynamo.config.patch(recompile_limit=64):
        warnings.simplefilter("ignore")
        for kind in ("wrong", "right"):
            draws = random.Random(f"{kind} {seed}")
            for number in range(count):
                good, text = judged(kind, draws)
                counts[kind] += good
                if not good:
                    print(f"{kind}, number {number}: {text}\n", file=sys.stderr)
    return {f"{kind}, share": counts[kind] / count for kind in ("wrong", "right")}

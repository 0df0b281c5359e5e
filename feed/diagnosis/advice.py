"""Verdicts about a measured loop, in the order in which they are tried: the cheapest remedy first."""

from __future__ import annotations

import math
from dataclasses import dataclass

from .model import FULL, Costs, cost

LITTLE = 0.05
"""Share of a step that may be waited for without any remedy."""
DECODING = 0.5
"""Share of the processor time of a batch above which operations that a GPU can do are named."""


@dataclass(frozen=True, slots=True)
class Setting:
    """The machines that there are, and that could be had; prices are for an hour, in any currency."""

    workers: int
    """``num_workers`` of the loader now."""
    processors: int
    """Processors of this machine that workers may use."""
    price: float | None = None
    """Price of this machine."""
    larger: tuple[int, float] | None = None
    """Processors and price of a machine with the same accelerators and more processors."""
    host: tuple[int, float | None] = (36, None)
    """Processors and price of a machine for the data group."""
    bandwidth: float = 10.0
    """Bandwidth between the machines, in Gbit/s."""
    decoding: float = 0.0
    """Share of a batch's processor time in decoding and resizing of images."""
    accelerator: bool = False
    """The model trains on a GPU."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The limit of a step, and the remedy."""

    name: str
    """``nothing``, ``local workers``, ``more readers``, ``larger machine``, ``gpu decoding``, ``link`` or ``data group``."""
    text: str
    """The verdict and its reason in sentences."""
    workers: int
    """Number of workers that fill the step."""
    step: float
    """Predicted seconds of a step if the advice is followed."""
    hosts: int = 0
    """Number of machines of the data group; 0: none."""


def advise(costs: Costs, setting: Setting) -> Verdict:
    """Return the first verdict that applies.

    Args:
        costs: the measured times.
        setting: the machines.
    """
    now = costs.predicted(setting.workers, setting.processors)
    best, needed = costs.step + costs.handover, costs.needed()
    if now - best <= LITTLE * now:
        text = (
            f"The step waits for its own computation: {max(0.0, now - best) / now:.0%} of it is spent waiting for "
            "batches. Leave the loader as it is; faster loading gains nothing."
        )
        return Verdict("nothing", text, setting.workers, now)
    head = f"The step waits for batches: {(now - best) / now:.0%} of {1e3 * now:.0f} ms. {needed} workers would fill it."
    if costs.cpu <= FULL * costs.step * setting.processors:
        reached = costs.predicted(needed, setting.processors)
        if costs.waiting > costs.cpu:
            text = f"{head} They wait rather than compute, so this machine has processors enough: pass num_workers={needed}."
            return Verdict("more readers", text, needed, reached)
        text = f"{head} The {setting.processors} processors here are enough: pass num_workers={needed}."
        return Verdict("local workers", text, needed, reached)
    head += f" They keep {costs.processors()} processors busy, and this machine has {setting.processors}."
    return _elsewhere(costs, setting, now, needed, head)


def _elsewhere(costs: Costs, setting: Setting, now: float, needed: int, head: str) -> Verdict:
    if setting.larger is not None and costs.processors() <= setting.larger[0]:
        count, price = setting.larger
        step = costs.predicted(needed, count)
        told = "" if setting.price is None else _money(now, (setting.price,), step, (price,))
        text = f"{head} A machine of the same kind with {count} processors fills the step.{told}"
        return Verdict("larger machine", text, needed, step)
    if setting.accelerator and setting.decoding > DECODING:
        text = (
            f"{head} {setting.decoding:.0%} of the processor time decodes and resizes images, which the GPU can do: "
            "try this before other machines."
        )
        return Verdict("gpu decoding", text, needed, now)
    transfer = costs.nbytes / (setting.bandwidth * 1e9 / 8)
    if transfer > costs.step:
        text = (
            f"{head} A data group would not help: a batch of {costs.nbytes / 1e6:.1f} MB takes {1e3 * transfer:.0f} ms "
            f"over {setting.bandwidth:g} Gbit/s, longer than the step. Send smaller batches, such as uint8 in place of "
            "float32, normalised on the accelerator."
        )
        return Verdict("link", text, needed, max(costs.predicted(needed, needed), transfer))
    hosts = max(1, math.ceil((costs.processors() - setting.processors) / setting.host[0]))
    step, each = costs.predicted(needed, setting.processors + hosts * setting.host[0]), setting.host[1]
    told = ""
    if setting.price is not None and each is not None:
        told = _money(now, (setting.price,), step, (setting.price, *[each] * hosts))
    text = (
        f"{head} A data group of {hosts} machine{'s' if hosts > 1 else ''} with {setting.host[0]} processors takes the "
        f"step to {1e3 * step:.0f} ms, {now / step:.2f} times as fast: pass group='data' and num_workers={needed} to "
        f"RemoteDataLoader.{told}"
    )
    return Verdict("data group", text, needed, step, hosts)


def _money(before: float, now: tuple[float, ...], after: float, then: tuple[float, ...]) -> str:
    """Return the costs of 100 steps, and whether the change pays."""
    old, new = 100 * cost(before, *now), 100 * cost(after, *then)
    change = f"saves {1 - new / old:.1%}" if new < old else f"costs {new / old - 1:.1%} more"
    return f" 100 steps cost {new:.3f} in place of {old:.3f}, which {change}."

"""Checks of gradients: missing ones looked at again with other seeds, and backward against differences."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from loopwise import batch as batches

from ..model import names
from ..rules import Finding
from ..rules.history import some
from .copies import SEED, Setup, seed_all
from .report import Result, faulty, left_out
from .training import Training

SEEDS = 6
"""Passes with other random numbers, after which a layer that is left out at random has had its turn."""
STEP = 1e-6
"""Length of the differences, in float64."""
TOLERANCE = 1e-3
"""Largest difference of a derivative, relative to the larger one."""
SMALL = 1e-6
"""Difference, relative to the largest derivative, that is rounding."""


def looked_at_again(setup: Setup, findings: Sequence[Finding]) -> list[Finding]:
    """Return the findings without parameters that get a gradient with other random numbers or values of the batch.

    Stochastic depth and routing leave layers out at random; such layers learn in other steps.
    """
    suspects = {name for each in findings if each.rule == "missing_gradient" for name in each.tensors}
    if not suspects:
        return list(findings)
    copy, seen = setup.copy(), set[str]()
    for seed in range(1, SEEDS + 1):
        try:
            seed_all(SEED + seed)
            if seed == SEEDS:  # another batch: the same values for other samples
                copy.batch = batches.map_tensors(_noisy, copy.batch)
            copy.model.zero_grad()
            copy.compute().backward()  # type: ignore[no-untyped-call]
        except Exception:
            continue
        seen |= {names.plain(n) for n, p in copy.model.named_parameters() if p.grad is not None}
        if suspects <= seen:
            break
    kept = []
    for finding in findings:
        if finding.rule == "missing_gradient" and set(finding.tensors) & seen:
            rest = tuple(name for name in finding.tensors if name not in seen)
            if not rest:
                continue
            what = f"no gradient in any step and with {SEEDS} other seeds: {some(rest)}"
            finding = Finding(
                finding.rule,
                finding.severity,
                finding.step,
                finding.mode,
                what,
                rest,
                finding.evidence,
                finding.advice,
            )
        kept.append(finding)
    return kept


def _noisy(tensor: torch.Tensor) -> torch.Tensor:
    return (
        tensor + torch.randn_like(tensor) * tensor.std()
        if tensor.is_floating_point() and tensor.numel() > 1
        else tensor
    )


def frozen_result(
    setup: Setup, training: Training, frozen: Callable[[str, torch.nn.Parameter], bool]
) -> Result | None:
    """Check that the training changed no frozen parameter; ``None`` if no parameter is frozen."""
    name = "frozen"
    count = sum(frozen(names.plain(path), p) for path, p in setup.model.named_parameters())
    if not count:
        return None
    if not training.losses:
        return left_out(name, training.failed)
    if training.changed:
        what = f"{len(training.changed)} of {count} frozen parameters change in training: {some(training.changed)}"
        return faulty(name, "frozen_parameter_changes", what, training.changed)
    return Result(name, f"{count} frozen parameters stay the same in {len(training.losses)} steps")


def gradcheck(setup: Setup) -> Result:
    """Check backward of the loss against central differences, in float64, along random directions of each parameter."""
    name = "gradcheck"
    try:
        copy = setup.copy()
        copy.model.double()
        if isinstance(copy.loss, torch.nn.Module):
            copy.loss.double()
        copy.batch = batches.map_tensors(lambda t: t.double() if t.is_floating_point() else t, copy.batch)
        wrong, most = _wrong(copy)
    except Exception as error:
        return left_out(name, f"the model cannot be computed in float64: {error!r}")
    if wrong:
        what = (
            f"backward and differences of the loss do not agree for {some([path for path, *_ in wrong])}: "
            f"{wrong[0][1]:.4g} by backward, {wrong[0][2]:.4g} by differences"
        )
        return faulty(name, "wrong_gradient", what, tuple(path for path, *_ in wrong))
    return Result(name, f"backward agrees with differences of the loss, of up to {most:.3g}")


def _wrong(copy: Setup) -> tuple[list[tuple[str, float, float]], float]:
    """Return the parameters with a wrong derivative, with both values, and the largest derivative."""

    def value() -> torch.Tensor:
        seed_all(SEED)
        return copy.compute()

    trained = [(names.plain(n), p) for n, p in copy.model.named_parameters() if p.requires_grad]
    copy.model.zero_grad()
    value().backward()  # type: ignore[no-untyped-call]
    draws = torch.Generator().manual_seed(SEED)
    pairs: dict[str, list[tuple[float, float]]] = {}
    for path, parameter in trained:
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        for _ in range(2):
            way = torch.randn(parameter.shape, generator=draws, dtype=torch.float64).to(parameter.device)
            way /= way.norm().clamp_min(1e-12)
            kept, ends = parameter.detach().clone(), []
            for sign in (1, -1):
                parameter.data.copy_(kept + sign * STEP * way)
                with torch.no_grad():
                    ends.append(value().item())
            parameter.data.copy_(kept)
            pairs.setdefault(path, []).append(
                (float((gradient * way).sum()), (ends[0] - ends[1]) / (2 * STEP))
            )
    most = max((max(abs(a), abs(b)) for both in pairs.values() for a, b in both), default=0.0)

    def differs(by_backward: float, by_difference: float) -> bool:
        allowed = TOLERANCE * max(abs(by_backward), abs(by_difference)) + SMALL * most + 1e-9
        return not abs(by_backward - by_difference) <= allowed

    return [(path, *both[0]) for path, both in pairs.items() if all(differs(*pair) for pair in both)], most

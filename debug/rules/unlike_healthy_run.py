"""A training that differs from an earlier healthy run of the user's, by more than another seed explains.

Statistic: what both runs saved of the same training steps: names and shapes of parameters, which of them get gradients and
change, modes, learning rates, samples, and the sizes of updates, gradients, outputs, weights, inputs, losses and norms.
Default: a parameter that gets a gradient, or changes, in one run alone; a module in another mode; another learning rate or
number of samples; or a size outside of the healthy run's range of all steps up to twice this one, widened by what can be
noise; each at three successive compared steps.  Lower losses do not count.  The rule needs ``Watch(..., like="runs/healthy")``.
Why: the range is widened by five standard deviations between its neighbouring steps, by its range from half to twice this
step (one run may be ahead), by a factor of 1.28, and by the factor that two sets of n normal numbers exceed with a chance of
``error``, divided by the number of tensors and, at the k-th comparison, by k(k + 1), so that ``error`` is the chance for
the whole run.  That factor is exp(arccosh(p^(-1/n))), by Chernoff's bound; n is the smallest dimension of the tensor, or the
number of samples.  At most 32 steps between a step and its double are compared, and none after the healthy run's end.
Gradients of less than 1e-5 of the largest, and updates of less than 1e-5 of their weight, are not compared: they may be
rounding errors.
False alarms: learning rates that follow a metric; differences that are meant.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from .arrays import memory
from .finding import Observation, Observations, Points, Rule
from .healthy_facts import Models, of_gradients, of_models, of_modes, of_rates, of_samples
from .healthy_run import NAME, HealthyRun
from .healthy_sizes import NEAR, STEPS, Candidate, of_scalars, of_tensors
from .history import SHOWN, History, Step, some

LOOKS = 32
"""Largest number of compared steps between a step and its double."""


@dataclass(frozen=True)
class Text:
    """Words for one kind of difference."""

    what: Callable[[str, Candidate], str]
    advice: str


def _factor(of: str, compared: str) -> Callable[[str, Candidate], str]:
    """Return the words for sizes that are larger, or smaller, than in the healthy run."""

    def what(names: str, first: Candidate) -> str:
        limit = (
            f"there at most {first.high:.3g}" if compared == "large" else f"there at least {first.low:.3g}"
        )
        zero = not (first.value and first.high)
        factor = "" if zero else f", {compared} by a factor of {math.exp(first.distance):.3g}"
        return f"{of} {names}: {first.value:.3g}, {limit}{factor}"

    return what


def _between(first: Candidate) -> str:
    return f"{first.low:.4g}" if first.low == first.high else f"from {first.low:.4g} to {first.high:.4g}"


BEFORE = "print the largest values after each layer, and look at initialization and normalization of the layers before it"
RATE = "compare optimizer, learning rate, scheduler and weight decay with those of the healthy run"
DATA = "apply the transforms of the healthy run to the data: scale, mean, deviation and type"
GRADIENT = "compare loss, clipping, accumulation and zero_grad() with the healthy run"
TEXTS = {
    "evaluating": Text(
        lambda names, _: f"in evaluation mode, there in training mode: {names}",
        "call model.train() before training, and after each evaluation",
    ),
    "not evaluating": Text(
        lambda names, _: f"in training mode, there in evaluation mode: {names}",
        "call eval() on the frozen part after model.train()",
    ),
    "not_zeroed": Text(
        lambda names, _: "gradients are not set to zero between updates, there they are",
        "call optimizer.zero_grad() before each backward pass, or each group of accumulated ones",
    ),
    "not not_zeroed": Text(
        lambda names, _: "gradients are set to zero between updates, there they are not",
        "move optimizer.zero_grad() to where the healthy run has it",
    ),
    "no update": Text(
        lambda names, _: "no optimizer updates the model, there one does at every step",
        "call optimizer.step() at each step, on the optimizer that the Watch was made with; accumulate as the healthy run does",
    ),
    "left out": Text(
        lambda names, _: f"no optimizer trains what one trains there: {names}",
        "set requires_grad=True, and give the optimizer all parameters that the healthy run trains",
    ),
    "added": Text(
        lambda names, _: f"an optimizer trains what none trains there: {names}",
        "set requires_grad=False for what the healthy run kept frozen",
    ),
    "no gradient": Text(
        lambda names, _: f"no gradient, there at every update: {names}",
        "look for requires_grad=False, a detach(), a no_grad(), or a layer that forward() leaves out",
    ),
    "new gradient": Text(
        lambda names, _: f"a gradient, there at no update: {names}",
        "set requires_grad=False for what the healthy run kept frozen",
    ),
    "no change": Text(
        lambda names, _: f"unchanged by updates that change them there: {names}",
        "give the optimizer these parameters, with a learning rate above zero",
    ),
    "learning rate": Text(
        lambda names, first: f"{names} is {first.value:.4g}, there {_between(first)}", RATE
    ),
    "samples": Text(
        lambda names, first: f"a step has {first.value:.0f} samples, there {_between(first)}",
        "compare batch size, sampler and number of ranks with the healthy run",
    ),
    "input": Text(
        lambda names, first: f"the size of the {_input(first)} is {first.value:.4g}, there {_between(first)}",
        DATA,
    ),
    "input mean": Text(
        lambda names, first: f"the mean of the {_input(first)} is {first.value:.4g}, there {_between(first)}",
        DATA,
    ),
    "step large": Text(_factor("updates, in units of the gradients, of", "large"), RATE),
    "step small": Text(_factor("updates, in units of the gradients, of", "small"), RATE),
    "update large": Text(_factor("relative updates of", "large"), RATE),
    "update small": Text(_factor("relative updates of", "small"), RATE),
    "gradient large": Text(_factor("gradients of", "large"), GRADIENT),
    "gradient small": Text(_factor("gradients of", "small"), GRADIENT),
    "norm large": Text(_factor("", "large"), GRADIENT),
    "norm small": Text(_factor("", "small"), GRADIENT),
    "output large": Text(_factor("outputs of", "large"), BEFORE),
    "output small": Text(_factor("outputs of", "small"), BEFORE),
    "weight large": Text(_factor("weights of", "large"), RATE),
    "weight small": Text(_factor("weights of", "small"), RATE),
    "loss": Text(_factor("", "large"), "compare data, loss and learning rate with the healthy run"),
}
"""Words for each kind of difference, in the order in which they are told: causes before effects."""


def _input(first: Candidate) -> str:
    return f"input of {first.name}" if first.name else "model's input"


class Lasting:
    """Differences at successive compared steps of one sort: steps with statistics, or all steps."""

    def __init__(self) -> None:
        self.points: dict[tuple[str, str], Points] = {}
        """Kind and name -> steps and values since when the difference is there."""
        self._last = -1

    def is_due(self, number: int) -> bool:
        """Return whether a step is compared."""
        if self._last >= 0 and number - self._last < number / LOOKS:
            return False
        self._last = number
        return True

    def add(self, step: Step, candidates: Iterable[Candidate], count: float) -> list[Candidate]:
        """Return those of the step's differences that are there for ``count`` compared steps or longer."""
        present = {(candidate.kind, candidate.name): candidate for candidate in candidates}
        self.points = {
            key: [*self.points.get(key, []), (step.number, candidate.value)]
            for key, candidate in present.items()
        }
        return [candidate for key, candidate in present.items() if len(self.points[key]) >= count]


def detect(history: History, steps: float = STEPS, error: float = 0.01) -> Observations:
    healthy, now = history.healthy, history.now
    kept = memory(history, NAME)
    if healthy is None or kept.get("told") or now.mode_step > healthy.last:
        return
    if not kept:
        kept |= {"tensors": Lasting(), "scalars": Lasting(), "looks": 0, "told": False}
        kept["looks of tensors"] = 0
    tensors, scalars = kept["tensors"], kept["scalars"]
    of_step = not now.layout.is_of_scalars and tensors.is_due(now.mode_step)
    of_scalar = scalars.is_due(now.mode_step)
    if not of_step and not of_scalar:
        return
    healthy.read(2 * now.mode_step + NEAR)
    kept["looks"] += 1
    lasting: list[Candidate] = []
    points: dict[tuple[str, str], Points] = {}
    if of_step:
        models = of_models(history, healthy)
        kept["looks of tensors"] += 1
        if kept["looks of tensors"] == steps and (models.here or models.there):
            yield _of_models(healthy, models)
        facts = [Candidate("left out", name) for name in models.left_out]
        facts += [Candidate("added", name) for name in models.added]
        facts += [*of_modes(now, healthy), *of_gradients(now, healthy)]
        lasting += tensors.add(now, [*facts, *of_tensors(now, healthy, error / 2, kept["looks"])], steps)
        points |= tensors.points
    if of_scalar:
        facts = [*of_rates(now, healthy), *of_samples(now, healthy)]
        lasting += scalars.add(now, [*facts, *of_scalars(now, healthy, error / 2, kept["looks"])], steps)
        points |= scalars.points
    if lasting:
        kept["told"] = True
        yield _observation(healthy, lasting, points)


def _of_models(healthy: HealthyRun, models: Models) -> Observation:
    """Return the observation that the models differ."""
    parts = []
    for shapes, which in ((models.here, "only here"), (models.there, f"only in {healthy.name}")):
        if shapes:
            named = [f"{name} of {'x'.join(map(str, shape)) or '1'}" for name, shape in shapes.items()]
            parts.append(f"{which}: {some(named)}")
    return Observation(
        f"the model is not that of the healthy run {healthy.name}, and only what both have is compared; "
        + "; ".join(parts),
        (*models.here, *models.there),
        advice="build the model by the code and options of the healthy run, or compare with a run of this model",
    )


def _observation(
    healthy: HealthyRun, lasting: list[Candidate], points: dict[tuple[str, str], Points]
) -> Observation:
    """Return the observation of all differences, causes first."""
    order = list(TEXTS)
    lasting = sorted(
        lasting, key=lambda c: (order.index(c.kind), -c.distance)
    )  # stable: layers stay in order
    kinds = list(dict.fromkeys(candidate.kind for candidate in lasting))
    texts = []
    for kind in kinds[:SHOWN]:
        of_kind = [candidate for candidate in lasting if candidate.kind == kind]
        texts.append(TEXTS[kind].what(some([c.name or "the model" for c in of_kind]), of_kind[0]).strip())
    more = len(kinds) - SHOWN
    texts += [f"and differences of {more} more kinds"] if more > 0 else []
    since = min(points[candidate.kind, candidate.name][0][0] for candidate in lasting)
    first = lasting[:SHOWN]
    return Observation(
        f"unlike the healthy run {healthy.name} since step {since}: {'; '.join(texts)}",
        tuple(dict.fromkeys(c.name or "the model" for c in lasting)),
        {f"{c.kind} {c.name}".strip(): points[c.kind, c.name] for c in first if c.value or c.high},
        TEXTS[kinds[0]].advice,
    )


RULE = Rule(
    detect,
    "warning",
    "look for what changed between the two trainings: code, data, options and versions",
    most=2,
    scalars=True,
)

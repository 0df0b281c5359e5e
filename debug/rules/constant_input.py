"""A channel or feature of the model's input that has one value in all samples, though others vary.

Statistic: the first input of each model at saved training steps: images of 2 to 16 channels, (samples, channels, height,
width), and tables, (samples, features), of floating-point numbers.
Default: the value is the same in all of 500 samples or more, of five different batches or more, and others vary.  The value
of a feature must occur in no feature that varies, none of which has two values only.  A value of 1 does not count.
Why: what never varies teaches nothing: a column that was overwritten, a deviation that was lost.  Whole channels of
images are no borders.  A value that also occurs elsewhere is the background of pixels, padding, or the zero of rare
classes and words.  Ones are a bias or an opaque channel.
False alarms: an opaque channel with another value than 1, masks and planes that are switched off, quantities that only
later batches vary.
"""

from .finding import Observation, Observations, Rule
from .history import SHOWN, History, some


def detect(history: History, samples: float = 500, steps: float = 5) -> Observations:
    for key, facts in history.now.facts.get("constant_inputs", {}).items():
        if facts["samples"] < samples or facts["batches"] < steps:
            continue
        kind, places, values = facts["kind"], facts["places"], facts["values"]
        named = [f"{place} ({value:.4g})" for place, value in zip(places, values, strict=True)]
        model = "" if key == "model" else f" of {key}"
        yield Observation(
            f"of the {facts['of']} {kind}s of the input{model}, {len(places)} "
            f"{'has' if len(places) == 1 else 'have'} one value in all {facts['samples']} samples of "
            f"{facts['batches']} batches, while others vary: {some(named)}",
            tuple(f"input {kind} {place}" + model for place in places),
            {
                f"{kind} {place}": [(history.now.number, float(value))]
                for place, value in zip(places[:SHOWN], values[:SHOWN], strict=True)
            },
        )


RULE = Rule(
    detect,
    "info",
    "look where the data is read, scaled and joined for what overwrites it or divides it by a wrong deviation; "
    "leave it out if it carries nothing",
    most=4,
)

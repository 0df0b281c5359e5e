"""A language model whose targets are its own input tokens, so that it learns to copy them.

Statistic: the targets of the first samples, which follow from the gradient of the output (negative at the target alone), and
the input tokens at the same positions.
Default: all targets of 16 positions or more are the tokens there, at two successive saved steps.
Why: the next token is predicted from those before.  If targets are not shifted by one, the answer is in the input, and the
loss falls to zero whatever the text.  Masked tokens, and targets that the model shifts itself, differ from the input.
False alarms: autoencoders of tokens, which are to copy their input.
"""

from .finding import Observation, Observations, Rule
from .history import Columns, History


def detect(history: History, steps: float = 2) -> Observations:
    last = history.updates(int(steps))
    if last is None:
        return
    tables = [step.columns("samples", "copied") for step in last]
    names = set.intersection(*(_copied(table) for table in tables))
    for name in sorted(names):
        yield Observation(
            "the targets are the input tokens at the same positions: the model learns to copy them",
            ("output",) if name == "model" else (f"output {name}",),
        )


def _copied(table: Columns) -> set[str]:
    return {name for name, value in zip(table.names, table.values[0], strict=True) if value == 1}


RULE = Rule(
    detect,
    "warning",
    "shift the targets by one: inputs tokens[:, :-1], targets tokens[:, 1:]; or pass labels to a model that shifts them",
    most=1,
)

"""Measure the training step of a model of the user's: eager, torch.compile and ours, on one thread."""

from __future__ import annotations

import argparse
import functools
import importlib
import inspect
import sys
from collections.abc import Sequence
from typing import Any

from rich.table import Table
from torch import nn

from loopwise.errors import InputError

from .. import harness
from . import interleaved
from .forms import FORMS, OFF

FORM = "a function that returns (model, loss, batch), or (model, loss, [batch, batch, ...])"
EXAMPLE = "mine.py with def factory(): return model, nn.CrossEntropyLoss(), (images, labels), and --model mine:factory"


def asked(arguments: Sequence[str]) -> bool:
    """Return whether the command line names a model."""
    return any(argument.partition("=")[0] == "--model" for argument in arguments)


def main() -> None:
    """Run the command line and print one row of times."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compile.models", description=__doc__)
    parser.add_argument("--model", metavar="PACKAGE:FACTORY", required=True, help=FORM)
    parser.add_argument("--seed", type=int, default=0, help="seed of torch before the factory is called")
    parser.add_argument("--quick", action="store_true", help="four turns; one more digit is noise")
    args = parser.parse_args()
    try:
        table = measured(args.model, args.seed, 4 if args.quick else interleaved.TURNS)
    except (InputError, interleaved.FormError) as error:
        sys.exit(f"error: {error}")
    harness.terminal().print(table)


def measured(name: str, seed: int, turns: int) -> Table:
    """Return the table of a model's times.

    Raises:
        InputError: ``package:factory`` cannot be used.
        FormError: a form of the step failed.
    """
    result = interleaved.measure(
        functools.partial(made, factory_of(name), name), seed, ("eager", OFF, *FORMS[1:]), turns
    )
    values = result.quantities()
    steps = {form: values[f"{form}: step, ms"] for form in FORMS}
    first = [values[f"{form}: first step, s"] for form in ("torch.compile", "ours", OFF)]
    table = Table(
        *("model", *(f"{form}, ms" for form in FORMS), "ours of the faster"),
        *(f"first step: {form}, s" for form in ("torch.compile", "ours", "autotune off")),
        "plan",
        title="training step, processor time of one thread",
    )
    ratio = steps["ours"] / min(steps["eager"], steps["torch.compile"])
    numbers = [*(f"{value:.1f}" for value in steps.values()), f"{ratio:.2f}", *(f"{s:.1f}" for s in first)]
    table.add_row(name, *numbers, result.plans.get("ours", ""))
    return table


def factory_of(name: str) -> Any:
    """Return the function that ``package:factory`` names.

    Raises:
        InputError: there is none.
    """
    package, colon, function = name.partition(":")
    if not (package and colon and function):
        raise InputError(f"--model {name}", "package:factory", "the colon or a part is missing", EXAMPLE)
    try:
        module = importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{package}.".startswith(f"{error.name}."):
            raise InputError(
                f"a module {package} that imports {error.name}",
                "a module that can be imported",
                f"{error.name} is not installed",
                f"install {error.name}, or run the command in the environment of the model",
            ) from error
        raise InputError(
            f"no module named {error.name}",
            f"an importable module {package}",
            "a typo, or the module is not below the present folder",
            f"run the command in the folder of {package.partition('.')[0]}, or set PYTHONPATH",
        ) from error
    factory = getattr(module, function, None)
    if callable(factory):
        return factory
    names = [
        key
        for key, value in vars(module).items()
        if inspect.isfunction(value) and value.__module__ == package
    ]
    seen = f"no {function} in {package}" if factory is None else f"{name} of type {type(factory).__name__}"
    raise InputError(seen, FORM, "a typo", f"name one of its functions: {', '.join(names) or 'it has none'}")


def made(factory: Any, name: str) -> tuple[nn.Module, Any, list[Any]]:
    """Return model, loss and batches of a factory.

    Raises:
        InputError: the factory failed, or returned something else.
    """
    try:
        values = factory()
    except Exception as error:
        text = f"{type(error).__name__}: {error}"
        raise InputError(
            f"{name}() raised {text}", FORM, "an error in the factory", f"call {name}() alone"
        ) from error
    if not isinstance(values, (tuple, list)) or len(values) != 3:
        size = f" with {len(values)} elements" if isinstance(values, (tuple, list)) else ""
        seen = f"{name}() returned {type(values).__name__}{size}"
        raise InputError(seen, FORM, "loss or batch is missing", EXAMPLE)
    model, loss, batch = values
    if not isinstance(model, nn.Module) or not callable(loss):
        seen = (
            f"{name}() returned a {type(model).__name__} as the model and a {type(loss).__name__} as the loss"
        )
        raise InputError(seen, FORM, "the order is another one", EXAMPLE)
    batches = (
        batch
        if isinstance(batch, list) and all(isinstance(b, (tuple, list, dict)) for b in batch)
        else [batch]
    )
    if not batches:
        raise InputError(f"{name}() returned no batches", FORM, "the list of batches is empty", EXAMPLE)
    return model, loss, batches

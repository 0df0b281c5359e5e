"""Argument validation: valid values are returned, and every other value gets a whole error."""

import pytest
from torch import nn

from loopwise import validate
from loopwise.errors import InputError

CRITERION = ("loss", "a criterion", "loss=nn.CrossEntropyLoss()")


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (validate.whole_number, ("n", 0)),
        (validate.whole_number, ("n", 3, 3)),
        (validate.positive_number, ("timeout", 0.5)),
        (validate.positive_number, ("timeout", 2)),
        (validate.fraction, ("keep", 0.5, "a share", 0.5)),
        (validate.fraction, ("keep", 0, "a share", 0.5, True, False)),
        (validate.fraction, ("keep", 1, "a share", 0.5, False, True)),
        (validate.one_of, ("mode", "b", ["a", "b"])),
        (validate.one_of, ("watch", True, [False, True, "auto"])),
        (validate.function, ("loss", len, "a criterion", "loss=len")),
    ],
)
def test_valid_values_are_returned(function, arguments):
    assert function(*arguments) == arguments[1]


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        *((validate.whole_number, ("n", value)) for value in (-1, 1.0, True, "1", None)),
        (validate.whole_number, ("n", 2, 3)),
        *(
            (validate.positive_number, ("t", value))
            for value in (0, -1.0, True, "1", None, float("inf"), float("nan"))
        ),
        *(
            (validate.fraction, ("keep", value, "a share", 0.5))
            for value in (0, 1, 50, -0.1, True, "0.5", float("nan"))
        ),
        (validate.fraction, ("keep", 1, "a share", 0.5, True, False)),
        *((validate.one_of, ("mode", value, ["a", "b"])) for value in ("c", None, 0)),
        (validate.one_of, ("watch", 1, [False, True])),
        *(
            (validate.function, (CRITERION[0], value, *CRITERION[1:]))
            for value in (None, 3, nn.CrossEntropyLoss)
        ),
    ],
)
def test_other_values_are_refused(function, arguments):
    with pytest.raises(InputError):
        function(*arguments)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: validate.whole_number("every", 1.5, 1, "steps"),
            "seen: every=1.5\nexpected: a whole number of steps, at least 1\n"
            "likely cause: a fraction, a negative number or a text\nfix: pass for instance every=4",
        ),
        (
            lambda: validate.positive_number("timeout", 0, "number of seconds", 30),
            "seen: timeout=0\nexpected: a number of seconds above 0\n"
            "likely cause: zero or None for 'none', a negative number or a text\nfix: pass for instance timeout=30",
        ),
        (
            lambda: validate.fraction("keep", 50, "the share of samples to keep", 0.5, one=True),
            "seen: keep=50\nexpected: the share of samples to keep, a number in (0, 1]\n"
            "likely cause: a percentage or a count instead of a fraction\nfix: pass a fraction, for instance keep=0.5",
        ),
        (
            lambda: validate.one_of("autotune", "fast", ("off", "default", "max")),
            "seen: autotune='fast'\nexpected: one of off, default, max\n"
            "likely cause: a typo\nfix: pass for instance autotune='off'",
        ),
        (
            lambda: validate.function(CRITERION[0], nn.CrossEntropyLoss, *CRITERION[1:]),
            "seen: loss=CrossEntropyLoss, a class\nexpected: a criterion\n"
            "likely cause: the class was passed, not an instance\nfix: pass loss=nn.CrossEntropyLoss()",
        ),
        (
            lambda: validate.function(CRITERION[0], 3, *CRITERION[1:]),
            "seen: loss of type int\nexpected: a criterion\n"
            "likely cause: a value was passed in place of a function, or arguments changed places\n"
            "fix: pass loss=nn.CrossEntropyLoss()",
        ),
        (
            lambda: validate.instance("model", 3, nn.Module, "an nn.Module", "pass the model"),
            "seen: model of type int\nexpected: an nn.Module\nlikely cause: arguments changed places\n"
            "fix: pass the model",
        ),
        (
            lambda: validate.instance("model", nn.Linear, nn.Module, "an nn.Module", "pass the model"),
            "seen: model=Linear, a class\nexpected: an nn.Module\n"
            "likely cause: the class was passed, not an instance\nfix: pass the model",
        ),
    ],
)
def test_messages(call, message):
    with pytest.raises(InputError) as error:
        call()
    assert str(error.value) == message

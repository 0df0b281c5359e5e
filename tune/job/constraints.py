"""Conditions between parameters, such as ``batch_size * accumulate <= 512``.

Python parses them, and only what ``_OPERATORS``, ``_COMPARISONS`` and ``_FUNCTIONS`` list is computed; nothing else of the
language is.
"""

from __future__ import annotations

import ast
import functools
import itertools
import math
import operator
import random
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from .command import NAME
from .parameters import Categorical, Continuous, Integer

DRAWS = 10_000
"""Most draws of values in the search for some that satisfy all conditions."""
TYPED = 200
"""Least draws, so that a comparison of a text with a number is found."""
_WORDS = {"true": True, "false": False}
_QUOTED_OR_PLACE = re.compile(rf"\"[^\"]*\"|'[^']*'|\{{({NAME})\}}")


def _power(base: Any, exponent: Any) -> float:
    return math.pow(base, exponent)  # of floats: 9 ** 9 ** 9 would not end


_OPERATORS: dict[type, Any] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: _power,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
}
_COMPARISONS: dict[type, Any] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda value, values: value in values,
    ast.NotIn: lambda value, values: value not in values,
}
_FUNCTIONS: dict[str, Any] = {"min": min, "max": max, "abs": abs, "log2": math.log2, "log10": math.log10}


class Constraint:
    """Condition that the values of every trial satisfy.

    Args:
        text: comparisons of parameters, numbers and texts; ``+ - * / // % **``, ``and``, ``or``, ``not``, ``in (...)``,
            ``min``, ``max``, ``abs``, ``log2`` and ``log10``.  A name that is no Python name stands in braces.

    Attributes:
        names: the parameters in it.

    Raises:
        ValueError: no expression, or one with something else in it.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        places: dict[str, str] = {}

        def place(match: re.Match[str]) -> str:
            if match[1] is None:
                return match[0]  # a text
            return places.setdefault(match[1], f"_place_{len(places)}")

        try:
            tree = ast.parse(_QUOTED_OR_PLACE.sub(place, text).strip(), mode="eval")
        except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
            raise ValueError(f"{text!r} is no expression: {getattr(error, 'msg', error)}") from None
        self._names = {new: name for name, new in places.items()}
        self._root = tree.body
        functions = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
        for node in ast.walk(tree.body):
            if not _allowed(node):
                raise ValueError(
                    f"{text!r} has {ast.unparse(node)!r} in it; valid are comparisons of parameters, numbers and texts, "
                    "+ - * / // % **, and, or, not, in (...), min, max, abs, log2, log10"
                )
        names = {
            n.id for n in ast.walk(tree.body) if isinstance(n, ast.Name) and id(n) not in functions
        } - set(_WORDS)
        self.names = frozenset(self._names.get(name, name) for name in names)

    def compute(self, values: Mapping[str, Any]) -> bool:
        """Return whether values satisfy the condition.

        Raises:
            TypeError: a text where a number belongs, or a result that is neither true nor false.
            ArithmeticError, ValueError: a division by 0, or a number out of range.
        """
        return _truth(self._value(self._root, values), self.text)

    def holds(self, values: Mapping[str, Any]) -> bool:
        """Return whether values satisfy the condition; false if it cannot be computed for them."""
        try:
            return self.compute(values)
        except (TypeError, ArithmeticError, ValueError):
            return False

    def _value(self, node: ast.AST, values: Mapping[str, Any]) -> Any:
        value = functools.partial(self._value, values=values)
        if isinstance(node, ast.Constant):
            return node.value
        if isinstance(node, ast.Name):
            return _WORDS[node.id] if node.id in _WORDS else values[self._names.get(node.id, node.id)]
        if isinstance(node, (ast.Tuple, ast.List)):
            return [value(part) for part in node.elts]
        if isinstance(node, ast.BoolOp):
            truths = (_truth(value(part), ast.unparse(part)) for part in node.values)
            return all(truths) if isinstance(node.op, ast.And) else any(truths)
        if isinstance(node, ast.UnaryOp):
            if isinstance(node.op, ast.Not):
                return not _truth(value(node.operand), ast.unparse(node.operand))
            return _OPERATORS[type(node.op)](_number(value(node.operand)))
        if isinstance(node, ast.BinOp):
            return _OPERATORS[type(node.op)](_number(value(node.left)), _number(value(node.right)))
        if isinstance(node, ast.Compare):
            terms = [value(part) for part in (node.left, *node.comparators)]
            pairs = zip(node.ops, itertools.pairwise(terms), strict=True)
            return all(_COMPARISONS[type(comparison)](*pair) for comparison, pair in pairs)
        assert isinstance(node, ast.Call)
        assert isinstance(node.func, ast.Name)
        return _FUNCTIONS[node.func.id](*(_number(value(part)) for part in node.args))


def _allowed(node: ast.AST) -> bool:
    if isinstance(node, (ast.BinOp, ast.UnaryOp)):
        return type(node.op) in _OPERATORS or isinstance(node.op, ast.Not)
    if isinstance(node, ast.Compare):
        return all(type(part) in _COMPARISONS for part in node.ops)
    if isinstance(node, ast.Call):
        known = isinstance(node.func, ast.Name) and node.func.id in _FUNCTIONS
        return known and bool(node.args) and not node.keywords
    if isinstance(node, ast.Constant):
        return isinstance(node.value, (bool, int, float, str))
    own = (ast.BoolOp, ast.Name, ast.Tuple, ast.List, ast.expr_context, ast.boolop, ast.cmpop)
    return isinstance(node, (*own, ast.operator, ast.unaryop))


def _number(value: Any) -> Any:
    if isinstance(value, (str, list)):
        raise TypeError(f"{value!r} is no number")
    return value


def _truth(value: Any, text: str) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{text!r} is {value!r}, which is neither true nor false")
    return value


def validate_constraints(
    constraints: Sequence[Constraint],
    parameters: Mapping[str, Continuous | Integer | Categorical],
    static: Mapping[str, Any],
) -> None:
    """Raise an error unless every name is known and some values satisfy all conditions.

    A space of at most ``DRAWS`` points is tried as a whole, any other one by that many random draws.

    Raises:
        ValueError: an unknown name, a comparison of a text with a number, or no values that satisfy all conditions.
    """
    known = {*parameters, *static}
    for constraint in constraints:
        if unknown := sorted(constraint.names - known):
            raise ValueError(
                f"{unknown[0]!r} in the constraint {constraint.text!r} is no parameter; "
                f"there are {', '.join(sorted(known))}"
            )
    counts, tried, found, values = [0] * len(constraints), 0, False, dict(static)
    for tried, drawn in enumerate(_points(parameters), 1):
        values = {**static, **drawn}
        truths = [_compute(constraint, values) for constraint in constraints]
        counts = [count + truth for count, truth in zip(counts, truths, strict=True)]
        found = found or all(truths)
        if found and tried >= TYPED:
            return
    if not found:
        shares = "; ".join(f"{c.text!r} holds for {n}" for c, n in zip(constraints, counts, strict=True))
        last = ", ".join(f"{name}={value}" for name, value in values.items())
        raise ValueError(
            f"none of {tried} draws of all values satisfies the constraints: {shares}; the last draw: {last}"
        )


def _compute(constraint: Constraint, values: Mapping[str, Any]) -> bool:
    try:
        return constraint.compute(values)
    except TypeError as error:
        used = ", ".join(f"{name}={values[name]!r}" for name in sorted(constraint.names))
        raise ValueError(f"the constraint {constraint.text!r} with {used}: {error}") from None
    except (ArithmeticError, ValueError):
        return False


def _points(parameters: Mapping[str, Continuous | Integer | Categorical]) -> Iterator[dict[str, Any]]:
    """Yield all points of a small space, or random ones."""
    choices: list[Iterable[Any]] = [p.values for p in parameters.values() if isinstance(p, Categorical)]
    if len(choices) == len(parameters) and math.prod(len(list(part)) for part in choices) <= DRAWS:
        for row in itertools.product(*choices):
            yield dict(zip(parameters, row, strict=True))
        return
    draws = random.Random(0)
    for _ in range(DRAWS):
        yield {name: part.draw(draws.random()) for name, part in parameters.items()}

"""Search for the expression in which a loss became NaN or infinite outside the model, in the user's code.

The loss that ``Watch.step`` was called with is searched among the variables of the calling functions.  The statement that
assigned it is evaluated with the model's outputs of that step, from the innermost expression outwards, until a value is not
finite although the values that it was made of are.  Only code is evaluated that a loss consists of: operators, functions and
tensor methods of torch, modules that are losses, and functions of the user's that take something made from the model's output.
Everything else, and a variable that is assigned more than once, ends the search without a result.
"""

from __future__ import annotations

import ast
import builtins
import inspect
import operator
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
from torch import nn

from loopwise import batch
from loopwise.preserve import preserve
from loopwise.ranks import world_size
from loopwise.torch_internals import original

from ..model.source_lines import relative
from ..torch_internals import LOSSES
from .finite_check import not_finite
from .loss_reasons import reason, short
from .origin import Origin, describe, is_users
from .replay import FILLS, Tracker

OPERATORS: Mapping[type[ast.AST], Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
    ast.MatMult: operator.matmul,
    ast.BitAnd: operator.and_,
    ast.BitOr: operator.or_,
    ast.BitXor: operator.xor,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
    ast.Invert: operator.invert,
    ast.Not: operator.not_,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
CHANGING = ("backward", "register_hook", "register_post_accumulate_grad_hook", "retain_grad", "share_memory")
"""Methods of tensors, besides those whose names end in ``_``, that change something of the user's."""
OF_TORCH: tuple[str, ...] = (
    "torch",
    "torch.functional",
    "torch.nn.functional",
    "torch.special",
    "torch.linalg",
    "torch.fft",
)
OF_TORCH += ("torch._C._nn", "torch._C._special", "torch._C._linalg", "torch._C._fft")
"""Modules of torch whose functions compute values and do nothing else."""
PLAIN_ATTRIBUTES = ("T", "mT", "mH", "H", "real", "imag", "shape", "dtype", "device", "ndim", "data")
"""Attributes of tensors that change nothing."""


class _Unknown(Exception):
    """The code is none that is evaluated again."""


@dataclass(frozen=True, slots=True)
class _Event:
    """An expression whose value is not finite; ``meant`` if it may be infinite on purpose, as a mask is."""

    what: str
    tensor: torch.Tensor
    line: int
    meant: bool = False
    place: str = ""
    """File and line inside of a function that the expression calls."""


@dataclass(frozen=True, slots=True)
class Returned:
    """Call of a model, and what it returned when it was called again.

    Attributes:
        model: the model, without wrappers of torch.compile.
        output: its output.
    """

    model: nn.Module
    output: Any


def explain(loss: torch.Tensor, frame: FrameType | None, returned: Sequence[Returned]) -> Origin | None:
    """Return the origin of a loss that is not finite, in the code that computed it from finite outputs of models.

    Args:
        loss: the loss.
        frame: innermost frame of the search.
        returned: the calls of the models in the step, in order.

    Returns:
        The origin, with an expression of the user's code as its operation; ``None`` if the code does not show it.
    """
    while frame is not None:
        names = [name for name, value in frame.f_locals.items() if value is loss]
        is_there = names and is_users(frame.f_code.co_filename)
        if is_there and (origin := _in_frame(names[0], frame, returned)) is not None:
            return origin
        frame = frame.f_back
    return None


def _in_frame(name: str, frame: FrameType, returned: Sequence[Returned]) -> Origin | None:
    try:
        lines, first = inspect.getsourcelines(frame.f_code)
        before = max(0, first - 1) if frame.f_code.co_name != "<module>" else 0
        evaluation = _Evaluation(frame, ast.parse(textwrap.dedent("".join(lines))), list(returned))
        with preserve(), torch.no_grad():
            event = evaluation.event_of(evaluation.of_name(name))
    except Exception:  # of the user's code, of code that is not evaluated, or no source
        return None
    if event is None or evaluation.returned:  # a call that is left out: the names hold another one's values
        return None
    line = event.place or f"{relative(frame.f_code.co_filename)}:{before + event.line}"
    return Origin("loss", "", "", event.what, line, *describe(event.tensor, None))


class _Evaluation:
    """Evaluation of expressions in a function's variables, with the outputs of models in the place of their calls."""

    def __init__(self, frame: FrameType, tree: ast.AST, returned: list[Returned]) -> None:
        self._frame, self.returned = frame, returned
        self._own: set[int] = set()
        """Identities of tensors that were made from outputs of models."""
        self._events: dict[int, _Event] = {}
        self._alive: list[Any] = []
        self._names: dict[str, Any] = {}
        self._assigned: dict[str, list[ast.expr]] = {}
        for node in ast.walk(tree):
            for target, value in _assignments(node):
                self._assigned.setdefault(target, []).append(value)

    def of_name(self, name: str) -> Any:
        """Return the value of a variable; it is computed anew if it was made by autograd."""
        if name in self._names:
            return self._names[name]
        variables = self._frame.f_locals, self._frame.f_globals, vars(builtins)
        value = next((scope[name] for scope in variables if name in scope), None)
        if isinstance(value, torch.Tensor) and value.grad_fn is None:
            self._note(name, value, 0)
        elif any(isinstance(leaf, torch.Tensor) and leaf.grad_fn is not None for leaf in batch.leaves(value)):
            sources = self._assigned.get(name, [])
            if len(sources) != 1:
                raise _Unknown(name)
            value = self.of(sources[0])
        self._names[name] = value
        return value

    def of(self, node: ast.AST) -> Any:
        """Return the value of an expression."""
        method = getattr(self, f"_{type(node).__name__.lower()}", None)
        if method is None:
            raise _Unknown(type(node).__name__)
        return method(node)

    # -- kinds of expressions ---------------------------------------------------------------------

    def _name(self, node: ast.Name) -> Any:
        return self.of_name(node.id)

    def _constant(self, node: ast.Constant) -> Any:
        return node.value

    def _tuple(self, node: ast.Tuple) -> Any:
        return tuple([self.of(item) for item in node.elts])

    def _list(self, node: ast.List) -> Any:
        return [self.of(item) for item in node.elts]

    def _slice(self, node: ast.Slice) -> Any:
        return slice(
            *[None if part is None else self.of(part) for part in (node.lower, node.upper, node.step)]
        )

    def _attribute(self, node: ast.Attribute) -> Any:
        owner = self.of(node.value)
        if isinstance(owner, torch.Tensor) and node.attr not in PLAIN_ATTRIBUTES:
            raise _Unknown(node.attr)
        return self._checked(node, (owner,), getattr(owner, node.attr))

    def _subscript(self, node: ast.Subscript) -> Any:
        owner, index = self.of(node.value), self.of(node.slice)
        return self._checked(node, (owner, index), owner[index])

    def _binop(self, node: ast.BinOp) -> Any:
        values = self.of(node.left), self.of(node.right)
        return self._checked(node, values, OPERATORS[type(node.op)](*values))

    def _unaryop(self, node: ast.UnaryOp) -> Any:
        value = self.of(node.operand)
        return self._checked(node, (value,), OPERATORS[type(node.op)](value))

    def _ifexp(self, node: ast.IfExp) -> Any:
        return self.of(node.body if self.of(node.test) else node.orelse)

    def _compare(self, node: ast.Compare) -> Any:
        if len(node.ops) != 1:
            raise _Unknown("a < b < c")
        values = self.of(node.left), self.of(node.comparators[0])
        return self._checked(node, values, OPERATORS[type(node.ops[0])](*values))

    def _call(self, node: ast.Call) -> Any:
        args = [self.of(arg) for arg in node.args]
        kwargs = {word.arg: self.of(word.value) for word in node.keywords if word.arg is not None}
        if len(kwargs) != len(node.keywords):
            raise _Unknown("**kwargs")
        if isinstance(node.func, ast.Attribute):
            owner = self.of(node.func.value)
            if isinstance(owner, torch.Tensor):
                if node.func.attr.endswith("_") or node.func.attr in CHANGING:
                    raise _Unknown(node.func.attr)
                value = getattr(owner, node.func.attr)(*args, **kwargs)
                operands = [node.func.value, *node.args]
                return self._checked(node, (owner, *args, *kwargs.values()), value, operands)
            function = getattr(owner, node.func.attr)
        else:
            function = self.of(node.func)
        return self._applied(node, function, args, kwargs)

    # -- calls ------------------------------------------------------------------------------------

    def _applied(self, node: ast.Call, function: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
        module: Any = original(function)
        for place, returned in enumerate(self.returned):
            if returned.model is module:
                del self.returned[place]
                self._keep(returned.output)
                return returned.output
        inputs = [*args, *kwargs.values()]
        if isinstance(module, LOSSES):
            weights = [*module.named_parameters(), *module.named_buffers()]
            for name, weight in weights:
                self._note(f"{ast.unparse(node.func)}.{name}", weight, node.lineno)
            inputs += [weight for _, weight in weights]
            return self._checked(node, inputs, module(*args, **kwargs), node.args, module)
        if _is_of_torch(module):
            with preserve(*[module] if isinstance(module, nn.Module) else []):
                return self._checked(node, inputs, module(*args, **kwargs), node.args)
        if not callable(module) or not self._has_own(inputs) or world_size() > 1:
            raise _Unknown(ast.unparse(node.func))  # with several ranks, it may wait for the others
        tracker = Tracker(nn.Module(), None)
        with tracker, preserve(*[module] if isinstance(module, nn.Module) else []):
            value = module(*args, **kwargs)
        bad = [leaf for leaf in batch.leaves(value) if isinstance(leaf, torch.Tensor) and not_finite(leaf)]
        inside = tracker.event_of(bad[0]) if bad else None
        if bad and inside is not None and not inside.meant and not self._source(inputs, bad):
            origin = inside.origin
            what = f"{origin.operation} in {short(node)}"
            self._events[id(bad[0])] = _Event(what, bad[0], node.lineno, place=origin.line)
        return self._checked(node, inputs, value)

    def _has_own(self, values: Any) -> bool:
        return any(id(leaf) in self._own for leaf in batch.leaves(values))

    def _keep(self, values: Any) -> None:
        self._alive.append(values)
        self._own |= {id(leaf) for leaf in batch.leaves(values) if isinstance(leaf, torch.Tensor)}

    # -- values that are not finite ----------------------------------------------------------------

    def event_of(self, value: Any) -> _Event | None:
        """Return the expression that made a value not finite."""
        return self._events.get(id(value))

    def _note(self, name: str, tensor: torch.Tensor, line: int) -> None:
        """Note that a variable is not finite; infinity may be a mask."""
        if not_finite(tensor) and id(tensor) not in self._events:
            self._alive.append(tensor)
            meant = not bool(torch.isnan(tensor).any())
            self._events[id(tensor)] = _Event(f"{name} is not finite", tensor, line, meant)

    def _source(self, inputs: Any, bad: Sequence[torch.Tensor]) -> _Event | None:
        """Return the earlier expression that a value is not finite because of."""
        events = [event for leaf in batch.leaves(list(inputs)) if (event := self._events.get(id(leaf)))]
        for event in events:
            if not event.meant:
                return event
        if events and not any(bool(torch.isnan(tensor).any()) for tensor in bad):
            return events[0]
        return None

    def _checked(
        self,
        node: Any,
        inputs: Any,
        value: Any,
        operands: Sequence[ast.AST] = (),
        loss: nn.Module | None = None,
    ) -> Any:
        """Note where a value stopped being finite, and return it.

        Args:
            node: expression of the value.
            inputs: values that it was made of.
            value: the value.
            operands: for calls of torch's functions, expressions of the first inputs.
            loss: the module of torch that computed it.
        """
        bad = [leaf for leaf in batch.leaves(value) if isinstance(leaf, torch.Tensor) and not_finite(leaf)]
        for tensor in bad:
            if id(tensor) not in self._events:
                event = self._source(inputs, bad)
                if event is None:
                    infinite = [e for leaf in batch.leaves(list(inputs)) if (e := self._events.get(id(leaf)))]
                    because = f": {infinite[0].what}" if infinite else reason(node, inputs, operands, loss)
                    meant = _fills(node) and not bool(torch.isnan(tensor).any())
                    event = _Event(
                        short(node) + because, infinite[0].tensor if infinite else tensor, node.lineno, meant
                    )
                self._events[id(tensor)] = event
        self._alive.append(value)
        if self._has_own(list(inputs)):
            self._keep(value)
        return value


def _is_of_torch(function: Any) -> bool:
    """Return whether a function, or the class of a module, is torch's, or one of Python's operators."""
    if any(function is other for other in (sum, abs, len, float, int)):
        return True
    home = str(getattr(function, "__module__", "") or "")
    if isinstance(function, nn.Module):
        return home.startswith("torch.nn.modules.")
    name = getattr(function, "__name__", "")
    is_operation = inspect.isbuiltin(function) and getattr(torch, name, None) is function
    return is_operation or home in OF_TORCH


def _fills(node: Any) -> bool:
    """Return whether a call writes values that its argument says, such as infinity into a mask."""
    name = short(node.func).rpartition(".")[2] if isinstance(node, ast.Call) else ""
    return name.startswith(FILLS)


def _assignments(node: ast.AST) -> list[tuple[str, ast.expr]]:
    """Return names and the expressions that a node of the code assigns to them."""
    if isinstance(node, ast.Assign):
        names = [target.id for target in node.targets if isinstance(target, ast.Name)]
        return [(name, node.value) for name in names]
    if isinstance(node, (ast.AnnAssign, ast.NamedExpr)) and isinstance(node.target, ast.Name) and node.value:
        return [(node.target.id, node.value)]
    if isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Name):
        return [(node.target.id, node.value)] * 2  # assigned more than once
    return []

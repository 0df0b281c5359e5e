"""Compiled functions that are compared with the eager ones before their results are used.

A function without a loss is compared by its outputs and by its gradients through a fixed random cotangent, within the
error budgets of a training step.  ``ComparedCall`` compares a whole module or function when it is first called with
gradients.  ``ComparedGraph`` compares each other graph that Dynamo captured when it first runs: graphs of calls without
gradients, those that are captured later, and those of ``torch.compile(backend="loopwise")``.
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn

from loopwise import batch as batches
from loopwise.ranks import world_size
from loopwise.torch_internals import compiled_call, saved_tensor_hooks_are_on, set_compiled_call
from loopwise.warnings import warn
from loopwise.wrappers import is_shard, is_sharded

from ..graph.backend import first_line
from ..spec import StepSpec
from ..torch_internals import dispatches_plainly, fake_mode_of
from .numerics import Comparison, Difference
from .places import TensorPlace

Function = Callable[..., Any]
logger = logging.getLogger("loopwise.compile")
_running = 0
"""Number of comparisons that are running, in which compared functions inside of others run eagerly."""


class ComparedCall:
    """Compiled call of a module or function; eager for good if it differs from the eager call or cannot be compared.

    Args:
        name: name of the module or function in messages.
        eager: the call without a compiler.
        compiled: the compiled call.
        graphs: the graphs that the compiled call has captured so far; the backend adds to the list.
        model: the module whose call it is; ``None`` for a function.
    """

    def __init__(
        self,
        name: str,
        eager: Function,
        compiled: Function,
        graphs: list[ComparedGraph],
        model: nn.Module | None = None,
    ) -> None:
        self._name, self._eager, self._compiled, self._graphs, self._model = (
            name,
            eager,
            compiled,
            graphs,
            model,
        )
        self._chosen: Function | None = None
        self._compared: set[bool] = set()
        self.reason = ""
        """Why the eager call is used for good; empty if it is not."""

    def __call__(self, *args: Any, **options: Any) -> Any:
        """Return the result of the compiled call, or of the eager one."""
        if torch.compiler.is_compiling() or _running:
            return self._eager(*args, **options)
        if self._chosen is not None:
            return self._chosen(*args, **options)
        training = self._model is None or self._model.training
        if torch.is_grad_enabled() and training not in self._compared and dispatches_plainly():
            try:
                reason = self._reason(args, options)
            except Exception as error:
                result = self._eager(
                    *args, **options
                )  # raises the user's own errors; the next call is compared
                reason = f"it could not be compared with the eager call: {first_line(error)}"
                self._leave(reason)
                return result
            if reason:
                self._leave(reason)
                return self._eager(*args, **options)
            self._compared.add(training)
        return self._compiled(*args, **options)

    def _reason(self, args: Any, options: Any) -> str:
        """Compare both calls; return a reason to run eagerly, or an empty text."""
        model = self._model
        if model is not None and (is_sharded(model) or any(map(is_shard, model.parameters()))):
            logger.warning("%s is sharded: it is compiled and not compared with the eager call", self._name)
            self._chosen = self._compiled
            return ""
        modules = () if model is None else model.modules()
        if world_size() > 1 and any(isinstance(module, nn.SyncBatchNorm) for module in modules):
            return "it cannot be compared with the eager call: SyncBatchNorm communicates in each pass"
        found = difference(self._eager, self._compiled, (args, options), model)
        if not found:
            for graph in self._graphs:
                graph.accept()
        return found

    def _leave(self, reason: str) -> None:
        """Go back to the eager call."""
        self._chosen, self.reason = self._eager, reason
        self._graphs.clear()
        warn(f"loopwise.compile: {self._name} runs eagerly: {reason}", stacklevel=3)


class ComparedGraph:
    """Compiled function of a captured graph; the graph's own operations if they give something else.

    Args:
        graph: the graph as it was captured.
        compiled: its compiled function.
    """

    def __init__(self, graph: fx.GraphModule, compiled: Function) -> None:
        self._graph: fx.GraphModule | None = graph
        self._compiled = compiled
        self._chosen: Function | None = None

    def accept(self) -> None:
        """Use the compiled function, because it was compared as a part of something else."""
        if self._chosen is None:
            self._chosen, self._graph = self._compiled, None

    def __call__(self, *inputs: Any) -> Any:
        """Return the graph's outputs."""
        if self._chosen is not None:
            return self._chosen(*inputs)
        if _running or not _can_be_compared(inputs):
            return self._compiled(*inputs)
        graph = self._graph
        assert graph is not None
        try:
            reason = difference(graph.forward, self._compiled, (inputs, {}))
        except Exception as error:
            outputs = graph.forward(*inputs)  # raises the user's own errors
            reason = f"it could not be compared: {first_line(error)}"
            self._leave(graph, reason)
            return outputs
        if reason:
            self._leave(graph, reason)
        else:
            self.accept()
        return self(*inputs)

    def _leave(self, graph: fx.GraphModule, reason: str) -> None:
        """Go back to the operations of the captured graph."""
        self._chosen = graph.forward
        names = [str(node.target) for node in graph.graph.nodes if node.op == "placeholder"]
        reason = re.sub(r"batch\[0\]\[(\d+)\]", lambda match: names[int(match[1])], reason)
        warn(f"loopwise.compile: a graph runs by eager kernels: {reason}", stacklevel=3)


def _can_be_compared(inputs: Any) -> bool:
    """Return whether a call is an ordinary one, of real tensors that this process holds whole."""
    tensors = [value for value in inputs if isinstance(value, Tensor)]
    if any(is_shard(tensor) or fake_mode_of(tensor) is not None for tensor in tensors):
        return False
    capturing = any(tensor.is_cuda for tensor in tensors) and torch.cuda.is_current_stream_capturing()
    return dispatches_plainly() and not capturing


def difference(eager: Function, compiled: Function, batch: Any, model: nn.Module | None = None) -> str:
    """Return the worst difference between the results of two functions in words; empty if there is none.

    Nothing that the functions change stays changed.

    Args:
        eager: the function without a compiler.
        compiled: the compiled function.
        batch: positional arguments as a tuple, and keyword arguments as a dict.
        model: the module that both call, if it is one.
    """
    global _running
    surroundings, hooked = _Surroundings(), saved_tensor_hooks_are_on()
    same = torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor)
    _running += 1
    try:
        # hooks of saved tensors around this call, such as those of checkpointing, count what the call saves
        with surroundings.left(), same if hooked else contextlib.nullcontext():
            batch = batches.map_tensors(_leaf, batch)
            return _difference(eager, compiled, batch, model, surroundings)
    finally:
        _running -= 1


def _difference(
    eager: Function, compiled: Function, batch: Any, model: nn.Module | None, surroundings: _Surroundings
) -> str:
    anchor, cotangents = nn.Parameter(torch.zeros(())), _Cotangents()
    results: list[Any] = []  # what a pass changes is compared, and restored after it

    def weighed(function: Function, batch: Any) -> Tensor:
        """Return the sum of a function's outputs times the cotangents; it needs a gradient in any case."""
        with surroundings.entered():
            outputs = function(*batch[0], **batch[1])
        total = anchor * 0.0
        for number, output in enumerate(batches.leaves(outputs)):
            if isinstance(output, Tensor):
                output = output.clone() if output.is_inference() else output
                total = total + cotangents.product(number, output)
                output = output.detach()
            results.append(output)
        return total

    def loss(model: nn.Module, batch: Any) -> Tensor:
        return weighed(eager, batch)

    with _uncompiled(model):
        spec = StepSpec(model or nn.Module(), loss, None, None, None, 1, "exact", "off", None)
    comparison = Comparison(spec, batch, awaited=True)
    try:
        obstacle = _obstacle(comparison)
    except RuntimeError as error:
        if "use_reentrant" not in str(error) or world_size() > 1:
            raise
        comparison = Comparison(spec, batch)  # reentrant checkpointing allows only backward()
        obstacle = _obstacle(comparison)
    if obstacle:
        return f"it cannot be compared with the eager call: {obstacle}"
    found = comparison.difference(lambda batch: weighed(compiled, batch))
    return "" if found is None else str(Difference(_named(found.tensor), found.error, found.budget))


def _obstacle(comparison: Comparison) -> str:
    """Return the reason why no pass can be tried without a trace; run the eager pass otherwise."""
    places = comparison.sandbox.reachable.places
    tensors = {place.name: place.tensor for place in places if isinstance(place, TensorPlace)}
    earlier = [name for name, tensor in tensors.items() if tensor.requires_grad and not tensor.is_leaf]
    if earlier:
        return f"{earlier[0]} belongs to the autograd graph of an earlier pass"
    if made := [name for name, tensor in tensors.items() if tensor.is_inference()]:
        return f"{made[0]} was made in inference mode"
    if not comparison.sandbox.obstacle:
        comparison.reference()
    return comparison.sandbox.obstacle


def _leaf(tensor: Tensor) -> Tensor:
    """Return a tensor apart from the graph of autograd that it came from, and from inference mode."""
    if tensor.is_inference():
        return tensor.clone()
    return tensor.detach().requires_grad_() if tensor.requires_grad and not tensor.is_leaf else tensor


def _named(tensor: str) -> str:
    """Return the name of a compared tensor in words."""
    if tensor.startswith("state/results in"):
        number, at = (
            re.search(r"\[(\d+)\]", tensor),
            " at nudged weights" * tensor.endswith(" at nudged weights"),
        )
        return f"output {number[1]}{at}" if number else "the number of outputs"
    return re.sub("^loss", "a sum of the outputs", tensor)


@contextlib.contextmanager
def _uncompiled(model: nn.Module | None) -> Iterator[None]:
    """Let a module and its submodules look as if they were not compiled."""
    calls = [] if model is None else [(module, compiled_call(module)) for module in model.modules()]
    for module, _ in calls:
        set_compiled_call(module, None)
    try:
        yield
    finally:
        for module, call in calls:
            set_compiled_call(module, call)


class _Surroundings:
    """Modes of autograd and autocast around a call: passes enter them, and backward passes are outside of them."""

    def __init__(self) -> None:
        self._gradients, self._inference = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        self._cached = torch.is_autocast_cache_enabled()
        devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
        self._autocast = [(d, torch.is_autocast_enabled(d), torch.get_autocast_dtype(d)) for d in devices]

    @contextlib.contextmanager
    def left(self) -> Iterator[None]:
        """Leave the modes."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.enable_grad())
            stack.callback(torch.clear_autocast_cache)  # it has weights of the latest pass, which were moved
            for device, on, _ in self._autocast:
                if on:
                    stack.enter_context(torch.autocast(device, enabled=False))
            yield

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Enter the modes again."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.inference_mode(self._inference))
            stack.enter_context(torch.set_grad_enabled(self._gradients))
            for device, on, dtype in self._autocast:
                if on:
                    torch.clear_autocast_cache()  # it has weights of another pass
                    stack.enter_context(torch.autocast(device, dtype, cache_enabled=self._cached))
            yield


class _Cotangents:
    """Fixed random cotangents, equal for all passes of a comparison."""

    def __init__(self) -> None:
        self._made: dict[int, Tensor] = {}

    def product(self, number: int, output: Tensor) -> Tensor:
        """Return the inner product of an output and its cotangent, shape (); 0 for whole numbers."""
        if not (output.is_floating_point() or output.is_complex()):
            return torch.zeros(())
        output = output.to_dense() if output.layout != torch.strided else output
        output = torch.view_as_real(output) if output.is_complex() else output
        output = output.to(torch.promote_types(output.dtype, torch.float32))
        if number not in self._made or self._made[number].shape != output.shape:
            generator = torch.Generator().manual_seed(number)
            self._made[number] = torch.randn(output.shape, generator=generator, dtype=torch.float32)
        return (output * self._made[number].to(output.device, output.dtype)).sum().cpu()

"""Public function and custom operator for the cross entropy of a linear layer without the logits of a whole batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils.checkpoint import CheckpointPolicy

from loopwise.errors import InputError, StateError
from loopwise.validate import fraction, one_of, positive_number, whole_number

from ..torch_internals import dispatches_plainly
from .chunked import Gradients, Options, kept_dtype, run, sums_dtype
from .kernels import runs_kernels

REDUCTIONS = ("mean", "sum", "none")


def linear_cross_entropy(
    x: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None = None,
    *,
    class_weight: Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    scale: float = 1.0,
    softcap: float | None = None,
    z_loss: float = 0.0,
    chunk: int | None = None,
    kernel: bool = False,
) -> Tensor:
    """Compute ``F.cross_entropy(scale * F.linear(x, weight, bias), target)`` in the memory of a chunk of logits.

    The forward pass computes the gradients of "mean" and "sum" (three matrix products in all, as without chunks);
    the backward pass of "none" computes the logits again (four products).  Matrix products run in the inputs' dtype,
    or autocast's; losses, softmax and sums of gradients in float32 (float64 for float64).  ``torch.compile`` with
    ``fullgraph=True`` traces the function as one opaque operator.

    Args:
        x: features, floating, of shape (..., d).
        weight: weight of the linear layer, of shape (V, d) and x's dtype.
        target: classes, int64 of shape (...), each in [0, V) or ``ignore_index``.
        bias: bias of the linear layer, of shape (V,) and x's dtype.
        class_weight: weight of each class, floating of shape (V,), as ``F.cross_entropy``'s ``weight``.
        ignore_index: target of the rows without loss.
        label_smoothing: share of the target that is spread over all classes, in [0, 1].
        reduction: "mean" (over the rows that are not ignored, weighted by class), "sum" or "none".
        scale: factor of the logits.
        softcap: turns logits into ``softcap * tanh(logits / softcap)``, as in Gemma 2; None leaves them as they are.
        z_loss: factor of ``logsumexp(logits) ** 2``, which is added to each row's loss, never weighted by class.
        chunk: rows of logits at a time.  None: on the CPU logits of half the weight's size, 4 to 16 MiB; elsewhere
            Liger's rule, which makes a chunk about as large as x.
        kernel: compute losses and the gradient by the logits in one Triton kernel instead of several torch operations
            (float32 and below; float64 stays with torch).  ``TrainStep`` measures if the kernel is faster.

    Returns:
        The loss in x's dtype (float32 under autocast): a scalar, or of shape (...) for "none".

    Raises:
        InputError: shapes, dtypes or options that do not fit, ``kernel`` on a device without Triton kernels, or (on the
            CPU) a class outside [0, V).
        StateError: a backward pass with ``create_graph=True``.
    """
    dtype, kind = x.dtype, x.device.type
    if torch.is_autocast_enabled(kind) and dtype != torch.float64:
        low, dtype = torch.get_autocast_dtype(kind), torch.float32
        x, weight, bias = x.to(low), weight.to(low), None if bias is None else bias.to(low)
    _validate_tensors(x, weight, target, bias, class_weight)
    _validate_options(label_smoothing, reduction, softcap, chunk)
    if kernel and not runs_kernels(x.device):
        raise _no_kernel(x.device)
    recorded = torch.is_grad_enabled()
    needs = [t is not None and recorded and t.requires_grad for t in (x, weight, bias)]
    options = (ignore_index, label_smoothing, reduction, scale, softcap, z_loss, chunk or 0, kernel)
    rows, classes = x.reshape(-1, x.shape[-1]), target.reshape(-1)
    loss: Tensor = linear_cross_entropy_op(rows, weight, classes, bias, class_weight, *options, needs)[0]
    return (loss.reshape(target.shape) if reduction == "none" else loss).to(dtype)


def _validate_tensors(
    x: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None, cw: Tensor | None
) -> None:
    """Raise an ``InputError`` if shapes or dtypes do not fit together."""
    if weight.dim() != 2 or not weight.shape[0] or x.dim() < 1 or x.shape[-1] != weight.shape[1]:
        shapes = f"x of shape {tuple(x.shape)} and weight of shape {tuple(weight.shape)}"
        fix = "pass nn.Linear's weight as it is, (out_features, in_features)"
        raise InputError(shapes, "x (..., d) and weight (V, d), V > 0", "a transposed weight", fix)
    if target.shape != x.shape[:-1]:
        seen = f"target of shape {tuple(target.shape)} for x of shape {tuple(x.shape)}"
        fix = "shift or flatten x and target alike before the call"
        raise InputError(seen, f"a class for each row: {tuple(x.shape[:-1])}", "one of both was sliced", fix)
    if target.dtype != torch.int64:
        cause, fix = "probabilities, or classes of another integer type", "target.long(), for classes"
        raise InputError(f"target of {target.dtype}", "classes in torch.int64", cause, fix)
    for name, vector in (("bias", bias), ("class_weight", cw)):
        if vector is not None and vector.shape != weight.shape[:1]:
            seen, cause = f"{name} of shape {tuple(vector.shape)}", "it belongs to another layer"
            raise InputError(
                seen, f"(V,) = {tuple(weight.shape[:1])}", cause, f"pass the {name} of this weight"
            )
    if not x.is_floating_point() or {x.dtype} != {t.dtype for t in (weight, bias, x) if t is not None}:
        seen = f"x of {x.dtype}, weight of {weight.dtype}, bias of {None if bias is None else bias.dtype}"
        fix = "cast them to one dtype, or use torch.autocast"
        raise InputError(seen, "one floating dtype for all of them", "a model cast in part", fix)


def _validate_options(smoothing: float, reduction: str, softcap: float | None, chunk: int | None) -> None:
    """Raise an ``InputError`` if an option is out of its range."""
    fraction("label_smoothing", smoothing, "a share of the target", 0.1, zero=True, one=True)
    one_of("reduction", reduction, REDUCTIONS)
    if softcap is not None:
        positive_number("softcap", softcap, "number, or None for no cap", 30.0)
    if chunk is not None:
        whole_number("chunk", chunk, 1, "rows, or None for the default", 1024)


def _no_kernel(device: torch.device) -> InputError:
    return InputError(
        f"kernel=True on {device}",
        "a GPU that Triton compiles for",
        "a CPU, an older GPU, or no Triton",
        "pass kernel=False, or set TRITON_INTERPRET=1 before Python starts, to try it out on a CPU",
    )


@torch.library.custom_op("loopwise::linear_cross_entropy", mutates_args=())
def linear_cross_entropy_op(
    x: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None,
    class_weight: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    reduction: str,
    scale: float,
    softcap: float | None,
    z_loss: float,
    chunk: int,
    kernel: bool,
    needs: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute the loss of x (N, d) and target (N,), and the gradients by x, weight and bias.

    The arguments are those of ``linear_cross_entropy``, with a chunk of 0 for None.  ``needs`` tells for x, weight and
    bias if the gradient will be asked for.  A gradient that is not needed has the shape (0,), as have all gradients of
    "none".
    """
    options = Options(ignore_index, label_smoothing, reduction, scale, softcap, z_loss, chunk, kernel)
    needs = [False] * 3 if reduction == "none" else needs
    return run(x, weight, target, bias, class_weight, None, options, needs)


@torch.library.custom_op("loopwise::linear_cross_entropy_backward", mutates_args=())
def _backward_op(
    tangent: Tensor,
    x: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None,
    class_weight: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    scale: float,
    softcap: float | None,
    z_loss: float,
    chunk: int,
    kernel: bool,
    needs: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the gradients of reduction "none" for ``tangent`` (N,) from logits that are computed again."""
    options = Options(ignore_index, label_smoothing, "none", scale, softcap, z_loss, chunk, kernel)
    return run(x, weight, target, bias, class_weight, tangent, options, needs)[1:]


def _fake_gradients(x: Tensor, weight: Tensor, needs: Sequence[bool]) -> Gradients:
    dtype = kept_dtype(x.dtype)
    return (
        x.new_empty(x.shape if needs[0] else (0,), dtype=dtype),
        x.new_empty(weight.shape if needs[1] else (0,), dtype=dtype),
        x.new_empty(weight.shape[:1] if needs[2] else (0,), dtype=dtype),
    )


@linear_cross_entropy_op.register_fake
def _fake(x: Tensor, weight: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    reduction, needs = rest[5], rest[-1]
    loss = x.new_empty(x.shape[:1] if reduction == "none" else (), dtype=sums_dtype(x.dtype))
    return loss, *_fake_gradients(x, weight, [False] * 3 if reduction == "none" else needs)


@_backward_op.register_fake
def _fake_backward(tangent: Tensor, x: Tensor, weight: Tensor, *rest: Any) -> Gradients:
    return _fake_gradients(x, weight, rest[-1])


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(
        False
    )  # else autograd makes zeros as large as the weight for the tangent of its gradient
    ctx.dtype, ctx.reduction, ctx.options, ctx.needs = inputs[0].dtype, inputs[7], inputs[5:13], inputs[13]
    ctx.save_for_backward(*(inputs[:5] if ctx.reduction == "none" else output[1:]))


def _backward(ctx: Any, tangent: Tensor | None, *unused: Tensor | None) -> tuple[Tensor | None, ...]:
    if torch.is_grad_enabled():
        cause, fix = (
            "backward(create_graph=True), or torch.func",
            "use F.cross_entropy(F.linear(...)) for this",
        )
        seen, expected = "a second derivative of linear_cross_entropy", "first derivatives only"
        raise StateError(seen, expected, cause, fix)
    if tangent is None:
        return (None,) * 14
    gradients: Sequence[Tensor]
    if ctx.reduction == "none":
        ignored, smoothing, _, *others = ctx.options
        gradients = _backward_op(tangent, *ctx.saved_tensors, ignored, smoothing, *others, ctx.needs)
    elif _is_one(tangent):
        gradients = ctx.saved_tensors
    else:
        gradients = [gradient * tangent for gradient in ctx.saved_tensors]
    dx, dw, db = (g.to(ctx.dtype) if need else None for g, need in zip(gradients, ctx.needs, strict=True))
    return dx, dw, None, db, *(None,) * 10


def _is_one(tangent: Tensor) -> bool:
    """Return whether the tangent is 1, as in ``loss.backward()``; False if reading it would wait or be traced."""
    readable = type(tangent) is Tensor and tangent.device.type == "cpu" and dispatches_plainly()
    return readable and tangent.item() == 1


linear_cross_entropy_op.register_autograd(_backward, setup_context=_save)

OPERATOR: Any = torch.ops.loopwise.linear_cross_entropy.default
"""``linear_cross_entropy_op`` as it is called in a graph."""


def save_gradients(gm: fx.GraphModule) -> None:
    """Mark the operator's outputs in a captured graph: the backward pass must not recompute them.

    The operator makes its gradients in the forward pass.  The partitioner takes an unknown operator for free and, with
    an activation budget below 1, would run it a second time in the backward pass.
    """
    for node in gm.graph.find_nodes(op="call_function", target=OPERATOR):
        node.meta["recompute"] = CheckpointPolicy.MUST_SAVE

"""Compute losses and gradients from rows of features, a chunk of logits at a time.

Shapes: N rows, d features, V classes.  ``_stream`` holds one chunk of logits and turns it in place into the gradient by
the logits, which gives the gradients by input, weight and bias, as in Liger Kernel's ``fused_linear_cross_entropy``
(https://arxiv.org/abs/2410.10989) and Apple's "Cut Your Losses in Large-Vocabulary Language Models"
(https://arxiv.org/abs/2411.09009).  Two things differ.  On the CPU, ignored rows are left out of the matrix products.
Each row's factor (class weight, 1/N, scale) multiplies its d features and not its V logits: the chunk is read and
written less often, and small probabilities fit float16.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from loopwise.errors import InputError

CPU_CHUNK_BYTES = (4 << 20, 16 << 20)
"""Least and most bytes of logits in a chunk on the CPU; a chunk has half the bytes of the weight, whose gradient is
held beside it, between these two.  More rows make faster products, but at N = 1024, d = 256, V = 32768: 8 MiB 856 ms, 16 MiB 801 ms,
32 MiB 768 ms for 17 MiB more (AMD EPYC, one core, AVX2, MKL of torch 2.15); torch.compile without chunks: 948 ms."""
CPU_GROUP_BYTES = 4 << 20
"""Most bytes of float32 logits that the CPU makes of logits in a lower precision at a time."""
CPU_BLOCK = 2048
"""Classes in one matrix product for logits on the CPU: 10 % faster than all classes at once at V = 32768, d = 256
(same machine).  In float32 the other two products gain nothing from blocks.  In bfloat16 the product for the weight is
added to float32 sums: 14 ms instead of 28 for 128 rows (AMD EPYC, one core, AVX512)."""

Gradients = tuple[Tensor, Tensor, Tensor]


class Options(NamedTuple):
    """Options of ``linear_cross_entropy``; a ``chunk`` of 0 stands for the default."""

    ignore_index: int
    label_smoothing: float
    reduction: str
    scale: float
    softcap: float | None
    z_loss: float
    chunk: int
    kernel: bool
    """Whether the Triton kernel of ``kernels/loss_gradient.py`` works on the logits, in float32 and below."""


def chunk_rows(n: int, classes: int, features: int, device: str, itemsize: int = 4) -> int:
    """Return the rows of logits in a chunk, at least 1, by ``CPU_CHUNK_BYTES`` or, on GPUs, Liger's rule."""
    if device == "cpu":
        least, most = CPU_CHUNK_BYTES
        size = min(max(classes * features * itemsize // 2, least), most)
        return max(1, min(n, size // (classes * itemsize)))
    rows = -(-n // -(-classes // max(features, 1)))  # as many as make a chunk of logits as large as x
    return 1 << max(rows - 1, 0).bit_length()


def group_rows(classes: int) -> int:
    """Return the rows of logits in a lower precision that the CPU turns into float32 at a time, at least 1."""
    return max(1, CPU_GROUP_BYTES // (4 * classes))


def sums_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of losses and sums for inputs of ``dtype``."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def kept_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of a gradient until the loss's tangent scales it: float16 would lose values below 6e-8."""
    return torch.float32 if dtype == torch.float16 else dtype


def _logits(x: Tensor, weight: Tensor, bias: Tensor | None, alpha: float, out: Tensor) -> None:
    """Write ``alpha * (x @ weight.T + bias)``, of shape (N, V), to ``out``."""
    classes = len(weight)
    block = CPU_BLOCK if out.device.type == "cpu" else classes
    for start in range(0, classes, block):
        part = slice(start, min(start + block, classes))
        into = out[:, part]
        base, beta = (into, 0.0) if bias is None else (bias[part], alpha)
        torch.addmm(base, x, weight[part].t(), beta=beta, alpha=alpha, out=into)


def _softmax_(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the softmax of each row, in place on the CPU, the row's largest logit, and logsumexp less that logit."""
    largest = logits.amax(1)
    # the CPU's kernel reads a row before it writes it; other devices do not promise that
    p = torch.softmax(logits, 1, out=logits) if logits.device.type == "cpu" else torch.softmax(logits, 1)
    return p, largest, p.amax(1).log_().neg_()


class _Rows(NamedTuple):
    """Features of the rows, and vectors of shape (N,), which all but ``target`` have the dtype of sums."""

    x: Tensor
    target: Tensor
    """Classes in [0, V); 0 if the row is ignored."""
    valid: Tensor
    """1, or 0 if the row is ignored."""
    row: Tensor
    """Class weight of the target (1 without class weights), 0 if the row is ignored."""


class _Tangents(NamedTuple):
    """Gradients that the chain rule multiplies the rows' gradients with."""

    loss: Tensor
    """Gradient by each row's loss, of shape (N,)."""
    square: Tensor
    """Gradient by each row's squared logsumexp, of shape (N,)."""

    def at(self, rows: slice) -> _Tangents:
        """Return the tangents of some rows."""
        return _Tangents(self.loss[rows], self.square[rows])


def _stream(
    rows: _Rows,
    weight: Tensor,
    bias: Tensor | None,
    class_weight: Tensor | None,
    tangents: _Tangents | None,
    options: Options,
    needs: Sequence[bool],
) -> tuple[Tensor, Tensor, Gradients]:
    """Return loss and logsumexp of each row, (N,), and the gradients for ``tangents`` that ``needs`` asks for."""
    x, (n, d), classes, sums = rows.x, rows.x.shape, len(weight), sums_dtype(weight.dtype)
    step = options.chunk or chunk_rows(n, classes, d, x.device.type, x.itemsize)
    buffer = x.new_empty(min(step, n), classes)
    kernel = options.kernel and sums == torch.float32
    directly = kernel or x.dtype == sums
    group = len(buffer) if x.device.type != "cpu" or directly else group_rows(classes)
    wide = None if directly else x.new_empty(min(group, len(buffer)), classes, dtype=sums)
    weights = None if class_weight is None else class_weight.to(sums).contiguous()
    if weights is None and not kernel:
        weights = weight.new_ones(classes, dtype=sums)
    losses, lse, factors = (rows.row.new_empty(n) for _ in range(3))
    gradients = _unset(x, weight, sums, needs)
    tangents = tangents if any(needs) else None
    to_gradient, add_sums_ = (_by_kernel, _add_by_kernel_) if kernel else (_to_gradient, _add_sums_)
    for start in range(0, n, step):
        chunk = slice(start, min(start + step, n))
        products = buffer[: chunk.stop - start]
        _logits(x[chunk], weight, bias, options.scale / (options.softcap or 1.0), products)
        for first in range(start, chunk.stop, group):
            at = slice(first, min(first + group, chunk.stop))
            low = products[at.start - start : at.stop - start]
            z = low if wide is None else wide[: len(low)].copy_(low)
            part = _Rows(*(value[at] for value in rows))
            by = None if tangents is None else tangents.at(at)
            losses[at], lse[at], factor, p = to_gradient(z, part, by, weights, options)
            if by is None:
                continue
            factors[at] = options.scale * factor
            if needs[2]:
                add_sums_(gradients[2], p, factors[at])
            if wide is not None:
                low.copy_(p)
            elif p is not z:
                products = p  # of the whole chunk
        if tangents is not None:
            _add_products_(gradients, needs, chunk, products, x[chunk], weight, factors[chunk])
    return losses, lse, gradients


def _by_kernel(
    z: Tensor, rows: _Rows, tangents: _Tangents | None, weights: Tensor | None, options: Options
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Do the work of ``_to_gradient`` in one or two passes over the logits, in their own dtype."""
    from .kernels.loss_gradient import loss_gradient_

    smoothing, plain = options.label_smoothing, not options.label_smoothing and not options.z_loss
    by = None if tangents is None else (tangents.loss.contiguous(), tangents.square.contiguous())
    losses, lse = loss_gradient_(
        z, rows.target, rows.row, rows.valid, by, weights, smoothing, options.softcap, plain
    )
    factor = tangents.loss * rows.row if tangents is not None and plain else torch.ones_like(lse)
    return losses, lse, factor, z


def _add_by_kernel_(sums: Tensor, p: Tensor, factor: Tensor) -> None:
    """Do the work of ``_add_sums_`` for ``p`` of any dtype."""
    from .kernels.loss_gradient import add_sums_

    add_sums_(sums, p, factor)


def _add_sums_(sums: Tensor, p: Tensor, factor: Tensor) -> None:
    """Add ``factor @ p``, the gradient by the bias, to ``sums`` (V,)."""
    sums.addmv_(p.t(), factor)


def _to_gradient(
    z: Tensor, rows: _Rows, tangents: _Tangents | None, weights: Tensor | None, options: Options
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return loss and logsumexp of each row, and the gradient by the logits, as a factor of each row and a matrix.

    Args:
        z: logits divided by the softcap, (N, V); overwritten, on the CPU by the matrix.
        rows: targets and weights of these rows.
        tangents: gradients by the losses; None: no gradient is computed.
        weights: class weights, (V,); ones if there are none.
        options: smoothing, soft cap and z-loss.
    """
    assert weights is not None
    smooth, cap = options.label_smoothing / len(weights), options.softcap
    tanh = z.tanh_().clone() if cap else None
    if cap:
        z.mul_(cap)
    picked = z.gather(1, rows.target[:, None])[:, 0]
    spread = z @ weights if smooth else None
    p, largest, log_sum = _softmax_(z)
    lse = largest + log_sum
    losses = (1 - options.label_smoothing) * rows.row * ((largest - picked) + log_sum)
    if spread is not None:
        losses += smooth * rows.valid * (weights.sum() * lse - spread)
    if tangents is None:
        return losses, lse, torch.zeros_like(lse), p
    factor = _from_softmax_(p, rows, lse, tangents, weights, options)
    if tanh is not None:
        p.addcmul_(p, tanh.square_(), value=-1.0)
    return losses, lse, factor, p


def _from_softmax_(
    p: Tensor, rows: _Rows, lse: Tensor, tangents: _Tangents, weights: Tensor, options: Options
) -> Tensor:
    """Turn probabilities in place into the gradient by the logits without a factor of each row; return the factors.

    The gradient is ``a * p - b * onehot - c * class_weight``.  Without smoothing and z-loss a = b; then the caller
    multiplies the row's d features with a instead of its V logits.
    """
    target, smoothing = rows.target[:, None], options.label_smoothing
    b = (1 - smoothing) * tangents.loss * rows.row
    if not smoothing and not options.z_loss:
        p.scatter_add_(1, target, p.new_full(target.shape, -1.0))
        return b
    c = smoothing / len(weights) * tangents.loss * rows.valid
    p.mul_((b + c * weights.sum() + 2 * lse * tangents.square * rows.valid)[:, None])
    p.scatter_add_(1, target, -b[:, None])
    if smoothing:
        p.addr_(c, weights, alpha=-1)
    return torch.ones_like(b)


def _unset(x: Tensor, weight: Tensor, sums: torch.dtype, needs: Sequence[bool]) -> Gradients:
    """Return buffers for the gradients by input, weight and bias, of shape (0,) if not needed.

    The bias's buffer is 0, as sums are added to it; the others are uninitialised if a chunk will write them.
    """
    like = weight.new_empty if len(x) else weight.new_zeros
    return (
        x.new_empty(x.shape if needs[0] else 0, dtype=kept_dtype(x.dtype)),
        like(weight.shape if needs[1] else 0, dtype=sums),
        weight.new_zeros(len(weight) if needs[2] else 0, dtype=sums),
    )


def _add_products_(
    gradients: Gradients,
    needs: Sequence[bool],
    at: slice,
    p: Tensor,
    x: Tensor,
    weight: Tensor,
    factor: Tensor,
) -> None:
    """Add a chunk's share to the gradients by input and weight; the first chunk overwrites the buffers.

    The gradient by the logits is ``factor[:, None] * p``.
    """
    dx, dw, _ = gradients
    if needs[0]:
        dx[at] = torch.mm(p, weight) * factor[:, None]
    if needs[1]:
        scaled = (x * factor[:, None]).to(x.dtype)
        if dw.dtype == x.dtype:
            dw.addmm_(p.t(), scaled, beta=float(at.start > 0))
        else:
            block = CPU_BLOCK if p.device.type == "cpu" else len(dw)
            for start in range(0, len(dw), block):  # the product is still in the cache when it is added
                part = slice(start, start + block)
                product = torch.mm(p[:, part].t(), scaled)
                dw[part].add_(product) if at.start else dw[part].copy_(product)


def _rows(
    x: Tensor, weight: Tensor, target: Tensor, cw: Tensor | None, ignored: int
) -> tuple[_Rows, Tensor | None]:
    """Return the rows to compute, and their indices if ignored rows are left out, which happens on the CPU."""
    sums, valid, indices = sums_dtype(x.dtype), target != ignored, None
    if x.device.type == "cpu":
        if not bool(valid.all()):
            indices = valid.nonzero()[:, 0]
            x, target, valid = x[indices], target[indices], valid[indices]
        if len(target) and not 0 <= int(target.min()) <= int(target.max()) < len(weight):
            seen = f"target with classes from {int(target.min())} to {int(target.max())}"
            fix = f"check the labels, or set ignore_index (now {ignored}) to the one that stands for no class"
            raise InputError(
                seen, f"in [0, {len(weight)}), the weight's rows", "padding, or a class too many", fix
            )
    target = target.where(valid, 0)
    row = valid.to(sums) if cw is None else cw.to(sums)[target] * valid
    return _Rows(x, target, valid.to(sums), row), indices


def run(
    x: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None,
    class_weight: Tensor | None,
    tangent: Tensor | None,
    options: Options,
    needs: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute the loss and the gradients by x, weight and bias.

    Args:
        x: features, (N, d).
        weight: weight of the linear layer, (V, d).
        target: classes, int64 (N,).
        bias: bias of the linear layer, (V,).
        class_weight: weight of each class, (V,).
        tangent: gradient by the losses of reduction "none", (N,); None: the gradient by the loss is 1.
        options: options of ``linear_cross_entropy``.
        needs: for x, weight and bias if the gradient is needed.

    Returns:
        The loss, a scalar or (N,) for "none", and three gradients, of shape (0,) if not needed.
    """
    rows, indices = _rows(x, weight, target, class_weight, options.ignore_index)
    z_loss, mean, one = options.z_loss, options.reduction == "mean", rows.row.new_ones(())
    weighed, count = (rows.row.sum(), rows.valid.sum()) if mean else (one, one)
    if options.reduction == "none":
        by_loss = (
            None if tangent is None else (tangent if indices is None else tangent[indices]).to(one.dtype)
        )
    else:
        by_loss = torch.where(weighed == 0, 0, 1 / weighed).expand(len(rows.target))
    tangents, late = None, None
    if by_loss is not None:
        by_square = z_loss * (torch.where(count == 0, 0, 1 / count).expand_as(by_loss) if mean else by_loss)
        if x.dtype == torch.float16 and by_loss.numel():  # 1/N times a feature may be too small for float16
            late = by_loss.abs().max().clamp(min=torch.finfo(one.dtype).tiny)
            by_loss, by_square = by_loss / late, by_square / late
        tangents = _Tangents(by_loss, by_square)
    # a weight with strides in both dimensions would be copied for every chunk
    dense = weight if 1 in weight.stride() else weight.contiguous()
    losses, lse, gradients = _stream(rows, dense, bias, class_weight, tangents, options, needs)
    if late is not None:
        gradients = tuple(g.mul_(late) for g in gradients)  # type: ignore[assignment]
    squares = rows.valid * lse.square() * z_loss if z_loss else None
    dx, dw, db = gradients
    if indices is not None:
        dx = dx.new_zeros(x.shape).index_copy_(0, indices, dx) if needs[0] else dx
    dw, db = dw.to(kept_dtype(x.dtype)), db.to(kept_dtype(x.dtype))
    if options.reduction == "none":
        losses = losses if squares is None else losses + squares
        return (
            losses if indices is None else losses.new_zeros(len(x)).index_copy_(0, indices, losses),
            dx,
            dw,
            db,
        )
    loss = losses.sum() / weighed
    return loss if squares is None else loss + squares.sum() / count, dx, dw, db

"""Triton kernel that turns a chunk of logits into losses and, in place, into the loss's gradient by the logits.

The torch operations for it (``chunked._to_gradient``) read and write a chunk in float32 seven times.  The kernel reads
the chunk twice and writes it once in its own dtype, with sums in float32.  One program works on one row of V logits in
blocks: first the largest logit and the sum of exponentials in one pass ("Online normalizer calculation for softmax",
https://arxiv.org/abs/1805.02867), then the gradient, as in Liger Kernel's cross entropy
(https://arxiv.org/abs/2410.10989), here with soft cap, z-loss, label smoothing and class weights.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

MOST = 8192
"""Most logits that a program holds at a time."""
COLUMNS, ROWS = 128, 16
"""Size of a tile of the sums over rows."""


@triton.jit
def _tanh(x):
    """Compute tanh to a few units in the last place, near 0 by a series, as exponentials would cancel there."""
    small = x * x
    series = x * (1 - small * (1.0 / 3 - small * (2.0 / 15 - small * (17.0 / 315))))
    e = tl.exp(-2 * tl.abs(x))
    large = (1 - e) / (1 + e)
    return tl.where(small < 0.01, series, tl.where(x < 0, -large, large))


@triton.jit
def _read(z_row, at, classes, cap, CAPPED: tl.constexpr):
    """Return logits in float32, -inf beyond the last class, and the cap's slope."""
    z = tl.load(z_row + at, mask=at < classes, other=-float("inf")).to(tl.float32)
    slope = 1.0
    if CAPPED:
        tanh = _tanh(z)
        z, slope = tl.where(at < classes, cap * tanh, -float("inf")), 1 - tanh * tanh
    return z, slope


@triton.jit
def _weight(weights, at, classes, WEIGHTED: tl.constexpr):
    """Return class weights; 1 if there are none."""
    if WEIGHTED:
        return tl.load(weights + at, mask=at < classes, other=0.0)
    else:  # Triton wants a return on both branches
        return 1.0


@triton.jit
def _sum_up(
    z_row,
    weights,
    classes,
    cap,
    CAPPED: tl.constexpr,
    SMOOTHED: tl.constexpr,
    WEIGHTED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Return the row's largest logit, the sum of exponentials of logits less that one, and the weighted sum of logits."""
    largest, sum_of, spread = -float("inf"), 0.0, 0.0
    for start in range(0, classes, BLOCK):
        at = start + tl.arange(0, BLOCK)
        z, _ = _read(z_row, at, classes, cap, CAPPED)
        most = tl.maximum(largest, tl.max(z, 0))
        base = tl.where(most == -float("inf"), 0.0, most)  # -inf less -inf is NaN
        sum_of = sum_of * tl.exp(largest - base) + tl.sum(tl.exp(z - base), 0)
        largest = most
        if SMOOTHED:
            spread += tl.sum(tl.where(at < classes, z, 0.0) * _weight(weights, at, classes, WEIGHTED), 0)
    return largest, sum_of, spread


@triton.jit
def _row_kernel(
    logits,
    stride,
    target,
    row,
    valid,
    weights,
    weight_sum,
    by_loss,
    by_square,
    losses,
    lses,
    classes,
    cap,
    smoothing,
    CAPPED: tl.constexpr,
    SMOOTHED: tl.constexpr,
    WEIGHTED: tl.constexpr,
    GRADIENT: tl.constexpr,
    PLAIN: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Compute loss and logsumexp of one row, and overwrite its logits by the gradient."""
    number = tl.program_id(0)
    z_row = logits + number.to(tl.int64) * stride
    if tl.load(valid + number) == 0:
        tl.store(losses + number, 0.0)
        tl.store(lses + number, 0.0)
        if GRADIENT:
            for start in range(0, classes, BLOCK):
                at = start + tl.arange(0, BLOCK)
                tl.store(z_row + at, tl.zeros([BLOCK], z_row.dtype.element_ty), mask=at < classes)
        return
    label, weight, total = tl.load(target + number), tl.load(row + number), tl.load(weight_sum)
    # a class out of range gives a loss of NaN, without a read outside of the row
    inside = (label >= 0) & (label < classes)
    picked = tl.load(z_row + label, mask=inside, other=float("nan")).to(tl.float32)
    if CAPPED:
        picked = cap * _tanh(picked)
    largest, sum_of, spread = _sum_up(z_row, weights, classes, cap, CAPPED, SMOOTHED, WEIGHTED, BLOCK)
    lse = largest + tl.log(sum_of)
    loss = (1 - smoothing) * weight * ((largest - picked) + tl.log(sum_of))
    if SMOOTHED:
        loss += smoothing / classes * (total * lse - spread)
    tl.store(losses + number, loss)
    tl.store(lses + number, lse)
    if GRADIENT:
        a, b, c = 1.0, 1.0, 0.0
        if not PLAIN:
            tangent = tl.load(by_loss + number)
            b, c = (1 - smoothing) * tangent * weight, smoothing / classes * tangent
            a = b + c * total + 2 * lse * tl.load(by_square + number)
        for start in range(0, classes, BLOCK):
            at = start + tl.arange(0, BLOCK)
            z, slope = _read(z_row, at, classes, cap, CAPPED)
            g = a * tl.exp(z - largest) / sum_of - tl.where(at == label, b, 0.0)
            if SMOOTHED:
                g -= c * _weight(weights, at, classes, WEIGHTED)
            tl.store(z_row + at, (g * slope).to(z_row.dtype.element_ty), mask=at < classes)


@triton.jit
def _sums_kernel(p, stride, factor, sums, rows, classes, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Add the rows of p, each times its factor, to a tile of the sums."""
    at = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.load(sums + at, mask=at < classes, other=0.0)
    for start in range(0, rows, ROWS):
        by = start + tl.arange(0, ROWS)
        mask = (by < rows)[:, None] & (at < classes)[None, :]
        part = tl.load(p + by.to(tl.int64)[:, None] * stride + at[None, :], mask=mask, other=0.0)
        scale = tl.load(factor + by, mask=by < rows, other=0.0)
        total += tl.sum(part.to(tl.float32) * scale[:, None], 0)
    tl.store(sums + at, total, mask=at < classes)


def loss_gradient_(
    z: Tensor,
    target: Tensor,
    row: Tensor,
    valid: Tensor,
    tangents: tuple[Tensor, Tensor] | None,
    weights: Tensor | None,
    smoothing: float,
    softcap: float | None,
    plain: bool,
) -> tuple[Tensor, Tensor]:
    """Compute loss and logsumexp of each row, and with ``tangents`` overwrite ``z`` by the gradient.

    The gradient is by ``softcap * z`` if there is a soft cap, else by ``z``.

    Args:
        z: logits, divided by ``softcap`` if there is one: (N, V) with dense rows, float32, bfloat16 or float16.
        target: classes, int64 of shape (N,).  A class outside [0, V) makes a loss of NaN.
        row: class weight of the target, float32 (N,).
        valid: 1, or 0 for rows without loss, whose gradient is 0; float32 (N,).
        tangents: gradients by the loss and by the squared logsumexp, float32 (N,) both; None: no gradient.
        weights: class weights for smoothing, float32 (V,).
        smoothing: label smoothing, in [0, 1].
        softcap: logits are ``softcap * tanh(z)``; None: they are ``z``.
        plain: leave the tangents out: ``z`` becomes softmax less one-hot (times the cap's slope).

    Returns:
        Losses and logsumexps, float32 (N,) both, 0 for rows without loss.
    """
    rows, classes = z.shape
    losses, lse = row.new_empty(rows), row.new_empty(rows)
    block = min(triton.next_power_of_2(classes), MOST)
    by_loss, by_square = tangents or (row, row)
    total = row.new_full((), classes) if weights is None else weights.sum()
    if not rows:
        return losses, lse
    with torch.cuda.device_of(z):  # Triton launches on the current device
        _row_kernel[(rows,)](
            *(z, z.stride(0), target, row, valid, row if weights is None else weights, total),
            *(by_loss, by_square, losses, lse, classes, softcap or 1.0, smoothing),
            CAPPED=softcap is not None,
            SMOOTHED=smoothing > 0,
            WEIGHTED=weights is not None,
            GRADIENT=tangents is not None,
            PLAIN=plain,
            BLOCK=block,
            num_warps=4 if block <= 1024 else 8 if block <= 4096 else 16,
        )
    return losses, lse


def add_sums_(sums: Tensor, p: Tensor, factor: Tensor) -> None:
    """Add ``factor @ p`` to ``sums`` (V,) in float32, with ``p`` (N, V) of any dtype and ``factor`` (N,)."""
    rows, classes = p.shape
    grid = (triton.cdiv(classes, COLUMNS),)
    with torch.cuda.device_of(p):
        _sums_kernel[grid](p, p.stride(0), factor, sums, rows, classes, ROWS=ROWS, COLUMNS=COLUMNS)

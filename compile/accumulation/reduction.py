"""Gradients of DDP's ranks, averaged by hand where DDP's own reduction does not run."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel


def _reduced(model: DistributedDataParallel) -> list[Tensor]:
    """Return the parameters whose gradients DDP averages."""
    ignored = model.parameters_to_ignore
    return [p for name, p in model.module.named_parameters() if p.requires_grad and name not in ignored]


def add_zeros(model: DistributedDataParallel, loss: Tensor) -> None:
    """Take part in DDP's reduction after a forward pass whose gradients are not wanted.

    The gradients that are there already are averaged.  A backward pass of ``0 * loss`` would not do: the gradient of a
    mean over no targets is NaN.

    Args:
        model: DDP's wrapper, whose forward pass has prepared the reduction.
        loss: the result of that pass.
    """
    parameters = _reduced(model)
    if model.find_unused_parameters:  # DDP waits for none of the parameters that the loss does not depend on
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        parameters = [p for p, gradient in zip(parameters, gradients, strict=True) if gradient is not None]
    torch.autograd.backward(parameters, [torch.zeros_like(p) for p in parameters])


@torch.no_grad()
def average(model: DistributedDataParallel) -> None:
    """Average the gradients over DDP's ranks after backward passes under ``no_sync``; every rank has to call this.

    A parameter without a gradient on every rank stays without one.
    """
    parameters, group = _reduced(model), model.process_group
    world = dist.get_world_size(group)
    kinds = [
        [p.grad is not None, p.grad is not None and p.grad.layout is not torch.strided] for p in parameters
    ]
    flags = torch.tensor(kinds, dtype=torch.int32, device=parameters[0].device)
    dist.all_reduce(flags, group=group)
    for parameter, (present, sparse) in zip(parameters, flags.tolist(), strict=True):
        if not present:
            continue
        if parameter.grad is None:
            zeros = torch.zeros_like(parameter)
            parameter.grad = zeros.to_sparse(1) if sparse else zeros
        gradient = parameter.grad
        # collectives read memory in its order, which may differ from rank to rank: channels_last
        sent = gradient.coalesce() if sparse else gradient.contiguous()
        dist.all_reduce(sent, group=group)
        sent.div_(world)
        if sparse:
            parameter.grad = sent
        elif sent is not gradient:
            gradient.copy_(sent)  # in place: gradients may be views of DDP's buckets

"""Selection of the tokens of a language model's batch that are worth training on."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from loopwise import validate
from loopwise.errors import InputError

from .policies.policy import check_keep


class RhoTokens:
    """Keep the share ``keep`` of a batch's tokens with the highest excess loss.

    The rule is Rho-1 (Lin et al., "Rho-1: Not All Tokens Are What You Need", NeurIPS 2024): the excess is the loss
    above that of a reference model that was trained on high-quality text.  Without a reference the plain loss decides,
    which prefers noise.  Changed here: the share is one of the valid tokens, rounded, and at least one token is kept.
    A training step uses it like this::

        token_losses = cross_entropy(logits.transpose(1, 2), labels, reduction="none")
        mask = rho.weights(logits, labels, rho.reference(inputs))  # or rho(token_losses, reference_losses)
        loss = (token_losses * mask).sum() / mask.sum()

    The sequences keep their full length in the forward pass: the rule saves training steps, not the time of a step.  It
    never waits for the device.

    Args:
        keep: share of the valid tokens to keep, a fraction in (0, 1].
        reference: the reference model, which is frozen in place (evaluation mode, no gradients) and stored as
            ``reference`` for the training step to call; its losses or logits are then required with every batch.
    """

    def __init__(self, keep: float = 0.6, reference: nn.Module | None = None) -> None:
        self.keep = check_keep(keep)
        self.reference = reference
        if reference is not None:
            expected = "the reference model, an nn.Module, or None"
            cause = "losses or logits of the reference, which belong to a batch"
            fix = "pass the model here, and its losses or logits with each batch"
            validate.instance("reference", reference, nn.Module, expected, fix, cause)
            reference.requires_grad_(False).eval()

    @torch.no_grad()
    def __call__(
        self,
        losses: torch.Tensor,
        reference_losses: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return 1 for the kept tokens and 0 for all others: float32 of shape (batch, tokens), on their device.

        Args:
            losses: loss of each token, of shape (batch, tokens).
            reference_losses: losses of the same tokens under the reference.
            mask: valid tokens, bool of that shape; others (padding) are never kept.

        Raises:
            InputError: tensors of other shapes, or no losses of the reference although there is one.
        """
        _check("losses", losses, "(batch, tokens)", "losses averaged over the batch or its tokens", 2)
        shape = tuple(losses.shape)
        for name, other in (("reference_losses", reference_losses), ("mask", mask)):
            if other is not None:
                _check(name, other, str(shape), "one of the two is shifted or padded", 2, shape)
        if mask is not None and mask.dtype != torch.bool:
            raise InputError(
                f"a mask of dtype {mask.dtype}",
                "a mask of dtype torch.bool: True for the valid tokens",
                "an attention mask of 0 and 1, or one to be added to the scores",
                "pass attention_mask.bool()",
            )
        if self.reference is not None and reference_losses is None:
            raise InputError(
                "no losses of the reference",
                "the reference's losses or logits with every batch, because RhoTokens has a reference",
                "only the losses of the model in training were passed",
                "pass rho.weights(logits, labels, rho.reference(inputs)), or make RhoTokens without a reference",
            )
        valid = torch.ones_like(losses, dtype=torch.bool) if mask is None else mask
        excess = losses.float() if reference_losses is None else losses.float() - reference_losses.float()
        lowest = torch.finfo(torch.float32).min
        ranked = torch.where(valid, excess.clamp_min(lowest), -torch.inf).flatten()
        order = ranked.argsort(descending=True, stable=True)
        rank = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
        count = (self.keep * valid.sum()).round().clamp_min(1)
        return ((rank.view_as(losses) < count) & valid).float()

    @torch.no_grad()
    def weights(
        self,
        logits: torch.Tensor,
        labels: torch.Tensor,
        reference_logits: torch.Tensor | None = None,
        ignore_index: int = -100,
    ) -> torch.Tensor:
        """Return 1 for the kept tokens and 0 for all others: float32 of shape (batch, tokens).

        The losses are the cross-entropies of logits and labels, in float32.  Logits and labels must be aligned: shift them first, as for the loss.

        Args:
            logits: logits of shape (batch, tokens, vocabulary).
            labels: int64 of shape (batch, tokens).
            reference_logits: logits of the same shape by the reference.
            ignore_index: label of the tokens that are not valid.

        Raises:
            InputError: tensors of other shapes, or no logits of the reference although there is one.
        """
        _check("labels", labels, "(batch, tokens)", "one-hot labels, or a flattened batch", 2)
        shape, cause = tuple(labels.shape), "logits and labels are not shifted alike, or are flattened"
        for name, tensor in (("logits", logits), ("reference_logits", reference_logits)):
            if tensor is not None or name == "logits":
                _check(name, tensor, f"({shape[0]}, {shape[1]}, vocabulary)", cause, 3, shape)

        def losses(logits: torch.Tensor) -> torch.Tensor:
            scores = logits.float().transpose(1, 2)
            return cross_entropy(scores, labels, ignore_index=ignore_index, reduction="none")

        reference_losses = None if reference_logits is None else losses(reference_logits)
        return self(losses(logits), reference_losses, labels != ignore_index)

    def __repr__(self) -> str:
        reference = None if self.reference is None else type(self.reference).__name__
        return f"RhoTokens(keep={self.keep:g}, reference={reference})"


def _check(name: str, value: Any, expected: str, cause: str, ndim: int, first: tuple[int, ...] = ()) -> None:
    """Raise an error if ``value`` is no tensor of ``ndim`` dimensions, the first of which are ``first``."""
    tensor = isinstance(value, torch.Tensor)
    if not tensor or value.ndim != ndim or value.shape[: len(first)] != first:
        raise InputError(
            f"{name} of shape {tuple(value.shape)}" if tensor else f"{name} of type {type(value).__name__}",
            f"{name} of shape {expected}",
            cause,
            "pass tensors of one batch, aligned token by token",
        )

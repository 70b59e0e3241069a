"""How well logits foretell the next token."""

from __future__ import annotations

import torch

from glassformer import _core


def lm_cross_entropy_loss(
    logits: torch.Tensor, tokens: torch.Tensor, attention_mask: torch.Tensor | None = None, per_token: bool = False
) -> torch.Tensor:
    """The cross entropy of each next token, from logits `batch pos d_vocab` and tokens `batch pos`: its mean, or with
    `per_token` every one, `batch pos-1`.

    `attention_mask`, `batch pos`, leaves out tokens that are 0 in it, and those after them: they are 0 by token, and
    none of the mean. Raises `ShapeError` where the shapes don't meet, `InputError` for a token that isn't there.
    """
    function = _core.next_token_losses if per_token else _core.next_token_loss
    return function(logits, tokens, attention_mask)


def lm_accuracy(logits: torch.Tensor, tokens: torch.Tensor, per_token: bool = False) -> torch.Tensor:
    """Which part of the next tokens is the most likely one by logits `batch pos d_vocab`, or with `per_token` which of
    them are, `batch pos-1`. Raises `ShapeError` where the shapes don't meet."""
    return _core.next_token_matches(logits, tokens) if per_token else _core.next_token_accuracy(logits, tokens)

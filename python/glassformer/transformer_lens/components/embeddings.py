"""From tokens into the residual stream, and out of it."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from glassformer import _core
from glassformer.transformer_lens.components.norms import LayerNorm
from glassformer.transformer_lens.config import HookedTransformerConfig
from glassformer.transformer_lens.hook_points import HookPoint
from glassformer.transformer_lens.utilities.tensors import get_offset_position_ids


class Embed(nn.Module):
    """Tokens as rows of `W_E` (d_vocab d_model)."""

    def __init__(self, cfg: HookedTransformerConfig | dict[str, Any]) -> None:
        super().__init__()
        self.cfg = HookedTransformerConfig.unwrap(cfg)
        self.W_E = nn.Parameter(torch.empty(self.cfg.d_vocab, self.cfg.d_model, dtype=self.cfg.dtype))
        if self.cfg.post_embedding_ln:
            self.ln = LayerNorm(self.cfg)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """batch pos -> batch pos d_model"""
        rows = _core.steps.embed(tokens, self.W_E)
        return self.ln(rows) if self.cfg.post_embedding_ln else rows


class PosEmbed(nn.Module):
    """Positions as rows of `W_pos` (n_ctx d_model)."""

    def __init__(self, cfg: HookedTransformerConfig | dict[str, Any]) -> None:
        super().__init__()
        self.cfg = HookedTransformerConfig.unwrap(cfg)
        self.W_pos = nn.Parameter(torch.empty(self.cfg.n_ctx, self.cfg.d_model, dtype=self.cfg.dtype))

    def forward(
        self, tokens: torch.Tensor, past_kv_pos_offset: int = 0, attention_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """tokens batch pos -> batch pos d_model.

        Positions count from `past_kv_pos_offset`, or over what `attention_mask` (batch past+pos) doesn't hide; hidden
        ones get zeros.
        """
        batch, length = tokens.shape[0], tokens.shape[-1]
        places = slice(past_kv_pos_offset, past_kv_pos_offset + length)
        if attention_mask is None:
            positions = torch.arange(places.start, places.stop, device=tokens.device).expand(batch, length)
            return _core.steps.embed(positions, self.W_pos)
        rows = _core.steps.embed(get_offset_position_ids(past_kv_pos_offset, attention_mask), self.W_pos)
        return rows.masked_fill(~attention_mask.bool()[:, places].unsqueeze(-1), 0)


class Unembed(nn.Module):
    """The residual stream as logits, by `W_U` (d_model d_vocab_out) and `b_U`."""

    def __init__(self, cfg: HookedTransformerConfig | dict[str, Any]) -> None:
        super().__init__()
        self.cfg = HookedTransformerConfig.unwrap(cfg)
        self.W_U = nn.Parameter(torch.empty(self.cfg.d_model, self.cfg.d_vocab_out, dtype=self.cfg.dtype))
        self.b_U = nn.Parameter(torch.zeros(self.cfg.d_vocab_out, dtype=self.cfg.dtype))
        self.hook_in = HookPoint()  # batch pos d_model
        self.hook_out = HookPoint()  # batch pos d_vocab_out

    def forward(self, residual: torch.Tensor) -> torch.Tensor:
        """batch pos d_model -> batch pos d_vocab_out, before any soft cap."""
        return self.hook_out(_core.steps.linear(self.hook_in(residual), self.W_U.mT, self.b_U))

"""Norms: a value divided by its size, with weights or without."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from glassformer import _core
from glassformer.transformer_lens.config import HookedTransformerConfig
from glassformer.transformer_lens.hook_points import HookPoint


class _Norm(nn.Module):
    kind: str  # As the core names it.

    def __init__(self, cfg: HookedTransformerConfig | dict[str, Any], length: int | None = None) -> None:
        super().__init__()
        self.cfg = HookedTransformerConfig.unwrap(cfg)
        self.eps = self.cfg.eps
        self.length = self.cfg.d_model if length is None else length

    def follows_config(self) -> bool:
        """Whether nothing here was changed since it was made."""
        return self.eps == self.cfg.eps

    def _set_points(self) -> None:
        self.hook_scale = HookPoint()  # batch pos 1
        self.hook_normalized = HookPoint()  # batch pos length

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The norm of `x` over its last axis, in its shape."""
        scale = self.hook_scale(_core.steps.norm_scale(x, self.kind, self.eps))
        normalized = self.hook_normalized(_core.steps.norm_divide(x, scale, self.kind)).to(self.cfg.dtype)
        return _core.steps.norm_apply(normalized, getattr(self, "w", None), getattr(self, "b", None))


class LayerNorm(_Norm):
    """LayerNorm with weight and bias, over `length` (d_model) numbers."""

    kind = "layer"

    def __init__(self, cfg: HookedTransformerConfig | dict[str, Any], length: int | None = None) -> None:
        super().__init__(cfg, length)
        self.w = nn.Parameter(torch.ones(self.length, dtype=self.cfg.dtype))
        self.b = nn.Parameter(torch.zeros(self.length, dtype=self.cfg.dtype))
        self._set_points()


class LayerNormPre(_Norm):
    """LayerNorm whose weights are folded into what follows: it centres and divides."""

    kind = "layer"

    def __init__(self, cfg: HookedTransformerConfig | dict[str, Any]) -> None:
        super().__init__(cfg)
        self._set_points()


class RMSNorm(_Norm):
    """RMSNorm with a weight, over `length` (d_model) numbers."""

    kind = "rms"

    def __init__(self, cfg: HookedTransformerConfig | dict[str, Any], length: int | None = None) -> None:
        super().__init__(cfg, length)
        self.w = nn.Parameter(torch.ones(self.length, dtype=self.cfg.dtype))
        self._set_points()


class RMSNormPre(_Norm):
    """RMSNorm whose weight is folded into what follows: it divides."""

    kind = "rms"

    def __init__(self, cfg: HookedTransformerConfig | dict[str, Any]) -> None:
        super().__init__(cfg)
        self._set_points()


KINDS = {"LN": LayerNorm, "LNPre": LayerNormPre, "RMS": RMSNorm, "RMSPre": RMSNormPre}


def norm_for(cfg: HookedTransformerConfig) -> nn.Module:
    """The norm in front of attention and MLP; ValueError for a `normalization_type` that there is not."""
    if cfg.normalization_type is None:
        return nn.Identity()
    if cfg.normalization_type not in KINDS:
        raise ValueError(
            f"normalization_type is {cfg.normalization_type!r}; expected None or one of {', '.join(KINDS)}"
        )
    return KINDS[cfg.normalization_type](cfg)


def norm_behind(cfg: HookedTransformerConfig) -> nn.Module:
    """The norm behind attention and MLP, which keeps its weights."""
    return norm_behind_class(cfg)(cfg)


def norm_behind_class(cfg: HookedTransformerConfig) -> type[nn.Module]:
    """Of the norm behind attention and MLP."""
    if cfg.normalization_type is None:
        return nn.Identity
    return RMSNorm if cfg.normalization_type.startswith("RMS") else LayerNorm


def last_norm_class(cfg: HookedTransformerConfig) -> type[_Norm] | None:
    """Of the norm before the unembedding, which `final_rms` makes an RMSNorm; None where there is none."""
    if cfg.final_rms and cfg.normalization_type in ("LN", "LNPre"):
        return RMSNorm if cfg.normalization_type == "LN" else RMSNormPre
    return KINDS.get(cfg.normalization_type)

"""Products with the weights of heads; computed by the core."""

from __future__ import annotations

import torch

from glassformer import _core


def simple_attn_linear(input: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """`batch pos d_model` by weights `head d_model d_head` and biases `head d_head` -> `batch pos head d_head`."""
    w, b = w.to(input.device), b.to(input.device)
    out = _core.steps.linear(input, w.transpose(1, 2).flatten(0, 1), b.flatten())
    return out.unflatten(-1, (w.shape[0], -1))


def complex_attn_linear(input: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """As `simple_attn_linear`, each head with an input of its own: `batch pos head d_model`."""
    if input.shape[2] != w.shape[0]:
        raise _core.ShapeError(f"inputs of {input.shape[2]} heads, but weights of {w.shape[0]}")
    return _core.steps.linear_by_head(input, w.transpose(1, 2).flatten(0, 1), b.flatten())


def clamp_qkv(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, clip: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries, keys and values held between -clip and clip, in new tensors."""
    return q.clamp(-clip, clip), k.clamp(-clip, clip), v.clamp(-clip, clip)

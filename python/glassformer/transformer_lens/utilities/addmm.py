"""Products with something added, as models of `transformers` make them; computed by the core."""

from __future__ import annotations

import torch

from glassformer import _core


def vanilla_addmm(input: torch.Tensor, mat1: torch.Tensor, mat2: torch.Tensor) -> torch.Tensor:
    """input + mat1 mat2: matrices `m n` and `n o`, and what broadcasts to `m o`."""
    if mat1.ndim != 2 or mat2.ndim != 2 or mat1.shape[1] != mat2.shape[0]:
        raise _core.ShapeError(f"expected matrices 'm n' and 'n o'; found {list(mat1.shape)} and {list(mat2.shape)}")
    return _core.steps.linear(mat1, mat2.mT) + input


def batch_addmm(bias: torch.Tensor, weight: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """bias + x weight, with any axes of `x` in front: `... d_in` and `d_in d_out` -> `... d_out`."""
    return vanilla_addmm(bias, x.reshape(-1, x.shape[-1]), weight).reshape(*x.shape[:-1], weight.shape[-1])

"""Small things done to tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from glassformer import _core


def to_numpy(tensor: Any) -> np.ndarray:
    """A tensor, list, tuple, number or string as an array; bfloat16 becomes float32. Other types are a ValueError."""
    if isinstance(tensor, np.ndarray):
        return tensor
    if isinstance(tensor, torch.Tensor):
        tensor = tensor.detach().cpu()
        return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
    if isinstance(tensor, list | tuple | int | float | bool | str):
        return np.array(tensor)
    raise _core.InputError(f"to_numpy() takes tensors, lists, tuples and numbers; found {type(tensor).__name__}")


def remove_batch_dim(tensor: torch.Tensor) -> torch.Tensor:
    """`1 ...` -> `...`; a longer first axis stays."""
    return tensor.squeeze(0) if tensor.shape[0] == 1 else tensor


def get_corner(tensor: Any, n: int = 3) -> Any:
    """The first `n` indices of every axis of a tensor, an array or a factored matrix."""
    return tensor[(slice(n),) * tensor.ndim]


def transpose(tensor: torch.Tensor) -> torch.Tensor:
    """The last two axes exchanged: `... a b` to `... b a`."""
    return tensor.transpose(-1, -2)


def is_square(x: torch.Tensor) -> bool:
    """Whether `x` is one square matrix."""
    return x.ndim == 2 and x.shape[0] == x.shape[1]


def is_lower_triangular(x: torch.Tensor) -> bool:
    """Whether `x` is one square matrix with nothing but zeros above its diagonal."""
    return is_square(x) and x.equal(x.tril())


def check_structure(t1: torch.Tensor, t2: torch.Tensor, *, verbose: bool = False) -> None:
    """Print "PASSED" if neighbouring entries of two matrices compare alike (>=), in rows and in columns; else print
    which rows, or which columns, don't. `verbose` prints the comparisons. Other shapes are an AssertionError."""
    if t1.ndim != 2 or t1.shape != t2.shape:
        raise AssertionError(f"check_structure() takes two matrices of one shape; found {t1.shape} and {t2.shape}")
    rows = _mismatches(t1, t2, "row", verbose)
    columns = _mismatches(t1.T, t2.T, "col", verbose)
    if rows:
        print(f"row mismatch: {rows}")
    elif columns:
        print(f"column mismatch: {columns}")
    else:
        print("PASSED")


def _mismatches(t1: torch.Tensor, t2: torch.Tensor, kind: str, verbose: bool) -> list[int]:
    if verbose:
        print(f"Checking {'rows' if kind == 'row' else 'columns'}")
    found = []
    for first in range(len(t1) - 1):
        results = [tensor[first].ge(tensor[first + 1]) for tensor in (t1, t2)]
        if not torch.equal(*results):
            found.append(first)
            if verbose:
                print(f"\trows {first}:{first + 1}")
                print(f"\tt1: {results[0].tolist()}")
                print(f"\tt2: {results[1].tolist()}")
    return found


def get_offset_position_ids(past_kv_pos_offset: int, attention_mask: torch.Tensor) -> torch.Tensor:
    """The positions of tokens, `batch pos`, from a mask `batch offset_pos` of which tokens are no padding, without the
    first `past_kv_pos_offset`: the first token that counts is at 0, and so is padding before it."""
    return (attention_mask.cumsum(dim=1) - 1).clamp(min=0)[:, past_kv_pos_offset:]


def get_cumsum_along_dim(tensor: torch.Tensor, dim: int, reverse: bool = False) -> torch.Tensor:
    """The sums of what stands up to each place of an axis, or with `reverse` of what stands from it on."""
    return tensor.flip(dim).cumsum(dim).flip(dim) if reverse else tensor.cumsum(dim)


def repeat_along_head_dimension(tensor: torch.Tensor, n_heads: int, clone_tensor: bool = True) -> torch.Tensor:
    """`batch pos d_model` -> `batch pos n_heads d_model`, each head with its own memory if `clone_tensor`. A tensor
    with other axes is a ValueError."""
    if tensor.ndim != 3:
        raise _core.ShapeError(f"expected a tensor 'batch pos d_model'; found shape {list(tensor.shape)}")
    repeated = tensor.unsqueeze(2).expand(-1, -1, n_heads, -1)
    return repeated.clone() if clone_tensor else repeated


def filter_dict_by_prefix(dictionary: dict[str, Any], prefix: str) -> dict[str, Any]:
    """The entries whose keys are `prefix`, a dot (if it has none at its end) and more, by what comes after the dot."""
    start = prefix if prefix.endswith(".") else prefix + "."
    return {key.removeprefix(start): value for key, value in dictionary.items() if key.startswith(start)}

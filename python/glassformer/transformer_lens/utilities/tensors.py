"""Functions of plain tensors."""

from __future__ import annotations

from typing import Any

import torch


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
    """Prints whether two matrices of one shape rise and fall alike from row to row and from column to column.

    Prints PASSED, or the rows (else the columns) from which on to the next they don't; `verbose` prints the comparisons
    there too. Raises `ValueError` for other shapes.
    """
    if t1.ndim != 2 or t1.shape != t2.shape:
        raise ValueError(
            f"check_structure: found {list(t1.shape)} and {list(t2.shape)}; expected matrices of one shape"
        )
    mismatches = {}
    for name, label, one, other in [("row", "rows", t1, t2), ("column", "columns", t1.T, t2.T)]:
        if verbose:
            print(f"Checking {label}")
        first, second = (x[:-1].ge(x[1:]) for x in (one, other))
        mismatches[name] = (first != second).any(-1).nonzero().flatten().tolist()
        for i in mismatches[name] if verbose else []:
            print(f"\trows {i}:{i + 1}\n\tt1: {first[i].tolist()}\n\tt2: {second[i].tolist()}")
    for name, mismatch in mismatches.items():
        if mismatch:
            print(f"{name} mismatch: {mismatch}")
            return
    print("PASSED")

"""Functions of factored matrices."""

from __future__ import annotations

import torch

from glassformer import _core
from glassformer.transformer_lens.FactoredMatrix import FactoredMatrix
from glassformer.transformer_lens.utilities.tensors import get_corner


def composition_scores(left: FactoredMatrix, right: FactoredMatrix, broadcast_dims: bool = True) -> torch.Tensor:
    """How much of what `left` writes `right` reads: ‖left right‖ / (‖left‖ ‖right‖), in Frobenius norms.

    With `broadcast_dims` for all pairs: the leading axes of `left`, then those of `right`. Without, leading axes
    broadcast. Raises `ShapeError` unless left.rdim == right.ldim.
    """
    return _core.composition_scores(left.core, right.core, broadcast_dims)


def get_matrix_corner(matrix: FactoredMatrix, n: int = 3) -> torch.Tensor:
    """The first `n` indices of every axis of the product, at most 3, without computing the rest."""
    return get_corner(get_corner(matrix, n)).AB

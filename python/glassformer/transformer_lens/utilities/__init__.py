"""Helpers, by the names that they have in TransformerLens."""

from glassformer.transformer_lens.utilities.matrix import composition_scores, get_matrix_corner
from glassformer.transformer_lens.utilities.tensors import (
    check_structure,
    get_corner,
    is_lower_triangular,
    is_square,
    transpose,
)

__all__ = [
    "check_structure",
    "composition_scores",
    "get_corner",
    "get_matrix_corner",
    "is_lower_triangular",
    "is_square",
    "transpose",
]

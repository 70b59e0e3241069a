"""A matrix kept as a product of two: TransformerLens' names for the core's factored matrix."""

from __future__ import annotations

import operator
from numbers import Real
from typing import Any

import numpy as np
import torch

from glassformer import _core


class FactoredMatrix:
    """The product of `A` (`... ldim mdim`) and `B` (`... mdim rdim`), which is not computed unless asked for.

    Leading axes broadcast. `@` multiplies with a matrix or a vector on either side, or with another factored matrix;
    `*` with one number. Gradients flow through everything. Raises `ShapeError` where the inner axes differ or the
    leading ones don't broadcast, and wherever other shapes don't fit.
    """

    core: _core.FactoredMatrix

    def __init__(self, A: torch.Tensor, B: torch.Tensor) -> None:
        self.core = _core.FactoredMatrix(A, B)

    @classmethod
    def of(cls, core: _core.FactoredMatrix) -> FactoredMatrix:
        """The same matrix under these names."""
        made = cls.__new__(cls)
        made.core = core
        return made

    def __reduce__(self) -> tuple[type[FactoredMatrix], tuple[torch.Tensor, torch.Tensor]]:
        return type(self), self.pair

    @property
    def A(self) -> torch.Tensor:
        """The left factor, with all leading axes: `... ldim mdim`."""
        return self.core.a

    @property
    def B(self) -> torch.Tensor:
        """The right factor, with all leading axes: `... mdim rdim`."""
        return self.core.b

    @property
    def pair(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Both factors."""
        return self.core.a, self.core.b

    @property
    def ldim(self) -> int:
        """The product's rows."""
        return self.core.left

    @property
    def mdim(self) -> int:
        """The axis that the factors share; the product's rank is at most that."""
        return self.core.middle

    @property
    def rdim(self) -> int:
        """The product's columns."""
        return self.core.right

    @property
    def shape(self) -> torch.Size:
        """The product's shape: `... ldim rdim`."""
        return torch.Size(self.core.shape)

    @property
    def ndim(self) -> int:
        """How many axes the product has."""
        return self.core.a.ndim

    @property
    def has_leading_dims(self) -> bool:
        """Whether it is more than one matrix."""
        return self.ndim > 2

    def __repr__(self) -> str:
        return f"FactoredMatrix: Shape({self.shape}), Hidden Dim({self.mdim})"

    def __matmul__(self, other: Any) -> Any:
        if isinstance(other, FactoredMatrix):
            return FactoredMatrix.of(self.core.times(other.core))
        if not isinstance(other, torch.Tensor):
            return NotImplemented
        return self.core.times_vector(other) if other.ndim < 2 else FactoredMatrix.of(self.core.times(other))

    def __rmatmul__(self, other: Any) -> Any:
        if not isinstance(other, torch.Tensor):
            return NotImplemented
        return self.core.after_vector(other) if other.ndim < 2 else FactoredMatrix.of(self.core.after(other))

    def __mul__(self, scalar: float | torch.Tensor) -> FactoredMatrix:
        if not isinstance(scalar, Real | torch.Tensor):
            return NotImplemented
        return FactoredMatrix.of(self.core.scaled(scalar))

    __rmul__ = __mul__

    @property
    def AB(self) -> torch.Tensor:
        """The product itself: `... ldim rdim`. As large as the factored form is meant to avoid."""
        return self.core.product()

    @property
    def BA(self) -> torch.Tensor:
        """The factors' product the other way round: `... mdim mdim`. Raises `ShapeError` unless ldim == rdim."""
        return self.core.reverse_product()

    @property
    def T(self) -> FactoredMatrix:
        """The transposed matrix: `... rdim ldim`."""
        return FactoredMatrix.of(self.core.transposed())

    def svd(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """U, S and V, with `AB == U @ S.diag_embed() @ V.mT`: `... ldim k`, `... k`, `... rdim k`.

        k is the least of ldim, mdim and rdim. AB isn't formed, and what was computed once is kept.
        """
        return self.core.svd()

    @property
    def U(self) -> torch.Tensor:
        """The left singular vectors: `... ldim k`."""
        return self.core.svd()[0]

    @property
    def S(self) -> torch.Tensor:
        """The singular values, largest first: `... k`."""
        return self.core.svd()[1]

    @property
    def V(self) -> torch.Tensor:
        """The right singular vectors, as columns: `... rdim k`."""
        return self.core.svd()[2]

    Vh = V  # An older name; the content was never transposed.

    @property
    def eigenvalues(self) -> torch.Tensor:
        """The eigenvalues that can differ from 0, found from BA: `... mdim`, complex.

        Raises `ShapeError` unless ldim == rdim.
        """
        return self.core.eigenvalues()

    def norm(self) -> torch.Tensor:
        """The Frobenius norm: `...`."""
        return self.core.norm()

    def make_even(self) -> FactoredMatrix:
        """The same matrix with factors of equal norm: U√S and √S Vᵀ."""
        return FactoredMatrix.of(self.core.made_even())

    def get_corner(self, k: int = 3) -> torch.Tensor:
        """The first `k` indices of every axis, without computing the rest."""
        return self.core.corner(k)

    def collapse_l(self) -> torch.Tensor:
        """The matrix without its left orthogonal factor, S Vᵀ: `... k rdim`."""
        return self.core.collapsed_left()

    def collapse_r(self) -> torch.Tensor:
        """The matrix without its right orthogonal factor, US: `... ldim k`."""
        return self.core.collapsed_right()

    def unsqueeze(self, k: int) -> FactoredMatrix:
        """A new leading axis of size 1 before axis `k`. Raises `ShapeError` for a place behind the leading axes."""
        return FactoredMatrix.of(self.core.unsqueezed(k))

    def __getitem__(self, idx: Any) -> FactoredMatrix:
        """Indexes the leading axes as torch does, and then rows and columns, each on its own.

        An integer for rows or columns keeps an axis of size 1, so that the result is a factored matrix again; lists for
        both make all pairs. Raises `ShapeError` for too long an index, `IndexError` for one out of range.
        """
        entries = idx if isinstance(idx, tuple) else (idx,)
        return FactoredMatrix.of(self.core.index(tuple(_entry(entry) for entry in entries)))


def _entry(entry: Any) -> Any:
    """One entry of an index as the core takes it: what is like a tensor as a tensor, what is like an int as an int."""
    if entry is None or entry is Ellipsis or isinstance(entry, bool | slice):
        return entry
    if isinstance(entry, list | tuple | np.ndarray):
        entry = torch.as_tensor(entry)
    if isinstance(entry, torch.Tensor) and (entry.ndim > 0 or entry.dtype == torch.bool):
        return entry
    return operator.index(entry)

"""Parts of an axis."""

from __future__ import annotations

import builtins
from typing import TypeAlias

import numpy as np
import torch

from glassformer import _core
from glassformer.transformer_lens.utilities.tensors import to_numpy

SliceInput: TypeAlias = (
    int | tuple[int] | tuple[int, int] | tuple[int, int, int] | list[int] | torch.Tensor | np.ndarray | None
)
"""A part of an axis: one place, a tuple as `slice` takes it, a list of places (or a mask), or None for all."""


class Slice:
    """A part of one axis of a tensor.

    From a number k: that place, and the axis goes away. From a tuple: `slice(*tuple)`, so (k,) is the first k places.
    From a list, an array or a tensor: these places, or a mask's. From None: all of it. Anything else is a ValueError.
    `mode` is "int", "slice", "array" or "identity", and `slice` what a tensor is indexed with.
    """

    slice: int | builtins.slice | np.ndarray

    def __init__(self, input_slice: SliceInput | builtins.slice = None) -> None:
        if input_slice is None:
            self.slice, self.mode = builtins.slice(None), "identity"
        elif isinstance(input_slice, int):
            self.slice, self.mode = input_slice, "int"
        elif isinstance(input_slice, tuple | builtins.slice):
            whole = input_slice if isinstance(input_slice, builtins.slice) else builtins.slice(*input_slice)
            self.slice, self.mode = whole, "slice"
        elif type(input_slice) in (list, torch.Tensor, np.ndarray):
            self.slice, self.mode = to_numpy(input_slice), "array"
        else:
            raise _core.InputError(
                f"a slice is an int, a tuple, a list, an array, a tensor or None; found {input_slice!r}"
            )

    def apply(self, tensor: torch.Tensor, dim: int = 0) -> torch.Tensor:
        """This part of the tensor's axis `dim`; the other axes stay. IndexError where the tensor hasn't it."""
        index: list[int | builtins.slice | np.ndarray] = [builtins.slice(None)] * tensor.ndim
        index[dim] = self.slice
        return tensor[tuple(index)]

    def indices(self, max_ctx: int | None = None) -> np.ndarray:
        """The places, int64, in an axis that is `max_ctx` long. ValueError if that is needed and not given."""
        if self.mode == "int":
            return np.array([self.slice], dtype=np.int64)
        if max_ctx is None:
            raise _core.InputError("indices() of a slice needs max_ctx, the length of the axis")
        return np.arange(max_ctx, dtype=np.int64)[self.slice]

    def __repr__(self) -> str:
        return f"Slice: {self.slice} Mode: {self.mode} "

    @classmethod
    def unwrap(cls, slice_input: Slice | SliceInput) -> Slice:
        """A `Slice` from itself or what makes one; a number keeps its axis, of length 1."""
        if isinstance(slice_input, Slice):
            return slice_input
        return cls([slice_input] if isinstance(slice_input, int) else slice_input)

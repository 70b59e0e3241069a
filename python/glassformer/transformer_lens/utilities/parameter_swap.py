"""Other numbers in a parameter, for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from glassformer import _core


@contextmanager
def temporarily_swap_parameter(parameter: torch.nn.Parameter, new_value: torch.Tensor) -> Iterator[torch.nn.Parameter]:
    """A block inside which a parameter holds `new_value`; however it ends, the numbers before it come back.

    The parameter stays the object that it is, with its `grad`. TypeError if it is none, or `new_value` no plain tensor;
    ValueError for another shape or dtype.
    """
    if not isinstance(parameter, torch.nn.Parameter):
        raise TypeError(f"expected a torch.nn.Parameter; found {type(parameter).__name__}")
    if isinstance(new_value, torch.nn.Parameter) or not isinstance(new_value, torch.Tensor):
        raise TypeError(f"a parameter's new value is a plain tensor; found {type(new_value).__name__}")
    if new_value.shape != parameter.shape:
        raise _core.ShapeError(f"the new value has shape {list(new_value.shape)}; expected {list(parameter.shape)}")
    if new_value.dtype != parameter.dtype:
        raise _core.InputError(f"the new value has dtype {new_value.dtype}; expected {parameter.dtype}")
    before = parameter.detach().clone()
    try:
        with torch.no_grad():
            parameter.copy_(new_value)
        yield parameter
    finally:
        with torch.no_grad():
            parameter.copy_(before)

"""What users may write, turned into what the core takes."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch

from glassformer import _core

NodeName: TypeAlias = str | tuple[Any, ...]
"""A node: its full name, the name without `hook_`, a short one ("resid_pre3"), or its parts ("scale", 4, "ln1")."""

Positions: TypeAlias = int | slice | Sequence[int] | torch.Tensor | np.ndarray
"""Positions of a trace; negative ones count from the end."""

Values: TypeAlias = float | Sequence[Any] | np.ndarray | torch.Tensor
"""Numbers of any kind that torch can read."""


def node_name(name: NodeName) -> str:
    """The core's spelling of a node's name: ("scale", 4, "ln1") -> "scale4ln1"."""
    if isinstance(name, str):
        return name
    if not isinstance(name, tuple) or not 1 <= len(name) <= 3 or not isinstance(name[0], str):
        raise TypeError(
            f'a node\'s name is a str, or a tuple like ("resid_pre", 3) or ("scale", 4, "ln1"); found {name!r}'
        )
    layer = name[1] if len(name) > 1 else None
    part = name[2] if len(name) > 2 else None
    if layer is None:
        return name[0] if part is None else f"{part}.hook_{name[0].removeprefix('hook_')}"
    return f"{name[0]}{operator.index(layer)}{part or ''}"


def positions_list(positions: Positions | None, length: int | None = None) -> list[int] | None:
    """Positions as integers; a slice is cut to the trace's `length`."""
    if positions is None:
        return None
    if isinstance(positions, slice):
        if length is None:
            raise _core.InputError(f"positions are a number or a list of them here; found {positions}")
        return list(range(*positions.indices(length)))
    if hasattr(positions, "tolist"):
        positions = positions.tolist()
    if isinstance(positions, Iterable):
        return [operator.index(position) for position in positions]
    return [operator.index(positions)]


def tensor_of(value: Values) -> torch.Tensor:
    """Numbers as a tensor, without loss: Python's floats stay float64 until the core casts them."""
    if isinstance(value, torch.Tensor):
        return value
    if isinstance(value, list | tuple) and any(isinstance(entry, torch.Tensor) for entry in value):
        return torch.stack([tensor_of(entry) for entry in value])
    array = np.asarray(value)
    if array.dtype.kind not in "biuf":
        raise TypeError(f"a value must be numbers; found {type(value).__name__}")
    return torch.from_numpy(np.array(array))


def region_index(region: Any) -> Any:
    """A region as the core reads it: None, a bool mask of the node's shape, or one index for each axis."""
    if region is None or region is Ellipsis:
        return None
    if isinstance(region, np.ndarray | torch.Tensor) and region.ndim > 1:
        mask = torch.as_tensor(region)
        if mask.dtype != torch.bool:
            raise _core.InputError(
                f"a region of {mask.ndim} axes must be a bool mask of the node's shape; found {mask.dtype}"
            )
        return mask
    return tuple(_axis_index(index) for index in (region if isinstance(region, tuple) else (region,)))


def _axis_index(index: Any) -> Any:
    if index is None or index is Ellipsis or isinstance(index, slice):
        return index
    if hasattr(index, "tolist"):
        index = index.tolist()
    if isinstance(index, range | tuple | list):
        entries = [entry.tolist() if hasattr(entry, "tolist") else entry for entry in index]
        if any(isinstance(entry, list | tuple) for entry in entries):
            raise _core.InputError("a region has one list of indices for each axis; found a nested one")
        return [entry if isinstance(entry, bool) else operator.index(entry) for entry in entries]
    return operator.index(index)


def dtype_of(dtype: torch.dtype | str) -> torch.dtype:
    """A torch dtype from itself or its name."""
    if isinstance(dtype, torch.dtype):
        return dtype
    found = getattr(torch, str(dtype).removeprefix("torch."), None)
    if not isinstance(found, torch.dtype):
        raise _core.InputError(f"'{dtype}' is no dtype; expected float32, float64, bfloat16 or float16")
    return found


def device_of(device: torch.device | str) -> torch.device:
    """A torch device from itself or its name."""
    try:
        return torch.device(device)
    except RuntimeError:
        raise _core.InputError(f"'{device}' is no device; expected one like cpu or cuda:0") from None


def conversion(targets: Sequence[Any], dtype: Any, device: Any) -> tuple[torch.dtype | None, torch.device | None]:
    """The dtype and the device among what `Model.to` was given; None where there was none."""
    dtypes = [] if dtype is None else [dtype_of(dtype)]
    devices = [] if device is None else [device_of(device)]
    for target in targets:
        named = isinstance(target, str) and isinstance(getattr(torch, target.removeprefix("torch."), None), torch.dtype)
        if named or isinstance(target, torch.dtype):
            dtypes.append(dtype_of(target))
        elif isinstance(target, str | torch.device):
            devices.append(device_of(target))
        else:
            raise TypeError(f"to() takes a dtype and a device; found {type(target).__name__}")
    if len(dtypes) > 1 or len(devices) > 1:
        raise _core.InputError(f"to() takes one dtype and one device; found {[*dtypes, *devices]}")
    return dtypes[0] if dtypes else None, devices[0] if devices else None


def token_rows(ids: Any) -> list[torch.Tensor]:
    """Token ids (a list, nested lists, an array, a tensor) as one row `pos` for each sequence."""
    if isinstance(ids, torch.Tensor | np.ndarray):
        tensor = torch.as_tensor(ids)
        if tensor.ndim not in (1, 2):
            raise _core.ShapeError(f"token ids must be 'pos' or 'batch pos'; found {list(tensor.shape)}")
        return [_integers(row) for row in (tensor[None] if tensor.ndim == 1 else tensor)]
    ids = list(ids)
    if ids and all(isinstance(row, Iterable) and not (hasattr(row, "ndim") and row.ndim == 0) for row in ids):
        rows = [_integers(row) for row in ids]
        if any(row.ndim != 1 for row in rows):
            raise _core.ShapeError("token ids must be 'pos' or 'batch pos'; found deeper nesting")
        return rows
    return [_integers(ids)]


def _integers(row: Any) -> torch.Tensor:
    if not isinstance(row, torch.Tensor):
        row = np.asarray(row)
        row = torch.from_numpy(row.astype(np.int64) if row.size == 0 else row.copy())
    if row.is_floating_point() or row.is_complex() or row.dtype == torch.bool:
        raise _core.InputError(f"token ids must be integers; found {row.dtype}")
    return row.to(torch.int64)

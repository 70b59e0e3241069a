"""The logits of a patched run: a tensor whose numbers are computed where a metric asks for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

_READ = Callable[[Sequence[int] | None], torch.Tensor]
_METHODS = ("size", "dim", "numel", "__len__", "is_floating_point", "is_complex")
_PROPERTIES = ("shape", "ndim", "dtype", "device", "layout", "requires_grad", "is_cuda", "grad_fn", "is_leaf")
_ABOUT = frozenset(
    [getattr(torch.Tensor, name) for name in _METHODS] + [getattr(torch.Tensor, name).__get__ for name in _PROPERTIES]
)
"""What needs no numbers."""


class PatchedLogits(torch.Tensor):
    """`batch pos d_vocab`. Indexing it by a position computes only that one; anything else computes all of them.

    The result of any operation is an ordinary tensor, and what is changed in place is changed.
    """

    _read: _READ | None
    _rows: tuple[list[int], torch.Tensor] | None
    _whole: torch.Tensor | None

    @staticmethod
    def __new__(cls, shape: Sequence[int], like: torch.Tensor, read: _READ) -> PatchedLogits:
        """`read(positions)` gives the numbers at some positions, or at all (None); dtype and device are `like`'s."""
        made = torch.Tensor._make_wrapper_subclass(cls, shape, dtype=like.dtype, device=like.device)
        made._read, made._rows, made._whole = read, None, None
        return made

    def whole(self) -> torch.Tensor:
        """All of it, as an ordinary tensor."""
        if self._whole is None:
            self._whole = self._read(None)
            if self._rows is not None:  # A metric may have changed what it was given.
                self._whole[:, self._rows[0]] = self._rows[1]
            self._read = self._rows = None
        return self._whole

    def _at(self, key: Any) -> torch.Tensor:
        with torch._C.DisableTorchFunctionSubclass():
            length = self.size(1)
        found = None if self._whole is not None else _of_positions(key, length)
        if found is None:
            return self.whole()[_plain(key)]
        positions, rest = found
        if self._rows is None:
            self._rows = positions, self._read(positions)
        elif self._rows[0] != positions:
            return self.whole()[_plain(key)]
        return self._rows[1][_plain(rest)]

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _ABOUT:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **(kwargs or {}))
        if func is torch.Tensor.__getitem__ and isinstance(args[0], PatchedLogits):
            return args[0]._at(args[1])
        return func(*_plain(args), **_plain(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*_plain(args), **_plain(kwargs or {}))


def _plain(value: Any) -> Any:
    if isinstance(value, PatchedLogits):
        return value.whole()
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if type(value) in (tuple, list):
        return type(value)(map(_plain, value))
    return value


def _of_positions(key: Any, length: int) -> tuple[list[int], tuple] | None:
    """Which positions an index into `batch pos d_vocab` reads, and the index into the values at these."""
    key = key if isinstance(key, tuple) else (key,)
    if any(entry is None or isinstance(entry, bool) for entry in key):
        return None
    n_ellipses = sum(entry is Ellipsis for entry in key)
    if n_ellipses == 1:
        at = next(axis for axis, entry in enumerate(key) if entry is Ellipsis)
        key = (*key[:at], *[slice(None)] * (4 - len(key)), *key[at + 1 :])
    if n_ellipses > 1 or not 2 <= len(key) <= 3 or not _is_one_axis(key[0]):
        return None
    batch, at, *rest = key
    if isinstance(at, slice):
        positions = list(range(*at.indices(length)))
        return (
            None
            if at == slice(None) or not positions or positions[0] > positions[-1]
            else (positions, (batch, slice(None), *rest))
        )
    if type(at) is int and -length <= at < length:
        return [at % length], (batch, 0, *rest)
    if isinstance(at, torch.Tensor) and at.dtype == torch.int64 and at.numel() > 0:
        if at.min() < -length or at.max() >= length:
            return None
        positions, places = torch.unique(at % length, return_inverse=True)
        return positions.tolist(), (batch, places, *rest)
    return None


def _is_one_axis(entry: Any) -> bool:
    if isinstance(entry, torch.Tensor):
        return entry.dtype == torch.int64 and not isinstance(entry, PatchedLogits)
    return type(entry) in (int, slice)

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

    The result of any operation is an ordinary tensor; what is changed in place is changed, also through a view.
    """

    _read: _READ | None
    _numbers: torch.Tensor | None
    _positions: list[int] | None

    @staticmethod
    def __new__(cls, shape: Sequence[int], like: torch.Tensor, read: _READ) -> PatchedLogits:
        """`read(positions)` gives the numbers at some positions, or at all (None); dtype and device are `like`'s."""
        made = torch.Tensor._make_wrapper_subclass(cls, shape, dtype=like.dtype, device=like.device)
        made._read = read  # None once all numbers are there.
        made._numbers = made._positions = None  # Before that: those at some positions, in a tensor for all of them.
        return made

    def whole(self) -> torch.Tensor:
        """All of it, as an ordinary tensor."""
        if self._read is not None:
            numbers = self._read(None)
            if self._positions is None:
                self._numbers = numbers
            else:  # A metric has views of what is there, and may have changed it.
                others = [position for position in range(numbers.shape[1]) if position not in self._positions]
                self._numbers[:, others] = numbers[:, others]
            self._read = None
        return self._numbers

    def _at(self, key: Any) -> torch.Tensor:
        with torch._C.DisableTorchFunctionSubclass():
            shape = self.shape
        if self._read is not None:
            positions = _positions_of(key, shape[1])
            if positions is None or self._positions not in (None, positions):
                self.whole()
            elif self._positions is None:
                there = self._read(positions)
                self._numbers, self._positions = there.new_empty(shape), positions
                self._numbers[:, positions] = there
        return self._numbers[_plain(key)]

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _ABOUT and args[0]._read is not None:
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


def _positions_of(key: Any, length: int) -> list[int] | None:
    """Which positions an index into `batch pos d_vocab` reads; None where that's all of them or hard to say."""
    key = key if isinstance(key, tuple) else (key,)
    if any(entry is None or isinstance(entry, bool) for entry in key):
        return None
    n_ellipses = sum(entry is Ellipsis for entry in key)
    if n_ellipses == 1:
        at = next(axis for axis, entry in enumerate(key) if entry is Ellipsis)
        key = (*key[:at], *[slice(None)] * (4 - len(key)), *key[at + 1 :])
    if n_ellipses > 1 or not 2 <= len(key) <= 3 or not _is_one_axis(key[0]):
        return None
    at = key[1]
    if isinstance(at, slice):
        positions = list(range(*at.indices(length)))
        return positions if 0 < len(positions) < length else None
    if type(at) is int and -length <= at < length:
        return [at % length]
    if isinstance(at, torch.Tensor) and at.dtype == torch.int64 and at.numel() > 0:
        if at.min() < -length or at.max() >= length:
            return None
        return torch.unique(at % length).tolist()
    return None


def _is_one_axis(entry: Any) -> bool:
    if isinstance(entry, torch.Tensor):
        return entry.dtype == torch.int64 and not isinstance(entry, PatchedLogits)
    return type(entry) in (int, slice)

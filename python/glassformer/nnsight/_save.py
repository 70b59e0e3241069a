"""`.save()` on everything, while a trace is open. Nothing needs it here: values outlive their trace as they are."""

from __future__ import annotations

from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable
from typing import Any, TypeVar

import torch

from glassformer import _core
from glassformer.nnsight import _open
from glassformer.nnsight.outputs import ModuleOutput, Output

Value = TypeVar("Value")

_NUMBERS = (int, bool, float, complex, type(None))
_SEQUENCES = (list, tuple, str, bytes, bytearray, range, slice, set, frozenset, deque)
_TYPES = (*_NUMBERS, *_SEQUENCES, dict, defaultdict, OrderedDict, torch.Size, torch.Tensor, torch.nn.Parameter)


def save(value: Value) -> Value:
    """The value itself: what a trace gives outlives it without being saved. What a module or a model returned is as it
    is now, and keeps nothing else of its trace."""
    return value.save() if isinstance(value, ModuleOutput | Output) else value


class SavedList(list[Any]):
    """What `nnsight.list()` makes: a list that old notebooks ask for its `.value`."""

    def save(self) -> SavedList:
        """The list itself."""
        return self

    @property
    def value(self) -> SavedList:
        """The list itself."""
        return self


class SavedDict(dict[Any, Any]):
    """What `nnsight.dict()` makes: a dict that old notebooks ask for its `.value`."""

    def save(self) -> SavedDict:
        """The dict itself."""
        return self

    @property
    def value(self) -> SavedDict:
        """The dict itself."""
        return self


def _provide(owner: Any) -> Callable[[], Any] | None:
    """`owner.save`, for code with an open trace alone: other threads don't see it."""
    return (lambda: owner) if _open.is_open() else None


_method = _core.LentMethod(_TYPES, "save", _provide)
mount, unmount = _method.lend, _method.take_back
"""Give built-in types and tensors the method `save`, until it was taken back as often."""

"""Values of a trace that their user may change: the changes count as edits of the trace."""

from __future__ import annotations

import weakref
from typing import Any

import torch

from glassformer import _core


class LiveTensor(torch.Tensor):
    """What `trace[name]` gives: a tensor of the user's own, whose changes the trace sees.

    An assignment by index (`x[:, -1] = 0`) is a `set` of that region. Any other change in place (`x += 1`, `x.mul_(2)`,
    through a view or `.numpy()`) is an edit that belongs to the value it was made from, as with `Trace.edit`. Changes
    are collected by the trace's next operation; it raises `StaleEditError` where the node had another value by then,
    because of an edit, an append or a cut. What is computed from it is an ordinary tensor.
    """

    __torch_function__ = torch._C._disabled_torch_function_impl

    def __setitem__(self, index: Any, value: Any) -> None:
        core = _watcher(self)
        if core is None:
            super().__setitem__(index, value)
            return
        core.collect()  # What was changed in place before belongs to the value that it was changed in.
        super().__setitem__(index, value)
        region = _region(index)
        tensor = value if isinstance(value, torch.Tensor) else None
        # What was there before has no part in the numbers, so its graph has none either.
        numbers = self if tensor is not None and tensor.requires_grad else self.detach()
        if region is not None:
            core.assigned(self, region, numbers[index], tensor)
            return
        mask = torch.zeros(self.shape, dtype=torch.bool, device=self.device)
        mask[index] = True
        core.assigned(self, mask, numbers, tensor)

    def __deepcopy__(self, memo: dict[int, Any]) -> torch.Tensor:
        return self.clone()

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.detach().clone().__reduce_ex__(protocol)

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return repr(self.detach())


def make_live(tensor: torch.Tensor, core: _core.Trace) -> torch.Tensor:
    """Internal: turns a tensor that `core` watches into a live one."""
    if not isinstance(tensor, LiveTensor):
        tensor.__class__ = LiveTensor
    tensor._watcher = weakref.ref(core)  # type: ignore[attr-defined]
    return tensor


def _watcher(tensor: LiveTensor) -> _core.Trace | None:
    found = getattr(tensor, "_watcher", None)
    return None if found is None else found()


def _region(index: Any) -> tuple[Any, ...] | None:
    """The index as a product of indices, or None where torch means something else by it."""
    entries = index if isinstance(index, tuple) else (index,)
    lists = 0
    for entry in entries:
        if entry is Ellipsis or isinstance(entry, slice):
            continue
        if isinstance(entry, int) and not isinstance(entry, bool):
            continue
        if not isinstance(entry, list) or not all(type(each) is int for each in entry):
            return None
        if len(set(entry)) < len(entry) or len({each < 0 for each in entry}) > 1:
            return None  # The same index twice, perhaps.
        lists += 1
    integers = any(isinstance(entry, int) for entry in entries)
    return entries if lists == 0 or (lists == 1 and not integers) else None

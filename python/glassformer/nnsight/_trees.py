"""What modules take and return: tensors, and tuples, lists, dicts, slices and dataclasses of them."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch

from glassformer.nnsight.outputs import ModuleOutput

Path = tuple[Any, ...]
"""Where something stands in a structure: indices of sequences, keys of dicts, names of fields."""

_OF_SLICES = ("start", "stop", "step")

_CONSTANTS = {type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.layout}
_LEAVES = _CONSTANTS | {torch.Tensor, torch.nn.Parameter}


def children(value: Any) -> Iterable[tuple[Any, Any]]:
    """The entries of a container with their keys; nothing for anything else."""
    if type(value) in _LEAVES or isinstance(value, torch.Tensor | ModuleOutput):
        return ()
    if isinstance(value, tuple | list):
        return tuple(enumerate(value))
    if isinstance(value, Mapping):
        return tuple(value.items())
    if isinstance(value, slice):
        return tuple((name, getattr(value, name)) for name in _OF_SLICES)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return tuple((each.name, getattr(value, each.name)) for each in dataclasses.fields(value))
    return ()


def rebuilt(value: Any, entries: dict[Any, Any]) -> Any:
    """A container like `value` with other entries."""
    if isinstance(value, tuple):
        listed = list(entries.values())
        return type(value)(*listed) if hasattr(value, "_fields") else type(value)(listed)
    if isinstance(value, slice):
        return slice(*entries.values())
    made = copy.copy(value)
    if isinstance(value, list):
        made[:] = list(entries.values())
    elif isinstance(value, Mapping):
        for key, each in entries.items():
            made[key] = each  # type: ignore[index]
    else:
        for key, each in entries.items():
            object.__setattr__(made, key, each)
    return made


def mapped(value: Any, function: Callable[[Path, Any], Any]) -> Any:
    """The same structure with `function(path, leaf)` in the place of every leaf. A tensor that stands at several places
    is one tensor there again."""
    return _mapped(value, function, (), {})


def _mapped(value: Any, function: Callable[[Path, Any], Any], path: Path, seen: dict[int, Any]) -> Any:
    entries = children(value)
    if entries:
        return rebuilt(value, {key: _mapped(each, function, (*path, key), seen) for key, each in entries})
    if isinstance(value, list | dict):
        return copy.copy(value)
    if not isinstance(value, torch.Tensor):
        return function(path, value)
    if id(value) not in seen:
        seen[id(value)] = function(path, value)
    return seen[id(value)]


def leaves(value: Any) -> Iterator[tuple[Path, Any]]:
    """Everything in a structure that is no container, with where it stands."""
    waiting: list[tuple[Path, Any]] = [((), value)]
    while waiting:
        path, each = waiting.pop()
        entries = children(each)
        if not entries:
            yield path, each
        waiting += [((*path, key), child) for key, child in reversed(tuple(entries))]


def taken(value: Any, path: Path) -> Any:
    """What stands at a place of a structure; KeyError where it has no such place."""
    for key in path:
        value = dict(children(value))[key]
    return value


def put(value: Any, path: Path, new: Any) -> Any:
    """The structure with something else at one place; KeyError where it has no such place."""
    if not path:
        return new
    entries = dict(children(value))
    entries[path[0]] = put(entries[path[0]], path[1:], new)
    return rebuilt(value, entries)


def replaced(value: Any, old: Any, new: Any) -> Any:
    """The structure with one object in the place of another, wherever that stands."""
    return mapped(value, lambda _, leaf: new if leaf is old else leaf)


def is_plain(value: Any) -> bool:
    """Whether a structure has nothing but tensors and constants: nothing that remembers what was done with it."""
    return all(
        type(leaf) in _LEAVES or isinstance(leaf, torch.Tensor | tuple | list | dict) for _, leaf in leaves(value)
    )


def written(path: Path) -> str:
    """A place as Python writes it: "[0]['logits']"."""
    return "".join(f"[{key!r}]" for key in path)

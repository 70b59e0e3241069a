"""What modules that return more than a tensor give: tuples and outputs of models, whose entries are read when they are
taken."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch.utils._pytree import tree_map

from glassformer import _core


class ModuleOutput(tuple):
    """The tuple that a block or an attention returns; `[0]` is its hidden state.

    Each entry is read when it is taken out, and can be set (`output[0] = x`). Whatever no tuple has (`.shape`,
    `output[:, -1]`, arithmetic with numbers and tensors) is that of the hidden state. Copies, pickled ones too, are
    ordinary tuples of ordinary tensors.
    """

    _scope: Any
    _outputs: tuple[tuple[str, ...], ...]
    _step: int
    _saved: list[Any] | None

    def __new__(cls, scope: Any, outputs: tuple[tuple[str, ...], ...], step: int) -> ModuleOutput:
        made = tuple.__new__(cls)
        made._scope, made._outputs, made._step, made._saved = scope, outputs, step, None
        return made

    def _read(self, index: int) -> Any:
        if self._saved is not None:
            return self._saved[index]
        return self._scope.read_nodes(self._outputs[index], self._step)

    def __len__(self) -> int:
        return len(self._outputs)

    def __iter__(self) -> Iterator[Any]:
        return (self._read(index) for index in range(len(self._outputs)))

    def __getitem__(self, index: Any) -> Any:
        if type(index) is int:
            return self._read(self._checked(index))
        if isinstance(index, slice):
            return tuple(self._read(each) for each in range(*index.indices(len(self))))
        return self._read(0)[index]

    def __setitem__(self, index: Any, value: Any) -> None:
        if type(index) is int:
            self._put(self._checked(index), value)
        else:
            hidden = self._read(0)
            hidden[index] = value

    def _put(self, index: int, value: Any) -> None:
        scope = self._scope if self._saved is None else self._scope()
        if scope is None:
            raise _core.UnavailableError("the trace is closed: values can be set inside its `with` block only")
        scope.write_nodes(self._outputs[index], self._step, value)
        if self._saved is not None:
            self._saved[index] = scope.read_nodes(self._outputs[index], self._step)

    def _checked(self, index: int) -> int:
        length = len(self._outputs)
        if not -length <= index < length:
            raise IndexError(f"the module returns a tuple of {length}; found index {index}")
        return index % length

    def save(self) -> ModuleOutput:
        """The tuple itself, with its entries as they are now. It keeps nothing else of its trace."""
        if self._saved is None:
            self._saved = list(self)
            self._scope = weakref.ref(self._scope)
        return self

    def __reduce_ex__(self, protocol: Any) -> Any:
        return tuple, ([_plain_copy(entry) for entry in self],)

    def __copy__(self) -> tuple[torch.Tensor, ...]:
        return tuple(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> tuple[torch.Tensor, ...]:
        return tuple(_plain_copy(entry) for entry in self)

    def kept(self, keep: Callable[[torch.Tensor], torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Internal, for caches: all entries, each as `keep` gives it; nothing of the trace stays with them."""
        return tuple(keep(entry) for entry in self)

    @property
    def value(self) -> ModuleOutput:
        """The tuple itself."""
        return self

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self[0], name)

    def __eq__(self, other: Any) -> Any:
        return self[0] == other

    def __ne__(self, other: Any) -> Any:
        return self[0] != other

    __hash__ = object.__hash__  # type: ignore[assignment]

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return function(*_hidden(args), **_hidden(kwargs or {}))

    def __repr__(self) -> str:
        return repr(tuple(self))


def _plain_copy(value: Any) -> Any:
    """Of a tensor a copy, outside of any graph; of tuples one of such copies."""
    if isinstance(value, tuple):
        return tuple(_plain_copy(each) for each in value)
    return copy.deepcopy(value).detach() if isinstance(value, torch.Tensor) else value


def _hidden(given: Any) -> Any:
    return tree_map(lambda each: each[0] if isinstance(each, ModuleOutput) else each, given)


def _arithmetic(name: str) -> Callable[..., Any]:
    def run(self: ModuleOutput, *args: Any) -> Any:
        return getattr(self[0], name)(*_hidden(args))

    return run


_BINARY = ("add", "sub", "mul", "truediv", "matmul")
_OTHERS = ("pow", "iadd", "isub", "imul", "itruediv", "neg", "lt", "le", "gt", "ge")
for _name in (*_BINARY, *(f"r{each}" for each in _BINARY), *_OTHERS):
    setattr(ModuleOutput, f"__{_name}__", _arithmetic(f"__{_name}__"))


class Output:
    """What a whole model returns, field by field: by attribute, by name, or by the number of a field that is there.

    Fields are read when they are taken. `.shape` and other things that it hasn't are those of the main one, `main`.
    Copies, pickled ones too, have ordinary tensors.
    """

    def __init__(
        self, title: str, fields: dict[str, Callable[[], Any]], main: str, put: Callable[[Any], None] | None = None
    ) -> None:
        self.__dict__.update(_title=title, _fields=dict(fields), _main=main, _put=put)

    def _read(self, name: str) -> Any:
        return self._fields[name]()

    def keys(self) -> list[str]:
        """The fields that are there."""
        return [name for name in self._fields if name == self._main or self._read(name) is not None]

    def values(self) -> list[Any]:
        """Their values."""
        return [self._read(name) for name in self.keys()]

    def items(self) -> list[tuple[str, Any]]:
        """Both."""
        return [(name, self._read(name)) for name in self.keys()]

    def to_tuple(self) -> tuple[Any, ...]:
        """The values as a tuple."""
        return tuple(self.values())

    def save(self) -> Output:
        """The output itself, with its fields as they are now. It keeps nothing else of its trace; to change it, set
        what `model.output` has."""
        found = {name: self._read(name) for name in self._fields}
        self._fields.update({name: partial(found.__getitem__, name) for name in found})
        self.__dict__["_put"] = None
        return self

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _output_of, (self._title, {name: _plain_copy(self._read(name)) for name in self._fields}, self._main)

    def __copy__(self) -> Output:
        return _output_of(self._title, {name: self._read(name) for name in self._fields}, self._main)

    def __deepcopy__(self, memo: dict[int, Any]) -> Output:
        function, given = self.__reduce_ex__(4)
        return function(*given)

    def kept(self, keep: Callable[[torch.Tensor], torch.Tensor]) -> Output:
        """Internal, for caches: its main field as `keep` gives it; nothing of the trace stays with it."""
        found = keep(self._read(self._main))
        return _output_of(self._title, {self._main: found}, self._main)

    @property
    def value(self) -> Output:
        """The output itself."""
        return self

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, str):
            if key not in self._fields:
                raise KeyError(f"{self._title} has no field {key!r}; it has {', '.join(self._fields)}")
            return self._read(key)
        if type(key) is int or isinstance(key, slice):
            return self.to_tuple()[key]
        return self._read(self._main)[key]

    def __setitem__(self, key: Any, value: Any) -> None:
        if isinstance(key, str) or type(key) is int:
            self._set(key if isinstance(key, str) else self.keys()[key], value)
        else:
            main = self._read(self._main)
            main[key] = value

    def __getattr__(self, name: str) -> Any:
        if name in self._fields:
            return self._read(name)
        if name.startswith("_"):
            raise AttributeError(name)
        try:
            return getattr(self._read(self._main), name)
        except AttributeError:
            fields = ", ".join(self._fields)
            raise AttributeError(f"{self._title} has no {name!r}; it has {fields}, and what {self._main} has") from None

    def __setattr__(self, name: str, value: Any) -> None:
        self._set(name, value)

    def _set(self, name: str, value: Any) -> None:
        if self._put is None or name != self._main:
            raise AttributeError(f"{self._title}: {name!r} can't be set here; {self._main} can, inside a trace")
        self._put(value)

    def __contains__(self, name: Any) -> bool:
        return name in self.keys()

    def __len__(self) -> int:
        return len(self.keys())

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __repr__(self) -> str:
        return f"{self._title}({', '.join(f'{name}={self._read(name)!r}' for name in self._fields)})"


def first_argument(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A call's first argument; None where it has none."""
    return next(iter([*args, *kwargs.values()]), None)


def _output_of(title: str, values: dict[str, Any], main: str) -> Output:
    """An output whose fields are known."""
    return Output(title, {name: partial(values.__getitem__, name) for name in values}, main)


def first_of(value: Any) -> Any:
    """The tensor in what is put in the place of a module's output: itself, or the first entry of a tuple."""
    if isinstance(value, Output):
        return value[value._main]
    return value[0] if isinstance(value, tuple) and len(value) > 0 else value

"""Tensors that know shapes only: what a scan gives, and what an edit is recorded on.

An operation on them runs on torch's fake tensors, in one world or in two. Two worlds differ in sizes that aren't known
(batch, positions): a number that comes out different in them is an `UnknownNumber`.
"""

from __future__ import annotations

import logging
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch

from glassformer import _core
from glassformer.nnsight import _trees
from glassformer.nnsight.outputs import ModuleOutput, Output
from glassformer.nnsight.tensors import Argument, TokenIndexer, TracedTensor, places_of_tokens, plain

_VALUES = {
    "__bool__": "`if tensor` or bool(tensor)",
    "__int__": "int(tensor)",
    "__float__": "float(tensor)",
    "__complex__": "complex(tensor)",
    "__index__": "an index",
    "__array__": "numpy",
    "__contains__": "`in tensor`",
    "item": ".item()",
    "tolist": ".tolist()",
    "numpy": ".numpy()",
    "__dlpack__": "dlpack",
    "data_ptr": ".data_ptr()",
    "equal": "torch.equal",
    "allclose": "torch.allclose",
    "is_nonzero": "is_nonzero",
    "tensor": "torch.tensor(numbers)",
}
"""What asks for values, by torch's name and as it is written."""
_GRADIENTS = ("backward", "grad", "register_hook", "retain_grad", "requires_grad_", "autograd")


class Shapes:
    """Runs operations on shapes. `what` ("a scan") is named in errors; subclasses note what was run."""

    what = "a scan"
    instead = "use a trace"

    def __init__(self, n_worlds: int) -> None:
        from torch._subclasses.fake_tensor import FakeTensorMode

        self.n_worlds = n_worlds
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)

    def empty(self, sizes: Sequence[Sequence[int]], dtype: torch.dtype, device: torch.device) -> ShapeTensor:
        """A tensor of a size in each world."""
        with self.mode:
            return ShapeTensor(self, [torch.empty(size, dtype=dtype, device=device) for size in sizes])

    def run(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What an operation gives, as shapes. `UnsupportedError` where it asks for values, or for numbers that aren't
        known; `ShapeError` where shapes don't fit."""
        name = name_of(function)
        self._refuse(name)
        args, kwargs = given(args), given(kwargs)
        known = unknowns((args, kwargs))
        if any(each.shapes is not self for each in known):
            raise _core.UnsupportedError(f"{name}: values of one scan or edit can't be used together with another's")
        tensors = [each for each in known if isinstance(each, ShapeTensor)]
        self._check_written(name, function, args, kwargs)
        versions = [tensor.worlds[0]._version for tensor in tensors]
        results = [self._in_world(world, name, function, args, kwargs) for world in range(self.n_worlds)]
        changed = [each for each, before in zip(tensors, versions, strict=True) if each.worlds[0]._version != before]
        found = self._together(name, results, {id(each.worlds[0]): each for each in tensors})
        self.note(function, args, kwargs, found, changed)
        return found

    def note(self, function: Any, args: Any, kwargs: Any, found: Any, changed: list[ShapeTensor]) -> None:
        """That an operation was run, and which tensors it changed in place."""

    def refusal(self, asked: str) -> Exception:
        """The error for what shapes can't answer."""
        return _core.UnsupportedError(f"{self.what} knows shapes only: {asked} needs values; {self.instead}")

    def _refuse(self, name: str) -> None:
        if name in _VALUES:
            raise self.refusal(_VALUES[name])
        if name in _GRADIENTS:
            raise self.refusal(f".{name}")

    def _check_written(self, name: str, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Refuses to change a tensor that exists by values that don't."""
        in_place = name == "__setitem__" or (name.endswith("_") and not name.startswith("_")) or name[:3] == "__i"
        in_place = in_place and name not in ("__invert__", "__index__", "__int__")
        target = kwargs.get("out", args[0] if in_place and args else None)
        if isinstance(target, torch.Tensor) and not isinstance(target, ShapeTensor):
            raise _core.UnsupportedError(
                f"{self.what} knows shapes only: {name} would change an ordinary tensor by values that aren't there; "
                "make a new tensor (a + b, torch.stack, torch.where), or change one that was made of the model's values"
            )

    def _in_world(self, world: int, name: str, function: Any, args: Any, kwargs: Any) -> Any:
        from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException

        def there(each: Any) -> Any:
            return each.worlds[world] if isinstance(each, ShapeTensor | UnknownNumber) else each

        # torch logs what it raises.
        log = logging.getLogger("torch._subclasses.fake_tensor")
        was_off, log.disabled = log.disabled, True
        try:
            with self.mode, torch._C.DisableTorchFunctionSubclass():
                return function(*mapped(args, there), **mapped(kwargs, there))
        except (DataDependentOutputException, DynamicOutputShapeException):
            asked = "tensor[mask]" if name == "__getitem__" else name
            raise self.refusal(f"{asked}, whose shape or branch depends on them,") from None
        except (_core.Error, AttributeError):
            raise
        except Exception as error:
            raise self.shape_error(name, error) from error
        finally:
            log.disabled = was_off

    def shape_error(self, name: str, error: Exception) -> Exception:
        """What is raised where shapes don't fit."""
        return error

    def _together(self, name: str, results: list[Any], known: dict[int, Any]) -> Any:
        first = results[0]
        if isinstance(first, torch.Tensor):
            return known[id(first)] if id(first) in known else ShapeTensor(self, results)
        if isinstance(first, dict):
            return {key: self._together(name, [each[key] for each in results], known) for key in first}
        if isinstance(first, tuple | list):
            if len({len(each) for each in results}) > 1:
                raise self.unknown(f"{name}: how many there are")
            made = [self._together(name, list(each), known) for each in zip(*results, strict=True)]
            return _trees.rebuilt(first, dict(enumerate(made)))
        if isinstance(first, bool) or not isinstance(first, int | float | complex):
            if any(type(each) is not type(first) for each in results) or (
                isinstance(first, bool | str) and any(each != first for each in results)
            ):
                raise self.unknown(name)
            return first
        return first if all(each == first for each in results) else self.number(results)

    def number(self, worlds: list[Any]) -> UnknownNumber:
        """A number that differs between the worlds."""
        return OpenNumber(self, worlds)

    def unknown(self, asked: str) -> Exception:
        """The error for a number that isn't known."""
        return self.refusal(asked)

    def tokens(self, tensor: ShapeTensor, index: Any) -> Any:
        """`x.token[index]`."""
        return self.run(TakeTokens(tensor.padding), (tensor, index), {})

    def put_tokens(self, tensor: ShapeTensor, index: Any, value: Any) -> None:
        """`x.token[index] = value`."""
        self.run(PutTokens(tensor.padding), (tensor, index, value), {})


class TakeTokens:
    """Tokens of each sequence, counted without the padding before it. `padding` is None while it isn't known."""

    def __init__(self, padding: Sequence[int] | None) -> None:
        self._padding = padding

    def __call__(self, tensor: torch.Tensor, index: Any) -> torch.Tensor:
        return tensor[self._places(tensor, index)].clone()

    def _places(self, tensor: torch.Tensor, index: Any) -> Any:
        if self._padding is not None:
            return places_of_tokens(tensor.shape[1], self._padding, index)[0]
        if isinstance(index, torch.Tensor):
            index = index.tolist()
        return (slice(None), index if isinstance(index, int | slice) else list(index))

    def replay(self, context: Any, *args: Any) -> Any:
        """The same on values."""
        return type(self)(context.padding)(*args)


class PutTokens(TakeTokens):
    """Puts them back."""

    def __call__(self, tensor: torch.Tensor, index: Any, value: Any) -> None:  # type: ignore[override]
        tensor[self._places(tensor, index)] = value


class ShapeTensor(torch.Tensor):
    """A tensor without values. Its shape, dtype and device are there, and operations give more of the kind."""

    is_shape = True
    shapes: Shapes
    worlds: list[torch.Tensor]
    padding: list[int] | None
    is_whole: bool

    @staticmethod
    def __new__(cls, shapes: Shapes, worlds: list[torch.Tensor]) -> ShapeTensor:
        first = worlds[0]
        made = torch.Tensor._make_wrapper_subclass(cls, first.shape, dtype=first.dtype, device=first.device)  # type: ignore[attr-defined]
        made.shapes, made.worlds = shapes, list(worlds)
        made.padding = None
        made.is_whole = False
        return made

    def __init__(self, shapes: Shapes, worlds: list[torch.Tensor]) -> None:
        pass

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        return shapes_of((args, kwargs)).run(function, args, kwargs)

    @classmethod
    def __torch_dispatch__(
        cls, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        raise shapes_of((args, kwargs or {})).refusal(str(function))

    @property
    def group(self) -> int:
        """The same for all views of the same memory."""
        return self.worlds[0].untyped_storage()._cdata

    def save(self) -> ShapeTensor:
        """The tensor itself."""
        return self

    @property
    def value(self) -> ShapeTensor:
        """The tensor itself."""
        return self

    @property
    def t(self) -> ShapeTokens:  # type: ignore[override]
        """`x.t()` is torch's transpose; `x.t[i]` is `x.token[i]`."""
        return ShapeTokens(self)  # type: ignore[arg-type]

    @property
    def token(self) -> ShapeTokens:
        """`x.token[i]`: of each sequence its token `i`, padding not counted."""
        return ShapeTokens(self)  # type: ignore[arg-type]

    def __len__(self) -> int:
        sizes = {len(world) for world in self.worlds}
        if len(sizes) > 1:
            raise self.shapes.unknown("len(tensor): the size of its first axis")
        return sizes.pop()

    def __iter__(self) -> Any:
        if len({len(world) for world in self.worlds}) > 1:
            raise self.shapes.unknown("iterating over a tensor: the size of its first axis")
        return iter([self[place] for place in range(len(self))])

    def __deepcopy__(self, memo: dict[int, Any]) -> torch.Tensor:
        return self.clone()

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise self.shapes.refusal("pickling a tensor")

    def __format__(self, form: str) -> str:
        return repr(self)

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"ShapeTensor(shape={list(self.shape)}, dtype={self.worlds[0].dtype}, device='{self.worlds[0].device}')"


class ShapeInput(Argument, ShapeTensor):
    """A module's first argument, or a row of it."""


class UnknownNumber:
    """A number that isn't known yet: a size of the batch or of positions, or one computed from them. Arithmetic gives
    more of the kind; whatever needs the number now is refused."""

    is_shape = True

    def __init__(self, shapes: Shapes, worlds: list[Any]) -> None:
        self.shapes, self.worlds = shapes, worlds

    def save(self) -> UnknownNumber:
        """The number itself."""
        return self

    def __repr__(self) -> str:
        return "unknown"

    def __format__(self, form: str) -> str:
        return "unknown"


class OpenNumber(UnknownNumber, torch.SymInt):
    """An unknown number that torch's operations take, while its block is open: there every operation is seen. (torch
    computes with a stand-in of its own otherwise.)"""

    @property
    def node(self) -> Any:
        """What torch would compute with."""
        raise self.shapes.unknown("this operation")


class EndedNumber(UnknownNumber):
    """An unknown number whose block has ended: torch's operations are refused."""

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return shapes_of((args, kwargs or {})).run(function, args, kwargs or {})


def _computed(name: str, swapped: bool) -> Callable[..., Any]:
    function = getattr(operator, name)

    def run(self: UnknownNumber, *others: Any) -> Any:
        if any(isinstance(each, str) for each in others):
            return NotImplemented
        return self.shapes.run(function, (*others, self) if swapped else (self, *others), {})

    return run


def _asked(name: str) -> Callable[..., Any]:
    def refuse(self: UnknownNumber, *others: Any) -> Any:
        raise self.shapes.unknown(f"{name} of a size")

    return refuse


for _name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow"):
    setattr(UnknownNumber, f"__{_name}__", _computed(_name, False))
    setattr(UnknownNumber, f"__r{_name}__", _computed(_name, True))
for _name in ("neg", "pos", "abs"):
    setattr(UnknownNumber, f"__{_name}__", _computed(_name, False))
for _name in ("bool", "int", "float", "index", "complex", "round", "trunc", "floor", "ceil", "len", "iter"):
    setattr(UnknownNumber, f"__{_name}__", _asked(_name))
for _name, _written in (("eq", "=="), ("ne", "!="), ("lt", "<"), ("le", "<="), ("gt", ">"), ("ge", ">=")):
    setattr(UnknownNumber, f"__{_name}__", _asked(f"`{_written}`"))
UnknownNumber.__hash__ = object.__hash__  # type: ignore[method-assign]
for _name in ("and", "or", "xor", "lshift", "rshift", "divmod"):
    setattr(UnknownNumber, f"__{_name}__", _asked(_name))
    setattr(UnknownNumber, f"__r{_name}__", _asked(_name))


class ShapeTokens(TokenIndexer):
    """`x.token[…]` of a value as the model gave it."""

    def _whole(self) -> Any:
        return self._of if self._of.is_whole else self._counted()[0]

    def __getitem__(self, index: Any) -> Any:
        tensor = self._whole()
        return tensor.shapes.tokens(tensor, index)

    def __setitem__(self, index: Any, value: Any) -> None:
        tensor = self._whole()
        tensor.shapes.put_tokens(tensor, index, value)


def name_of(function: Any) -> str:
    """torch's name of an operation; of a property the property's."""
    name = getattr(function, "__name__", type(function).__name__)
    owner = getattr(function, "__self__", None)
    if name in ("__get__", "__set__", "__delete__") and hasattr(owner, "__name__"):
        return owner.__name__
    return name


def leaves(value: Any) -> list[Any]:
    """What stands in tuples, lists, dicts and slices."""
    return [each for _, each in _trees.leaves(value)]


def mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    """Tuples, lists, dicts and slices again, with `change` of what stands in them."""
    return _trees.mapped(value, lambda _, each: change(each))


def unknowns(value: Any) -> list[Any]:
    """The tensors without values, and the numbers that aren't known, among these."""
    return [each for each in leaves(value) if isinstance(each, ShapeTensor | UnknownNumber)]


def given(value: Any) -> Any:
    """Arguments, with the hidden state in the place of what modules return as tuples, and lists as they are now;
    values of traces as ordinary tensors."""

    def ordinary(each: Any) -> Any:
        if isinstance(each, TracedTensor):
            return plain(each)
        return each[0] if isinstance(each, ModuleOutput | Output) else each

    return mapped(value, ordinary)


def shapes_of(value: Any) -> Shapes:
    """What the tensors and numbers in some arguments belong to."""
    return unknowns(given(value))[0].shapes


def is_shapes(value: Any) -> bool:
    """Whether tensors without values, or numbers that aren't known, are among these."""
    return bool(unknowns(value))

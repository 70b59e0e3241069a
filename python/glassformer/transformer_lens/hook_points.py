"""Places in a module where functions of one's own can look at a value, and change it."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from glassformer import _core

NamesFilter: TypeAlias = Callable[[str], bool] | Sequence[str] | str | None
"""Which hook points are meant: those that a function of the name says yes to, a list of names, a name, or all."""

DeviceType: TypeAlias = torch.device | str | None
Direction: TypeAlias = Literal["fwd", "bwd"]
Directions: TypeAlias = Literal["fwd", "bwd", "both"]


@runtime_checkable
class HookFunction(Protocol):
    """A user's function of a value (or a gradient): None leaves it, anything else takes its place."""

    def __call__(self, tensor: torch.Tensor, *, hook: HookPoint) -> Any | None: ...


class BaseTensorConversion:
    """What hooks of a point see in the place of its value, and back; see `HookPoint.enable_reshape`.

    Subclasses define `handle_conversion(value)`, and `revert(value)` unless the way back changes nothing. The filters
    are functions of what goes into `convert` and of what comes out of it.
    """

    def __init__(
        self, input_filter: Callable[[Any], Any] | None = None, output_filter: Callable[[Any], Any] | None = None
    ) -> None:
        self.input_filter = input_filter
        self.output_filter = output_filter

    def convert(self, input_value: Any, *full_context: Any) -> Any:
        """The value as hooks are to see it."""
        if self.input_filter is not None:
            input_value = self.input_filter(input_value)
        output = self.handle_conversion(input_value, *full_context)
        return output if self.output_filter is None else self.output_filter(output)

    def handle_conversion(self, input_value: Any, *full_context: Any) -> Any:
        """The conversion itself, for subclasses to define; `NotImplementedError` here."""
        raise NotImplementedError(f"{type(self).__name__} has no handle_conversion(value); define it")

    def revert(self, input_value: Any, *full_context: Any) -> Any:
        """What a hook returned, as the module is to see it."""
        return input_value


@dataclass
class LensHandle:
    """A hook that stands at a hook point.

    `call` is the user's function with its point bound to it: of a value (or gradient), it returns None or what is to
    take its place. `HookPoint.fwd_hooks` and `bwd_hooks` hold the handles in the order in which they are called.
    """

    hook: RemovableHandle
    is_permanent: bool = False
    context_level: int | None = None
    user_hook: Callable[..., Any] | None = None
    call: Callable[[Any], Any] | None = field(default=None, init=False, repr=False, compare=False)

    def __deepcopy__(self, memo: dict[int, Any]) -> LensHandle:
        other = replace(self, hook=copy.deepcopy(self.hook, memo))
        other.call = copy.deepcopy(self.call, memo)
        return other


class _BoundHook:
    """A user's function of a value (or gradient) at its point. Hooks of a copied module keep both, as they do in
    TransformerLens; those of a pickled one have the new point."""

    def __init__(self, point: HookPoint, hook: HookFunction, alias_names: list[str] | None) -> None:
        self.point, self.hook, self.alias_names = point, hook, alias_names

    def __call__(self, value: Any) -> Any:
        return self.point._call(self.hook, value, self.alias_names)

    def __deepcopy__(self, memo: dict[int, Any]) -> _BoundHook:
        return self


class _TorchHook:
    def __init__(self, call: _BoundHook) -> None:
        self.call, hook = call, call.hook
        # A partial's own repr can print whole caches.
        self.__name__ = f"partial({hook.func!r},...)" if isinstance(hook, functools.partial) else repr(hook)


class _ForwardHook(_TorchHook):
    def __call__(self, _module: nn.Module, _inputs: Any, output: Any) -> Any:
        return self.call(output)


class _BackwardHook(_TorchHook):
    def __call__(self, _module: nn.Module, _grad_inputs: Any, grad_outputs: Any) -> Any:
        made = self.call(grad_outputs[0])
        return made if made is None or _is_single(made) else (made,)


class _AliasedHookPoint:
    """A hook point under another name."""

    def __init__(self, name: str, target: HookPoint) -> None:
        self.name = name
        self._target = target

    @property
    def ctx(self) -> dict[Any, Any]:
        return self._target.ctx

    @property
    def hook_conversion(self) -> BaseTensorConversion | None:
        return self._target.hook_conversion

    def layer(self) -> int:
        return _layer_of(self.name)


class HookPoint(nn.Module):
    """The identity, at which hooks can be put: functions `hook(value, hook=point)` of what goes through it.

    A hook returns None, or what takes the value's place; each gets what the one before it made. A backward hook gets
    the gradient at this point; all of them get the same one, and what the last one returns (a tensor, or a tuple of
    one) goes on. Backward hooks count if they stand here when the value passes forward. `ctx` is a dict for hooks' own
    use, and `name` is the point's name in its `HookedRootModule`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.fwd_hooks: list[LensHandle] = []
        self.bwd_hooks: list[LensHandle] = []
        self.ctx: dict[Any, Any] = {}
        self.name: str | None = None
        self.hook_conversion: BaseTensorConversion | None = None

    def __repr__(self) -> str:
        parts = [] if self.name is None else [f"name={self.name!r}"]
        counts = [(len(self.fwd_hooks), "fwd"), (len(self.bwd_hooks), "bwd")]
        return f"HookPoint({', '.join(parts + [f'{count} {kind}' for count, kind in counts if count])})"

    def forward(self, x: Any) -> Any:
        """The value itself, of any shape."""
        return x

    def layer(self) -> int:
        """The layer's number in a name like "blocks.3.attn.hook_z". A point without a name, or whose name has no
        number there, is a ValueError (IndexError where the name has no second part)."""
        if self.name is None:
            raise ValueError("this hook point has no name, hence no layer; call setup() of the module it belongs to")
        return _layer_of(self.name)

    def add_perma_hook(self, hook: HookFunction, dir: Direction = "fwd") -> None:
        """`add_hook` with `is_permanent`."""
        self.add_hook(hook, dir=dir, is_permanent=True)

    def add_hook(
        self,
        hook: HookFunction,
        dir: Direction = "fwd",
        is_permanent: bool = False,
        level: int | None = None,
        prepend: bool = False,
        alias_names: list[str] | None = None,
    ) -> None:
        """Put a hook here, behind those that stand here, or with `prepend` before them.

        A permanent one stays until it is removed with `including_permanent`. `level` is how deep in `hooks(...)` blocks
        it was added. With `alias_names` it is called once for each, with a point of that name. Another `dir` than "fwd"
        or "bwd" is a ValueError.
        """
        if dir not in ("fwd", "bwd"):
            raise _core.InputError(f"a hook's direction is 'fwd' or 'bwd'; found {dir!r}")

        call = _BoundHook(self, hook, alias_names)
        register = self.register_forward_hook if dir == "fwd" else self.register_full_backward_hook
        torch_hook = (_ForwardHook if dir == "fwd" else _BackwardHook)(call)
        handle = LensHandle(register(torch_hook, prepend=prepend), is_permanent, level, hook)
        handle.call = call
        handles = self.fwd_hooks if dir == "fwd" else self.bwd_hooks
        handles.insert(0 if prepend else len(handles), handle)

    def _call(self, hook: HookFunction, value: Any, alias_names: list[str] | None) -> Any:
        if self.hook_conversion is not None:
            value = self.hook_conversion.convert(value)
        made = None
        for point in [self] if alias_names is None else [_AliasedHookPoint(name, self) for name in alias_names]:
            returned = hook(value, hook=point)
            if returned is not None:
                value = made = returned
        if made is not None and self.hook_conversion is not None:
            made = self.hook_conversion.revert(made)
        return made

    def run_hooks(self, value: Any, dir: Direction = "fwd") -> Any:
        """What the hooks of one direction make of a value (or gradient), without a torch module's call: the value
        itself if there are none. For models that are computed elsewhere."""
        if dir == "fwd":
            for handle in tuple(self.fwd_hooks):
                made = handle.call(value)
                value = value if made is None else made
            return value
        return gradient_through(tuple(self.bwd_hooks), value)

    def has_hooks(self, dir: Directions = "both", including_permanent: bool = True, level: int | None = None) -> bool:
        """Whether a hook stands here: of this direction, of this level if one is given, and not only permanent ones."""
        return any(
            (including_permanent or not handle.is_permanent) and (level is None or handle.context_level == level)
            for handle in self._handles(dir)
        )

    def remove_hooks(
        self, dir: Directions = "fwd", including_permanent: bool = False, level: int | None = None
    ) -> None:
        """Take the hooks of a direction away: those that aren't permanent, of this `level` if one is given; with
        `including_permanent` all of them. Another `dir` than "fwd", "bwd" or "both" is a ValueError."""

        def kept(handle: LensHandle) -> bool:
            other_level = level is not None and handle.context_level != level
            return not including_permanent and (handle.is_permanent or other_level)

        handles = self._handles(dir)
        if not handles:
            return
        for handle in handles:
            if not kept(handle):
                handle.hook.remove()
        if dir != "bwd":
            self.fwd_hooks = [handle for handle in self.fwd_hooks if kept(handle)]
        if dir != "fwd":
            self.bwd_hooks = [handle for handle in self.bwd_hooks if kept(handle)]

    def _handles(self, dir: Directions) -> list[LensHandle]:
        if dir not in ("fwd", "bwd", "both"):
            raise _core.InputError(f"a direction is 'fwd', 'bwd' or 'both'; found {dir!r}")
        return (self.fwd_hooks if dir != "bwd" else []) + (self.bwd_hooks if dir != "fwd" else [])

    def clear_context(self) -> None:
        """Begin with an empty `ctx`."""
        self.ctx = {}

    def enable_reshape(self, hook_conversion: BaseTensorConversion | None = None) -> None:
        """Let hooks see `hook_conversion.convert(value)`, and pass on `hook_conversion.revert(what they return)`; None
        ends that."""
        self.hook_conversion = hook_conversion


def _layer_of(name: str) -> int:
    return int(name.split(".")[1])


def gradient_through(handles: Sequence[LensHandle], gradient: Any) -> Any:
    """What backward hooks make of a gradient: each gets the same one, and the last thing returned stands."""
    result = gradient
    for handle in handles:
        made = handle.call(gradient)
        if made is not None:
            result = made[0] if _is_single(made) else made
    return result


def _is_single(made: Any) -> bool:
    return isinstance(made, tuple) and len(made) == 1


def names_matcher(names: NamesFilter) -> Callable[[str], bool]:
    """The filter as a function of a hook point's name."""
    if names is None:
        return lambda _: True
    if callable(names):
        return names
    return ({names} if isinstance(names, str) else set(names)).__contains__


class HookIntrospectionMixin:
    """`list_hooks` for every class that has a `hook_dict`."""

    def list_hooks(
        self, name_filter: NamesFilter = None, dir: Directions = "both", including_permanent: bool = True
    ) -> dict[str, list[LensHandle]]:
        """The hooks that stand at the points meant, by the point's name; points without any are left out."""
        matches = names_matcher(name_filter)
        found: dict[str, list[LensHandle]] = {}
        for name, point in self.hook_dict.items():
            if not matches(name):
                continue
            handles = (point.fwd_hooks if dir in ("fwd", "both") else []) + (
                point.bwd_hooks if dir in ("bwd", "both") else []
            )
            handles = [handle for handle in handles if including_permanent or not handle.is_permanent]
            if handles:
                found[name] = handles
        return found


def __getattr__(name: str) -> Any:
    if name == "HookedRootModule":  # It imports this module.
        from glassformer.transformer_lens.HookedRootModule import HookedRootModule

        return HookedRootModule
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

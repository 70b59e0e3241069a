"""The base of modules with hook points."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Callable, Iterator, Sequence, ValuesView
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import nn

from glassformer import _core
from glassformer.transformer_lens.hook_points import (
    DeviceType,
    Direction,
    Directions,
    HookFunction,
    HookIntrospectionMixin,
    HookPoint,
    NamesFilter,
    names_matcher,
)
from glassformer.transformer_lens.utilities.devices import warn_if_mps
from glassformer.transformer_lens.utilities.slice import Slice, SliceInput

HookName: TypeAlias = str | Callable[[str], bool]
"""One hook point by its name, or all whose names a function says yes to."""

Hooks: TypeAlias = Sequence[tuple[HookName, HookFunction]]

_BY_HEAD = ("hook_q", "hook_k", "hook_v", "hook_rot_q", "hook_rot_k", "hook_z", "hook_result")
_BY_HEAD += ("hook_q_input", "hook_k_input", "hook_v_input", "hook_attn_in")
"""Ends of the names of values `batch pos head …`; others end in `pos` and one more axis, but for those of `ln1` where
each head's own input is normalised."""


def is_of_experts(name: str) -> bool:
    """Whether the value at a hook point has tokens in the place of batch and positions."""
    return ".experts." in name or "hook_expert_" in name


def kept_of(
    tensor: torch.Tensor, name: str, device: DeviceType, remove_batch_dim: bool, positions: Slice
) -> torch.Tensor:
    """What a cache keeps of the value at the hook point `name`; see `HookedRootModule.get_caching_hooks`."""
    value = tensor.detach().to(device)
    if is_of_experts(name):
        return value
    by_head = name.endswith(_BY_HEAD) or (".ln1." in name and value.ndim == 4)
    if remove_batch_dim:
        value = value[0]
    axis = -3 if by_head else -2
    return positions.apply(value, dim=axis) if positions.mode != "identity" and value.ndim >= -axis else value


class HookedRootModule(HookIntrospectionMixin, nn.Module):
    """A module whose values can be read and changed by hooks: its subclasses put a `HookPoint` wherever they want one,
    and call `setup()` at the end of their `__init__`.

    Hooks that are added stay, whatever happens, until they are removed: `run_with_hooks`, `run_with_cache` and
    `hooks(...)` do that by themselves, `reset_hooks()` does it for the others.
    """

    mod_dict: dict[str, nn.Module]
    hook_dict: dict[str, HookPoint]

    def __init__(self, *args: Any) -> None:
        super().__init__()
        self.is_caching = False
        self.context_level = 0

    def setup(self) -> None:
        """Give every module inside its `name`, and collect them in `mod_dict`, the hook points in `hook_dict`."""
        self.mod_dict = {name: module for name, module in self.named_modules() if name}
        for name, module in self.mod_dict.items():
            module.name = name
        self.hook_dict = {name: module for name, module in self.mod_dict.items() if isinstance(module, HookPoint)}

    def hook_points(self) -> ValuesView[HookPoint]:
        """All hook points, in the order in which the modules were defined."""
        return self.hook_dict.values()

    def remove_all_hook_fns(
        self, direction: Directions = "both", including_permanent: bool = False, level: int | None = None
    ) -> None:
        """`HookPoint.remove_hooks` at every hook point."""
        for point in self.hook_points():
            point.remove_hooks(direction, including_permanent=including_permanent, level=level)

    def clear_contexts(self) -> None:
        """Empty the `ctx` of every hook point."""
        for point in self.hook_points():
            point.clear_context()

    def reset_hooks(
        self,
        clear_contexts: bool = True,
        direction: Directions = "both",
        including_permanent: bool = False,
        level: int | None = None,
    ) -> None:
        """Take away all hooks that aren't permanent, of `level` if one is given; with `including_permanent` all of
        them. `clear_contexts` empties the points' `ctx` too."""
        if clear_contexts:
            self.clear_contexts()
        self.remove_all_hook_fns(direction, including_permanent, level=level)
        self.is_caching = False

    def check_hooks_to_add(
        self,
        hook_point: HookPoint,
        hook_point_name: str,
        hook: HookFunction,
        dir: Direction = "fwd",
        is_permanent: bool = False,
        prepend: bool = False,
    ) -> None:
        """Called by `add_hook` before a hook is put anywhere; subclasses raise where they can't take it."""

    def check_and_add_hook(
        self,
        hook_point: HookPoint,
        hook_point_name: str,
        hook: HookFunction,
        dir: Direction = "fwd",
        is_permanent: bool = False,
        level: int | None = None,
        prepend: bool = False,
    ) -> None:
        """`check_hooks_to_add`, then `HookPoint.add_hook`."""
        self.check_hooks_to_add(hook_point, hook_point_name, hook, dir=dir, is_permanent=is_permanent, prepend=prepend)
        hook_point.add_hook(hook, dir=dir, is_permanent=is_permanent, level=level, prepend=prepend)

    def add_hook(
        self,
        name: HookName,
        hook: HookFunction,
        dir: Direction = "fwd",
        is_permanent: bool = False,
        level: int | None = None,
        prepend: bool = False,
    ) -> None:
        """Put a hook at the point of that name, or at all whose names a function says yes to; see `HookPoint.add_hook`.

        A name that nothing has is a KeyError, that of another module an AssertionError.
        """
        if isinstance(name, str):
            point = self._module(name)
            if not isinstance(point, HookPoint):
                raise AssertionError(f"'{name}' is a {type(point).__name__}; expected the name of a HookPoint")
            points = [(name, point)]
        else:
            points = [(each, point) for each, point in self.hook_dict.items() if name(each)]
        for each, point in points:
            self.check_and_add_hook(point, each, hook, dir=dir, is_permanent=is_permanent, level=level, prepend=prepend)

    def add_perma_hook(self, name: HookName, hook: HookFunction, dir: Direction = "fwd") -> None:
        """`add_hook` with `is_permanent`."""
        self.add_hook(name, hook, dir=dir, is_permanent=True)

    def _module(self, name: str) -> nn.Module:
        if name not in self.mod_dict:
            near = difflib.get_close_matches(name, self.hook_dict, n=3)
            instead = f"near it: {', '.join(near)}" if near else "hook_dict has the names"
            raise _core.NameError(f"{type(self).__name__} has no hook point '{name}'; {instead}")
        return self.mod_dict[name]

    def _add_temporary_hook(self, name: HookName, hook: HookFunction, dir: Direction) -> None:
        if not isinstance(name, str):
            for each, point in self.hook_dict.items():
                if name(each):
                    point.add_hook(hook, dir=dir, level=self.context_level)
            return
        module = self._module(name)
        if not hasattr(module, "add_hook"):
            raise TypeError(f"'{name}' is a {type(module).__name__}; expected the name of a HookPoint")
        module.add_hook(hook, dir=dir, level=self.context_level)

    @contextmanager
    def hooks(
        self,
        fwd_hooks: Hooks = (),
        bwd_hooks: Hooks = (),
        reset_hooks_end: bool = True,
        clear_contexts: bool = False,
    ) -> Iterator[HookedRootModule]:
        """A block inside which the hooks given as `(name or function of names, hook)` stand.

        At its end, however it comes, those added at its level are taken away, unless `reset_hooks_end` is False; blocks
        can stand in one another. `clear_contexts` empties all `ctx` then. Errors as those of `add_hook`, but for the
        name of another module, which is a TypeError.
        """
        self.context_level += 1
        try:
            for name, hook in fwd_hooks:
                self._add_temporary_hook(name, hook, "fwd")
            for name, hook in bwd_hooks:
                self._add_temporary_hook(name, hook, "bwd")
            yield self
        finally:
            if reset_hooks_end:
                self.reset_hooks(clear_contexts, including_permanent=False, level=self.context_level)
            self.context_level -= 1

    def run_with_hooks(
        self,
        *model_args: Any,
        fwd_hooks: Hooks = (),
        bwd_hooks: Hooks = (),
        reset_hooks_end: bool = True,
        clear_contexts: bool = False,
        **model_kwargs: Any,
    ) -> Any:
        """What `forward` returns with these hooks, which stand for this run only; see `hooks`.

        Nothing runs backward here: for backward hooks use `hooks(...)` around both passes.
        """
        if bwd_hooks and reset_hooks_end:
            logging.warning(
                "run_with_hooks() takes its backward hooks away before you can run backward; use hooks(...) or "
                "reset_hooks_end=False"
            )
        with self.hooks(fwd_hooks, bwd_hooks, reset_hooks_end, clear_contexts):
            return self.forward(*model_args, **model_kwargs)

    def run_with_cache(
        self,
        *model_args: Any,
        names_filter: NamesFilter = None,
        device: DeviceType = None,
        remove_batch_dim: bool = False,
        incl_bwd: bool = False,
        reset_hooks_end: bool = True,
        clear_contexts: bool = False,
        pos_slice: Slice | SliceInput = None,
        **model_kwargs: Any,
    ) -> Any:
        """The module's output, and a dict of the values that went through its hook points, by name.

        `incl_bwd` runs backward from the output, which must be a scalar, and keeps gradients as `name + "_grad"`. The
        other arguments are those of `get_caching_hooks` and `hooks`.
        """
        cache, fwd, bwd = self.get_caching_hooks(
            names_filter, incl_bwd, device, remove_batch_dim=remove_batch_dim, pos_slice=pos_slice
        )
        with self.hooks(fwd, bwd, reset_hooks_end=reset_hooks_end, clear_contexts=clear_contexts):
            output = self(*model_args, **model_kwargs)
            if incl_bwd:
                output.backward()
        return output, cache

    def get_caching_hooks(
        self,
        names_filter: NamesFilter = None,
        incl_bwd: bool = False,
        device: DeviceType = None,
        remove_batch_dim: bool = False,
        cache: dict[str, torch.Tensor] | None = None,
        pos_slice: Slice | SliceInput = None,
    ) -> tuple[dict[str, torch.Tensor], list[Any], list[Any]]:
        """A dict, and the forward and backward hooks that fill it, as `hooks(...)` takes them; none is added.

        `names_filter`: None (all), a name, a list of names, or a function of names; anything else is a ValueError.
        `device`: where the values are kept (where they are, if None). `remove_batch_dim`: keep the first entry of the
        batch only. `cache`: a dict to fill. `pos_slice`: the positions to keep, of the axis third from the end where
        that of heads is second (queries, keys and values, their inputs, z and results), second from the end elsewhere;
        values that have no such axis are kept whole. TransformerLens keeps heads instead of positions in rotated
        queries and keys and in inputs by head. Values of a mixture's experts, which have tokens in the place of batch
        and positions, are kept whole whatever the arguments say.
        """
        if not (names_filter is None or isinstance(names_filter, str | list) or callable(names_filter)):
            raise _core.InputError(
                f"names_filter is None, a str, a list of str or a function; found {type(names_filter).__name__}"
            )
        matches = names_matcher(names_filter)
        if device is not None:
            warn_if_mps(device)
        cache = {} if cache is None else cache
        positions = Slice.unwrap(pos_slice)

        def saver(suffix: str) -> HookFunction:
            def save(tensor: torch.Tensor, hook: HookPoint) -> None:
                if hook.name is None:
                    raise RuntimeError("this hook point has no name to keep its value under; call setup() first")
                cache[hook.name + suffix] = kept_of(tensor, hook.name, device, remove_batch_dim, positions)

            return save

        self.is_caching = True
        names = [name for name in self.hook_dict if matches(name)]
        save, save_gradient = saver(""), saver("_grad")
        return cache, [(name, save) for name in names], [(name, save_gradient) for name in names if incl_bwd]

    def add_caching_hooks(
        self,
        names_filter: NamesFilter = None,
        incl_bwd: bool = False,
        device: DeviceType = None,
        remove_batch_dim: bool = False,
        cache: dict[str, torch.Tensor] | None = None,
    ) -> dict[str, torch.Tensor]:
        """Add hooks that fill the dict returned in every run from now on; see `get_caching_hooks`."""
        cache, fwd, bwd = self.get_caching_hooks(names_filter, incl_bwd, device, remove_batch_dim, cache)
        for direction, hooks in (("fwd", fwd), ("bwd", bwd)):
            for name, hook in hooks:
                self.hook_dict[name].add_hook(hook, direction)
        return cache

    def cache_all(
        self,
        cache: dict[str, torch.Tensor] | None,
        incl_bwd: bool = False,
        device: DeviceType = None,
        remove_batch_dim: bool = False,
    ) -> None:
        """`add_caching_hooks` at every hook point."""
        self.add_caching_hooks(None, incl_bwd, device, remove_batch_dim, cache)

    def cache_some(
        self,
        cache: dict[str, torch.Tensor] | None,
        names: Callable[[str], bool],
        incl_bwd: bool = False,
        device: DeviceType = None,
        remove_batch_dim: bool = False,
    ) -> None:
        """`add_caching_hooks` where `names` says yes."""
        self.add_caching_hooks(names, incl_bwd, device, remove_batch_dim, cache)

"""What a module changes while it runs, so that it can run again as if for the first time: random numbers, buffers, and
what it keeps in attributes."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch

from glassformer import _core

_HOOKS = tuple(key for key, value in vars(torch.nn.Module()).items() if "hook" in key and isinstance(value, dict))
_NOT_STATE = ("_parameters", "_buffers", "_modules", "forward", *_HOOKS)


def generator_states() -> list[Any]:
    """The states of all generators that modules draw from unless they are given one."""
    on_gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_available() and torch.cuda.is_initialized() else []
    return [torch.get_rng_state(), on_gpus, random.getstate(), np.random.get_state()]


def set_generators(states: list[Any]) -> None:
    """Puts the generators back to what `generator_states` gave."""
    of_torch, on_gpus, of_python, of_numpy = states
    torch.set_rng_state(of_torch)
    if on_gpus:
        torch.cuda.set_rng_state_all(on_gpus)
    random.setstate(of_python)
    np.random.set_state(of_numpy)


def is_same(one: Any, other: Any) -> bool:
    """Whether two states of generators are equal."""
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(is_same(a, b) for a, b in zip(one, other, strict=True))
    return bool((one == other).all()) if isinstance(one, torch.Tensor | np.ndarray) else one == other


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors have the same numbers, not-a-number being equal to itself."""
    if one.shape != other.shape or one.dtype != other.dtype or one.device != other.device:
        return False
    if torch.equal(one, other):
        return True
    return bool(((one == other) | ((one != one) & (other != other))).all())


class ModuleState:
    """The buffers and attributes of a tree of modules, at one moment."""

    def __init__(self, modules: list[tuple[str, torch.nn.Module]]) -> None:
        self._modules = modules
        self.attributes = [_attributes(module) for _, module in modules]
        self._hooks = [[set(vars(module)[key]) for key in _HOOKS] for _, module in modules]
        self.generators = {
            (name, key): value.get_state()
            for (name, _), attributes in zip(modules, self.attributes, strict=True)
            for key, value in attributes.items()
            if isinstance(value, torch.Generator)
        }
        with torch.no_grad():
            self.buffers = {
                (name, key): (buffer, buffer.detach().clone())
                for name, module in modules
                for key, buffer in module._buffers.items()
                if buffer is not None
            }

    def differing(self, other: ModuleState) -> set[tuple[str, str]]:
        """Which buffers and attributes are others in another moment, by module and name."""
        found: set[tuple[str, str]] = set()
        for (name, _), one, two in zip(self._modules, self.attributes, other.attributes, strict=True):
            if list(map(id, one.values())) != list(map(id, two.values())):
                found |= {(name, key) for key in {*one, *two} if one.get(key, self) is not two.get(key, self)}
        found |= {key for key, state in self.generators.items() if not is_same(state, other.generators.get(key, state))}
        for key in {*self.buffers, *other.buffers}:
            mine, theirs = self.buffers.get(key), other.buffers.get(key)
            if mine is None or theirs is None or mine[0] is not theirs[0] or not same_bits(mine[1], theirs[1]):
                found.add(key)
        return found

    def restore(self, keys: set[tuple[str, str]]) -> None:
        """Puts some buffers and attributes back to what they were."""
        if keys:
            self._restore_hooks()
        places = {name: index for index, (name, _) in enumerate(self._modules)}
        for name, key in keys:
            module, attributes = self._modules[places[name]][1], self.attributes[places[name]]
            if (name, key) in self.buffers:
                buffer, numbers = self.buffers[name, key]
                module._buffers[key] = buffer
                # Past torch's count of changes: no graph may break because a run is repeated.
                buffer.data.copy_(numbers)
            elif key in attributes:
                vars(module)[key] = attributes[key]
                if (name, key) in self.generators:
                    attributes[key].set_state(self.generators[name, key])
            else:
                vars(module).pop(key, None)
                module._buffers.pop(key, None)

    def _restore_hooks(self) -> None:
        """Takes away hooks that the modules have put onto one another while they ran."""
        for (_, module), kept in zip(self._modules, self._hooks, strict=True):
            for key, hooks in zip(_HOOKS, kept, strict=True):
                there = vars(module)[key]
                for handle in [each for each in there if each not in hooks]:
                    del there[handle]


def _attributes(module: torch.nn.Module) -> dict[str, Any]:
    """What a module keeps, but for what torch and the run itself keep there."""
    attributes = dict(vars(module))
    for key in _NOT_STATE:
        attributes.pop(key, None)
    return attributes


def fingerprint(modules: list[tuple[str, torch.nn.Module]]) -> list[Any]:
    """What tells that somebody changed weights or buffers, as far as torch counts it, or an attribute. The objects have
    to be kept alive by somebody, as a `ModuleState` does."""
    found: list[Any] = []
    for _, module in modules:
        found.append(list(map(id, vars(module).values())))
        for tensors in (module._parameters, module._buffers):
            found += [
                (id(each), 0 if each.is_inference() else each._version) for each in tensors.values() if each is not None
            ]
    return found


class Rewind:
    """Lets a tree of modules run several times as if it ran once: each run begins with the same random numbers, buffers
    and attributes, and leaves what the last one leaves."""

    def __init__(self, modules: list[tuple[str, torch.nn.Module]]) -> None:
        self.is_pure = True  # No run has drawn a random number, or changed a buffer or an attribute.
        self._modules = modules
        self._before: ModuleState | None = None
        self._after: ModuleState | None = None
        self._changed: set[tuple[str, str]] = set()
        self._generators: list[Any] = []
        self._own: list[Any] | None = None
        self._has_drawn = False
        self._fingerprint: list[Any] = []

    def is_changed_by_user(self) -> bool:
        """Whether weights, buffers or attributes are others than a run left, as far as torch counts changes."""
        return bool(self._fingerprint) and self._fingerprint != fingerprint(self._modules)

    def begin(self) -> bool:
        """Before a run. Whether the user has changed something since the last one, so that nothing known of it counts.

        Raises `OrderError` for something that both of them have changed.
        """
        now, states, by_user = ModuleState(self._modules), generator_states(), set()
        if self._before is None or self._after is None:
            self._before = now
        else:
            by_user = self._after.differing(now)
            for path, key in by_user & self._changed:
                raise _core.OrderError(
                    f"{path}.{key} was changed after the module had run, and running the module changes it too, so it "
                    "can't run again: change it before the trace"
                )
            self._before.restore(self._changed)
            if by_user:
                self._before = ModuleState(self._modules)
        self._own = None
        if self._has_drawn:
            self._own = states
            set_generators(list(self._generators))
        else:
            self._generators = states
        return bool(by_user)

    def has_left_no_trace(self) -> bool:
        """Within a run: whether it could be left here and begun again."""
        assert self._before is not None
        is_same_state = is_same(self._generators, generator_states())
        return self.is_pure and is_same_state and not self._before.differing(ModuleState(self._modules))

    def end(self) -> None:
        """After a run, or a part of it."""
        assert self._before is not None
        self._after = ModuleState(self._modules)
        self._changed |= self._before.differing(self._after)
        self._has_drawn = self._has_drawn or not is_same(self._generators, generator_states())
        self.is_pure = not self._changed and not self._has_drawn
        if self._own is not None:
            set_generators(self._own)  # The random numbers that the user draws between runs go on.
        self._fingerprint = fingerprint(self._modules)

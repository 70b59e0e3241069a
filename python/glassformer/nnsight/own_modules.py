"""Modules of the user's own in the tree of a language model: an autoencoder, a probe, an adapter."""

from __future__ import annotations

from typing import Any

import torch

from glassformer import _core
from glassformer.nnsight.envoy import Envoy
from glassformer.nnsight.outputs import first_argument


class OwnEnvoy(Envoy):
    """A torch module that a user put into the tree. It runs where it is called; called with `hook=True`, its `.input`
    and `.output`, and those of the modules in it, can be read afterwards, and set before."""

    def __init__(self, path: str, parent: Envoy, module: torch.nn.Module) -> None:
        super().__init__(path, parent)
        self.__dict__["_own"] = module
        for name, child in module.named_children():
            self._add(name, OwnEnvoy(f"{path}.{name}", self, child))

    @property
    def _module(self) -> torch.nn.Module:
        return self.__dict__["_own"]

    def _adopt(self, name: str, module: torch.nn.Module) -> Envoy:
        self._module.add_module(name, module)
        return OwnEnvoy(f"{self.path}.{name}", self, module)


class OwnCalls:
    """What the user's own modules were given and returned in a trace, and what is to stand there at their next call."""

    def __init__(self, put: dict[tuple[str, str], Any] | None = None) -> None:
        self.seen: dict[tuple[str, str], Any] = {}
        """What the watched calls gave, by path and "inputs" or "output"."""
        self.put = {} if put is None else dict(put)
        """What is to stand at the next watched call, by path and "input", "inputs" or "output"."""
        self.replayed: Any = None

    def read(self, envoy: Envoy, what: str) -> Any:
        """What the last watched call gave; `UnavailableError` where there was none."""
        key = (envoy.path, "inputs" if what == "input" else what)
        if key not in self.seen:
            raise _core.UnavailableError(
                f"{envoy.path}.{what}: the module has not run in this trace; call it with hook=True first: "
                f"{envoy.path}(x, hook=True)"
            )
        found = self.seen[key]
        if what != "input":
            return found
        return first_argument(*found)

    def write(self, envoy: Envoy, what: str, value: Any) -> None:
        """Puts a value in the place of what the next watched call takes or returns."""
        if self.replayed is not None and self.replayed.has_run(envoy.path):
            raise _core.OrderError(
                f"{envoy.path}.{what} was set after an edit of the model had called the module: set it before anything "
                "is read that depends on it"
            )
        self.put[(envoy.path, what)] = value

    def has_seen(self, envoy: Envoy) -> bool:
        """Whether a module has run."""
        return (envoy.path, "inputs") in self.seen

    def call(self, envoy: OwnEnvoy, args: tuple[Any, ...], kwargs: dict[str, Any], watched: bool) -> Any:
        """Runs a module."""
        if not watched:
            return envoy._module(*args, **kwargs)
        handles = []
        try:
            for each in [envoy, *envoy._all_below()]:
                handles.append(each._module.register_forward_pre_hook(self._before(each), with_kwargs=True))
                handles.append(each._module.register_forward_hook(self._behind(each), with_kwargs=True))
            return envoy._module(*args, **kwargs)
        finally:
            for handle in handles:
                handle.remove()

    def _before(self, envoy: Envoy) -> Any:
        def run(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if (envoy.path, "inputs") in self.put:
                args, kwargs = self.put.pop((envoy.path, "inputs"))
            if (envoy.path, "input") in self.put:
                args = (self.put.pop((envoy.path, "input")), *args[1:])
            self.seen[(envoy.path, "inputs")] = (args, kwargs)
            return args, kwargs

        return run

    def _behind(self, envoy: Envoy) -> Any:
        def run(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
            output = self.put.pop((envoy.path, "output"), output)
            self.seen[(envoy.path, "output")] = output
            return output

        return run


def is_below(path: str, above: str) -> bool:
    """Whether one module is another, or inside of it."""
    return f"{path}.".startswith(f"{above}.")

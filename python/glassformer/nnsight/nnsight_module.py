"""`NNsight`: nnsight's vocabulary for any torch module."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from glassformer import _core
from glassformer.nnsight.envoy import Envoy, Rename
from glassformer.nnsight.module_trace import ModuleTrace
from glassformer.nnsight.session import Session


class ModuleEnvoy(Envoy):
    """A module of a torch module. A child whose name means something else here, such as `output`, is `E_output`."""

    def __init__(self, module: torch.nn.Module, path: str, parent: Envoy | None) -> None:
        super().__init__(path, parent)
        self.__dict__["_torch_module"] = module
        if parent is None:
            self.__dict__["_known"] = {}
        self.root._known[id(module)] = self
        for name, child in module._modules.items():
            if child is not None:
                self._mount(name, child)

    @property
    def _module(self) -> torch.nn.Module:
        return self._torch_module

    def _mount(self, name: str, module: torch.nn.Module) -> ModuleEnvoy:
        """The envoy of a torch module that is there: a module that is used twice has one, by its first path."""
        found = self.root._known.get(id(module))
        if found is None:
            found = ModuleEnvoy(module, f"{self.path}.{name}", self)
        taken = not name.startswith("_") and hasattr(type(self), name)
        self._add(f"E_{name}" if taken else name, found)
        return found

    def _adopt(self, name: str, module: torch.nn.Module) -> ModuleEnvoy:
        if hasattr(type(self), name):
            raise _core.InputError(f"{self.path}: a module can't be called {name!r}, which means something else here")
        self._torch_module.add_module(name, module)
        return self._mount(name, module)

    def _other(self, name: str) -> Any:
        found = super()._other(name)
        if not isinstance(found, torch.nn.Module):
            return found
        known = self.root._known.get(id(found))
        return known if known is not None and known._module is found else self._mount(name, found)

    def trace(self, *args: Any, trace: bool = True, fn: str | Callable[..., Any] = "__call__", **kwargs: Any) -> Any:
        """`with model.trace(x) as tracer:` runs the module on `x` (with any arguments that it takes; tensors go to its
        device). Inside, `.input`, `.inputs` and `.output` of every module are its values; see `NNsight`. Without
        arguments the inputs are given by `with tracer.invoke(x):`. `fn` is another method of the module, by name, or a
        function that calls it. With `trace=False` it is called as it is, and what it returns is returned."""
        if trace:
            return ModuleTrace(self, fn, args, kwargs)
        called = getattr(self._module, fn) if isinstance(fn, str) else fn
        return called(*args, **kwargs)

    def scan(self, *args: Any, fn: str | Callable[..., Any] = "__call__", **kwargs: Any) -> ModuleTrace:
        """A trace with shapes, dtypes and devices only: nothing is computed, its tensors are torch's fake ones."""
        return ModuleTrace(self, fn, args, kwargs, is_fake=True)

    def session(self) -> Session:
        """`with model.session():` around several traces."""
        return Session()

    @property
    def source(self) -> Any:
        """Not here: what happens in a module's forward between its modules can't be read."""
        raise _core.UnsupportedError(
            f"{self.path}.source: what a forward does between its modules can't be read here; read the modules inside "
            "it, or compute it from their values"
        )

    @property
    def device(self) -> torch.device | None:
        """The device of the first parameter; None where there is none."""
        return next((each.device for each in self._module.parameters()), None)

    @property
    def devices(self) -> set[torch.device]:
        """The devices of all parameters."""
        return {each.device for each in self._module.parameters()}

    def to(self, *args: Any, **kwargs: Any) -> ModuleEnvoy:
        """Moves or casts the torch module, in place, as its own `to`."""
        self._module.to(*args, **kwargs)
        return self

    def cpu(self) -> ModuleEnvoy:
        """Moves the torch module to the CPU, in place."""
        return self.to("cpu")

    def cuda(self, device: Any = None) -> ModuleEnvoy:
        """Moves the torch module to a GPU, in place."""
        self._module.cuda(device)
        return self


class NNsight(ModuleEnvoy):
    """nnsight's vocabulary for any torch module.

    ```python
    model = NNsight(torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2)))
    with model.trace(torch.ones(1, 4)):
        hidden = model[1].output
        model[0].output[:, :2] = 0
        out = model.output
    ```

    The tree is the torch module's; `rename` gives modules further names. The body runs as ordinary Python, once. The
    first read runs the module as far as needed; a value that is set or changed in place makes what comes after it
    stale, and the next read runs the module again with all edits. So:

    - Reads and edits may come in any order, and values that were read stay as they were read.
    - A constant (`= value`, `[…] = value`) stands whatever changes before it. A change in place (`+=`, `mul_`, through
      views) belongs to the value it was made from: if an edit made later changes that one, the next run raises
      `OrderError`. Changing a value that was read before an edit upstream raises `StaleEditError`.
    - Each change can cost another run of the module, from the change on: what comes before it is passed over where
      modules do nothing but return a value (they draw no random numbers, change no buffers or attributes, and take no
      objects but tensors and constants), and runs again where they do. Random numbers, buffers and attributes are as
      after one run.
    - A module that computes something else when it runs again (it changes a list it keeps, say) raises
      `UnsupportedError` where that shows.

    Gradients are torch's: values are on the graph of every run that they are part of. Raises, inside a trace,
    `UnavailableError` for a module that isn't called.
    """

    def __init__(self, module: torch.nn.Module, rename: Rename | None = None) -> None:
        if not isinstance(module, torch.nn.Module):
            raise _core.InputError(f"NNsight takes a torch module; found {type(module).__name__}")
        super().__init__(module, "model", None)
        self._rename(rename)

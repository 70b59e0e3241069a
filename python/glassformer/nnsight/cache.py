"""`tracer.cache()`: what many modules take and return, all at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from glassformer import _core
from glassformer.nnsight import _trees
from glassformer.nnsight.envoy import Envoy
from glassformer.nnsight.outputs import ModuleOutput, Output, first_argument
from glassformer.nnsight.tensors import TracedTensor, plain


class Cache:
    """What a cache keeps: entries by module path, one for each call, with all edits.

    Whoever owns it gives `fill`, which calls `put` for everything there is; it is called when the cache is looked at
    while the trace is open, and by `close`.
    """

    def __init__(
        self,
        root: Any,
        modules: Any = None,
        device: Any = "cpu",
        dtype: torch.dtype | None = None,
        detach: bool = True,
        include_output: bool = True,
        include_inputs: bool = False,
        non_blocking: bool = False,
    ) -> None:
        self.root = root
        self.whats = [what for what, wanted in (("inputs", include_inputs), ("output", include_output)) if wanted]
        self.envoys = root.modules() if modules is None else [_envoy(root, each) for each in _listed(modules)]
        self.names_all = modules is None
        self.entries: dict[str, list[dict[str, Any]]] = {}
        self._paths = {envoy.path for envoy in self.envoys}
        self._options = {"device": device, "dtype": dtype, "non_blocking": non_blocking}
        self._detach = detach
        self._fill: Callable[[Cache], None] | None = None

    def view(self, fill: Callable[[Cache], None]) -> CacheView:
        """What the user gets."""
        self._fill = fill
        return CacheView(self)

    def put(self, path: str, call: int, what: str, value: Any) -> None:
        """Keeps a value of a module's call ("inputs" or "output"), if it is wanted. Calls come in their order."""
        if what not in self.whats or path not in self._paths:
            return
        entries = self.entries.setdefault(path, [])
        entries += [{} for _ in range(call + 1 - len(entries))]
        entries[call][what] = _trees.mapped(value, lambda _, leaf: self._kept(leaf))

    def read(self, scope: Any, call: int = 0) -> None:
        """Keeps what an open scope says of each module (`scope.read`), as its `call`-th. Modules that it doesn't have
        are left out, unless they were named."""
        for envoy in self.envoys:
            for what in self.whats:
                try:
                    self.put(envoy.path, call, what, scope.read(envoy, what))
                except _core.UnavailableError:
                    if not self.names_all and call == 0:
                        raise

    def refresh(self) -> None:
        """Fills the cache anew, while its trace is open."""
        if self._fill is not None:
            self.entries = {}
            self._fill(self)

    def close(self) -> None:
        """Fills the cache for the last time."""
        try:
            self.refresh()
        finally:
            self.drop()

    def drop(self) -> None:
        """Leaves the cache as it is."""
        self._fill = None

    def _kept(self, leaf: Any) -> Any:
        if isinstance(leaf, ModuleOutput | Output):
            return leaf.kept(self._kept)
        if not isinstance(leaf, torch.Tensor):
            return leaf
        if not self._detach:
            return leaf.to(**self._options)
        found = plain(leaf) if isinstance(leaf, TracedTensor) else leaf
        return found.detach().to(**self._options, copy=True)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "root": None, "envoys": [], "_fill": None}


class CacheView:
    """A cache, or a module in it: by path (`cache["model.layers.0"]`) or as in the model's tree
    (`cache.model.layers[0]`, or shorter `cache.layers[0]`). `.output`, `.inputs` and `.input` are what was kept: of a
    module that was called several times lists."""

    def __init__(self, cache: Cache, path: str | None = None) -> None:
        self.__dict__.update(_cache=cache, _path=path)

    def _values(self, of: Callable[[dict[str, Any]], Any]) -> Any:
        values = [of(entry) for entry in self._entries()]
        return values[0] if len(values) == 1 else values

    def _entries(self) -> list[dict[str, Any]]:
        self._cache.refresh()
        if self._path is None:
            raise _core.InputError("a cache has values of modules: choose one, as in cache.model.output")
        if self._path not in self._cache.entries:
            there = ", ".join(self._cache.entries) or "nothing"
            raise _core.NameError(f"{self._path} is not in the cache; it has: {there}")
        return self._cache.entries[self._path]

    @property
    def output(self) -> Any:
        """What the module returned."""
        return self._values(lambda entry: entry.get("output"))

    @property
    def inputs(self) -> Any:
        """All of its arguments: `((…,), {…})`."""
        return self._values(lambda entry: entry.get("inputs"))

    @property
    def input(self) -> Any:
        """Its first argument; None where it had none, or inputs were not asked for."""
        return self._values(lambda entry: first_argument(*entry["inputs"]) if "inputs" in entry else None)

    def keys(self) -> list[str]:
        """The paths of the cached modules from here on."""
        self._cache.refresh()
        here = self._path
        return [key for key in self._cache.entries if here is None or f"{key}.".startswith(f"{here}.")]

    def __len__(self) -> int:
        return len(self.keys()) if self._path is None else len(self._entries())

    def __bool__(self) -> bool:
        return True

    def __contains__(self, key: str) -> bool:
        try:
            return self[key]._path in self.keys()
        except (AttributeError, KeyError, IndexError):
            return False

    def __getitem__(self, key: str | int) -> CacheView:
        if isinstance(key, str) and key in self._cache.entries:
            return CacheView(self._cache, key)
        if isinstance(key, int):
            return CacheView(self._cache, self._here()[key].path)
        found = self
        for name in key.split("."):
            found = found._child(name)
        return found

    def __getattr__(self, name: str) -> CacheView:
        if name.startswith("__") or "_cache" not in self.__dict__:
            raise AttributeError(name)
        return self._child(name)

    def _here(self) -> Any:
        root = self._cache.root
        if root is None:
            raise _core.UnavailableError("a stored cache has no model: choose modules by their paths, cache['model.…']")
        return root if self._path is None else _envoy(root, self._path)

    def _child(self, name: str) -> CacheView:
        here = self._here()
        if self._path is None and name == here.path:
            return CacheView(self._cache, name)
        child = getattr(here, name)
        if not hasattr(child, "_children"):
            raise AttributeError(f"{here.path}.{name} is no module")
        return CacheView(self._cache, child.path)

    def __repr__(self) -> str:
        return f"CacheView({self._path or 'all'}: {', '.join(self.keys())})"


def _listed(modules: Any) -> Any:
    """Of one module, by itself or by name, a list; a list of modules in the tree is one already."""
    is_one = isinstance(modules, str) or (isinstance(modules, Envoy) and not modules._is_container())
    return [modules] if is_one else modules


def _envoy(root: Any, named: Any) -> Any:
    if isinstance(named, Envoy):
        return named
    if not isinstance(named, str):
        raise _core.InputError(f"cache(modules=…): expected modules of the model or their paths; found {named!r}")
    known = {envoy.path: envoy for envoy in root.modules()}
    if named in known:
        return known[named]
    return root.get(named.removeprefix(f"{root.path}."))  # By names of the user's own, or without the root's.

"""Envoys: the modules of a model, by their own names, through which a trace is asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from glassformer import _core
from glassformer.nnsight import _open
from glassformer.nnsight.steps import Steps

Rename = dict[Any, Any]


class Envoy:
    """A module of a model. Inside a trace `.output`, `.input` and `.inputs` are its values there, to read and to set;
    children are attributes, containers can be indexed, iterated and measured.

    `path` is its name in the tree ("model.transformer.h.0"). Attributes that are neither children nor of these are the
    torch module's (`envoy.weight`).
    """

    path: str
    parent: Envoy | None
    root: Any

    def __init__(self, path: str, parent: Envoy | None) -> None:
        own = {
            "path": path,
            "parent": parent,
            "root": self if parent is None else parent.root,
            "_children": {},
            "_aliases": {},
        }
        self.__dict__.update(own)

    # --- values in a trace

    @property
    def output(self) -> Any:
        """What the module returns."""
        return self._scope("output").read(self, "output")

    @output.setter
    def output(self, value: Any) -> None:
        self._scope("output").write(self, "output", value)

    @property
    def outputs(self) -> Any:
        """`output`."""
        return self.output

    @outputs.setter
    def outputs(self, value: Any) -> None:
        self.output = value

    @property
    def input(self) -> Any:
        """The module's first argument."""
        return self._scope("input").read(self, "input")

    @input.setter
    def input(self, value: Any) -> None:
        self._scope("input").write(self, "input", value)

    @property
    def inputs(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """All of the module's arguments: `((…,), {…})`."""
        return self._scope("inputs").read(self, "inputs")

    @inputs.setter
    def inputs(self, value: Any) -> None:
        self._scope("inputs").write(self, "inputs", value)

    def skip(self, value: Any) -> None:
        """Leaves the module's work out: `value` is what it returns."""
        self._scope("skip").skip(self, value)

    def next(self, steps: int = 1) -> Envoy:
        """The module at its next step: what is read and set of it from now on is that of `steps` steps later."""
        self._scope("next").advance(self, steps)  # type: ignore[attr-defined]
        return self

    @property
    def iter(self) -> Any:
        """`tracer.iter` of the open trace."""
        return self._scope("iter").iter  # type: ignore[attr-defined]

    def all(self) -> Steps:
        """`tracer.all()` of the open trace."""
        return self._scope("all").all()  # type: ignore[attr-defined]

    def __call__(self, *args: Any, hook: bool = False, **kwargs: Any) -> Any:
        """Runs the module on any input, inside a trace or not; edits of a trace have no part in it. `hook=True`: its
        `.input` and `.output`, and its children's, are those of this call (for modules of one's own)."""
        scope = _open.current(self.root)
        if scope is not None:
            return scope.call(self, args, kwargs, hook)
        return self._module(*args, **kwargs)

    def _scope(self, asked: str) -> Any:
        found = _open.current(self.root)
        return _open.needed(self.root, f"{self.path}.{asked}") if found is None else found

    # --- the tree

    @property
    def _module(self) -> torch.nn.Module:
        raise NotImplementedError

    def _adopt(self, name: str, module: torch.nn.Module) -> Envoy:
        """A child for a torch module of the user's own."""
        raise NotImplementedError

    def _add(self, name: str, child: Envoy) -> None:
        self._children[name] = child
        self.__dict__[name] = child  # So that Python finds it without `__getattr__`.

    @property
    def children(self) -> list[Envoy]:
        """The direct children, in the model's order."""
        return list(self._children.values())

    def __getattr__(self, name: str) -> Any:
        own = self.__dict__
        if name in own.get("_aliases", ()):
            return own["_aliases"][name]
        if name.startswith("__") or "_children" not in own:
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        if isinstance(getattr(type(self), name, None), property):
            return getattr(type(self), name).fget(self)  # It raised AttributeError: once more, for that error itself.
        return self._other(name)

    def _other(self, name: str) -> Any:
        """An attribute of the torch module; AttributeError with the children that there are."""
        try:
            return getattr(self._module, name)
        except AttributeError:
            there = ", ".join([*self._children, *self._aliases][:20]) or "none"
            raise AttributeError(f"{self.path} has no module or attribute {name!r}; its modules: {there}") from None

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, torch.nn.Module) and not name.startswith("_"):
            self._add(name, self._adopt(name, value))
        elif name in self._children:
            raise _core.InputError(
                f"{self.path}.{name} is a module; to set what it returns, set {self.path}.{name}.output"
            )
        elif self.parent is None or name.startswith("_") or isinstance(getattr(type(self), name, None), property):
            object.__setattr__(self, name, value)
        elif getattr(self._module, name, None) is not value:  # `weight += 1` puts back what it has changed.
            self._set_other(name, value)

    def _set_other(self, name: str, value: Any) -> None:
        """Sets an attribute of the torch module; `InputError` for one that it hasn't, which would be lost."""
        if hasattr(self._module, name):
            setattr(self._module, name, value)
            return
        raise _core.InputError(
            f"{self.path} has no {name!r} that can be set; its values are output, input and inputs, and torch modules "
            "can be put into it"
        )

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self._children, *self._aliases]

    def __len__(self) -> int:
        if not self._is_container():
            raise TypeError(f"{self.path} is no list of modules: it has no length")
        return len(self._children)

    def __bool__(self) -> bool:
        return True

    def __iter__(self) -> Iterator[Any]:
        return iter(self.children)

    def __getitem__(self, key: int | str | slice) -> Any:
        if isinstance(key, slice):
            return self.children[key]
        if isinstance(key, str):
            return self.get(key)
        listed = self.children
        if not -len(listed) <= key < len(listed):
            raise IndexError(f"{self.path} has {len(listed)} modules; found index {key}")
        return listed[key]

    def _is_container(self) -> bool:
        return bool(self._children) and all(name.isdigit() for name in self._children)

    def get(self, path: str) -> Any:
        """What a dotted path names from here: a module, or inside a trace a value ("transformer.h.0.output")."""
        found: Any = self
        for name in path.split("."):
            if name:
                found = getattr(found, name)
        return found

    def modules(self, include_fn: Callable[[Envoy], bool] | None = None, names: bool = False) -> list[Any]:
        """All modules from here, children before parents, each once; with `names` pairs of path and module."""
        listed = [each for each in self._in_order() if include_fn is None or include_fn(each)]
        return [(each.path, each) for each in listed] if names else listed

    def _in_order(self) -> list[Envoy]:
        found: dict[int, Envoy] = {}
        for child in self._children.values():
            found |= {id(each): each for each in child._in_order() if id(each) not in found}
        found[id(self)] = self
        return list(found.values())

    def named_modules(self, include_fn: Callable[[Envoy], bool] | None = None) -> list[tuple[str, Any]]:
        """All modules from here with their paths, children before parents."""
        return self.modules(include_fn, names=True)

    # --- names of one's own

    def _rename(self, rename: Rename | None) -> None:
        """Binds aliases everywhere in the tree: each key names modules from any module on ("mlp", "transformer.h",
        "*.h", a class), each value is one new name or several."""
        for envoy in [*reversed(self._all_below()), self]:  # Paths may go through new names of modules below.
            for key, aliases in (rename or {}).items():
                envoy._bind(key, [aliases] if isinstance(aliases, str) else list(aliases))

    def _all_below(self) -> list[Envoy]:
        found: list[Envoy] = []
        for child in self._children.values():
            found += [child, *child._all_below()]
        return found

    def _bind(self, key: Any, aliases: list[str]) -> None:
        named = self._named(key)
        if not named:
            return
        if len(named) > 1:
            paths = ", ".join(each.path for each in named)
            raise _core.InputError(
                f"rename: {key!r} names several modules of {self.path}: {paths}; name each by itself"
            )
        target = named[0]
        for alias in aliases:
            prefix, _, name = alias.rpartition(".")
            host = self.get(prefix)
            if host._aliases.get(name) is target or host._children.get(name) is target:
                continue
            if name in host._children or name in host._aliases or hasattr(type(host), name):
                raise _core.InputError(
                    f"rename: {host.path} has {name!r} already; choose another name for {target.path}"
                )
            host._aliases[name] = target

    def _named(self, key: Any) -> list[Envoy]:
        if isinstance(key, type):
            return [child for child in self._children.values() if isinstance(child._module, key)]
        found = [self]
        for part in key.lstrip(".").split("."):
            if part == "*":
                found = [child for each in found for child in each._children.values()]
            else:
                found = [each._children.get(part) or each._aliases.get(part) for each in found]  # type: ignore[misc]
                found = [each for each in found if each is not None]
        return list({id(each): each for each in found}.values())

    # --- printing

    def _title(self) -> tuple[str, str]:
        """The class name of the module, and what torch prints of its settings."""
        return self._module._get_name(), self._module.extra_repr()

    def __repr__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> list[str]:
        title, settings = self._title()
        names: dict[int, list[str]] = {}
        for alias, target in self._aliases.items():
            names.setdefault(id(target), []).append(alias)
        body: list[str] = []
        for count, (label, child) in _grouped(self._children, names):
            first, *rest = child._lines()
            body.append(f"  ({label}): {count}{first}")
            body += ["  " + line for line in rest]
        direct = {id(child) for child in self._children.values()}
        for alias, target in self._aliases.items():
            if id(target) not in direct:
                body.append(f"  ({alias}): {target.path}")
        if not body:
            return [f"{title}({settings})"]
        return [f"{title}(", *([f"  {settings}"] if settings else []), *body, ")"]


def _grouped(children: dict[str, Envoy], names: dict[int, list[str]]) -> Iterator[tuple[str, tuple[str, Envoy]]]:
    """Children one by one, but equal neighbours of a list as one: "(0-11): 12 x GPT2Block"."""
    listed = list(children.items())
    place = 0
    while place < len(listed):
        name, child = listed[place]
        end = place + 1
        if name.isdigit():
            lines = child._lines()
            while end < len(listed) and listed[end][0].isdigit() and listed[end][1]._lines() == lines:
                end += 1
        if end - place > 1:
            yield f"{end - place} x ", (f"{name}-{listed[end - 1][0]}", child)
        else:
            yield "", ("/".join([*names.get(id(child), []), name]), child)
        place = end

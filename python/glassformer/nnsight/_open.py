"""Which traces are open, in this thread (or task) alone."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any, Protocol

from glassformer import _core


class Scope(Protocol):
    """An open trace, or one of its invokes: what a module's `.output` and the like speak to.

    `what` is "input", "inputs" or "output". `envoy` is the module that is asked.
    """

    root: Any

    def read(self, envoy: Any, what: str) -> Any:
        """What stands at that place now."""

    def write(self, envoy: Any, what: str, value: Any) -> None:
        """Puts a value there."""

    def skip(self, envoy: Any, value: Any) -> None:
        """Puts a value in the place of the module's work."""

    def call(self, envoy: Any, args: tuple[Any, ...], kwargs: dict[str, Any], watched: bool) -> Any:
        """Runs the module on something else; `watched`: its own `.input` and `.output` are those of this call."""


scopes: ContextVar[tuple[Any, ...]] = ContextVar("glassformer_nnsight_scopes", default=())


def enter(scope: Scope) -> None:
    """Makes a scope the innermost one."""
    scopes.set((*scopes.get(), scope))


def leave(scope: Scope) -> None:
    """Drops a scope, wherever it stands."""
    there = scopes.get()
    is_innermost = bool(there) and there[-1] is scope
    scopes.set(there[:-1] if is_innermost else tuple(each for each in there if each is not scope))


def is_open() -> bool:
    """Whether any trace is open here."""
    return bool(scopes.get())


def watches() -> list[Any]:
    """What watches the values of the traces that are open here."""
    return [scope.watch for scope in scopes.get() if hasattr(scope, "watch")]


def current(root: Any) -> Scope | None:
    """The innermost open scope of a model, or None."""
    for scope in reversed(scopes.get()):
        if scope.root is root:
            return scope
    return None


def needed(root: Any, asked: str) -> Scope:
    """The innermost open scope of a model; `UnavailableError` where there is none."""
    found = current(root)
    if found is None:
        raise _core.UnavailableError(
            f"{asked} is a value of a trace, and none of this model is open: use it inside `with model.trace(...):`"
        )
    return found

"""Sessions: several traces that belong together. Here they share Python's values as all code does."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from glassformer import _core
from glassformer.nnsight import _open, _save


class Session:
    """`with model.session():` around traces; values flow between them as between any statements."""

    root = None

    def __enter__(self) -> Session:
        _save.mount()
        _open.enter(self)  # type: ignore[arg-type]
        return self

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        _open.leave(self)  # type: ignore[arg-type]
        _save.unmount()

    def iter(self, items: Iterable[Any]) -> SessionLoop:
        """`for item in session.iter(items):`"""
        return SessionLoop(items)

    def stop(self) -> None:
        """Raises: leave a loop with `break`, and a session by its end."""
        raise _core.UnsupportedError("session.stop(): a session is ordinary Python here; use break, return or if")


class SessionLoop:
    """The items of a loop in a session."""

    def __init__(self, items: Iterable[Any]) -> None:
        self._items = items

    def __iter__(self) -> Iterator[Any]:
        return iter(self._items)

    def __enter__(self) -> None:
        raise _core.UnsupportedError(
            "`with session.iter(items) as item:` would have to run its body several times, and a body is ordinary "
            "Python here, which runs once: write `for item in items:`"
        )

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        pass

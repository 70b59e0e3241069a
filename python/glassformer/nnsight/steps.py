"""Loops over the steps of a generation: `for step in tracer.iter[:]`."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from typing import Any

from glassformer import _core


class Steps:
    """Some steps of a run. `for step in …` goes through them; what is read and set inside belongs to that step. It ends
    where the run does. What stands behind the loop runs."""

    def __init__(
        self, go_to: Callable[[int], bool], chosen: Any, written: str, done: Callable[[], None] | None = None
    ) -> None:
        self._go_to = go_to
        self._chosen = chosen
        self._written = written
        self._done = done

    def __iter__(self) -> Iterator[int]:
        try:
            for step in step_numbers(self._chosen):
                if not self._go_to(step):
                    return
                yield step
        finally:
            if self._done is not None:
                self._done()

    def __enter__(self) -> None:
        raise _core.UnsupportedError(
            f"`with {self._written}:` would have to run its body several times, and a body is ordinary Python here, "
            f"which runs once: write `for step in {self._written}:`"
        )

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        pass


class StepChooser:
    """`tracer.iter`: indexed by a slice, a number or a list of steps. `done` is called where a loop ends, however."""

    def __init__(self, go_to: Callable[[int], bool], done: Callable[[], None] | None = None) -> None:
        self._go_to = go_to
        self._done = done

    def __getitem__(self, chosen: slice | int | list[int]) -> Steps:
        return Steps(self._go_to, chosen, f"tracer.iter[{_text(chosen)}]", self._done)

    def __iter__(self) -> Iterator[int]:
        raise TypeError("tracer.iter is indexed by the steps: tracer.iter[:]")


def step_numbers(chosen: Any) -> Iterator[int]:
    """Internal: the steps that a slice, a number or a list of them names."""
    if isinstance(chosen, slice):
        start, stop, stride = (None if each is None else _number(each, chosen) for each in _parts(chosen))
        start, stride = start or 0, 1 if stride is None else stride
        if start < 0 or stride < 1 or (stop is not None and stop < 0):
            raise _core.InputError(f"tracer.iter[{_text(chosen)}]: steps count from 0 on, forward")
        step = start
        while stop is None or step < stop:
            yield step
            step += stride
        return
    for each in chosen if isinstance(chosen, list | tuple | range) else [chosen]:
        step = _number(each, chosen)
        if step < 0:
            raise _core.InputError(f"tracer.iter[{_text(chosen)}]: steps count from 0 on")
        yield step


def _number(step: Any, chosen: Any) -> int:
    try:
        return operator.index(step)
    except TypeError:
        raise _core.InputError(
            f"tracer.iter[{_text(chosen)}]: expected a slice, a number or a list of steps; found {step!r}"
        ) from None


def _parts(chosen: slice) -> tuple[Any, Any, Any]:
    return chosen.start, chosen.stop, chosen.step


def _text(chosen: Any) -> str:
    if not isinstance(chosen, slice):
        return repr(chosen)
    *ends, stride = ["" if each is None else str(each) for each in _parts(chosen)]
    return ":".join([*ends, stride] if stride else ends)

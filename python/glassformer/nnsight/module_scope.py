"""One input of a torch module in an open trace: what its modules take and return can be read and set, in any order.

The first read runs the module as far as needed; an edit makes what comes after it stale, and the next read runs the
module again with the edits in place.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable
from typing import Any

import torch

from glassformer import _core
from glassformer.nnsight import _trees
from glassformer.nnsight._module_edits import Edits, applied, note_change
from glassformer.nnsight._module_events import (
    Derived,
    Event,
    Handed,
    Place,
    Put,
    Region,
    Sources,
    copied,
    copies,
    keep_gradient,
)
from glassformer.nnsight._module_run import Run
from glassformer.nnsight._module_state import Rewind, same_bits
from glassformer.nnsight.cache import Cache
from glassformer.nnsight.steps import StepChooser, Steps
from glassformer.nnsight.tensors import TracedTensor, plain

_STOPS = 4
"""How often in a row, without an edit in between, a run stops where what was asked for is there. Then one goes on to
the end, so that reading many modules costs few runs, and a loop that edits layer by layer computes each layer once."""


class ModuleValue(TracedTensor):
    """What a module takes or returns: a tensor on the graph, whose changes in place count as edits of its trace."""

    watcher: weakref.ref[ModuleScope]

    def __setitem__(self, index: Any, value: Any) -> None:
        scope = self.watcher()
        if scope is None or scope.is_closed:
            super().__setitem__(index, value)
        else:
            scope.assign(self, index, value)


class ModuleScope:
    """A module on one input. `modules` are those that are watched, with their paths; `target` is the path of the module
    that is called, where that is all that `function` does. `is_fake`: tensors have shapes only; `is_aside`: a call of
    the user's in the body, to be read only."""

    def __init__(
        self,
        root: Any,
        modules: list[tuple[str, torch.nn.Module]],
        function: Callable[..., Any],
        arguments: tuple[tuple[Any, ...], dict[str, Any]],
        target: str | None = None,
        is_fake: bool = False,
        is_aside: bool = False,
    ) -> None:
        self.root = root
        self.target = target
        self.modules = modules
        self.function = function
        self.is_fake, self.is_aside, self.is_closed, self.is_stopped = is_fake, is_aside, False, False
        self.has_graph = torch.is_grad_enabled()
        self.returned: Any = None
        self.events: list[Event] = []
        self.left_out: dict[str, set[int]] = {}
        self.step = 0
        self._arguments = _trees.mapped(arguments, lambda _, leaf: _plain(leaf))
        self._given: list[tuple[Any, Any]] = []
        self.numbers: dict[Place, int] = {}
        self.edits = Edits(is_fake)
        self._handed: dict[int, Handed] = {}
        self._containers: list[tuple[Event, _trees.Path, Any, list[Any]]] = []
        self._is_complete = False
        self._n_stops = 0
        self._rewind = Rewind(modules)
        self._offsets: dict[str, int] = {}
        self._asked: set[str] = set()
        self._aside: dict[str, ModuleScope] = {}
        self._result: Any = None

    # --- what envoys ask

    def read(self, envoy: Any, what: str) -> Any:
        """What stands at a module's input or output now; runs the module where that isn't known.

        Raises `UnavailableError` where the module isn't called, or not so often.
        """
        aside = self._aside.get(envoy.path)
        if aside is not None:
            return aside.read(envoy, what)
        self.collect()
        event = self._reached(self._place(envoy, what))
        found = self._hand_out(event)
        return found if what != "input" else _trees.taken(found, self._first_input(event))

    def write(self, envoy: Any, what: str, value: Any) -> None:
        """Puts a value there: it stands whatever changes before it. A part that is the very object that stands there
        stays what it is. `InputError` for `inputs` that are no arguments."""
        if what == "inputs" and not _are_arguments(value):
            raise _core.InputError(f"{envoy.path}.inputs: expected ((…,), {{…}}); found {type(value).__name__}")
        self.collect()
        place = self._place(envoy, what)
        path: _trees.Path = ()
        if what == "input":
            path = self._first_input(self._reached(place))
        number = self.numbers.get(place)
        there = None if number is None else _trees.taken(self.events[number].now, path)
        if value is there and there is not None:
            return
        self._refuse_old_objects(place, value)
        for put in _puts(there, value, path):
            self._add(place, Put(*put, f"{place} was set", self.edits.next_order()))

    def skip(self, envoy: Any, value: Any) -> None:
        """The module isn't run: `value` is what it returns."""
        self.collect()
        place = self._place(envoy, "output")
        self.left_out.setdefault(place.path, set()).add(place.call)
        edit = Put((), copies(value), f"{place.path} was skipped", self.edits.next_order())
        self.edits.at(place)[:] = [edit]
        begin = self.numbers.get(place._replace(what="inputs"))
        if begin is not None:
            self._drop_from(begin + 1, edit.text)

    def call(self, envoy: Any, args: tuple[Any, ...], kwargs: dict[str, Any], watched: bool) -> Any:
        """Runs a module on something else. `watched`: from now on its own values, and those of the modules in it, are
        those of this call; they can be read, not edited."""
        args, kwargs = _trees.mapped((args, kwargs), lambda _, leaf: _plain(leaf))
        if not watched:
            return _trees.mapped(envoy._module(*args, **kwargs), lambda _, leaf: _traced(leaf))
        prefix = envoy.path
        modules = [(f"{prefix}.{name}" if name else prefix, each) for name, each in envoy._module.named_modules()]
        aside = ModuleScope(self.root, modules, envoy._module, (args, kwargs), prefix, self.is_fake, is_aside=True)
        aside._run(None)
        for path, _ in modules:
            self._aside[path] = aside
        return aside.read(envoy, "output")

    def advance(self, envoy: Any, steps: int) -> None:
        """From now on a module, and those in it, are asked at a call that is `steps` later."""
        for path, _ in self.modules:
            if path == envoy.path or path.startswith(envoy.path + "."):
                self._offsets[path] = self._offsets.get(path, 0) + steps

    @property
    def iter(self) -> StepChooser:
        """`tracer.iter`."""
        before, self._asked = self.step, set()
        return StepChooser(self._go_to, lambda: setattr(self, "step", before))

    def all(self) -> Steps:
        """`tracer.iter[:]`."""
        return self.iter[:]

    def result(self) -> Any:
        """What the traced call returned."""
        self.collect()
        if self.target is not None:
            return self._hand_out(self._reached(Place(self.target, 0, "output")))
        if not self._is_complete:
            self._run(None)
            self._result = None
        if self._result is None:
            self._result = _trees.mapped(self.returned, lambda _, leaf: _kept(leaf) if _is_tensor(leaf) else leaf)
        return self._result

    # --- steps

    def _place(self, envoy: Any, what: str) -> Place:
        if envoy.path in self._aside:
            raise self._aside_error(Place(envoy.path, 0, "output"))
        self._asked.add(envoy.path)
        call = self.step + self._offsets.get(envoy.path, 0)
        return Place(envoy.path, call, "output" if what == "output" else "inputs")

    def _go_to(self, step: int) -> bool:
        """Goes on to a call, where any of the modules that were asked at the last one is called so often."""
        asked, self._asked = self._asked, set()
        self.step = step
        if step == 0:
            return True
        self.collect()
        paths = asked or {path for path, _ in self.modules}
        places = {Place(path, step + self._offsets.get(path, 0), "inputs") for path in paths}
        if not self._is_complete and not places & self.numbers.keys():
            self._run(places)
        return bool(places & self.numbers.keys())

    # --- running

    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of another run: copies, also of objects that a run may change."""
        self._given = []

        def fresh(_: _trees.Path, leaf: Any) -> Any:
            if isinstance(leaf, torch.Tensor):
                return leaf if self.is_aside else leaf.clone()
            if not _is_mutable(leaf) or self.is_aside:
                return leaf
            try:
                made = copy.deepcopy(leaf)
            except RuntimeError as error:
                raise _core.UnsupportedError(
                    f"an argument of type {type(leaf).__name__}, which a run may change, can't be copied: {error}"
                ) from error
            self._given.append((leaf, made))
            return made

        return _trees.mapped(self._arguments, fresh)

    def note(self, event: Event) -> None:
        """A run has come to something new."""
        self.numbers[event.place] = len(self.events)
        self.events.append(event)

    def may_stop(self) -> bool:
        """Whether a run may stop here: not if it has changed anything, which must not happen twice or half."""
        return self.is_fake or (self._n_stops < _STOPS and self._rewind.has_left_no_trace())

    @property
    def is_pure(self) -> bool:
        """Whether no run has drawn random numbers or changed anything, as far as is known."""
        return self._rewind.is_pure

    def _reached(self, place: Place) -> Event:
        if self._rewind.is_changed_by_user():
            self._drop_from(0, "a change of the module's weights, buffers or attributes")
        if place not in self.numbers and not self._is_complete:
            self._run({place})
        if place not in self.numbers:
            raise self._unavailable(place)
        return self.events[self.numbers[place]]

    def _run(self, until: set[Place] | None) -> None:
        if self.is_fake:
            self._is_complete = Run(self, until).execute()
            return
        if self._rewind.begin():
            self._drop_from(0, "a change of the module")
        try:
            self._is_complete = Run(self, until).execute()
            self._n_stops += 1
        finally:
            self._rewind.end()

    def _drop_from(self, number: int, why: str) -> None:
        """What happened from an event on is not so any more."""
        dropped, self._n_stops = self.events[number:], 0
        if not dropped and not self._is_complete:
            return
        for event in dropped:
            event.is_dropped = True
            del self.numbers[event.place]
        del self.events[number:]
        for handed in self._handed.values():
            if handed.event.is_dropped and not handed.why:
                self._outdate(handed, why)
        self._is_complete, self._result = False, None

    def _outdate(self, handed: Handed, why: str) -> None:
        handed.why = why
        handed.tensor.outdated = f"{handed.event.place} was read before {why}"  # type: ignore[attr-defined]

    def _unavailable(self, place: Place) -> _core.UnavailableError:
        calls = sum(each.path == place.path and each.what == "inputs" for each in self.numbers)
        if calls == 0:
            inside = [path for path in self.left_out if place.path.startswith(path + ".")]
            why = f"{inside[0]} is skipped" if inside else "it is not called (as a module) with this input"
            return _core.UnavailableError(f"{place}: the module doesn't run: {why}")
        return _core.UnavailableError(
            f"{place}: the module is called {calls} time{'s' * (calls > 1)} with this input, and call {place.call} was "
            "asked for (calls count from 0); read it outside of the loop, or bound the loop"
        )

    # --- handing out

    def _hand_out(self, event: Event) -> Any:
        event.hand_out()
        for path, leaf in _trees.leaves(event.now):
            if isinstance(leaf, torch.Tensor) and id(leaf) not in self._handed:
                self._watch(event, path, leaf)
        if event.noted is not event.now:
            self._note_containers(event)
        return event.now

    def _watch(self, event: Event, path: _trees.Path, leaf: torch.Tensor) -> None:
        if type(leaf) is torch.Tensor:
            leaf.__class__ = ModuleValue
            leaf.watcher = weakref.ref(self)  # type: ignore[attr-defined]
            self._find_gradients(event, path, leaf)
        source = self._snapshot(leaf)
        self._handed[id(leaf)] = Handed(leaf, event, path, leaf._version, source, self.edits.n_made)

    def _find_gradients(self, event: Event, path: _trees.Path, leaf: Any) -> None:
        """The gradient by a value in its user's hands: that of the tensor that the module was given, or its own."""
        sources = event.sources.get(path)
        if sources is None:
            leaf.pieces = None
            keep_gradient(leaf)
        else:
            leaf.pieces = sources
            sources.keep()

    def note_source(self, event: Event, path: _trees.Path, source: torch.Tensor | Sources | None) -> Sources | None:
        """One more tensor, or those of another value that is the same tensor, whose gradient is one by what stands
        there; all of them, or None where it is its own."""
        group = event.sources.get(path)
        if group is None and source is not None:
            group = event.sources[path] = source if isinstance(source, Sources) else Sources()
            leaf = _trees.taken(event.now, path)
            if isinstance(leaf, ModuleValue):
                self._find_gradients(event, path, leaf)
        if group is not None and source is not None and source is not group:
            for each in source.tensors if isinstance(source, Sources) else [source]:
                group.add(each)
        return group

    def _forget_sources(self, event: Event, path: _trees.Path) -> None:
        """What stands at a place is another tensor from now on, with a gradient of its own."""
        for known in [each for each in event.sources if each[: len(path)] == path]:
            del event.sources[known]
            try:
                leaf = _trees.taken(event.now, known)
            except KeyError:
                continue
            if isinstance(leaf, ModuleValue):
                self._find_gradients(event, known, leaf)

    def _note_containers(self, event: Event) -> None:
        """Lists and dicts in a user's hands: something else put into them is an edit."""
        waiting: list[tuple[_trees.Path, Any]] = [((), event.now)]
        for path, value in waiting:
            entries = list(_trees.children(value))
            waiting += [((*path, key), each) for key, each in entries]
            if isinstance(value, list | dict) or (entries and not isinstance(value, tuple)):
                self._containers.append((event, path, value, entries))
        event.noted = event.now

    def collect(self) -> None:
        """Makes edits of what was changed in place since the last operation."""
        for aside in set(self._aside.values()):
            aside.collect()
        for handed in list(self._handed.values()):
            if self._is_changed(handed):
                self._changed_in_place(handed)
        for index, (event, path, container, entries) in enumerate(self._containers):
            now = list(_trees.children(container))
            if len(now) == len(entries) and all(a is b for (_, a), (_, b) in zip(now, entries, strict=True)):
                continue
            self._containers[index] = (event, path, container, now)
            self._changed_container(event, path, dict(entries), now)

    def _is_changed(self, handed: Handed) -> bool:
        tensor = handed.tensor
        if tensor._version != handed.version:
            return True
        if self.is_fake or torch._C._is_cow_tensor(tensor) or tensor.layout is not torch.strided:  # type: ignore[attr-defined]
            return False
        # Its memory is its own, though torch counts no change: `.numpy()` or `.data`, and more may come.
        if not getattr(tensor, "is_loose", False):
            tensor.is_loose = True  # type: ignore[attr-defined]
            handed.source = handed.source.clone()
        return not same_bits(plain(tensor.detach()), handed.source)

    def _snapshot(self, tensor: torch.Tensor) -> torch.Tensor:
        """The numbers as they are; memory is shared until the tensor is changed, if torch can see that."""
        numbers = plain(tensor.detach())
        return numbers.clone() if getattr(tensor, "is_loose", False) else copied(numbers)

    def _settle(self, handed: Handed) -> None:
        """The numbers that a tensor has now are known."""
        handed.version, handed.source = handed.tensor._version, self._snapshot(handed.tensor)

    def _changed_in_place(self, handed: Handed) -> None:
        place = handed.event.place
        if self.is_aside:
            self._changed_aside(handed)
            return
        if not handed.is_current():
            why = handed.why or f"{place} was set"
            self._settle(handed)
            raise _core.StaleEditError(
                f"{place}: a value that was read before {why} was changed in place; read it again and change that (the "
                "change was dropped)"
            )
        self._forget_sources(handed.event, handed.path)
        edits = self.edits.at(place)
        text, order = f"{place}{_trees.written(handed.path)} was changed in place", self.edits.next_order()
        before = [each for each in edits if isinstance(each, Derived) and each.tensor is handed.tensor]
        if before:  # The tensor has all its changes: they count where the last one was made.
            edits.remove(before[0])
            edits.append(before[0])
            before[0].order = order
        else:
            edits.append(Derived(handed.path, handed.tensor, handed.source, handed.base, text, order))
        note_change(handed.event, edits)
        self._settle(handed)
        self._drop_from(self.numbers[place] + 1, text)

    def _changed_container(self, event: Event, path: _trees.Path, before: dict[Any, Any], now: list[Any]) -> None:
        place = event.place
        if self.is_aside:
            raise self._aside_error(place)
        if event.is_dropped:
            raise _core.StaleEditError(
                f"{place}{_trees.written(path)} was changed, but it was read before an edit; read it again"
            )
        if dict(now).keys() != before.keys():
            raise _core.UnsupportedError(
                f"{place}{_trees.written(path)}: entries were added or removed; set it as a whole"
            )
        for key, value in now:
            if value is not before[key]:
                text = f"{place}{_trees.written((*path, key))} was set"
                self._add(place, Put((*path, key), copies(value), text, self.edits.next_order()))

    def assign(self, tensor: ModuleValue, index: Any, value: Any) -> None:
        """`tensor[index] = value`: numbers that stand there, also if the tensor was read before another edit."""
        self.collect()
        handed = self._handed[id(tensor)]
        place = handed.event.place
        TracedTensor.__setitem__(tensor, index, value)
        if self.is_aside:
            self._changed_aside(handed)
            return
        text = f"{place}{_trees.written(handed.path)} was set in a region"
        index = _trees.mapped(index, lambda _, leaf: leaf.clone() if _is_tensor(leaf) else leaf)
        edit = Region(handed.path, index, copies(value), text, self.edits.next_order())
        is_current = handed.is_current()
        self._settle(handed)
        if is_current:
            self._forget_sources(handed.event, handed.path)
            self.edits.at(place).append(edit)
            note_change(handed.event, self.edits.at(place))
            handed.base = self.edits.n_made
            self._drop_from(self.numbers[place] + 1, text)
        else:
            self._add(place, edit)

    # --- edits

    def _add(self, place: Place, edit: Put | Region) -> None:
        """One more edit at a place; what is known there has it at once."""
        self.edits.add(place, edit)
        number = self.numbers.get(place)
        if number is None:
            return
        event = self.events[number]
        event.hand_out()
        event.now = applied(edit, event.now)
        note_change(event, self.edits.at(place))
        self._forget_sources(event, edit.path)
        for handed in self._handed.values():
            if handed.event is event and not handed.why and not handed.is_current():
                self._outdate(handed, edit.text)
        self._drop_from(number + 1, edit.text)

    def _refuse_old_objects(self, place: Place, value: Any) -> None:
        """Objects of an earlier run may remember it, such as a cache that keys were put into."""
        handed = {
            id(leaf)
            for event in self.events
            if event.is_handed_out
            for _, leaf in _trees.leaves(event.raw)
            if _is_mutable(leaf)
        }
        for path, leaf in _trees.leaves(value):
            if id(leaf) in handed:
                raise _core.UnsupportedError(
                    f"{place}{_trees.written(path)}: a {type(leaf).__name__} that was read from this trace belongs to "
                    "the run it was read from; set the tensors alone (`.input = …`, `.inputs[1][name] = …`)"
                )

    def _first_input(self, event: Event) -> _trees.Path:
        args, kwargs = event.now
        if not args and not kwargs:
            raise _core.UnavailableError(f"{event.place.path}.input: the module is called without arguments")
        return (0, 0) if args else (1, next(iter(kwargs)))

    def _changed_aside(self, handed: Handed) -> None:
        """What a call in the body returned is its user's; on the rest of the call nothing depends any more."""
        self._settle(handed)
        if handed.event.place != Place(self.target or "", 0, "output"):
            raise self._aside_error(handed.event.place)

    def _aside_error(self, place: Place) -> _core.UnsupportedError:
        return _core.UnsupportedError(
            f"{place} belongs to a call in the body (hook=True), which is over: change what the call returned instead"
        )

    # --- the end

    def fill(self, cache: Cache) -> None:
        """Puts everything into a cache that there is, at the end of the run where that is open still."""
        if not self.is_closed and not self.is_stopped:
            self.collect()
            if not self._is_complete:
                self._run(None)
        for event in self.events:
            cache.put(event.place.path, event.place.call, event.place.what, event.now)

    def finish(self) -> None:
        """Runs what has not run yet, so that all edits and side effects have happened; `UnavailableError` for an edit
        of a module that isn't called."""
        self.collect()
        if not self._is_complete:
            self._run(None)
        for place, edits in self.edits.all():
            if place not in self.numbers:
                raise _core.UnavailableError(f"{edits[-1].text}, but nothing came of it: {self._unavailable(place)}")

    def close(self) -> None:
        """Lets everything go; what its user has of it are ordinary tensors."""
        self.is_closed = True
        for original, used in self._given:
            if hasattr(original, "__dict__"):
                vars(original).update(vars(used))
        for aside in self._aside.values():
            aside.is_closed = True
        for each in (self._handed, self.numbers, self._aside, self.left_out):
            each.clear()  # type: ignore[attr-defined]
        self.edits = Edits(self.is_fake)
        self.events, self._containers, self._rewind = [], [], Rewind(self.modules)
        self.returned = self._result = self._arguments = None


def _puts(there: Any, value: Any, path: _trees.Path) -> list[tuple[_trees.Path, Any]]:
    """What has to be put where so that `value` stands in the place of `there`."""
    old, new = list(_trees.children(there)), list(_trees.children(value))
    if old and type(there) is type(value) and [key for key, _ in old] == [key for key, _ in new]:
        pairs = zip(old, new, strict=True)
        return [put for (key, a), (_, b) in pairs if a is not b for put in _puts(a, b, (*path, key))]
    return [(path, copies(value))]


def _is_mutable(leaf: Any) -> bool:
    """Whether a run may leave traces in an object that it is given."""
    if isinstance(leaf, torch.nn.Module | type) or callable(leaf):
        return False
    return not _trees.is_plain(leaf)


def _is_tensor(leaf: Any) -> bool:
    return isinstance(leaf, torch.Tensor)


def _plain(leaf: Any) -> Any:
    return plain(leaf) if isinstance(leaf, TracedTensor) else leaf


def _traced(leaf: Any) -> Any:
    if type(leaf) is torch.Tensor:
        leaf.__class__ = TracedTensor
    return leaf


def _are_arguments(value: Any) -> bool:
    given = value if isinstance(value, tuple | list) and len(value) == 2 else (None, None)
    return isinstance(given[0], tuple | list) and isinstance(given[1], dict)


def _kept(leaf: torch.Tensor) -> torch.Tensor:
    made = _traced(copied(leaf))
    keep_gradient(made)
    return made

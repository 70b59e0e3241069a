"""One run of a module: hooks on all modules of the tree note what comes in and goes out, and put edits in place.

What is known already and no edit has changed is not computed again: a run begins with what the last one noted. Modules
that did nothing but return their output are passed over; the others run again, and give the next ones what they gave
before, so that values that were read are on the graph of every later run.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import torch.utils.checkpoint

from glassformer import _core
from glassformer.nnsight import _trees
from glassformer.nnsight._module_edits import is_in_place, is_put
from glassformer.nnsight._module_events import Edit, Event, Place, Sources, copied, copies
from glassformer.nnsight._module_state import same_bits

if TYPE_CHECKING:
    from glassformer.nnsight.module_scope import ModuleScope

_lock = threading.RLock()  # Hooks and forwards are put onto modules that threads may share: one run at a time.
_running = threading.local()


class Enough(BaseException):
    """Internal: leaves a module's forward, because what was asked for is there."""


@dataclass
class _Call:
    """A module that has begun and not yet returned."""

    module: torch.nn.Module
    begin: Event
    taken: list[tuple[torch.Tensor, int]] = field(default_factory=list)  # Arguments, with torch's counts of changes.
    shared: list[tuple[torch.Tensor, torch.Tensor, int]] = field(default_factory=list)
    is_left_out: bool = False
    has_hooks_inside: bool = False
    stand_in: Any = None  # Of a call that is left out: what users' own hooks see, before it is put in place.

    def is_as_taken(self) -> bool:
        """Whether the module has left its arguments as they were."""
        return all(leaf._version == version for leaf, version in self.taken)

    def shares(self, leaf: Any) -> bool:
        """Whether something that the module returns lies in the memory of an argument."""
        return isinstance(leaf, torch.Tensor) and any(_is_same_memory(leaf, each) for each, _ in self.taken)

    def change_shared(self, output: Any, passed: Any, edits: list[Edit]) -> None:
        """A module that returns an argument, or a view of it: what an edit changed of it in place changes the
        argument."""
        if not edits:
            return
        now = dict(_trees.leaves(passed))
        for path, leaf in _trees.leaves(output):
            if is_in_place(path, edits) and self.shares(leaf):
                leaf.copy_(now[path])


class Run:
    """Runs the module of a scope, from its first event on, until one of some places was passed, or to its end."""

    def __init__(self, scope: ModuleScope, until: set[Place] | None) -> None:
        self._scope = scope
        self._until = until
        self._n_known = len(scope.events)
        self._number = 0
        self._calls: Counter[str] = Counter()
        self._stack: list[_Call] = []
        self._origins: dict[int, tuple[torch.Tensor, torch.Tensor | Sources, int]] = {}
        self._undo = contextlib.ExitStack()

    def execute(self) -> bool:
        """Whether it came to its end; what it returned is the scope's `returned`."""
        scope = self._scope
        with _lock, torch.inference_mode(False), torch.set_grad_enabled(scope.has_graph), _uncompiled(), self._undo:
            self._undo.callback(setattr, _running, "run", getattr(_running, "run", None))
            _running.run = self
            try:
                self._install()
                args, kwargs = scope.arguments()
                scope.returned = scope.function(*args, **kwargs)
            except Enough:
                return False
            return True

    def _install(self) -> None:
        left_out = self._paths_left_out()
        for path, module in self._scope.modules:
            if self._scope.is_fake:
                self._fake_buffers(module)
            for handle in (
                module.register_forward_pre_hook(self._way_in(path), with_kwargs=True),
                # Before users' own hooks: they see the edits, as they see what the module itself returns.
                module.register_forward_hook(self._way_out(path), with_kwargs=True, prepend=True),
            ):
                self._undo.callback(handle.remove)
            if path in left_out:
                self._wrap_forward(module)

    def _paths_left_out(self) -> set[str]:
        """The modules whose forward may be passed over: those skipped, and the outermost of those that are known."""
        scope, number = self._scope, 0
        paths = set(scope.left_out)
        while number < self._n_known and scope.is_pure:
            event = scope.events[number]
            if event.can_be_left_out and event.end is not None and event.end < self._n_known:
                paths.add(event.place.path)
                number = event.end
            number += 1
        return paths

    def _fake_buffers(self, module: torch.nn.Module) -> None:
        own = dict(module._buffers)
        module._buffers.update({name: each if each is None else each.clone() for name, each in own.items()})
        self._undo.callback(module._buffers.update, own)

    def _wrap_forward(self, module: torch.nn.Module) -> None:
        own = vars(module).get("forward")
        forward = module.forward

        def left_out(*args: Any, **kwargs: Any) -> Any:
            if self._is_mine() and self._stack and self._stack[-1].module is module and self._stack[-1].is_left_out:
                return copies(self._stack[-1].stand_in)
            return forward(*args, **kwargs)

        vars(module)["forward"] = left_out
        if own is None:
            self._undo.callback(vars(module).pop, "forward")
        else:
            self._undo.callback(vars(module).__setitem__, "forward", own)

    def _is_mine(self) -> bool:
        """Whether this call is one of this run's, not of another thread's or of a trace within."""
        return getattr(_running, "run", None) is self

    # --- events

    def _way_in(self, path: str) -> Callable[..., Any]:
        # torch leaves out the keywords of a hook that another thread, whose own it is, takes away meanwhile.
        def enter(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> Any:
            if kwargs is None or not self._is_mine():
                return None
            number = self._number
            event, is_known = self._arrive(Place(path, self._calls[path], "inputs"), (args, kwargs))
            self._calls[path] += 1
            scope = self._scope
            if scope.has_graph and _is_checkpointed():
                raise _core.UnsupportedError(
                    f"{path} runs under torch.utils.checkpoint, which would compute it again without the trace in the "
                    "backward pass: turn gradient checkpointing off, or trace under torch.no_grad()"
                )
            call = _Call(module, event)
            passed, call.shared = _shared(
                (args, kwargs), self._passed(event, (args, kwargs)), event, scope.edits.at(event.place)
            )
            self._link(event, (args, kwargs), passed)
            tensors = [leaf for _, leaf in _trees.leaves(passed) if isinstance(leaf, torch.Tensor)]
            call.taken = [(leaf, leaf._version) for leaf in tensors]
            self._stack.append(call)
            if event.place.call in scope.left_out.get(path, ()):
                call.is_left_out, call.stand_in = True, scope.edits.at(event.place._replace(what="output"))[0].value
            elif is_known and event.end is not None and event.end < self._n_known:
                call.is_left_out = event.can_be_left_out and scope.is_pure
                if call.is_left_out:
                    call.stand_in = scope.events[event.end].now
                    self._pass_over(number, event.end)
            self._stop_at(event)
            return passed

        return enter

    def _way_out(self, path: str) -> Callable[..., Any]:
        def leave(module: torch.nn.Module, args: Any, kwargs: Any, output: Any = None) -> Any:
            if not self._is_mine():
                return None
            while self._stack[-1].module is not module:  # Its caller has caught an exception of its.
                self._stack.pop()
            call = self._stack.pop()
            number = self._number
            event, is_known = self._arrive(
                Place(path, call.begin.place.call, "output"), output, is_computed=not call.is_left_out
            )
            if not is_known:
                call.begin.end = number
                call.begin.can_be_left_out = _did_nothing_else(call, output)
            if self._stack and (call.has_hooks_inside or _has_hooks(module)):
                self._stack[-1].has_hooks_inside = True
            passed = self._passed(event, output)
            self._link(event, output, passed)
            if not call.is_left_out:
                call.change_shared(output, passed, self._scope.edits.at(event.place))
            self._give_back(call)
            self._stop_at(event)
            return passed

        return leave

    def _arrive(self, place: Place, given: Any, is_computed: bool = True) -> tuple[Event, bool]:
        """The event at a place, and whether it was known before this run."""
        scope, number = self._scope, self._number
        self._number += 1
        if number < self._n_known:
            event = scope.events[number]
            if event.place != place or (is_computed and not scope.is_fake and not _is_same(event.raw, given)):
                raise _core.UnsupportedError(
                    f"{place}: the module computed something else when it ran again, although nothing before it was "
                    "changed: it isn't deterministic, or keeps something from run to run. Make the edits that need no "
                    "reading before the first read, which takes one run"
                )
            return event, True
        event = Event(place, copies(given) if is_computed else None)
        scope.edits.put_on(event, scope.numbers)
        scope.note(event)
        return event, False

    def _pass_over(self, begin: int, end: int) -> None:
        for event in self._scope.events[begin + 1 : end]:
            if event.place.what == "inputs":
                self._calls[event.place.path] += 1
        self._number = end

    def _passed(self, event: Event, given: Any) -> Any:
        """What the run goes on with: copies of the tensors; of other objects those of this run."""

        def chosen(path: _trees.Path, leaf: Any) -> Any:
            if isinstance(leaf, torch.Tensor):
                return copied(leaf)
            try:
                return _trees.taken(given, path) if _trees.taken(event.raw, path) is leaf else leaf
            except KeyError:
                return leaf

        return _trees.mapped(event.now, chosen)

    def _give_back(self, call: _Call) -> None:
        """A module has copies of what its caller passed: what it changed of them in place its caller sees too."""
        for given, passed, version in call.shared:
            if passed._version != version:
                given.copy_(passed)
                _, source, known = self._origins.get(id(passed), (None, passed, passed._version))
                self._origins[id(given)] = (given, source if known == passed._version else passed, given._version)

    def _link(self, event: Event, given: Any, passed: Any) -> None:
        """Notes for every tensor that is passed on where the gradient by it is found: a module has copies, but the
        gradient by what it takes is that by the tensor which its caller has, with all that it does with it."""
        edits, is_input = self._scope.edits.at(event.place), event.place.what == "inputs"
        theirs, mine = dict(_trees.leaves(given)), dict(_trees.leaves(event.now))
        for path, leaf in _trees.leaves(passed):
            if not isinstance(leaf, torch.Tensor) or not leaf.requires_grad:
                continue
            there, source = theirs.get(path), None
            if isinstance(there, torch.Tensor) and there.requires_grad and not is_put(path, edits):
                _, source, version = self._origins.get(id(there), (None, None, 0))
                if source is not None and there._version != version:
                    source = there  # It was changed in place since.
                if source is None or is_in_place(path, edits):
                    source = there if is_input else None
            group = self._scope.note_source(event, path, source)
            self._origins[id(leaf)] = (leaf, mine[path] if group is None else group, leaf._version)
            if group is not None and isinstance(there, torch.Tensor):
                self._origins[id(there)] = (there, group, there._version)

    def _stop_at(self, event: Event) -> None:
        if self._until is not None and event.place in self._until and self._scope.may_stop():
            raise Enough


def _shared(
    given: Any, passed: Any, event: Event, edits: list[Edit]
) -> tuple[Any, list[tuple[torch.Tensor, torch.Tensor, int]]]:
    """What a module gets, and which of its caller's tensors it has as copies. What an edit changed in place is changed
    for the caller too: as with any tensor, others that have it see it."""
    at = dict(_trees.leaves(given))
    for path, leaf in _trees.leaves(passed):
        changed = event.changed_in_place.get(path)
        if changed is not None and isinstance(at.get(path), torch.Tensor):
            at[path].copy_(copied(changed))
            if not is_put(path, edits):
                passed = _trees.replaced(passed, leaf, copied(at[path]))
    shared = []
    for path, leaf in _trees.leaves(passed):
        theirs = at.get(path)
        if isinstance(leaf, torch.Tensor) and isinstance(theirs, torch.Tensor) and not is_put(path, edits):
            shared.append((theirs, leaf, leaf._version))
    return passed, shared


def _did_nothing_else(call: _Call, output: Any) -> bool:
    """Whether a module that has returned left its arguments as they were, had none that remember things, returns
    nothing of theirs, and calls no hooks of users on its way."""
    if call.has_hooks_inside:
        return False
    is_plain = _trees.is_plain(call.begin.now) and _trees.is_plain(output)
    return is_plain and call.is_as_taken() and not any(call.shares(leaf) for _, leaf in _trees.leaves(output))


def _has_hooks(module: torch.nn.Module) -> bool:
    """Whether there are other hooks than this run's."""
    everywhere = torch.nn.modules.module
    return (
        len(module._forward_hooks) > 1
        or len(module._forward_pre_hooks) > 1
        or bool(everywhere._global_forward_hooks or everywhere._global_forward_pre_hooks)
    )


def _is_same_memory(one: torch.Tensor, other: torch.Tensor) -> bool:
    if one is other or not one.layout == other.layout == torch.strided:
        return one is other
    return one.untyped_storage()._cdata == other.untyped_storage()._cdata


def _is_same(known: Any, given: Any) -> bool:
    """Whether two structures have the same numbers and constants; objects of other kinds count as the same."""
    one, two = list(_trees.leaves(known)), list(_trees.leaves(given))
    if len(one) != len(two):
        return False
    for (path, a), (other, b) in zip(one, two, strict=True):
        if path != other or isinstance(a, torch.Tensor) != isinstance(b, torch.Tensor):
            return False
        if isinstance(a, torch.Tensor):
            if a.layout is torch.strided and not a.is_nested and not same_bits(a.detach(), b.detach()):
                return False
        elif isinstance(a, bool | int | float | str) and a != b and a == a:
            return False
    return True


def _uncompiled() -> contextlib.AbstractContextManager[Any]:
    """Compiled modules run as they were written, so that their parts can be seen."""
    if "torch._dynamo" not in sys.modules:  # Nothing has been compiled, and loading it takes seconds.
        return contextlib.nullcontext()
    return torch.compiler.set_stance("force_eager")


def _is_checkpointed() -> bool:
    """Whether a part of the forward runs that torch.utils.checkpoint will run again in the backward pass."""
    if torch.is_grad_enabled():
        hooks = torch._C._autograd._top_saved_tensors_default_hooks(True)  # type: ignore[attr-defined]
        return hooks is not None and getattr(hooks[0], "__module__", "") == torch.utils.checkpoint.__name__
    frame = sys._getframe()
    while frame is not None:
        if frame.f_code.co_filename == torch.utils.checkpoint.__file__:
            return True
        frame = frame.f_back  # type: ignore[assignment]
    return False

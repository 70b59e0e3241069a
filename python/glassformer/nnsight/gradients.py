"""Gradients as nnsight has them: `x.grad` of whatever was read, and changes on the way back in
`with loss.backward():`."""

from __future__ import annotations

import contextlib
import inspect
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from glassformer import _core
from glassformer.nnsight import _open, _save

_gradient_at, _set_gradient_at = torch.Tensor.grad.__get__, torch.Tensor.grad.__set__
"""torch's own `grad` of a tensor."""


class _Here(threading.local):
    """What this thread has: values of NNsight's runs that carry a graph, and the backward passes that are entered."""

    def __init__(self) -> None:
        self.remembered: dict[int, weakref.ref[torch.Tensor]] = {}
        self.entered: list[Backward] = []

    def sources(self) -> list[torch.Tensor]:
        """What all values of traces that carry a graph were made from: their gradients are found together."""
        parts = [part for watch in _open.watches() for value in watch.values() for part in value.pieces.parts]
        watched = [part.source for part in parts if part.source.requires_grad and not hasattr(part.source, "pieces")]
        alive = [source for source in (reference() for reference in self.remembered.values()) if source is not None]
        return list({id(source): source for source in [*watched, *alive]}.values())


here = _Here()


def remember(source: torch.Tensor) -> None:
    """Notes a value on a trace's graph that no watch has."""
    key, remembered = id(source), here.remembered
    if key not in remembered:
        remembered[key] = weakref.ref(source, lambda _: remembered.pop(key, None))


def gradient_of(tensor: Any) -> torch.Tensor | None:
    """`tensor.grad`: within a backward pass that was entered the one of that pass, else what torch has stored."""
    if here.entered:
        return _found(tensor, here.entered[-1].gradient(tensor))
    return _found(tensor, whole_of(tensor, _gradient_at))


def _found(tensor: Any, gradient: torch.Tensor | None) -> torch.Tensor | None:
    """The gradient; `OrderError` where there is none because the tensor belongs to an earlier run of its trace."""
    outdated = getattr(tensor, "outdated", None)
    if gradient is None and outdated is not None:
        raise _core.OrderError(f"no gradient by this value: {outdated}; read it again, and take the gradient by that")
    return gradient


def set_gradient(tensor: Any, value: Any) -> None:
    """`tensor.grad = value`: within a backward pass that was entered what flows on from there."""
    if here.entered:
        here.entered[-1].replace(tensor, value)
        return
    pieces = _pieces(tensor)
    if pieces is None:
        _set_gradient_at(tensor, value)
        return
    for part in pieces.parts:
        numbers = None if value is None else plain(value)[part.place].reshape(part.source.shape)
        _set_gradient_at(part.source, numbers)


def grad(outputs: Any, inputs: Any, *args: Any, **kwargs: Any) -> tuple[torch.Tensor | None, ...]:
    """torch.autograd.grad, where values of traces stand for their nodes."""
    listed = [inputs] if isinstance(inputs, torch.Tensor) else list(inputs)
    outputs = plain(outputs) if isinstance(outputs, torch.Tensor) else [plain(each) for each in outputs]
    options = _signature.bind(outputs, _sources_of(listed), *args, **kwargs)
    allows_unused = options.arguments.get("allow_unused") or options.arguments.get("materialize_grads")
    options.arguments["allow_unused"] = True
    with _storing_nothing():  # The sources may be values of traces themselves.
        found = torch.autograd.grad(*options.args, **options.kwargs)
    by_source = {id(source): gradient for source, gradient in zip(options.arguments["inputs"], found, strict=True)}
    _complete(by_source, listed, outputs, options.arguments.get("grad_outputs"))
    gathered = tuple(_found(each, whole_of(each, lambda source: by_source[id(source)])) for each in listed)
    if not allows_unused and any(each is None for each in gathered):
        raise RuntimeError("a tensor has no gradient: what was differentiated doesn't depend on it (allow_unused=True)")
    return gathered


@contextlib.contextmanager
def _storing_nothing() -> Iterator[None]:
    """For calls of torch.autograd.grad: values of traces, which retain their gradients, would keep those of the call
    on top of what they have."""
    before = [(source, _gradient_at(source)) for source in here.sources()]
    try:
        with torch._C.DisableTorchFunctionSubclass():
            yield
    finally:
        for source, gradient in before:
            _set_gradient_at(source, gradient)


_signature = inspect.signature(torch.autograd.grad)


class Backward:
    """A backward pass that was run. Entered, `x.grad` of any tensor on its way is the gradient there, and can be
    replaced or changed in place: what lies before sees it, in any order."""

    root = None

    def __init__(
        self, loss: torch.Tensor, gradient: Any, retain_graph: bool | None, create_graph: bool, inputs: Any
    ) -> None:
        self._loss, self._gradient, self._create_graph = plain(loss), gradient, create_graph
        self._keeps = retain_graph is not False
        if inputs is not None:
            inputs = _sources_of([inputs] if isinstance(inputs, torch.Tensor) else list(inputs))
        torch.autograd.backward(self._loss, gradient, self._keeps, create_graph, inputs=inputs)
        self._hooks: list[Any] = []
        self._replaced: dict[int, torch.Tensor] = {}
        self._found: dict[int, torch.Tensor | None] = {}
        self._alive: list[torch.Tensor] = []  # What these gradients are by.
        self._given: list[tuple[Any, torch.Tensor, int]] = []

    def __enter__(self) -> Backward:
        if not self._keeps:
            raise _core.InputError(
                "with loss.backward(retain_graph=False): the graph is gone before the block begins; leave retain_graph "
                "away"
            )
        _save.mount()  # Outside of a trace too: what is read here may be saved.
        _open.enter(self)  # type: ignore[arg-type]
        here.entered.append(self)
        return self

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        try:
            if error is None:
                self._collect()
                if self._hooks:
                    self._store()
        finally:
            here.entered.remove(self)
            _open.leave(self)  # type: ignore[arg-type]
            _save.unmount()
            for hook in self._hooks:
                hook.remove()
            self._hooks = []

    def gradient(self, tensor: Any) -> torch.Tensor | None:
        """The gradient of this pass by a tensor, with what was replaced further on."""
        self._collect()
        wanted = _sources_of([tensor])
        if any(id(source) not in self._found for source in wanted):
            self._find([*wanted, *here.sources()])
        _complete(self._found, [tensor], self._loss, self._gradient)
        found = whole_of(tensor, lambda source: self._found[id(source)])
        if found is not None:
            found = found.clone()
            self._given.append((tensor, found, found._version))
        return found

    def replace(self, tensor: Any, value: Any) -> None:
        """Puts `value` in the place of the gradient by a tensor."""
        self._collect()
        value = torch.as_tensor(value, dtype=tensor.dtype, device=tensor.device).expand(tensor.shape)
        pieces = _pieces(tensor)
        if pieces is None:
            if not tensor.requires_grad:
                raise _core.InputError("a gradient was set of a tensor that has none: it does not require grad")
            self.put(tensor, plain(value))
        else:
            for part in pieces.parts:
                part.replace_gradient(plain(value)[part.place], self)
        self._found, self._alive = {}, []

    def put(self, source: torch.Tensor, numbers: torch.Tensor) -> None:
        """Internal: lets `numbers` flow on from a tensor of the graph."""
        self._hooks.append(source.register_hook(lambda _: numbers))
        self._replaced[id(source)] = numbers

    def reaches(self, source: torch.Tensor) -> bool:
        """Internal: whether the pass comes by a tensor."""
        return self._run([source])[0] is not None

    def _collect(self) -> None:
        given, self._given = self._given, []
        for tensor, gradient, version in given:
            if gradient._version != version:
                self.replace(tensor, gradient)
            else:
                self._given.append((tensor, gradient, version))

    def _find(self, sources: Sequence[torch.Tensor]) -> None:
        usable = list({id(each): each for each in sources if each.requires_grad}.values())
        found = self._run(usable)
        self._alive += sources
        self._found |= dict.fromkeys(map(id, sources))
        self._found |= {id(each): gradient for each, gradient in zip(usable, found, strict=True)}

    def _run(self, tensors: Sequence[torch.Tensor]) -> Sequence[torch.Tensor | None]:
        if not tensors:
            return ()
        options = {"retain_graph": True, "create_graph": self._create_graph, "allow_unused": True}
        with _storing_nothing():
            found = torch.autograd.grad(self._loss, tensors, self._gradient, **options)
        if not self._hooks:
            return found
        # torch hands out what arrives at a tensor, before its hooks.
        pairs = zip(tensors, found, strict=True)
        return [self._replaced.get(id(tensor), gradient) for tensor, gradient in pairs]

    def _store(self) -> None:
        """Puts what the changed pass gives in the place of what the unchanged one has stored."""
        stored = [each for each in [*_leaves(self._loss), *here.sources()] if _gradient_at(each) is not None]
        after = self._run(stored)
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        before = self._run(stored)
        for tensor, new, old in zip(stored, after, before, strict=True):
            if old is None or new is None:
                continue
            now = _gradient_at(tensor)
            only_this = now is not None and torch.equal(now, old)
            _set_gradient_at(tensor, new if only_this else now + (new - old))


def _leaves(loss: torch.Tensor) -> list[torch.Tensor]:
    """The tensors in which a backward pass from `loss` stores gradients."""
    found, seen, waiting = [], set(), [loss.grad_fn]
    while waiting:
        step = waiting.pop()
        if step is None or step in seen:
            continue
        seen.add(step)
        if hasattr(step, "variable"):
            found.append(step.variable)
        waiting += [each for each, _ in step.next_functions]
    return found


def _pieces(tensor: Any) -> Any:
    pieces = getattr(tensor, "pieces", None)
    return None if pieces is None or not pieces.parts else pieces


def _sources_of(tensors: Sequence[Any]) -> list[torch.Tensor]:
    sources: list[torch.Tensor] = []
    for tensor in tensors:
        pieces = _pieces(tensor)
        sources += [tensor] if pieces is None else _sources_of([part.source for part in pieces.parts])
    return sources


def _live_parts(tensors: Sequence[Any]) -> list[Any]:
    """The parts of values that nodes of an engine's trace are."""
    parts = [part for tensor in tensors if (pieces := _pieces(tensor)) is not None for part in pieces.parts]
    inner = _live_parts([part.source for part in parts]) if parts else []
    nodes = [part for part in parts if hasattr(part, "off_path_gradient") and _pieces(part.source) is None]
    return nodes + inner


def _complete(found: dict[int, torch.Tensor | None], tensors: Sequence[Any], outputs: Any, gradients: Any) -> None:
    """Finds the gradients by nodes that a fused step passed over, of which torch knows nothing."""
    for part in _live_parts(tensors):
        if found[id(part.source)] is None:
            with _storing_nothing():
                found[id(part.source)] = part.off_path_gradient(_number(outputs, gradients))


def _number(outputs: Any, gradients: Any) -> torch.Tensor:
    """One number with the gradients of several outputs."""
    listed = [outputs] if isinstance(outputs, torch.Tensor) else list(outputs)
    given = [None] * len(listed) if gradients is None else gradients
    given = [given] if isinstance(given, torch.Tensor) else given
    pairs = zip(listed, given, strict=True)
    return sum((each if gradient is None else (each * gradient).sum() for each, gradient in pairs), torch.zeros(()))


def whole_of(tensor: Any, of: Callable[[torch.Tensor], torch.Tensor | None]) -> torch.Tensor | None:
    """Internal: what `of` gives for what a value was put together from, put together like it."""
    pieces = _pieces(tensor)
    return of(tensor) if pieces is None else pieces.gather(tensor.shape, of)


def plain(tensor: torch.Tensor) -> torch.Tensor:
    """The same numbers as an ordinary tensor."""
    return tensor.as_subclass(torch.Tensor)

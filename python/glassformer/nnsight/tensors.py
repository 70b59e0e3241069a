"""The tensors that traces give, and what is computed from them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import Any

import torch

from glassformer import _core
from glassformer.live_tensor import LiveTensor, make_live
from glassformer.nnsight import gradients
from glassformer.nnsight.gradients import plain

_KEPT = torch.overrides.get_default_nowrap_functions()


class TracedTensor(torch.Tensor):
    """What is computed from values of a trace: a tensor as any other, with a few methods more."""

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if len(types) > 1 and any(getattr(kind, "is_shape", False) for kind in types):
            return NotImplemented  # Of a scan or an edit: it is theirs.
        if function is torch.autograd.grad:
            return gradients.grad(*args, **kwargs)
        with torch._C.DisableTorchFunctionSubclass():
            result = function(*args, **kwargs)
        return result if function in _KEPT else traced(result, (*args, *kwargs.values()))

    def save(self) -> TracedTensor:
        """The tensor itself: values outlive their trace."""
        return self

    @property
    def value(self) -> TracedTensor:
        """The tensor itself."""
        return self

    @property
    def t(self) -> TokenIndexer:
        """`x.t()` is torch's transpose; `x.t[i]` is `x.token[i]`."""
        return TokenIndexer(self)

    @property
    def token(self) -> TokenIndexer:
        """`x.token[i]`: of each sequence its token `i`, padding not counted; -1 is its last. See `TokenIndexer`."""
        return TokenIndexer(self)

    def backward(  # type: ignore[override]
        self, gradient: Any = None, retain_graph: bool | None = None, create_graph: bool = False, inputs: Any = None
    ) -> gradients.Backward:
        """torch's `backward`; what it returns can be entered (`with loss.backward():`) to change gradients on their
        way. The graph stays, unless `retain_graph=False`."""
        return gradients.Backward(self, gradient, retain_graph, create_graph, inputs)

    @property
    def grad(self) -> torch.Tensor | None:
        """The gradient of the last backward pass; within `with loss.backward():` also of tensors that are no leaves."""
        return gradients.gradient_of(self)

    @grad.setter
    def grad(self, value: Any) -> None:
        gradients.set_gradient(self, value)

    @grad.deleter
    def grad(self) -> None:
        gradients.set_gradient(self, None)

    def __deepcopy__(self, memo: dict[int, Any]) -> torch.Tensor:
        return plain(self).clone()

    def __reduce_ex__(self, protocol: Any) -> Any:
        return plain(self).detach().clone().__reduce_ex__(protocol)

    def __format__(self, form: str) -> str:
        return format(plain(self), form)

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return repr(plain(self).detach())


class NodeValue(TracedTensor, LiveTensor):
    """A value that a trace handed out: the user's own, whose changes in place count as edits of the trace."""

    _origin: tuple[Any, ...]

    @cached_property
    def pieces(self) -> Pieces:
        """What it was put together from; of a value of a single node found out when it is first asked for."""
        (watch, trace, padding, scope), node, *copied = self._origin
        parts = []
        if copied and (core := trace()) is not None:
            parts = [LivePart(copied[0], ..., core, node, copied[1])]
        return Pieces(parts, watch, padding, (scope, (node,), 0), None)

    @cached_property
    def _watcher(self) -> Any:
        """The trace that watches it, as `LiveTensor` has it."""
        return self._origin[0][1]

    def __setitem__(self, index: Any, value: Any) -> None:
        self.pieces.assign(self, index, value)

    def register_hook(self, hook: Callable[[torch.Tensor], torch.Tensor | None]) -> Any:  # type: ignore[override]
        """torch's `register_hook`, on the gradient of the node."""
        return self.pieces.register_hook(hook, self.shape) if self.pieces.parts else super().register_hook(hook)

    def retain_grad(self) -> None:
        """Nothing to do where there is a graph: values of a trace have their gradients after a backward pass."""
        if not self.pieces.parts and self.requires_grad and not self.is_leaf:
            super().retain_grad()


class Argument:
    """How a module's first argument is indexed and, with `whole`, its rows. In old notebooks `.input[0][0]` is the
    whole argument: an index that can't be one of the row is taken of that."""

    __slots__ = ()
    whole: Any = None
    row_kind: Any = None  # The class of rows, where it is another.

    def __getitem__(self: Any, index: Any) -> Any:
        if self._is_of_whole(index):
            return self.whole[index]
        found = super().__getitem__(index)  # type: ignore[misc]
        whole = self if self.whole is None else self.whole
        if type(index) is int and type(found) is not torch.Tensor and whole.ndim < found.ndim + 3:
            found.__class__ = self.row_kind or type(self)
            found.whole = whole
        return found

    def __setitem__(self: Any, index: Any, value: Any) -> None:
        if self._is_of_whole(index):
            self.whole[index] = value
        else:
            super().__setitem__(index, value)  # type: ignore[misc]

    def _is_of_whole(self: Any, index: Any) -> bool:
        return self.whole is not None and _is_too_long(index, self.ndim)


class InputRow(Argument, TracedTensor):
    """A row of a module's argument."""


class InputValue(Argument, NodeValue):
    """A module's first argument."""

    row_kind = InputRow


def _is_too_long(index: Any, n_axes: int) -> bool:
    entries = index if isinstance(index, tuple) else (index,)
    taken = sum(
        entry.ndim if isinstance(entry, torch.Tensor) and entry.dtype == torch.bool else 1
        for entry in entries
        if entry is not None and entry is not Ellipsis
    )
    return taken > n_axes


def traced(result: Any, given: Iterable[Any]) -> Any:
    """What was computed, its tensors with a trace's methods; those that were given stay as they are."""
    if type(result) is torch.Tensor:
        if not any(result is each for each in given):
            result.__class__ = TracedTensor
    elif isinstance(result, list | tuple):
        for each in result:
            traced(each, given)
    return result


class TokenIndexer:
    """`x.token[…]` of a tensor `batch pos …`: positions counted in each sequence's own tokens.

    An int gives `batch …`, a list or a slice `batch n …`. Reading and writing; what was read may be changed in place.
    Raises `InputError` for a token that a sequence hasn't, or tensors that have no tokens.
    """

    def __init__(self, tensor: TracedTensor) -> None:
        self._tensor = tensor
        whole = getattr(tensor, "whole", None)
        self._of: Any = tensor if whole is None else whole

    def __call__(self) -> torch.Tensor:
        return torch.t(self._tensor)

    def _counted(self) -> tuple[NodeValue | torch.Tensor, list[int]]:
        tensor = self._of
        pieces = getattr(tensor, "pieces", None)
        if pieces is None or pieces.padding is None:
            raise _core.InputError(
                "token counts the tokens of a value as a trace gave it (batch pos …); found a tensor that was computed "
                "from one: index it by position"
            )
        return tensor, pieces.padding

    def _places(self, index: Any) -> tuple[Any, bool]:
        """An index into the tensor, and whether it is one torch makes a view of."""
        tensor, padding = self._counted()
        return places_of_tokens(tensor.shape[1], padding, index)

    def __getitem__(self, index: Any) -> Any:
        tensor, _ = self._counted()
        places, is_view = self._places(index)
        found = tensor[places]
        if is_view or not isinstance(tensor, NodeValue) or tensor.pieces.watch is None:
            return found
        return follow(found, [_TokensOf(tensor, places)], tensor.pieces.watch)

    def __setitem__(self, index: Any, value: Any) -> None:
        tensor, _ = self._counted()
        places, is_view = self._places(index)
        parts = value.pieces.parts if isinstance(value, NodeValue) else ()
        if not is_view and any(isinstance(part, _TokensOf) and part.is_at(tensor, places) for part in parts):
            return  # It was changed in place, which counts already, and is put back: `x.t[0] += 1`.
        tensor[places] = value


def places_of_tokens(width: int, padding: Sequence[int], index: Any) -> tuple[Any, bool]:
    """Internal: the index of some tokens in a tensor `batch pos …` with so much padding before each sequence, and
    whether it is one torch makes a view of."""
    rows = [_tokens(index, width - before, row) for row, before in enumerate(padding)]
    if len({len(row) if isinstance(row, list) else -1 for row in rows}) > 1:
        counts = ", ".join(str(len(row)) for row in rows)
        raise _core.InputError(f"token[{index}]: the sequences have different numbers of these tokens: {counts}")
    if len(set(padding)) == 1 and isinstance(index, int):
        return (slice(None), rows[0] + padding[0]), True
    batch = torch.arange(len(rows))
    if isinstance(index, int):
        return (batch, torch.tensor([row + before for row, before in zip(rows, padding, strict=True)])), False
    places = [[token + before for token in row] for row, before in zip(rows, padding, strict=True)]
    return (batch[:, None], torch.tensor(places, dtype=torch.long)), False


def _tokens(index: Any, n_tokens: int, row: int) -> Any:
    if isinstance(index, slice):
        return list(range(*index.indices(n_tokens)))
    if hasattr(index, "tolist"):
        index = index.tolist()
    listed = list(index) if isinstance(index, list | tuple | range) else [index]
    if not all(type(token) is int for token in listed):
        raise _core.InputError(f"token[…] takes a number, a list of numbers or a slice; found {index!r}")
    for token in listed:
        if not -n_tokens <= token < n_tokens:
            raise _core.InputError(f"token {token}: sequence {row} has {n_tokens} tokens")
    counted = [token + n_tokens if token < 0 else token for token in listed]
    return counted[0] if isinstance(index, int) else counted


class Part:
    """Where a piece of a user's value comes from: the tensor that it was taken from and its place in the value."""

    def __init__(self, source: torch.Tensor, place: Any) -> None:
        self.source = source
        self.place = place

    def take(self, source: torch.Tensor) -> torch.Tensor:
        """The piece, from a tensor like the source."""
        return source

    def replace(self, numbers: torch.Tensor, mask: torch.Tensor | None) -> None:
        """Puts other numbers for the piece in place: all of them, or those where the mask is true."""
        raise NotImplementedError

    def off_path_gradient(self, loss: torch.Tensor) -> torch.Tensor | None:
        """The gradient of one number by a source that is not on the graph's way to it; None where it has none."""
        return None

    def replace_gradient(self, numbers: torch.Tensor, backward: gradients.Backward) -> None:
        """Puts numbers in the place of the piece's gradient in a backward pass."""
        backward.put(self.source, numbers.reshape(self.source.shape))


class LivePart(Part):
    """A part that is a live value of a trace."""

    def __init__(
        self, source: torch.Tensor, place: Any, core: _core.Trace, node: str, version: int | None = None
    ) -> None:
        super().__init__(source, place)
        self.core, self.node = core, node
        self.version = source._version if version is None else version

    def replace(self, numbers: torch.Tensor, mask: torch.Tensor | None) -> None:
        numbers = numbers.reshape(self.source.shape)
        make_live(self.source, self.core)
        if mask is not None:
            mask = mask.reshape(self.source.shape)
            LiveTensor.__setitem__(self.source, mask, numbers[mask])  # type: ignore[arg-type]
        elif not torch.equal(plain(self.source), numbers):
            if self.source._version != self.version:
                raise _core.StaleEditError(
                    "a value that was read before its node was changed through another one was changed in place: read "
                    "it again and change that (the change was dropped)"
                )
            with torch.set_grad_enabled(numbers.requires_grad or self.source.requires_grad):
                self.source.copy_(numbers)
            self.core.collect()
        self.version = self.source._version

    def replace_gradient(self, numbers: torch.Tensor, backward: gradients.Backward) -> None:
        if not backward.reaches(self.source):
            raise _core.OrderError(
                f"{self.node}: its gradient can't be replaced: the loss does not depend on it, or was computed by a "
                "fused step that passes over it; read the value before what comes after it"
            )
        super().replace_gradient(numbers, backward)

    def off_path_gradient(self, loss: torch.Tensor) -> torch.Tensor | None:
        # A node that a fused step passed over: the trace finds its gradient from that step's result.
        try:
            return self.core.grad(loss, [self.node])[0]
        except _core.InputError:
            return None


class _TokensOf(Part):
    """Some tokens of another value."""

    def __init__(self, source: NodeValue, places: Any) -> None:
        super().__init__(source, ...)
        self.places = places

    def take(self, source: torch.Tensor) -> torch.Tensor:
        return source[self.places]

    def replace(self, numbers: torch.Tensor, mask: torch.Tensor | None) -> None:
        source = self.source
        if mask is not None:
            source[self.places] = torch.where(mask, numbers, plain(source)[self.places])
        elif not torch.equal(plain(source)[self.places], numbers):
            with torch.set_grad_enabled(numbers.requires_grad or source.requires_grad):
                source.index_put_(self.places, numbers)  # In place: it belongs to what was there.
            if source.pieces.parts and source.pieces.watch is not None:
                source.pieces.watch.settle(source)
                source.pieces.push(source)

    def is_at(self, source: torch.Tensor, places: Any) -> bool:
        """Whether these are the tokens at some places of a value."""
        return self.source is source and all(map(torch.equal, self.places, places))

    def replace_gradient(self, numbers: torch.Tensor, backward: gradients.Backward) -> None:
        whole = backward.gradient(self.source)
        if whole is not None:
            whole[self.places] = numbers
            backward.replace(self.source, whole)


class Pieces:
    """How a user's value is put together from parts, and how its changes go back to them. Without parts the trace
    itself watches the value."""

    __slots__ = ("_watch", "guard", "padding", "parts", "place")

    def __init__(
        self, parts: Sequence[Part], watch: _core.Watch | None, padding: Sequence[int] | None, place: Any, guard: Any
    ) -> None:
        self.parts = parts
        self._watch = watch
        self.padding = padding
        self.place = place
        self.guard = guard

    @property
    def watch(self) -> _core.Watch | None:
        """What watches the value, while its trace is open."""
        return self._watch if self._watch is not None and self._watch.is_open else None

    def push(self, whole: torch.Tensor) -> None:
        """Hands the present numbers to the parts."""
        if self.guard is not None:
            self.guard.check()
        for part in self.parts:
            part.replace(plain(whole)[part.place], None)

    def assign(self, whole: NodeValue, index: Any, value: Any) -> None:
        """`whole[index] = value`: numbers that stand there from now on."""
        if self.guard is not None:
            self.guard.check()
        if not self.parts:
            LiveTensor.__setitem__(whole, index, value)
            return
        if self.watch is not None:
            self.watch.collect()
        torch.Tensor.__setitem__(whole, index, value)
        if self.watch is None:
            return
        self.watch.settle(whole)
        mask = torch.zeros(whole.shape, dtype=torch.bool, device=whole.device)
        mask[index] = True
        for part in self.parts:
            chosen = mask[part.place]
            if chosen.any():
                part.replace(plain(whole)[part.place], chosen)

    def gather(self, shape: Sequence[int], of: Callable[[torch.Tensor], torch.Tensor | None]) -> torch.Tensor | None:
        """What `of` gives for each part's source, put together as the value is; None where it gives nothing."""
        found = [gradients.whole_of(part.source, of) for part in self.parts]
        first = next((each for each in found if each is not None), None)
        if first is None:
            return None
        whole = torch.zeros(shape, dtype=first.dtype, device=first.device)
        for part, each in zip(self.parts, found, strict=True):
            if each is not None:
                whole[part.place] = part.take(each).reshape(whole[part.place].shape)
        return whole

    def register_hook(self, hook: Callable[[torch.Tensor], torch.Tensor | None], shape: Sequence[int]) -> Any:
        """A hook on the gradient of the one part there is."""
        if len(self.parts) > 1:
            raise _core.UnsupportedError("a gradient hook on a value that is made of several nodes or prompts")
        source = self.parts[0].source

        def run(gradient: torch.Tensor) -> torch.Tensor | None:
            made = hook(gradient.reshape(shape))
            return None if made is None else made.reshape(gradient.shape)

        return source.register_hook(run)


def follow(
    value: torch.Tensor,
    parts: Sequence[Part],
    watch: _core.Watch | None,
    kind: type[NodeValue] = NodeValue,
    padding: Sequence[int] | None = None,
    place: Any = None,
    guard: Any = None,
) -> NodeValue:
    """Makes a watched value of a fresh tensor that was put together from parts; without parts of a live one, which its
    trace watches."""
    value.__class__ = kind
    value.pieces = Pieces(parts, watch, padding, place, guard)  # type: ignore[attr-defined]
    if parts and watch is not None:
        watch.add(value)
    return value  # type: ignore[return-value]

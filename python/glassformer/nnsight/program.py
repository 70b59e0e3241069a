"""What an edit recorded: torch's operations on shapes, to be run again on values.

A program's steps stand in the order in which they were made. For each node that it writes, the steps that its value
depends on are run in a hook on that node, on the positions of one step of a run.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch

from glassformer import _core
from glassformer.nnsight.scan import dtype_of
from glassformer.nnsight.shapes import ShapeTensor, UnknownNumber, leaves, mapped, unknowns
from glassformer.nnsight.values import width_of

_RANDOM = ("rand", "dropout", "bernoulli", "normal", "uniform", "exponential", "multinomial", "poisson", "geometric")


@dataclass(frozen=True)
class StepSet:
    """Which steps of a run something belongs to: some numbers, or all from one on."""

    numbers: tuple[int, ...] = (0,)
    start: int | None = None
    stride: int = 1

    def has(self, step: int) -> bool:
        """Whether a step is one of them."""
        if self.start is None:
            return step in self.numbers
        return step >= self.start and (step - self.start) % self.stride == 0


@dataclass
class Step:
    """An operation: what it takes and gives, and which memory it looks at, makes and changes."""

    function: Any
    args: Any
    kwargs: Any
    found: Any
    reads: set[Any]
    makes: set[Any]
    changes: set[Any]
    with_graph: bool

    @property
    def is_random(self) -> bool:
        """Whether it may draw numbers."""
        name = getattr(self.function, "__name__", "")
        return name.endswith("(…)") or any(word in name for word in _RANDOM)


@dataclass(frozen=True)
class ReadNode:
    """A node's value, `n_before` writes of it by this program before; `steps` are those of the loop it stands in."""

    node: str
    n_before: int
    steps: StepSet

    def replay(self, context: Any) -> torch.Tensor:
        """The value."""
        return context.read(self)


@dataclass(frozen=True)
class ReadStep:
    """The number of the step."""

    steps: StepSet

    def replay(self, context: Any) -> int:
        """The number."""
        return context.step


@dataclass(frozen=True)
class ReadArgument:
    """What a module is given, where it shares that with others: what an earlier edit gives it, else what they have."""

    path: str

    def replay(self, context: Any, shared: torch.Tensor) -> torch.Tensor:
        """The value."""
        found = context.argument(self.path)
        return (shared if found is None else found).clone()


@dataclass(frozen=True)
class PutPiece:
    """The part of a written value that one of several nodes side by side takes."""

    nodes: tuple[str, ...]
    by_head: bool
    place: int

    def replay(self, context: Any, value: Any) -> torch.Tensor:
        """That part, as the node has it."""
        axes = [context.root.node_axes[node] for node in self.nodes]
        dtype = dtype_of(context.root, self.nodes[self.place])
        value = torch.as_tensor(value).to(device=context.device, dtype=dtype)
        shape = context.shape(self.nodes, self.by_head)
        try:
            whole = value.expand(shape)
        except RuntimeError:
            raise _core.ShapeError(
                f"an edit of {' + '.join(self.nodes)}: expected {shape}; found {list(value.shape)}"
            ) from None
        raw = context.shape((self.nodes[self.place],), True)
        if len(self.nodes) > 1:
            begin = sum(width_of(each) for each in axes[: self.place])
            whole = whole[..., begin : begin + width_of(axes[self.place])]
        return whole.reshape(raw).clone()


@dataclass
class Write:
    """A value that a node gets: the piece, and how many steps there were before."""

    piece: ShapeTensor
    position: int
    steps: StepSet


def key_of(value: Any) -> Any:
    """The memory in which a value stands; a number by itself."""
    return value.group if isinstance(value, ShapeTensor) else (id(value),)


def keys_of(value: Any) -> set[Any]:
    """The memory of all values among these."""
    return {key_of(each) for each in unknowns(value)}


@dataclass
class Program:
    """The steps of an edit, and what they write."""

    steps: list[Step] = field(default_factory=list)
    writes: dict[str, list[Write]] = field(default_factory=dict)
    calls: dict[str, tuple[int, StepSet]] = field(default_factory=dict)
    """By path of a module of the user's own: the step that called and watched it last, and at which of a run's."""
    arguments: dict[str, list[Write]] = field(default_factory=dict)
    """By path of a module that shares its argument with others: what it is given in their place."""
    _slices: dict[Any, list[int]] = field(default_factory=dict)

    def add(self, function: Any, args: Any, kwargs: Any, found: Any, changed: Iterable[ShapeTensor] = ()) -> None:
        """Notes an operation."""
        self.steps.append(
            Step(
                function,
                args,
                kwargs,
                found,
                keys_of((args, kwargs)),
                keys_of(found),
                {each.group for each in changed},
                torch.is_grad_enabled(),
            )
        )

    def last_write(self, node: str, step: int, n: int | None = None) -> Write | None:
        """The last write of a node at a step of a run, or of its first `n`."""
        return _last(self.writes.get(node, [])[:n], step)

    def argument(self, path: str, step: int) -> Write | None:
        """What a module is given in the place of what it shares with others."""
        return _last(self.arguments.get(path, []), step)

    def reads(self, value: Any, position: int) -> list[ReadNode | ReadStep]:
        """What a value is made from directly by the steps before `position`, not through earlier writes."""
        found = [self.steps[number].function for number in self._slice("", value, position, 0)]
        return [each for each in found if isinstance(each, ReadNode | ReadStep)]

    def made_at(self, position: int) -> Any:
        """One of the values that a step makes."""
        return next(each for each in leaves(self.steps[position].found) if isinstance(each, ShapeTensor))

    def needed(self, node: str, value: Any, position: int, step: int) -> list[int]:
        """The steps before `position` that `value` depends on, where it is made in a hook on `node`."""
        own = tuple(write.steps.has(step) for write in self.writes.get(node, []))
        place = (node, id(value), position, own)
        if place not in self._slices:
            self._slices[place] = self._slice(node, value, position, step)
        return self._slices[place]

    def _slice(self, node: str, value: Any, position: int, step: int) -> list[int]:
        needed, found = {key_of(value)}, []
        for number in range(position - 1, -1, -1):
            made = self.steps[number]
            if not (made.makes & needed or made.changes & needed):
                continue
            found.append(number)
            needed |= made.reads
            if isinstance(made.function, ReadNode) and made.function.node == node:
                before = self.last_write(node, step, made.function.n_before)
                if before is not None:
                    needed.add(key_of(before.piece))
        return found[::-1]

    def run(self, context: Any, numbers: Iterable[int]) -> dict[int, Any]:
        """Runs steps on values; gives these by what stood for them."""
        values: dict[int, Any] = {}
        context.values = values
        for number in numbers:
            step = self.steps[number]
            args, kwargs = mapped(step.args, context.value_of), mapped(step.kwargs, context.value_of)
            with_graph = step.with_graph and torch.is_grad_enabled() and not context.place.generates
            with torch.set_grad_enabled(with_graph), context.drawing(number, step):
                replay = getattr(step.function, "replay", None)
                found = step.function(*args, **kwargs) if replay is None else replay(context, *args, **kwargs)
            _bind(step.found, found, values)
        return values


def _last(writes: list[Write], step: int) -> Write | None:
    return next((write for write in reversed(writes) if write.steps.has(step)), None)


def _bind(stand_in: Any, found: Any, values: dict[int, Any]) -> None:
    if isinstance(stand_in, ShapeTensor | UnknownNumber):
        values[id(stand_in)] = found
    elif isinstance(stand_in, dict):
        for key, each in stand_in.items():
            if key in found:
                _bind(each, found[key], values)
    elif isinstance(stand_in, tuple | list):
        for each, value in zip(stand_in, found, strict=True):
            _bind(each, value, values)

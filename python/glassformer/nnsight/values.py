"""Reading and writing nodes of several runs as one tensor."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from glassformer import _core
from glassformer._arguments import tensor_of
from glassformer.live_tensor import make_live
from glassformer.nnsight.runs import Run
from glassformer.nnsight.tensors import LivePart, NodeValue, Part, follow, plain


class View(NamedTuple):
    """Nodes as a module shows them: heads flattened into the last axis, several nodes side by side along it; with
    `by_head` a single node as it is."""

    nodes: tuple[str, ...]
    by_head: bool = False
    last_only: bool = False  # Of each prompt the last position alone.


class Piece(NamedTuple):
    """A node of one run at one step, and its place in the whole."""

    run: Run
    node: str
    positions: list[int] | None
    place: Any
    shape: list[int]
    row_axis: int


class Layout:
    """How a view of some runs at one step is put together: prompts below each other, padded at the left."""

    def __init__(self, view: View, axes: dict[str, tuple[Any, ...]], runs: Sequence[tuple[Run, int]]) -> None:
        self.last_only = view.last_only
        self.width = max((self._length(run, step) for run, step in runs), default=0)
        kinds = [axes[node] for node in view.nodes]
        n_keys = max((_end(run, step) for run, step in runs), default=0)
        self.by_head = view.by_head
        self.pieces: list[Piece] = []
        self.padding: list[int] = []
        row = 0
        for run, step in runs:
            length, rows = self._length(run, step), slice(row, row + run.n_rows)
            row += run.n_rows
            if length > 0:
                self._add(run, step, rows, length, n_keys, zip(view.nodes, kinds, strict=True))
            padded = step == 0 and not self.last_only
            self.padding += [self.width - length + (before if padded else 0) for before in run.padding]
        self.shape = shape_of(axes, view.nodes, view.by_head, row, self.width, n_keys)

    def _length(self, run: Run, step: int) -> int:
        length = run.length(step)
        return min(length, 1) if self.last_only else length

    def _add(self, run: Run, step: int, rows: slice, length: int, n_keys: int, nodes: Any) -> None:
        positions = [run.steps[step][1] - 1] if self.last_only else run.positions(step)
        at = slice(self.width - length, self.width)
        column = 0
        for name, node in nodes:
            if "key_pos" in node.axes and "query_pos" in node.axes:
                n_own = _end(run, step)
                shape = [run.n_rows, node.sizes[1], length, n_own]
                place: Any = (rows, slice(None), at, slice(n_keys - n_own, n_keys))
            elif len(node.axes) == 2:
                shape, place = [run.n_rows, length], (rows, at)
            else:
                size = width_of(node)
                shape = [run.n_rows, length, *node.sizes[2:]]
                place = (rows, at) if self.by_head else (rows, at, slice(column, column + size))
                column += size
            row_axis = node.axes.index("query_pos") if "query_pos" in node.axes else 1
            self.pieces.append(Piece(run, name, positions, place, shape, row_axis))

    @property
    def is_single(self) -> bool:
        """Whether it is one node of one run, as the node has it."""
        (piece, *more) = self.pieces or [None]
        return piece is not None and not more and piece.shape == self.shape


def _end(run: Run, step: int) -> int:
    return run.steps[step][1] if step < len(run.steps) else 0


def width_of(node: Any) -> int:
    """The size of a node's features side by side."""
    return math.prod(node.sizes[2:])


def shape_of(
    axes: dict[str, Any], nodes: tuple[str, ...], by_head: bool, n_rows: int, length: int, n_keys: int
) -> list[int]:
    """The shape of nodes side by side (`by_head`: of a single one as it is), of so many rows, positions and keys."""
    first = axes[nodes[0]]
    if "query_pos" in first.axes:
        return [n_rows, first.sizes[1], length, n_keys]
    if by_head or len(first.axes) == 2:
        return [n_rows, length, *first.sizes[2:]]
    return [n_rows, length, sum(width_of(axes[node]) for node in nodes)]


def read(layout: Layout, watch: _core.Watch | None, kind: type[NodeValue], key: Any, guard: Any = None) -> NodeValue:
    """The value of a layout, watched if there is a watch; `guard` may refuse its changes. Runs that are read together
    are computed together."""
    if not layout.pieces:
        raise _core.UnavailableError("all sequences had ended before this step: there is nothing to read")
    _compute(layout)
    parts: list[Part] = []
    for piece in layout.pieces:
        core = piece.run.trace.core
        source = core.read(piece.node, piece.positions) if watch is None else core.hand_out(piece.node, piece.positions)
        if layout.is_single and not source.requires_grad and (guard is None or not guard.is_over):
            make_live(source, core)
            return follow(source, (), watch, kind, layout.padding, key, guard)
        parts.append(LivePart(source, piece.place, core, piece.node))
    first = plain(parts[0].source)
    if len(parts) == 1 and first.numel() == math.prod(layout.shape):
        whole = torch._lazy_clone(first).reshape(layout.shape)  # type: ignore[attr-defined]
        if whole._is_view():
            whole = first.reshape(layout.shape).clone()
        parts[0].place = ...
    else:
        whole = torch.zeros(layout.shape, dtype=first.dtype, device=first.device)
        for part in parts:
            target = whole[part.place]
            whole[part.place] = plain(part.source).reshape(target.shape)
    return follow(whole, parts, watch, kind, layout.padding, key, guard)


def _compute(layout: Layout) -> None:
    groups: dict[tuple[str, int], list[Piece]] = {}
    for piece in layout.pieces:
        groups.setdefault((piece.node, 0 if piece.positions is None else len(piece.positions)), []).append(piece)
    for (node, _), pieces in groups.items():
        cores = [piece.run.trace.core for piece in pieces if not piece.run.trace.requires_grad]
        if len(cores) > 1:
            listed = pieces[0].positions
            same = all(piece.positions == listed for piece in pieces)
            last = [-1] if listed is not None and len(listed) == 1 else None
            _core.read_all(cores, node, listed if same else last)


def write(layout: Layout, value: Any, derived: bool) -> None:
    """Puts numbers into the nodes of a layout: of its shape, or broadcast to it. `derived`: they were made from what is
    there, and belong to it."""
    given = tensor_of(value)
    given = plain(given) if isinstance(given, torch.Tensor) else given
    if layout.is_single and not derived:
        (piece,) = layout.pieces
        _set(piece, given)
        return
    try:
        whole = given.expand(layout.shape)
    except RuntimeError:
        raise _core.ShapeError(
            f"{' + '.join(dict.fromkeys(piece.node for piece in layout.pieces))}: expected {layout.shape}; found "
            f"{list(given.shape)}"
        ) from None
    for piece in layout.pieces:
        numbers = whole[piece.place].reshape(piece.shape)
        if derived:
            piece.run.trace.core.edit(piece.node, _put(piece, numbers))
        else:
            _set(piece, numbers)


def _set(piece: Piece, numbers: torch.Tensor) -> None:
    core = piece.run.trace.core
    if piece.positions is None:
        core.set(piece.node, numbers, None)
    else:
        core.set_at(piece.positions, piece.node, numbers)


def _put(piece: Piece, numbers: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    def change(now: torch.Tensor) -> torch.Tensor:
        given = numbers.to(now.dtype)
        if piece.positions is None:
            return given
        return now.index_copy(piece.row_axis, torch.tensor(piece.positions, device=now.device), given)

    return change

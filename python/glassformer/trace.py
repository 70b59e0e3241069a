"""Traces: a model on one input, evaluated lazily. Reading a node computes it and just what it needs; setting one makes
everything after it stale."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from glassformer import _core
from glassformer._arguments import (
    NodeName,
    Positions,
    Values,
    node_name,
    positions_list,
    region_index,
    tensor_of,
    token_rows,
)
from glassformer.live_tensor import make_live

if TYPE_CHECKING:
    from glassformer.model import Model

Hook: TypeAlias = Callable[[torch.Tensor, _core.HookCall], torch.Tensor | None]
"""A function of a node's value and where it is called; it returns the new value, or None after changes in place."""


class Trace:
    """A model on one prompt, or on several of equal length; made by `Model.trace` and `Model.trace_from`.

    `trace[name]` gives a node's value, whose changes in place count (see `LiveTensor`), and `trace[name] = value`
    replaces it; see `NodeName` for the ways to write a name. What `read` gives is the user's own copy: changing it
    changes no trace. In a `with` block the trace is as ever; at its end it collects what was changed and then watches
    no value any more.
    """

    def __init__(self, model: Model, core: _core.Trace):
        self.model = model
        self.core = core

    @property
    def batch(self) -> int:
        """How many sequences there are."""
        return self.core.batch

    @property
    def length(self) -> int:
        """How many positions (tokens) each sequence has, those of a past among them."""
        return self.core.length

    @property
    def begin(self) -> int:
        """The first position that is more than a past: 0 where there is none.

        Before it there are keys, rotated keys, values and inputs only; every other node has the positions from here on.
        """
        return self.core.begin

    @property
    def begin_node(self) -> str:
        """The node that the trace was given: "hook_tokens", or the one of `Model.trace_from`."""
        return self.core.begin_node

    @property
    def n_segments(self) -> int:
        """How many segments there are: the prompt, and one for each `append`."""
        return self.core.n_segments

    @property
    def tokens(self) -> torch.Tensor:
        """The token ids: `batch pos`, int64, from `begin` on. `UnavailableError` where the trace was given none."""
        return self.core.tokens()

    @property
    def str_tokens(self) -> list[str] | list[list[str]]:
        """The text of each token; a list for each sequence where there are several."""
        rows = [_pieces(self.model, row) for row in self.tokens.tolist()]
        return rows[0] if self.batch == 1 else rows

    def read(self, name: NodeName, positions: Positions | None = None) -> torch.Tensor:
        """The value of a node, whole or at some positions in the order given: its shape, with as many positions.

        Raises `NameError` for an unknown node, `InputError` for positions outside the trace, and `UnavailableError`
        for what a trace that begins at a node or with a past can't have.
        """
        return self.core.read(node_name(name), positions_list(positions, self.length))

    def __getitem__(self, name: NodeName) -> torch.Tensor:
        """The value of a node, as a `LiveTensor`: changing it in place edits the trace."""
        return make_live(self.core.hand_out(node_name(name)), self.core)

    def set(self, name: NodeName, value: Values, region: Any = None) -> None:
        """Puts numbers into a node, whole or in a region; they stand whatever changes before it.

        `region` is written as an index, one entry for each axis: `np.s_[:, :, 5]` (head 5 of `batch pos head d_head`),
        lists of indices (their product, not pairs), or a bool mask of the node's shape. `value` has the region's shape
        or broadcasts to it; an axis with a single index drops out of that shape, as in torch. Numbers that were there
        already change nothing.

        Raises `NameError`, `ShapeError`, or `InputError` for indices outside the node.
        """
        self.core.set(node_name(name), tensor_of(value), region_index(region))

    def __setitem__(self, name: NodeName, value: Values) -> None:
        self.set(name, value)

    def edit(self, name: NodeName, change: Callable[[torch.Tensor], torch.Tensor | None]) -> None:
        """Puts `change(value)` in the place of a node's present value; in-place changes count if it returns None.

        The edit belongs to that value: once another edit has changed what it was made from, reading raises
        `OrderError`, which names both. A `hook` has no such order.
        """
        self.core.edit(node_name(name), change)

    def hook(self, name: NodeName, function: Hook, segments: Iterable[int] | None = None) -> None:
        """Puts `function(value, call)` onto a node.

        It is called when a read first needs it, with a copy of the node's whole value in a segment (the prompt is
        segment 0, each `append` one more; `segments` picks some), and with `call.name`, `call.layer`, `call.segment`
        and the positions from `call.begin` to `call.end`. What it returns stands in the node; with None its argument
        does, changed in place or not. It is called once for each segment and input: never again for the same numbers,
        in forks neither. Inside it only earlier nodes of its trace can be read (`call.read`), and nothing of it edited
        (`OrderError`); one that reads some is called again when these change.
        """
        self.core.hook(node_name(name), function, _segments(segments))

    def run(self, until: NodeName = "logits") -> None:
        """Calls every hook on nodes up to `until`, needed or not, in computing order, and computes `until`."""
        self.core.run(node_name(until))

    def requires_grad_(self, requires_grad: bool = True) -> Trace:
        """Whether what is read from now on carries a graph (while torch's gradient mode is on): then `loss.backward()`
        and `torch.autograd.grad` work on it, and `x.grad` of any whole value that was read. Without this, values carry
        one where a weight, a value that was set, or what a hook returns requires grad. Returns the trace.

        With a graph, `read` gives the very tensor that later nodes are computed from, so that these work on it; only
        what `trace[name]` gave may be changed in place, as ever.
        """
        self.core.require_grad(requires_grad)
        return self

    @property
    def requires_grad(self) -> bool:
        """Whether `requires_grad_` was called."""
        return self.core.requires_grad

    def grad(self, scalar: Any, names: NodeName | list[NodeName]) -> Any:
        """The gradient of one number with respect to a node or weight, or a list of them, each in its own shape.

        `scalar` is a function of a trace that returns the number (it is called with a fork that requires grad), or a
        tensor with one number, made from values that this trace handed out with a graph. The graph stays, so `grad`
        can be called again. Nodes that were passed over by a fused step have gradients too.

        Raises `InputError` where the scalar has no graph, or does not depend on a node in this trace.
        """
        listed = list(names) if isinstance(names, list) else [names]
        core = self.core
        if callable(scalar):
            with torch.enable_grad():
                fork = self.fork().requires_grad_()
                scalar, core = scalar(fork), fork.core
        gradients = core.grad(tensor_of(scalar), [node_name(name) for name in listed])
        return gradients if isinstance(names, list) else gradients[0]

    def hook_gradient(self, name: NodeName, function: Hook) -> None:
        """Puts `function(gradient, call)` onto a node's gradient.

        In backward passes through what this trace hands out with a graph it is called with a copy of the gradient of
        the node's whole value; what it returns (or, with None, its argument) flows on to what lies before the node. It
        is an edit of this trace, which `unset` drops and forks made later have too.
        """
        self.core.hook_gradient(node_name(name), function)

    def __enter__(self) -> Trace:
        return self

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        self.core.let_go()

    def unset(self, name: NodeName) -> None:
        """Drops every edit and hook of a node."""
        self.core.unset(node_name(name))

    def fork(self, model: Model | None = None) -> Trace:
        """A second trace that shares everything computed, before and after; edits of one don't touch the other.

        With a `model` made from this trace's by `splice` or `extend` it is a trace of that model. Edits and hooks come
        along, and what was computed so far is there without being computed again, wherever the model computes it as
        before; what is computed afterwards isn't shared. A spliced autoencoder sees its node as it is here, edits
        included. Raises `InputError` for another model, or one that lacks a node that is edited here.
        """
        if model is None:
            return Trace(self.model, self.core.fork())
        return Trace(model, self.core.fork_onto(model.core))

    def past(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """The keys (before rotation) and values of every layer, `batch pos kv_head d_head`: what `Model.trace` takes as
        the `past` of another trace."""
        return self.core.past()

    def append(self, tokens: Any) -> None:
        """Adds tokens at the end: a text (without special tokens), a list of texts, or ids `pos` or `batch pos`; to a
        trace that begins at another node that node's values, `batch pos …`.

        What was computed stays; only the new positions are computed when read. Raises `InputError` for tokens outside
        the vocabulary or beyond the context, `ShapeError` for another number of sequences.
        """
        if self.begin_node != "hook_tokens":
            self.core.append(_values(self.begin_node, tokens))
            return
        rows = continued_rows(self.model, tokens)
        if len({len(row) for row in rows}) > 1:
            raise _core.ShapeError(
                "the sequences of a trace have equal length; found different numbers of tokens to append"
            )
        self.core.append(torch.stack(rows) if rows else torch.empty(0, dtype=torch.int64))

    def truncate(self, length: int) -> None:
        """Drops the positions from `length` on, with what edits say of them; forks keep theirs.

        Raises `InputError` for a length outside the trace, within a past, or within a prompt that came with a mask or
        positions.
        """
        self.core.truncate(operator.index(length))

    def at(self, positions: Positions) -> Window:
        """The same trace, read and edited at these positions only."""
        return Window(self, positions)

    @property
    def logits(self) -> torch.Tensor:
        """The logits at every position: `batch pos d_vocab`."""
        return self.read("logits")

    def logits_at(self, position: int) -> torch.Tensor:
        """The logits at one position: `batch d_vocab`; -1 is the last. Others cost nothing in the last layer."""
        return self.core.logits_at(position)

    def explain(self, name: NodeName) -> str:
        """How a node comes about in this trace: its shape, its step, and what of its inputs is computed or edited."""
        return self.core.explain(node_name(name))

    @property
    def edited(self) -> list[str]:
        """The names of the edited nodes, in computing order."""
        return self.core.edited()

    def work(self) -> dict[str, int]:
        """How many rows (batch times positions) of each node were computed for this trace and its forks."""
        return self.core.work()

    def reset_work(self) -> None:
        """Starts the count of `work` anew."""
        self.core.reset_work()

    def __repr__(self) -> str:
        start = f", past {self.begin}" if self.begin else ""
        if self.begin_node != "hook_tokens":
            start = f", from {self.begin_node}"
        edits = f", edited: {', '.join(self.edited)}" if self.edited else ""
        return f"Trace({self.model.name!r}, batch {self.batch}, length {self.length}{start}{edits})"


class Window:
    """Some positions of a trace; made by `Trace.at`. Values have as many positions as the window."""

    def __init__(self, trace: Trace, positions: Positions):
        self.trace = trace
        length = trace.length
        listed = positions_list(positions, length) or []
        self.positions = [position + length if position < 0 else position for position in listed]
        for position, given in zip(self.positions, listed, strict=True):
            if not 0 <= position < length:
                raise _core.InputError(f"position {given} is outside the trace's {length} positions")

    def read(self, name: NodeName) -> torch.Tensor:
        """The node's shape, with the window's positions."""
        return self.trace.read(name, self.positions)

    def __getitem__(self, name: NodeName) -> torch.Tensor:
        """The same as a `LiveTensor`: changing it in place edits the trace. Not for repeated or unsorted positions."""
        return make_live(self.trace.core.hand_out(node_name(name), self.positions), self.trace.core)

    def set(self, name: NodeName, value: Values) -> None:
        """Puts numbers into a node at the window's positions; `value` has their shape or broadcasts to it."""
        self.trace.core.set_at(self.positions, node_name(name), tensor_of(value))

    def __setitem__(self, name: NodeName, value: Values) -> None:
        self.set(name, value)

    def __repr__(self) -> str:
        return f"Window({self.trace!r}, positions {self.positions})"


class Batch:
    """Prompts of different lengths side by side, a trace each; made by `Model.trace`.

    Nothing is padded inside. What is read as one tensor has its positions filled up at the left with zeros (attention
    scores: -inf); `mask` says what is real.
    """

    def __init__(self, model: Model, core: _core.Batch):
        self.model = model
        self.core = core

    def __len__(self) -> int:
        return len(self.core)

    def __iter__(self) -> Iterator[Trace]:
        return iter(self.traces)

    @property
    def batch(self) -> int:
        """How many prompts there are."""
        return len(self.core)

    @property
    def length(self) -> int:
        """How many positions the longest has."""
        return self.core.length

    @property
    def traces(self) -> list[Trace]:
        """The trace of each prompt; edits of these are edits of the batch."""
        return [Trace(self.model, self.core.trace(index)) for index in range(len(self.core))]

    @property
    def mask(self) -> torch.Tensor:
        """True at real tokens: `batch pos`, on the model's device."""
        return self.core.mask()

    @property
    def tokens(self) -> torch.Tensor:
        """The token ids, zeros at padding: `batch pos`."""
        return self.read("hook_tokens")

    @property
    def str_tokens(self) -> list[list[str]]:
        """The text of each token of each prompt, without padding."""
        return [_pieces(self.model, trace.tokens[0].tolist()) for trace in self.traces]

    def read(self, name: NodeName) -> torch.Tensor:
        """A node of all prompts as one tensor, padded at the left."""
        return self.core.read(node_name(name))

    def __getitem__(self, name: NodeName) -> torch.Tensor:
        return self.read(name)

    def read_at(self, name: NodeName, position: int) -> torch.Tensor:
        """One position of each prompt, counted in its own tokens (-1: its last): the node's shape with one position."""
        return self.core.read_at(node_name(name), position)

    def set(self, name: NodeName, value: Values, region: Any = None) -> None:
        """Puts numbers into the padded node, as `Trace.set` does; what falls on padding is dropped."""
        self.core.set(node_name(name), tensor_of(value), region_index(region))

    def __setitem__(self, name: NodeName, value: Values) -> None:
        self.set(name, value)

    def hook(self, name: NodeName, function: Hook, segments: Iterable[int] | None = None) -> None:
        """Puts `function(value, call)` onto a node of all prompts, as `Trace.hook` does.

        It is called once for all of them, with the padded tensor; what it makes of padding is dropped. A trace of
        the batch that is read alone while the hook is still to be called raises `UnavailableError`.
        """
        self.core.hook(node_name(name), function, _segments(segments))

    def run(self, until: NodeName = "logits") -> None:
        """Calls every hook on nodes up to `until`, needed or not, in computing order, and computes `until`."""
        self.core.run(node_name(until))

    def unset(self, name: NodeName) -> None:
        """Drops every edit and hook of a node."""
        self.core.unset(node_name(name))

    def fork(self, model: Model | None = None) -> Batch:
        """A second batch that shares everything computed; of an extended `model` as `Trace.fork` has it."""
        if model is None:
            return Batch(self.model, self.core.fork())
        return Batch(model, self.core.fork_onto(model.core))

    def append(self, tokens: Sequence[Any]) -> None:
        """Adds tokens to each prompt: one text or list of ids for each."""
        rows = continued_rows(self.model, tokens)
        if len(rows) != len(self):
            raise _core.ShapeError(f"expected tokens for {len(self)} prompts; found {len(rows)}")
        for trace, row in zip(self.traces, rows, strict=True):
            trace.core.append(row)

    @property
    def logits(self) -> torch.Tensor:
        """The logits at every position, padded at the left: `batch pos d_vocab`."""
        return self.read("logits")

    def logits_at(self, position: int) -> torch.Tensor:
        """The logits at one position of each prompt, counted in its own tokens: `batch d_vocab`."""
        return self.core.logits_at(position)

    def __repr__(self) -> str:
        lengths = ", ".join(str(trace.length) for trace in self.traces)
        return f"Batch({self.model.name!r}, lengths {lengths})"


def read_all(traces: Iterable[Trace], name: NodeName, positions: Positions | None = None) -> list[torch.Tensor]:
    """The value of one node in many traces of one model, each as `Trace.read` gives it, computed together: what they
    share once, and the rest laid end to end. `traces` may be forks of a sweep or prompts of different lengths."""
    traces = list(traces)
    if isinstance(positions, slice) and len({trace.length for trace in traces}) > 1:
        raise _core.InputError("a slice of positions needs traces of equal length; give a list of positions")
    listed = positions_list(positions, traces[0].length if traces else 0)
    return _core.read_all([trace.core for trace in traces], node_name(name), listed)


def trace_of(
    model: Model, tokens: torch.Tensor, attention_mask: Any, positions: Any, keep: str, budget_bytes: int, past: Any
) -> Trace:
    """Internal: a trace on tokens `batch pos`."""
    mask, places = _rectangle(attention_mask), _rectangle(positions)
    layers = None if past is None else _past(past)
    return Trace(model, _core.Trace(model.core, tokens, mask, places, keep, budget_bytes, layers))


def trace_at(
    model: Model, node: NodeName, value: Values, attention_mask: Any, positions: Any, keep: str, budget_bytes: int
) -> Trace:
    """Internal: a trace that begins at a node."""
    mask, places = _rectangle(attention_mask), _rectangle(positions)
    name = model.node_name(node)
    return Trace(model, _core.Trace.from_node(model.core, name, _values(name, value), mask, places, keep, budget_bytes))


def batch_of(model: Model, rows: list[torch.Tensor], keep: str, budget_bytes: int) -> Batch:
    """Internal: a batch on sequences of different lengths, each `pos`."""
    return Batch(model, _core.Batch(model.core, rows, keep, budget_bytes))


def _segments(segments: Iterable[int] | None) -> list[int]:
    if segments is None:
        return []
    listed = [operator.index(segment) for segment in segments]
    if not listed or min(listed) < 0:
        raise _core.InputError(f"segments are numbers from 0 (the prompt), at least one of them; found {listed}")
    return listed


def _rectangle(given: Values | None) -> torch.Tensor | None:
    if given is None:
        return None
    tensor = tensor_of(given)
    return tensor[None] if tensor.ndim == 1 else tensor


def _values(node: str, given: Any) -> torch.Tensor:
    """Values of the node at which a trace begins."""
    is_text = isinstance(given, str) or (isinstance(given, list | tuple) and any(isinstance(one, str) for one in given))
    if is_text:
        raise _core.InputError(f"the trace begins at {node} and takes its values, no text")
    return tensor_of(given)


def _past(given: Any) -> list[tuple[torch.Tensor, torch.Tensor]]:
    layers = list(given)
    if any(not isinstance(layer, list | tuple) or len(layer) != 2 for layer in layers):
        raise _core.InputError("past is a list with (keys, values) of each layer, as `Trace.past` returns it")
    return [(tensor_of(keys), tensor_of(values)) for keys, values in layers]


def continued_rows(model: Model, tokens: Any) -> list[torch.Tensor]:
    """Internal: what follows something else, a row `pos` for each sequence; texts get no special tokens."""
    texts = [tokens] if isinstance(tokens, str) else tokens
    if isinstance(texts, list | tuple) and texts and all(isinstance(text, str) for text in texts):
        tokenizer = model.needed_tokenizer().core
        return [torch.tensor(tokenizer.encode(text, False), dtype=torch.int64) for text in texts]
    return token_rows(tokens)


def _pieces(model: Model, ids: list[int]) -> list[str]:
    return model.needed_tokenizer().core.decode_each(ids)

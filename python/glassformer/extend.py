"""Nodes of one's own: further nodes on a model, sparse autoencoders spliced into it, and models of nothing else."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from glassformer import _core
from glassformer._arguments import NodeName, dtype_of, node_name, tensor_of
from glassformer.live import tokenizer_of

if TYPE_CHECKING:
    from glassformer.model import Model


@dataclass(frozen=True)
class UpTo:
    """An input of which each position needs all positions up to its own; made by `up_to`."""

    node: NodeName


def up_to(node: NodeName) -> UpTo:
    """An input of which each position needs all positions up to its own, as attention does of keys and values."""
    return UpTo(node)


@dataclass(frozen=True)
class NewNode:
    """A node of one's own, for `Model.extend` and `define`.

    `axes` are "batch pos" and further words with their sizes: "batch pos head=4 d_head=16". `inputs` are nodes, by any
    of their names; each is read at the node's own position, or with `up_to(...)` at all positions up to it. `run` gets
    the inputs' values, each with all its axes, then the `weights` named, and returns the node's value. An input that is
    `up_to` has positions 0 to the last one asked for, and `run` gets `positions=`, an int64 tensor of those that it
    must return (not always all of them): for each it may use the positions up to it.

    `run` must be a pure function that treats each sequence and position by itself: which of them it is called with, and
    how many traces lie side by side as one batch, depends on what is read. Its arguments are its own copies. What it
    returns is turned into the model's dtype; another shape than the node's is a `ShapeError`. Its exceptions go through
    to whoever reads; it can't read its own trace (`OrderError`).
    """

    name: str
    inputs: NodeName | UpTo | Sequence[NodeName | UpTo]
    axes: str
    run: Callable[..., torch.Tensor]
    weights: str | Sequence[str] = ()


def define(
    nodes: Sequence[NewNode],
    *,
    d_vocab: int,
    n_ctx: int,
    weights: Mapping[str, Any] | None = None,
    name: str = "custom",
    tokenizer: Any = None,
    dtype: torch.dtype | str = torch.float32,
    device: torch.device | str = "cpu",
) -> Model:
    """A model of nothing but these nodes, in computing order, traced as any other.

    They read each other and the inputs `hook_tokens`, `positions` (int64) and `attention_mask` (bool), all `batch pos`.
    A node "logits" (`batch pos d_vocab=…`) is what `Trace.logits` and generation read. `weights` are turned into
    `dtype` and handed to the nodes that name them; integers stay integers.

    Raises `InputError` for names given twice, inputs that come later and axes without sizes; `NameError` for unknown
    inputs and weights.
    """
    from glassformer.model import Model

    chosen = tokenizer_of(tokenizer)
    core = _core.define(
        [_given(node) for node in nodes],
        _tensors(weights),
        d_vocab,
        n_ctx,
        name,
        None if chosen is None else chosen.core,
        dtype_of(dtype),
        torch.device(device),
    )
    return Model(core, chosen)


def extended(model: Model, nodes: Sequence[NewNode], weights: Mapping[str, Any] | None) -> _core.Model:
    """Internal: see `Model.extend`."""
    return _core.extended(model.core, [_given(node) for node in nodes], [], _tensors(weights))


def spliced(
    model: Model,
    node: NodeName,
    name: str,
    encode: Callable[[torch.Tensor], torch.Tensor],
    decode: Callable[[torch.Tensor], torch.Tensor],
    reads: NodeName | None,
    axes: str | None,
) -> _core.Model:
    """Internal: see `Model.splice`."""
    for role, function in (("encode", encode), ("decode", decode)):
        if not callable(function):
            raise TypeError(f"{role} is a function of a tensor; found {type(function).__name__}")
    given = (node_name(node), name, encode, decode, "" if reads is None else node_name(reads), axes or "")
    return _core.extended(model.core, [], [given], {})


def _given(node: NewNode) -> tuple[str, str, list[tuple[str, bool]], Any, list[str], str]:
    if not callable(node.run):
        raise TypeError(f"node '{node.name}': run is a function; found {type(node.run).__name__}")
    single = isinstance(node.inputs, str | UpTo) or any(isinstance(part, int) for part in node.inputs)
    inputs = [
        (node_name(given.node), True) if isinstance(given, UpTo) else (node_name(given), False)
        for given in ([node.inputs] if single else node.inputs)
    ]
    weights = [node.weights] if isinstance(node.weights, str) else list(node.weights)
    called = getattr(node.run, "__name__", type(node.run).__name__)
    return node.name, node.axes, inputs, node.run, weights, "run" if called == "<lambda>" else called


def _tensors(weights: Mapping[str, Any] | None) -> dict[str, torch.Tensor]:
    return {name: tensor_of(value) for name, value in (weights or {}).items()}

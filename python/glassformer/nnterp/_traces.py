"""What the functions of this package need of open traces beside the values of modules."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch

from glassformer import _core
from glassformer.nnsight import _open, values
from glassformer.nnsight.editing import EditTracer
from glassformer.nnsight.runs import Run
from glassformer.nnsight.tensors import NodeValue
from glassformer.nnsight.tracing import EngineScope
from glassformer.trace import read_all


class Branch(EngineScope):
    """A fork of an open trace: inside `with`, what is read and set of the model is the fork's. What forks have in
    common is computed once."""

    def __init__(self, tracer: Any) -> None:
        rows = [copy.copy(each) for each in tracer.rows]
        for each in rows:
            each.runs = [Run(run.trace.fork(), run.padding) for run in each.runs]
        super().__init__(tracer, tracer.model, rows)

    def read_nodes(
        self, nodes: tuple[str, ...], step: int, kind: type[NodeValue] = NodeValue, by_head: bool = False
    ) -> Any:
        """The value of nodes in the fork, watched; never the tracer's own."""
        self.tracer.collect()
        return values.read(self.layout(nodes, step, by_head), self.tracer.watch, kind, (id(self), nodes, step))

    def __enter__(self) -> Branch:
        self.tracer.collect()
        _open.enter(self)
        return self

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        _open.leave(self)
        if error is None:
            self.tracer.collect()


def next_token_probs(scopes: Sequence[EngineScope]) -> list[torch.Tensor]:
    """The probabilities of the token after each prompt, `batch d_vocab` for each scope, computed together and at the
    last positions only."""
    scopes[0].tracer.collect()
    traces = [[run.trace for run in scope.runs()] for scope in scopes]
    found = iter(read_all([trace for each in traces for trace in each], "logits", [-1]))
    return [torch.cat([next(found)[:, 0] for _ in each]).softmax(-1) for each in traces]


def is_at_the_end(scope: Any) -> bool:
    """Whether the present step of an engine's scope is the whole of what there is."""
    if not isinstance(scope, EngineScope) or scope.step > 0 or is_recorded(scope):
        return False
    return all(run.positions(0) is None for run in scope.runs())


def is_recorded(scope: Any) -> bool:
    """Whether it is that of an edit, which is recorded for later traces."""
    return isinstance(scope.tracer, EditTracer)


Tokens = int | Sequence[int] | Sequence[bool] | torch.Tensor | slice
"""Tokens of prompts: numbers, a mask, or a slice."""


def token_places(
    nn_model: Any, tokens: Tokens, batch: int | Sequence[int] | torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The index of tokens in a value of the open trace, `batch pos …`; they count each prompt's own tokens, from the
    end where they are negative.

    The tokens are the same in all prompts, unless prompts are given in `batch`: then the two are paired as torch does.
    A mask or a slice means these tokens of each prompt; where they are not as many in all, the index is flat.
    Raises `InputError` for prompts and tokens that aren't there, and `UnsupportedError` where no one knows them: in
    edits for later traces, and in modules that compute themselves.
    """
    scope = _open.needed(nn_model, "a token")
    if not isinstance(scope, EngineScope) or is_recorded(scope):
        raise _core.UnsupportedError("which positions are tokens is known in a trace of a LanguageModel only")
    columns = _columns(scope)
    rows = torch.arange(len(columns)) if batch is None else prompt_numbers(batch, len(columns))
    if isinstance(tokens, slice) or is_mask(tokens):
        found = [_chosen(columns[row], tokens, row) for row in rows.flatten().tolist()]
        counts = torch.tensor([len(each) for each in found])
        lines = rows.flatten().repeat_interleave(counts)
        flat = torch.tensor([place for each in found for place in each], dtype=torch.int64)
        shape = [*rows.shape, -1] if len(flat) > 0 and len(set(counts.tolist())) == 1 else [-1]
        return lines.reshape(shape), flat.reshape(shape)
    wanted = _numbers(tokens, "tokens")
    if batch is None:
        rows = rows.reshape(-1, *[1] * wanted.ndim)
    rows, wanted = torch.broadcast_tensors(rows, wanted)
    places = []
    for row, token in zip(rows.flatten().tolist(), wanted.flatten().tolist(), strict=True):
        if not -len(columns[row]) <= token < len(columns[row]):
            raise _core.InputError(f"token {token}: prompt {row} has {len(columns[row])} tokens")
        places.append(columns[row][token])
    return rows, torch.tensor(places, dtype=torch.int64).reshape(wanted.shape)


def prompt_numbers(batch: int | Sequence[int] | torch.Tensor | slice, n_prompts: int) -> torch.Tensor:
    """Prompts of a trace as an index of tensors. `InputError` for what is none of its prompts."""
    if isinstance(batch, slice):
        return torch.arange(n_prompts)[batch]
    if is_mask(batch):
        return torch.tensor(_chosen(list(range(n_prompts)), batch), dtype=torch.int64)
    numbers = _numbers(batch, "prompts")
    for number in numbers.flatten().tolist():
        if not -n_prompts <= number < n_prompts:
            raise _core.InputError(f"prompt {number}: the trace has {n_prompts}")
    return numbers


def is_mask(chosen: Any) -> bool:
    """Whether an index says of each whether it is meant."""
    if isinstance(chosen, torch.Tensor):
        return chosen.dtype == torch.bool
    return isinstance(chosen, Sequence) and len(chosen) > 0 and all(isinstance(each, bool) for each in chosen)


def _chosen(listed: list[int], chosen: Any, prompt: int | None = None) -> list[int]:
    """Those that a slice or a mask names."""
    if isinstance(chosen, slice):
        return listed[chosen]
    flags = torch.as_tensor(chosen).flatten().tolist()
    if len(flags) != len(listed):
        there = (
            f"the trace has {len(listed)} prompts" if prompt is None else f"prompt {prompt} has {len(listed)} tokens"
        )
        raise _core.InputError(f"a mask of {len(flags)}: {there}")
    return [each for each, is_meant in zip(listed, flags, strict=True) if is_meant]


def _numbers(given: Any, what: str) -> torch.Tensor:
    try:
        found = torch.as_tensor(given)
    except (TypeError, ValueError, RuntimeError):
        found = None
    if found is None or found.is_floating_point() or found.is_complex() or found.dtype == torch.bool:
        raise _core.InputError(f"{what}: expected whole numbers, a mask or a slice; found {given!r}")
    return found.long()


def _columns(scope: EngineScope) -> list[list[int]]:
    """Where each prompt's own tokens are in a value of the present step."""
    width = max(run.length(scope.step) for run in scope.runs())
    columns: list[list[int]] = []
    for run in scope.runs():
        begin, end = run.steps[scope.step] if scope.step < len(run.steps) else (0, 0)
        mask = run.trace.read("attention_mask")[:, begin:end]
        columns += [[width - (end - begin) + place for place in row.nonzero()[:, 0].tolist()] for row in mask]
    return columns

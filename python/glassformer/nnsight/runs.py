"""What an invoke runs on: its prompts' traces, and the steps of their generation."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from glassformer import _core
from glassformer.generation import Sampler
from glassformer.nnsight.tensors import follow
from glassformer.trace import Trace, trace_of


@dataclass(slots=True)
class Prompts:
    """The input of an invoke: token ids of each sequence, without padding, or `whole`, all of them as one tensor; for
    padded input as it was given, `padded` (batch pos) and its mask beside them. `labels` (batch pos) as transformers
    takes them."""

    sequences: list[torch.Tensor] | None = None
    whole: torch.Tensor | None = None
    padded: torch.Tensor | None = None
    mask: torch.Tensor | None = None
    positions: torch.Tensor | None = None
    labels: torch.Tensor | None = None

    @property
    def rows(self) -> list[torch.Tensor]:
        """The token ids of each sequence."""
        if self.sequences is None:
            assert self.whole is not None
            self.sequences = list(self.whole.clone())  # The user may change what was given.
        return self.sequences

    def __len__(self) -> int:
        return len(self.rows) if self.whole is None else self.whole.shape[0]


@dataclass(frozen=True)
class GenerationOptions:
    """How a generation chooses tokens and when it ends."""

    max_new_tokens: int
    sampler: Sampler = field(default_factory=Sampler)
    seed: int | None = None
    stop_tokens: list[int] | None = None
    stop_strings: list[str] = field(default_factory=list)
    pad_token: int | None = None
    min_new_tokens: int = 0


class Run:
    """A trace of some sequences of an invoke, and the positions of each step."""

    def __init__(self, trace: Trace, padding: Sequence[int]) -> None:
        self.trace = trace
        self.padding = list(padding)
        self.steps = [(0, trace.core.length)]

    @property
    def n_rows(self) -> int:
        """How many sequences there are."""
        return self.trace.batch

    def positions(self, step: int) -> list[int] | None:
        """The positions of a step; None where they are all that there are."""
        begin, end = self.steps[step]
        return None if (begin, end) == (0, self.trace.length) else list(range(begin, end))

    def length(self, step: int) -> int:
        """How many positions a step has; 0 for a sequence that had ended before."""
        return self.steps[step][1] - self.steps[step][0] if step < len(self.steps) else 0


class Rows:
    """The runs of one invoke."""

    def __init__(self, model: Any, prompts: Prompts, options: GenerationOptions | None, with_graph: bool) -> None:
        self.prompts, self.options = prompts, options
        self.runs = _runs(model, prompts, options is not None)
        self.stopped = False
        self._generation: Any = None
        if with_graph:
            for run in self.runs:
                run.trace.core.require_grad(True)
        if options is not None:
            cores = [run.trace.core for run in self.runs]
            self._generation = _core.Generation(
                cores,
                options.max_new_tokens,
                options.sampler.core(),
                options.seed,
                options.stop_tokens,
                options.stop_strings,
                [],
                [],
                options.min_new_tokens,
            )
            self._cores = cores  # The generation points at them.
        self.reached = 0

    def go_to(self, step: int) -> bool:
        """Generates as far as a step; False where the run ends before it."""
        while self.reached < step:
            if not self._draw():
                return False
        return True

    def _draw(self) -> bool:
        if self._generation is None or self.stopped or self._generation.done():
            return False
        before = [run.trace.length for run in self.runs]
        self._generation.step()
        if self._generation.done():
            self._warn_of_context()
            return False
        self._generation.begin_step()
        self.reached += 1
        for run, begin in zip(self.runs, before, strict=True):
            if run.trace.length > begin:
                run.steps.append((begin, run.trace.length))
        return True

    def _warn_of_context(self) -> None:
        assert self.options is not None
        cut = [len(found.ids) for found in self._generation.results() if found.finish == "context"]
        if cut:
            warnings.warn(
                f"the generation ended at the end of the model's context, after {min(cut)} new tokens of "
                f"max_new_tokens={self.options.max_new_tokens}: give a shorter prompt or ask for fewer",
                stacklevel=2,
            )

    def drawn(self) -> list[list[int]]:
        """The new tokens of each sequence so far."""
        return [list(found.ids) for found in self._generation.results()]

    def finish(self) -> None:
        """Generates to the end, unless it was stopped."""
        while self._draw():
            pass


def _runs(model: Any, prompts: Prompts, one_by_one: bool) -> list[Run]:
    padded, mask = prompts.padded, prompts.mask
    equal = prompts.whole is not None or len({len(row) for row in prompts.rows}) == 1
    if not one_by_one and padded is not None:
        assert mask is not None
        padding = [int(row.shape[0] - row.sum()) if bool(row[-1]) else 0 for row in mask]
        whole = trace_of(model, padded, mask, prompts.positions, "budget", 0, None)
        return [Run(whole, padding)]
    if not one_by_one and equal:
        ids = torch.stack(prompts.rows) if prompts.whole is None else prompts.whole
        trace = Trace(model, _core.Trace(model.core, ids, positions=prompts.positions))
        return [Run(trace, [0] * len(prompts))]
    return [Run(trace_of(model, row[None], None, None, "budget", 0, None), [0]) for row in prompts.rows]


class Guard:
    """Refuses changes of values whose step of a generation is over. It keeps nothing of the trace."""

    def __init__(self, tracer: Any, rows: Sequence[Rows], step: int) -> None:
        self._tracer = weakref.ref(tracer)
        self._rows = [weakref.ref(each) for each in rows]
        self._step = step

    @property
    def is_over(self) -> bool:
        """Whether tokens were drawn from the step."""
        return any(rows is not None and rows.reached > self._step for rows in (each() for each in self._rows))

    def check(self) -> None:
        """Raises `OrderError` where the step is over."""
        tracer = self._tracer()
        if tracer is not None and tracer.is_open and self.is_over:
            raise step_is_over(self._step)


def step_is_over(step: int) -> _core.OrderError:
    """The error for a change of a step that tokens were drawn from."""
    return _core.OrderError(
        f"step {step} of the generation can't be changed any more: later tokens were drawn from it; change it before "
        "the next step begins"
    )


def generated_ids(rows: list[Rows], model: Any) -> Any:
    """Prompts and what was generated behind them: `batch pos`, padded at the left before and at the right behind."""
    texts: list[tuple[list[int], list[int]]] = []
    behind_pad = 0
    for each in rows:
        each.finish()
        assert each.options is not None
        behind_pad = each.options.pad_token or 0
        texts += zip([row.tolist() for row in each.prompts.rows], each.drawn(), strict=True)
    before_pad = getattr(model.tokenizer, "pad_token_id", None)
    before_pad = behind_pad if before_pad is None else before_pad
    before, behind = (max(len(text[side]) for text in texts) for side in (0, 1))
    padded = [
        [before_pad] * (before - len(prompt)) + prompt + new + [behind_pad] * (behind - len(new))
        for prompt, new in texts
    ]
    return follow(torch.tensor(padded, dtype=torch.int64, device=model.engine.device), (), None)

"""Generation: token by token, for several prompts of different lengths at once, with values set at chosen steps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from glassformer import _core
from glassformer._arguments import NodeName, node_name, tensor_of
from glassformer.trace import Hook, Trace, trace_of

if TYPE_CHECKING:
    from glassformer.model import Model


@dataclass(frozen=True)
class StepEdit:
    """Numbers put into a node while generating.

    At step 0 the node's positions are the prompt's; at each later step there is one, the new token's. `region` is an
    index as in `Trace.set` (positions whole, or a list of them counted within the step); `steps` are the steps at which
    it is set, all where it is None. `value` must broadcast to the region.
    """

    node: NodeName
    value: Any
    region: Any = None
    steps: Sequence[int] | None = None


@dataclass(frozen=True)
class StepHook:
    """A function put onto a node while generating.

    `function(value, call)` is called for each prompt by itself at the given `steps` (all where it is None), with the
    node's value at the step's positions: the prompt's at step 0, the one new token's later. See `Trace.hook`.
    """

    node: NodeName
    function: Hook
    steps: Sequence[int] | None = None


@dataclass(frozen=True)
class Generated:
    """What a model wrote after one prompt.

    `ids` are the new tokens, with the one that ended the text; `text` is what they say; `finish` tells why it ended:
    "stop token", "stop string", "length" or "context". `trace` holds the prompt and the new tokens but the last, ready
    to be read.
    """

    prompt_ids: list[int]
    ids: list[int]
    text: str | None
    finish: str
    trace: Trace = field(repr=False)

    def __str__(self) -> str:
        return self.text if self.text is not None else str(self.ids)


@dataclass(frozen=True)
class Sampler:
    """How the next token is chosen: the most likely one, or with `sample=True` one drawn at random.

    `order="transformers"` applies repetition penalty, frequency penalty, temperature, top_k, top_p, min_p;
    `order="transformer_lens"` applies repetition penalty, temperature, frequency penalty, then top_k, or top_p where
    there is no top_k. With torch's own generator (no `seed`), `torch.manual_seed` gives the tokens that the system of
    that name gives.
    """

    sample: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    order: str = "transformers"

    def core(self) -> _core.SamplerOptions:
        """The same for the compiled module; `InputError` for a value outside its range."""
        return _core.SamplerOptions(**self.__dict__)


class GenerationRun:
    """A generation under way: iterating gives each step's new ids, one a prompt, None for those that had ended."""

    def __init__(self, model: Model, traces: list[Trace], core: _core.Generation, prompts: list[list[int]]):
        self.model = model
        self.traces = traces
        self._core = core
        self._prompts = prompts

    def __iter__(self) -> Iterator[list[int | None]]:
        while not self._core.done():
            yield [None if token < 0 else token for token in self._core.step()]

    def results(self) -> list[Generated]:
        """What there is so far, prompt by prompt."""
        tokenizer = self.model.tokenizer
        return [
            Generated(prompt, found.ids, tokenizer.decode(found.ids) if tokenizer else None, found.finish, trace)
            for prompt, found, trace in zip(self._prompts, self._core.results(), self.traces, strict=True)
        ]


def start_generation(
    model: Model,
    prompts: list[torch.Tensor],
    max_new_tokens: int,
    sampler: Sampler,
    seed: int | None,
    stop_tokens: Sequence[int] | None,
    stop: Sequence[str],
    edits: Sequence[StepEdit],
    hooks: Sequence[StepHook],
) -> GenerationRun:
    """A run over prompts given as token ids; see `Model.generate`."""
    traces = [trace_of(model, ids.reshape(1, -1), None, None, "budget", 0, None) for ids in prompts]
    made = [
        (node_name(edit.node), tensor_of(edit.value), edit.region, [] if edit.steps is None else list(edit.steps))
        for edit in edits
    ]
    core = _core.Generation(
        [trace.core for trace in traces],
        max_new_tokens,
        sampler.core(),
        seed,
        None if stop_tokens is None else list(stop_tokens),
        [stop] if isinstance(stop, str) else list(stop),
        made,
        [(node_name(hook.node), hook.function, [] if hook.steps is None else list(hook.steps)) for hook in hooks],
    )
    return GenerationRun(model, traces, core, [ids.tolist() for ids in prompts])

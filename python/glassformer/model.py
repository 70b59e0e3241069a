"""Models: their config, nodes and weights, and the way to a trace."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from glassformer import _core
from glassformer._arguments import (
    NodeName,
    Values,
    conversion,
    device_of,
    dtype_of,
    node_name,
    tensor_of,
    token_rows,
)
from glassformer.extend import NewNode, extended, spliced
from glassformer.generation import Generated, GenerationRun, Sampler, StepEdit, StepHook, start_generation
from glassformer.live import is_live, open_live, tokenizer_of
from glassformer.tokenizer import Tokenizer
from glassformer.trace import Batch, Trace, batch_of, continued_rows, trace_at, trace_of


@dataclass(frozen=True)
class Node:
    """A named activation of a model.

    `axes` has a word for each axis ("batch", "pos", "head", "d_head"); `sizes` their lengths, None where the input
    decides.
    """

    name: str
    axes: tuple[str, ...]
    sizes: tuple[int | None, ...]

    @property
    def shape(self) -> str:
        """The axes and known sizes as text: "batch pos head=12 d_head=64"."""
        parts = zip(self.axes, self.sizes, strict=True)
        return " ".join(word if size is None or word == str(size) else f"{word}={size}" for word, size in parts)

    def __str__(self) -> str:
        return f"{self.name}  {self.shape}"


class NodeList(list[Node]):
    """Nodes in computing order; printed as a table."""

    def __repr__(self) -> str:
        width = max((len(node.name) for node in self), default=0)
        return "\n".join(f"{node.name:<{width}}  {node.shape}" for node in self)


class Weights(Mapping[str, torch.Tensor]):
    """The weights of a model by name ("blocks.0.attn.q.weight"), outputs first; each is loaded when first asked for.

    They are the very tensors that the model computes with. Change them in place (`weights[name][0] = 0`, `mul_`, an
    optimiser's step under `torch.no_grad`), or put other numbers into them (`weights[name] = numbers`): the next read
    of every trace computes again what depends on them, and nothing else. The file that they came from never changes,
    and a weight is never loaded again. What torch does not count (writes through `.data`, `.numpy()` or a pointer)
    takes `Model.weights_changed`. Change them between reads: during one, in a hook or another thread, it mixes old and
    new, and the read raises `OrderError`.

    Of a live `transformers` model they are detached aliases of its parameters: the same storage, so that changes in
    place of either count here, but `requires_grad` and `grad` of their own. A parameter that is replaced (`.data = …`,
    `load_state_dict(assign=True)`, `.to(…)`) is not followed, nor is anything where `load` had to change dtype or
    device, which copies. Tied weights are one tensor. An unknown name raises `NameError` with the nearest ones.
    """

    def __init__(self, core: _core.Model):
        self._core = core
        self._names = core.weight_names()

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._core.weight(name)

    def __setitem__(self, name: str, value: Values) -> None:
        """Puts numbers into a weight, in place: of its shape, or one number for all of it. Raises `ShapeError`."""
        weight, numbers = self[name], tensor_of(value)
        if numbers.ndim > 0 and numbers.shape != weight.shape:
            raise _core.ShapeError(f"weight '{name}': expected shape {list(weight.shape)}; found {list(numbers.shape)}")
        if numbers.is_complex():
            raise _core.InputError(f"weight '{name}': expected real numbers; found {numbers.dtype}")
        if numbers is weight:  # After `weights[name] *= 2`.
            return
        shared = numbers.untyped_storage().data_ptr() == weight.untyped_storage().data_ptr()
        with torch.no_grad():
            weight.copy_(numbers.clone() if shared else numbers)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __repr__(self) -> str:
        return f"Weights({len(self)} tensors: {', '.join(self._names[:3])}, …)"


class Model:
    """A model ready to be traced; made by `load`. Edits live in traces; what can change here are the `weights`."""

    def __init__(self, core: _core.Model, tokenizer: Tokenizer | None = None, name: str | None = None):
        self.core = core
        self._tokenizer = tokenizer
        self._name = name
        self._weights = Weights(core)

    @property
    def name(self) -> str:
        """The name of the file, folder or architecture that the model came from."""
        return self._name or self.core.name

    @property
    def config(self) -> _core.ModelConfig:
        """Sizes and switches: `n_layers`, `n_heads`, `d_model`, `d_vocab`, `n_ctx`, …"""
        return self.core.config

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer that came with the model, or None."""
        return self._tokenizer

    def needed_tokenizer(self) -> Tokenizer:
        """`tokenizer`; InputError where the model came without one, UnsupportedError where that is of an unsupported
        kind.
        """
        if self._tokenizer is None:
            self.core.require_tokenizer()
        return self._tokenizer

    @property
    def dtype(self) -> torch.dtype:
        """The type that the model computes in."""
        return self.core.dtype

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return self.core.device

    @property
    def n_parameters(self) -> int:
        """The number of parameters; tensors that serve twice are counted once."""
        return self.core.n_parameters()

    @property
    def weights(self) -> Weights:
        """The weights by name; they may be changed in place."""
        return self._weights

    def weights_changed(self) -> None:
        """Tells this model's traces that weights were changed in a way that torch does not count: through `.data`,
        `.numpy()` or a pointer. All other changes in place count by themselves."""
        self.core.weights_changed()

    def requires_grad_(self, requires_grad: bool = True) -> Model:
        """Sets `requires_grad` of all weights, loading them. Returns this model.

        A live model's own parameters keep theirs: see `Weights`.
        """
        for weight in self.weights.values():
            weight.requires_grad_(requires_grad)
        return self

    def to(
        self,
        *targets: torch.dtype | torch.device | str,
        dtype: torch.dtype | str | None = None,
        device: torch.device | str | None = None,
    ) -> Model:
        """This model in another dtype or on another device: `to("cpu")`, `to(torch.float64)`, `to(dtype=…, device=…)`.

        A new model with the weights as they are now, changed ones too; where nothing differs, this model itself. What
        is changed afterwards in one of the two doesn't reach the other, nor does a live model that this one follows.
        Traces stay with the model that they were made of. Weights are turned from this model's dtype into the new one,
        whatever their file holds.

        Raises `UnsupportedError` for a dtype that no model runs in or a device that is not there.
        """
        to_dtype, to_device = conversion(targets, dtype, device)
        core = self.core.to(to_dtype or self.dtype, to_device or self.device)
        return self if core is self.core else Model(core, self._tokenizer, self._name)

    def nodes(self) -> NodeList:
        """All nodes in computing order."""
        return NodeList(
            Node(name, tuple(words.split()), tuple(size or None for size in sizes))
            for name, words, sizes in self.core.nodes()
        )

    def node_name(self, name: NodeName) -> str:
        """The full name of a node given in any form: ("z", 3) -> "blocks.3.attn.hook_z"; `NameError` otherwise."""
        return self.core.node_name(node_name(name))

    def to_ids(self, text: str) -> list[int]:
        """The token ids of a text, with the special tokens that the model's tokenizer puts around it."""
        return self.needed_tokenizer().core.encode(text)

    def trace(
        self,
        prompt: Any,
        attention_mask: Any = None,
        positions: Any = None,
        keep: str = "budget",
        budget_bytes: int = 0,
        past: Any = None,
    ) -> Trace | Batch:
        """Starts a trace of one prompt or several; nothing is computed yet.

        `prompt` is a text, a list of texts, or token ids: a list, nested lists, an array or a tensor, `pos` or
        `batch pos`. Prompts of equal length make one `Trace`; of different lengths a `Batch`. `attention_mask`
        (`batch key_pos`, 0 at padding) and `positions` (`batch pos`, position ids) are for prompts of equal length.
        A mask `batch query_pos key_pos` says for each query which keys it sees, in the place of order and windows; what
        is appended sees every key before it that some query saw.
        `keep` says which values stay in memory: "budget" (all that fits `budget_bytes`; 0 means the larger of 64 MB and
        a quarter of the weights), "all" or "needed"; it never changes a result.

        `past` is what comes before the prompt (a text then gets no special tokens): a list with (keys, values) of each
        layer, `batch past_pos kv_head d_head`, keys before rotation, as `Trace.past` returns it: the nodes
        `attn.hook_k` and `attn.hook_v`, or what comes out of their norm or bounds where a model has such. Positions
        count over past and prompt; `attention_mask` and `positions` cover both. Of the past's own positions there are
        only these and inputs: reading anything else there raises `UnavailableError` (see `Trace.begin`).

        Raises `InputError` for an empty prompt, tokens outside the vocabulary, or more than `config.n_ctx` of them.
        """
        rows = self._rows(prompt) if past is None else continued_rows(self, prompt)
        if not rows:
            raise _core.InputError("no prompts")
        if len({len(row) for row in rows}) == 1:
            return trace_of(self, torch.stack(rows), attention_mask, positions, keep, budget_bytes, past)
        if attention_mask is not None or positions is not None or past is not None:
            lengths = ", ".join(str(len(row)) for row in rows)
            raise _core.InputError(
                f"attention_mask, positions and past need prompts of equal length; found {lengths} tokens"
            )
        return batch_of(self, rows, keep, budget_bytes)

    def trace_from(
        self,
        node: NodeName,
        value: Values,
        attention_mask: Any = None,
        positions: Any = None,
        keep: str = "budget",
        budget_bytes: int = 0,
    ) -> Trace:
        """Starts a trace at a node with an axis `pos`, such as "resid_pre3" or "hook_embed", on its value: `batch pos
        …`, or without `batch` for one sequence.

        The value can be read, set and hooked like that of any node, and `Trace.append` takes more of it. What can't be
        computed from it and the positions (tokens, earlier nodes) is unavailable: `UnavailableError`. Positions count
        from 0; the other arguments are those of `trace`.

        Raises `NameError` for an unknown node, `ShapeError` for a value of another shape, and `InputError` for a node
        without positions, tokens in place of values, or more than `config.n_ctx` positions.
        """
        return trace_at(self, node, value, attention_mask, positions, keep, budget_bytes)

    def extend(self, nodes: Sequence[NewNode], weights: Mapping[str, Any] | None = None) -> Model:
        """This model with nodes of one's own (a probe's output, say) and further `weights` for them, by name.

        Nodes may read those before them in the list. Each stands right behind its last input in computing order. This
        model stays as it is; the new one shares its weights. See `NewNode`.

        Raises `InputError` for names that mean a node already, inputs that come later, axes without sizes, and
        `NameError` for unknown inputs and weights.
        """
        return Model(extended(self, nodes, weights), self._tokenizer, self._name)

    def splice(
        self,
        node: NodeName,
        name: str,
        encode: Callable[[torch.Tensor], torch.Tensor],
        decode: Callable[[torch.Tensor], torch.Tensor],
        *,
        reads: NodeName | None = None,
        axes: str | None = None,
    ) -> Model:
        """This model with a sparse autoencoder on a node, or a transcoder where another node is encoded (`reads`).

        There are four new nodes: `<name>.hook_in` is what the node was computed as; `<name>.hook_acts` the features,
        `encode` of it; `<name>.hook_recon` what `decode` makes of the features; `<name>.hook_error` what the
        reconstruction of the unedited features lacks. The node itself, which everything after it reads, is recon +
        error where features, reconstruction or error are edited, from the first edited position on; everywhere else it
        is `<name>.hook_in`, bit for bit, and nothing of the autoencoder runs unless it is read. Setting the error to 0
        puts the reconstruction in the node's place.

        `encode` and `decode` are pure functions of a tensor, `batch pos …`, as modules are: see `NewNode`. They are
        called once now, on zeros at one position, to learn the features' shape; `axes` ("batch pos feature=512") says
        it beforehand. This model stays as it is; the new one shares its weights, and can be spliced on.

        Raises `NameError` for an unknown node, `InputError` for one without positions, a name that is taken, or
        `reads` after the node, and `ShapeError` where `decode` doesn't give the node's shape.
        """
        return Model(spliced(self, node, name, encode, decode, reads, axes), self._tokenizer, self._name)

    def generate(self, prompt: Any, max_new_tokens: int = 20, **options: Any) -> Generated | list[Generated]:
        """Continues a prompt, or several of any lengths at once; a list gives a list.

        Options: those of `Sampler` (`sample`, `temperature`, `top_k`, `top_p`, `min_p`, `frequency_penalty`,
        `repetition_penalty`, `order`); `seed` (of a generator of its own); `stop_tokens` (ids; the model's end of text
        where it isn't given); `stop` (texts that end the answer); `edits` and `hooks` (lists of `StepEdit` and
        `StepHook`). Without `sample` the most likely token is taken each time.

        Raises `InputError` for an empty prompt or an option outside its range.
        """
        run = self.generate_stream(prompt, max_new_tokens, **options)
        for _ in run:
            pass
        results = run.results()
        return results if _is_many(prompt) else results[0]

    def generate_stream(
        self,
        prompt: Any,
        max_new_tokens: int = 20,
        *,
        seed: int | None = None,
        stop_tokens: Sequence[int] | None = None,
        stop: Sequence[str] = (),
        edits: Sequence[StepEdit] = (),
        hooks: Sequence[StepHook] = (),
        **sampler: Any,
    ) -> GenerationRun:
        """The same, step by step: iterating gives the new ids of each step; `results()` what there is so far."""
        rows = self._rows(prompt)
        return start_generation(self, rows, max_new_tokens, Sampler(**sampler), seed, stop_tokens, stop, edits, hooks)

    def _rows(self, prompt: Any) -> list[torch.Tensor]:
        if isinstance(prompt, str):
            return token_rows(self.to_ids(prompt))
        if isinstance(prompt, list | tuple) and prompt and all(isinstance(text, str) for text in prompt):
            return [torch.tensor(self.to_ids(text), dtype=torch.int64) for text in prompt]
        return token_rows(prompt)

    def __repr__(self) -> str:
        config = self.config
        ending = f"{self.n_parameters:,} parameters, {str(self.dtype)[6:]}, {self.device})"
        if config.d_model == 0:  # Made by `define`.
            return f"Model({self.name!r}, {len(self.nodes())} nodes, {ending}"
        return (
            f"Model({self.name!r}, {config.architecture}, {config.n_layers} layers, {config.n_heads} heads, "
            f"d_model {config.d_model}, {ending}"
        )


def load(
    source: Any,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    tokenizer: Any = None,
) -> Model:
    """Opens a model: a folder, a GGUF file, the name of a model in the local Hugging Face cache, or a live
    `transformers` model.

    `dtype` (float32, float64, bfloat16 or float16; a torch dtype or its name) is what weights are turned into and used
    in: float32 for files and a live model's own where it isn't given. `device` is the CPU for files and a live model's
    own by default. Weights of a live model are used in place and follow it, see `Weights`; a change of dtype or device
    copies them. `tokenizer` (glassformer's, a fast one of `transformers`, or a path) replaces the one in the files. A
    model whose own tokenizer is of a kind that is not supported comes without one: it takes token ids.

    Raises `FileError` where there is no such model or it is damaged, `UnsupportedError` for an unknown architecture, a
    dtype that no model runs in or a device that is not there.
    """
    chosen = tokenizer_of(tokenizer)
    if is_live(source):
        name = os.path.basename(getattr(source.config, "_name_or_path", "") or "")
        return Model(open_live(source, chosen, dtype, device), chosen, name or None)
    if not isinstance(source, str | os.PathLike):
        raise TypeError(f"load takes a path, a name or a live transformers model; found {type(source).__name__}")
    path = os.fspath(source)
    wanted = torch.float32 if dtype is None else dtype_of(dtype)
    to = device_of("cpu" if device is None else device)
    core = _core.Model.load(path, wanted, to, None if chosen is None else chosen.core)
    return Model(core, chosen or own_tokenizer(core))


def _is_many(prompt: Any) -> bool:
    if isinstance(prompt, torch.Tensor) or hasattr(prompt, "ndim"):
        return prompt.ndim > 1
    return isinstance(prompt, list | tuple) and len(prompt) > 0 and not isinstance(prompt[0], int)


def own_tokenizer(core: _core.Model) -> Tokenizer | None:
    """The tokenizer that came with a core's model, or None."""
    if core.tokenizer is None:
        return None
    config = _text(os.path.join(core.path, "tokenizer_config.json"))
    return Tokenizer(core.tokenizer, config=json.loads(config) if config else None, name_or_path=core.path)


def _text(path: str) -> str:
    if not os.path.isfile(path):
        return ""
    with open(path, encoding="utf-8") as file:
        return file.read()

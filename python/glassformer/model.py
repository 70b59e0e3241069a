"""Models: their config, nodes and weights, and the way to a trace."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from glassformer import _core
from glassformer._arguments import NodeName, dtype_of, node_name, token_rows
from glassformer.extend import NewNode, extended, spliced
from glassformer.generation import Generated, GenerationRun, Sampler, StepEdit, StepHook, start_generation
from glassformer.live import is_live, open_live, tokenizer_of
from glassformer.tokenizer import Tokenizer
from glassformer.trace import Batch, Trace, batch_of, trace_of


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

    They are the tensors that the model computes with: don't change them in place. An unknown name raises `NameError`
    with the nearest ones.
    """

    def __init__(self, core: _core.Model):
        self._core = core
        self._names = core.weight_names()

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._core.weight(name)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __repr__(self) -> str:
        return f"Weights({len(self)} tensors: {', '.join(self._names[:3])}, …)"


class Model:
    """A model ready to be traced; made by `load`. It never changes: edits live in traces."""

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
        """The weights by name."""
        return self._weights

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
        if self._tokenizer is None:
            raise _core.InputError(f"model '{self.name}' came without a tokenizer; give token ids instead of text")
        return self._tokenizer.core.encode(text)

    def trace(
        self,
        prompt: Any,
        attention_mask: Any = None,
        positions: Any = None,
        keep: str = "budget",
        budget_bytes: int = 0,
    ) -> Trace | Batch:
        """Starts a trace of one prompt or several; nothing is computed yet.

        `prompt` is a text, a list of texts, or token ids: a list, nested lists, an array or a tensor, `pos` or
        `batch pos`. Prompts of equal length make one `Trace`; of different lengths a `Batch`. `attention_mask`
        (`batch key_pos`, 0 at padding) and `positions` (`batch pos`, position ids) are for prompts of equal length.
        `keep` says which values stay in memory: "budget" (all that fits `budget_bytes`; 0 means the larger of 64 MB and
        a quarter of the weights), "all" or "needed"; it never changes a result.

        Raises `InputError` for an empty prompt, tokens outside the vocabulary, or more than `config.n_ctx` of them.
        """
        rows = self._rows(prompt)
        if not rows:
            raise _core.InputError("no prompts")
        if len({len(row) for row in rows}) == 1:
            return trace_of(self, torch.stack(rows), attention_mask, positions, keep, budget_bytes)
        if attention_mask is not None or positions is not None:
            lengths = ", ".join(str(len(row)) for row in rows)
            raise _core.InputError(f"attention_mask and positions need prompts of equal length; found {lengths} tokens")
        return batch_of(self, rows, keep, budget_bytes)

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
    `transformers` model, whose weights are used in place.

    `dtype` (float32, float64, bfloat16 or float16; a torch dtype or its name) is what weights are turned into and used
    in: float32 for files and a live model's own where it isn't given. `device` is the CPU for files and a live model's
    own by default. `tokenizer` (glassformer's, a fast one of `transformers`, or a path) replaces the one in the files.

    Raises `FileError` where there is no such model or it is damaged, `UnsupportedError` for an unknown architecture.
    """
    chosen = tokenizer_of(tokenizer)
    if is_live(source):
        name = os.path.basename(getattr(source.config, "_name_or_path", "") or "")
        return Model(open_live(source, chosen, dtype, device), chosen, name or None)
    if not isinstance(source, str | os.PathLike):
        raise TypeError(f"load takes a path, a name or a live transformers model; found {type(source).__name__}")
    path = os.fspath(source)
    wanted = torch.float32 if dtype is None else dtype_of(dtype)
    core = _core.Model.load(path, wanted, torch.device("cpu" if device is None else device))
    return Model(core, chosen or _own_tokenizer(core))


def _is_many(prompt: Any) -> bool:
    if isinstance(prompt, torch.Tensor) or hasattr(prompt, "ndim"):
        return prompt.ndim > 1
    return isinstance(prompt, list | tuple) and len(prompt) > 0 and not isinstance(prompt[0], int)


def _own_tokenizer(core: _core.Model) -> Tokenizer | None:
    if core.tokenizer is None:
        return None
    config = _text(os.path.join(core.path, "tokenizer_config.json"))
    return Tokenizer(core.tokenizer, config=json.loads(config) if config else None, name_or_path=core.path)


def _text(path: str) -> str:
    if not os.path.isfile(path):
        return ""
    with open(path, encoding="utf-8") as file:
        return file.read()

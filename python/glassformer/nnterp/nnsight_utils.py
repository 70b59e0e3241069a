"""What is asked of a model and of its traces, by functions that work on any `LanguageModel`, renamed or not."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

import torch

from glassformer import _core
from glassformer.nnsight import _open
from glassformer.nnterp._traces import is_at_the_end, next_token_probs, token_places
from glassformer.nnterp.module_accessor import ModuleAccessor
from glassformer.nnterp.names import RenamingError, find_module, get_rename_dict

__all__ = [
    "GetModuleOutput",
    "ModuleAccessor",
    "collect_last_token_activations_session",
    "collect_token_activations_batched",
    "compute_next_token_probs",
    "get_attention",
    "get_attention_output",
    "get_embed_tokens",
    "get_layer",
    "get_layer_input",
    "get_layer_output",
    "get_layers",
    "get_logits",
    "get_mlp",
    "get_mlp_output",
    "get_next_token_probs",
    "get_num_layers",
    "get_token_activations",
    "get_unembed",
    "get_unembed_norm",
    "project_on_vocab",
    "set_layer_output",
    "unpack_tuple",
]

GetModuleOutput: TypeAlias = Callable[[Any, int], torch.Tensor]
"""A function of a model and a layer that gives a value of the open trace, `batch pos d_model`."""


def unpack_tuple(tensor_or_tuple: Any) -> torch.Tensor:
    """The tensor itself, or the first one of a tuple."""
    return tensor_or_tuple[0] if isinstance(tensor_or_tuple, tuple) else tensor_or_tuple


def _standard(module: Any, name: str) -> Any:
    found = find_module(module, name, get_rename_dict())
    if found is None:
        raise RenamingError(f"{getattr(module, 'path', type(module).__name__)} has no module that is known as '{name}'")
    return found


def get_embed_tokens(model: Any) -> Any:
    """The embedding of tokens, as a module of the model."""
    return _standard(model, "embed_tokens")


def get_layers(model: Any) -> Any:
    """The blocks, as a module of the model."""
    return _standard(model, "layers")


def get_num_layers(nn_model: Any) -> int:
    """How many blocks there are."""
    return len(get_layers(nn_model))


def get_layer(nn_model: Any, layer: int) -> Any:
    """A block."""
    return get_layers(nn_model)[layer]


def get_layer_input(nn_model: Any, layer: int) -> torch.Tensor:
    """In a trace, the residual stream before a block: `batch pos d_model`."""
    return get_layer(nn_model, layer).input


def get_layer_output(nn_model: Any, layer: int) -> torch.Tensor:
    """In a trace, the residual stream after a block: `batch pos d_model`."""
    return unpack_tuple(get_layer(nn_model, layer).output)


def get_attention(nn_model: Any, layer: int) -> Any:
    """The attention of a block."""
    return _standard(get_layer(nn_model, layer), "self_attn")


def get_attention_output(nn_model: Any, layer: int) -> torch.Tensor:
    """In a trace, what a block's attention gives: `batch pos d_model`."""
    return unpack_tuple(get_attention(nn_model, layer).output)


def get_mlp(nn_model: Any, layer: int) -> Any:
    """The MLP of a block."""
    return _standard(get_layer(nn_model, layer), "mlp")


def get_mlp_output(nn_model: Any, layer: int) -> torch.Tensor:
    """In a trace, what a block's MLP gives: `batch pos d_model`."""
    return unpack_tuple(get_mlp(nn_model, layer).output)


def get_logits(nn_model: Any) -> torch.Tensor:
    """In a trace, the logits: `batch pos d_vocab`."""
    return nn_model.output.logits


def get_unembed_norm(nn_model: Any) -> Any:
    """The norm before the unembedding."""
    return _standard(nn_model, "ln_final")


def get_unembed(nn_model: Any) -> Any:
    """The unembedding."""
    return _standard(nn_model, "lm_head")


def project_on_vocab(nn_model: Any, h: torch.Tensor) -> torch.Tensor:
    """The logits of a residual stream, `… d_model`, as if it were the last: `… d_vocab`."""
    return get_unembed(nn_model)(get_unembed_norm(nn_model)(h))


def get_next_token_probs(nn_model: Any) -> torch.Tensor:
    """In a trace, the probabilities of the next token: `batch d_vocab`."""
    scope: Any = _open.needed(nn_model, "the next token")
    if is_at_the_end(scope) and not torch.is_grad_enabled():
        return next_token_probs([scope])[0]
    return get_logits(nn_model)[:, -1].softmax(-1)


@torch.no_grad()
def compute_next_token_probs(nn_model: Any, prompt: str | list[str], remote: bool = False) -> torch.Tensor:
    """The probabilities of the next token of each prompt, `batch d_vocab`, on the CPU."""
    with nn_model.trace(prompt, remote=remote):
        probs = get_next_token_probs(nn_model).cpu()
    return probs


def set_layer_output(nn_model: Any, layer: int, tensor: torch.Tensor) -> None:
    """In a trace, puts a tensor in the place of the residual stream after a block."""
    block = get_layer(nn_model, layer)
    output = block.output
    block.output = (tensor, *output[1:]) if isinstance(output, tuple) else tensor


@torch.no_grad()
def get_token_activations(
    nn_model: Any,
    prompts: str | Sequence[str] | None = None,
    layers: Sequence[int] | None = None,
    get_activations: GetModuleOutput | None = None,
    remote: bool = False,
    idx: int | None = None,
    tracer: Any = None,
) -> torch.Tensor:
    """What stands at one token of each prompt at each layer: `layer batch d_model`; the residual stream after the
    block, or what `get_activations(model, layer)` gives.

    `idx` counts each prompt's own tokens, from the end where it is negative; without it it is the last. With a `tracer`
    that is open the values are read there, else in a trace of `prompts`, and are on the CPU then.

    Raises `InputError` without prompts and tracer, and for a token that a prompt hasn't.
    """
    if tracer is None and prompts is None:
        raise _core.InputError("give prompts, or the tracer of an open trace")
    if tracer is None:
        with nn_model.trace(_listed(prompts), remote=remote) as opened:
            found = get_token_activations(nn_model, None, layers, get_activations, idx=idx, tracer=opened).cpu()
        return found
    get_activations = get_activations or get_layer_output
    chosen = range(get_num_layers(nn_model)) if layers is None else layers
    places = token_places(nn_model, -1 if idx is None else idx)
    return torch.stack([get_activations(nn_model, layer)[places] for layer in chosen])


def at_least_one(batch_size: int) -> int:
    """Internal: a number of prompts to run at a time. `InputError` for less than one."""
    if batch_size < 1:
        raise _core.InputError(f"batch_size is {batch_size}; expected 1 or more")
    return batch_size


def _listed(prompts: Any) -> Any:
    return list(prompts) if isinstance(prompts, tuple) else prompts


@torch.no_grad()
def collect_last_token_activations_session(
    nn_model: Any,
    prompts: Sequence[str],
    batch_size: int,
    layers: Sequence[int] | None = None,
    get_activations: GetModuleOutput | None = None,
    remote: bool = False,
    idx: int | None = None,
) -> torch.Tensor:
    """`collect_token_activations_batched` in one session."""
    with nn_model.session(remote=remote):
        found = collect_token_activations_batched(nn_model, prompts, batch_size, layers, get_activations, idx=idx)
    return found


@torch.no_grad()
def collect_token_activations_batched(
    nn_model: Any,
    prompts: Sequence[str],
    batch_size: int,
    layers: Sequence[int] | None = None,
    get_activations: GetModuleOutput | None = None,
    remote: bool = False,
    idx: int | None = None,
    tqdm: Callable[..., Iterable[int]] | None = None,
    use_session: bool = True,
) -> torch.Tensor:
    """`get_token_activations` of many prompts, `batch_size` at a time: `layer batch d_model`, on the CPU.

    `tqdm` (`tqdm.auto.tqdm`, say) shows how far it is. `use_session` makes no difference.
    """
    if not prompts:
        raise _core.InputError("no prompts")
    starts: Iterable[int] = range(0, len(prompts), at_least_one(batch_size))
    if tqdm is not None:
        starts = tqdm(starts)
    found = [
        get_token_activations(nn_model, list(prompts[start : start + batch_size]), layers, get_activations, remote, idx)
        for start in starts
    ]
    return torch.cat(found, dim=1)

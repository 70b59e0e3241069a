"""The logit lens, patchscopes, and attention to the tokens of another prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from glassformer import _core
from glassformer.nnterp._traces import Branch, next_token_probs, token_places
from glassformer.nnterp.nnsight_utils import (
    get_attention,
    get_layer_output,
    get_num_layers,
    get_token_activations,
    get_unembed,
    get_unembed_norm,
)
from glassformer.nnterp.target_prompts import TargetPrompt, TargetPromptBatch, it_repeat_prompt, repeat_prompt

__all__ = [
    "TargetPrompt",
    "TargetPromptBatch",
    "it_repeat_prompt",
    "logit_lens",
    "patch_object_attn_lens",
    "patchscope_generate",
    "patchscope_lens",
    "repeat_prompt",
]


@torch.no_grad()
def logit_lens(
    nn_model: Any, prompts: list[str] | str, remote: bool = False, return_inv_logits: bool = False
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """What each layer would predict after each prompt, if it were the last: probabilities `batch layer d_vocab`, on the
    CPU.

    With `return_inv_logits` a second such tensor, of the negative of what the last norm makes of the streams.
    """
    with nn_model.trace(prompts, remote=remote) as tracer:
        streams = get_token_activations(nn_model, tracer=tracer).transpose(0, 1)
        normed = get_unembed_norm(nn_model)(streams)
        probs = get_unembed(nn_model)(normed).softmax(-1).cpu()
        if return_inv_logits:
            return probs, get_unembed(nn_model)(-normed).softmax(-1).cpu()
    return probs


@torch.no_grad()
def patchscope_lens(
    nn_model: Any,
    source_prompts: list[str] | str | None = None,
    target_patch_prompts: TargetPromptBatch | list[TargetPrompt] | TargetPrompt | None = None,
    layers: int | list[int] | None = None,
    latents: torch.Tensor | Sequence[torch.Tensor] | None = None,
    remote: bool = False,
) -> torch.Tensor:
    """What a prompt predicts when one of its tokens has the residual stream of another prompt's last token, after each
    layer in turn: probabilities `batch layer d_vocab`, on the CPU.

    The streams are those of the `source_prompts` at `layers` (all without it), or given as `latents` of these or of all
    layers, `layer batch d_model`. Each goes to one target prompt; a single one is taken for all, and without it
    `repeat_prompt()`. Indices count each target's own tokens.

    Raises `InputError` for both or none of prompts and latents, other numbers of layers or targets, and indices that a
    target has no token at.
    """
    if (source_prompts is None) == (latents is None):
        raise _core.InputError("give either source_prompts or latents")
    chosen = (
        list(range(get_num_layers(nn_model))) if layers is None else [layers] if isinstance(layers, int) else layers
    )
    if latents is None:
        sources = [source_prompts] if isinstance(source_prompts, str) else source_prompts
        latents = get_token_activations(nn_model, sources, chosen, remote=remote)
    elif len(latents) == get_num_layers(nn_model):
        latents = [latents[layer] for layer in chosen]
    if len(latents) != len(chosen):
        raise _core.InputError(
            f"latents of {len(latents)} layers for {len(chosen)} layers to patch; expected as many, or those of all"
        )
    n_sources = len(latents[0])
    targets = TargetPromptBatch.auto(target_patch_prompts or repeat_prompt(), n_sources)
    if len(targets) != n_sources:
        raise _core.InputError(f"{n_sources} sources and {len(targets)} target prompts; expected as many, or one")
    with nn_model.trace(targets.prompts, remote=remote) as tracer:
        places = token_places(nn_model, targets.index_to_patch, torch.arange(n_sources))
        branches = []
        for layer, streams in zip(chosen, latents, strict=True):
            with Branch(tracer) as branch:
                stream = get_layer_output(nn_model, layer)
                stream[places] = streams.to(stream)
            branches.append(branch)
        return torch.stack(next_token_probs(branches), dim=1).cpu()


@torch.no_grad()
def patchscope_generate(
    nn_model: Any,
    prompts: list[str] | str,
    target_patch_prompt: TargetPrompt,
    max_length: int = 50,
    layers: Sequence[int] | None = None,
    remote: bool = False,
    max_batch_size: int = 32,
) -> dict[int, torch.Tensor]:
    """What a model goes on with after a prompt, one of whose tokens has the residual stream of each prompt's last token
    after a layer: for each of `layers` (all without it) the ids, prompt and at most `max_length` new ones, `batch pos`,
    on the CPU.

    `max_batch_size`: about how many sequences are generated side by side.
    """
    sources = [prompts] if isinstance(prompts, str) else prompts
    chosen = list(range(get_num_layers(nn_model)) if layers is None else layers)
    latents = dict(zip(chosen, get_token_activations(nn_model, sources, chosen, remote=remote), strict=True))
    at_once = max(max_batch_size // len(sources), 1)
    found = {}
    for start in range(0, len(chosen), at_once):
        with nn_model.generate(max_new_tokens=max_length, remote=remote) as tracer:
            for layer in chosen[start : start + at_once]:
                with tracer.invoke([target_patch_prompt.prompt] * len(sources)):
                    places = token_places(nn_model, target_patch_prompt.index_to_patch)
                    stream = get_layer_output(nn_model, layer)
                    stream[places] = latents[layer].to(stream)
                    found[layer] = tracer.result.cpu()
    return found


@torch.no_grad()
def patch_object_attn_lens(
    nn_model: Any,
    source_prompts: list[str] | str,
    target_prompts: list[str] | str,
    attn_idx_patch: int,
    num_patches: int = 5,
    layers: Sequence[int] | None = None,
) -> torch.Tensor:
    """What each target prompt predicts when attention, from each of `layers` on (all without it) in `num_patches`
    layers, finds at one of its tokens what it finds at the last token of the source prompt: probabilities `batch layer
    d_vocab`, on the CPU.

    There are as many source prompts as targets, or one. `attn_idx_patch` counts each target's own tokens.
    """
    sources, targets = ([given] if isinstance(given, str) else given for given in (source_prompts, target_prompts))
    if len(sources) not in (1, len(targets)):
        raise _core.InputError(
            f"{len(sources)} source and {len(targets)} target prompts; expected as many, or one source"
        )

    def attention_input(model: Any, layer: int) -> torch.Tensor:
        return get_attention(model, layer).input

    n_layers = get_num_layers(nn_model)
    latents = get_token_activations(nn_model, sources, get_activations=attention_input)
    with nn_model.trace(targets) as tracer:
        places = token_places(nn_model, attn_idx_patch)
        branches = []
        for first in range(n_layers) if layers is None else layers:
            with Branch(tracer) as branch:
                for layer in range(first, min(n_layers, first + num_patches)):
                    heard = attention_input(nn_model, layer)
                    heard[places] = latents[layer].to(heard)
            branches.append(branch)
        return torch.stack(next_token_probs(branches), dim=1).cpu()

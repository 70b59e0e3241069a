"""The activations of a run, and what can be read from them: TransformerLens' names for the core's arithmetic."""

from __future__ import annotations

import difflib
import logging
from collections import Counter
from collections.abc import ItemsView, Iterator, KeysView, ValuesView
from typing import Any, Literal

import numpy as np
import torch

from glassformer import _core
from glassformer.transformer_lens.components.norms import KINDS
from glassformer.transformer_lens.components.transformer_block import has_norms_only_behind
from glassformer.transformer_lens.HookedRootModule import is_of_experts
from glassformer.transformer_lens.utilities.components_utils import get_act_name
from glassformer.transformer_lens.utilities.devices import warn_if_mps
from glassformer.transformer_lens.utilities.slice import Slice, SliceInput

_CENTERING = ("LN", "LNPre")
_MODES = ("all", "mlp", "attn")

Labelled = torch.Tensor | tuple[torch.Tensor, list[str]]


class ActivationCache:
    """The activations of one run of `model` by name, as `run_with_cache` gives them.

    `model` has TransformerLens' names: `cfg`, `blocks`, `ln_final`, `tokens_to_residual_directions`. Gradients flow
    through everything that is computed here. "... " in a shape is `batch pos`, without batch after `remove_batch_dim`,
    without pos where `pos_slice` is a number. A `pos_slice` or `neuron_slice` is what `utilities.Slice` takes.

    `layer` says how far up: what is written before layer `layer` reads the residual stream, 0 to `n_layers`; None and
    -1 mean `n_layers`, the unembedding. With `mlp_input` that layer's attention is included; in parallel blocks it
    isn't, because their MLP doesn't read it. Other layers are an `InputError`, an activation that isn't in the cache is
    a `NameError`.

    Where a norm stands between a sublayer and the stream (Gemma 2 and 3, OLMo 2 and 3), heads and neurons are what they
    write into the stream, through that norm with its cached scale, so that parts always sum to the whole.
    """

    def __init__(self, cache_dict: dict[str, torch.Tensor], model: Any, has_batch_dim: bool = True) -> None:
        self.cache_dict = cache_dict
        self.model = model
        self.has_batch_dim = has_batch_dim
        self.has_embed = "hook_embed" in cache_dict
        self.has_pos_embed = "hook_pos_embed" in cache_dict

    def _batch_size(self) -> int:
        """The most frequent first size; not all activations have a batch axis."""
        sizes = Counter(value.size(0) for name, value in self.items() if value.ndim > 0 and not is_of_experts(name))
        return sizes.most_common(1)[0][0] if sizes else 1

    def remove_batch_dim(self) -> ActivationCache:
        """Drop the batch axis of every activation, in place; returns itself. AssertionError unless the batch is 1."""
        if not self.has_batch_dim:
            logging.warning("Tried removing batch dimension after already having removed it.")
            return self
        if self._batch_size() != 1:
            raise AssertionError(f"a cache with batch size {self._batch_size()}; only a batch of 1 can be removed")
        for name, value in self.cache_dict.items():
            if value.ndim > 0 and value.size(0) == 1 and not is_of_experts(name):
                self.cache_dict[name] = value[0]
        self.has_batch_dim = False
        return self

    def __repr__(self) -> str:
        return f"ActivationCache with keys {list(self.cache_dict)}"

    def __getitem__(self, key: Any) -> torch.Tensor:
        """The activation with that name: in full, short ("k6"), or as a tuple (name, layer, layer_type).

        Negative layers of tuples count from the end. Raises `NameError`, a KeyError, for what isn't there.
        """
        if key in self.cache_dict:
            return self.cache_dict[key]
        if isinstance(key, str):
            name = get_act_name(key)
        else:
            short, layer, *rest = *key, *[None] * (2 - len(key))
            if not isinstance(layer, str | None) and layer < 0:
                layer = layer + self.model.cfg.n_layers
            name = get_act_name(short, layer, *rest)
        if name not in self.cache_dict:
            nearest = difflib.get_close_matches(name, self.cache_dict, 3)
            near = f"; nearest: {', '.join(nearest)}" if nearest else ""
            raise _core.NameError(f"this cache has no {name!r} (asked for by {key!r}){near}")
        return self.cache_dict[name]

    def __len__(self) -> int:
        return len(self.cache_dict)

    def __iter__(self) -> Iterator[str]:
        return iter(self.cache_dict)

    def keys(self) -> KeysView[str]:
        """The activations' full names."""
        return self.cache_dict.keys()

    def values(self) -> ValuesView[torch.Tensor]:
        """The activations."""
        return self.cache_dict.values()

    def items(self) -> ItemsView[str, torch.Tensor]:
        """Names and activations."""
        return self.cache_dict.items()

    def to(self, device: str | torch.device, move_model: bool = False) -> ActivationCache:
        """Move the activations, and with `move_model` the model, to a device; returns itself."""
        warn_if_mps(device)
        self.cache_dict = {name: value.to(device) for name, value in self.items()}
        if move_model:
            self.model.to(device)
        return self

    def toggle_autodiff(self, mode: bool = False) -> None:
        """Whether torch records graphs from now on, everywhere: `torch.set_grad_enabled(mode)`, with a warning."""
        logging.warning("Changed the global state, set autodiff to %s", mode)
        torch.set_grad_enabled(mode)

    def apply_slice_to_batch_dim(self, batch_slice: Slice | SliceInput) -> ActivationCache:
        """A new cache of these rows of the batch; a number drops the axis. AssertionError if there is no batch axis.

        What has no batch axis stays as it is; TransformerLens cuts activations of experts where their first size
        happens to be the batch's.
        """
        batch_slice = _slice(batch_slice)
        if not self.has_batch_dim and batch_slice.mode != "identity":
            raise AssertionError("this cache has no batch axis to slice: remove_batch_dim has removed it")
        size = self._batch_size()
        sliced = {
            name: batch_slice.apply(value)
            if value.ndim > 0 and value.size(0) == size and not is_of_experts(name)
            else value
            for name, value in self.items()
        }
        return ActivationCache(sliced, self.model, self.has_batch_dim and batch_slice.mode != "int")

    def accumulated_resid(
        self,
        layer: int | None = None,
        incl_mid: bool = False,
        apply_ln: bool = False,
        pos_slice: Slice | SliceInput = None,
        mlp_input: bool = False,
        return_labels: bool = False,
    ) -> Labelled:
        """The residual stream before each layer up to `layer`, and after the last: `layer ... d_model`.

        `incl_mid` puts the stream between attention and MLP in between, `mlp_input` that of the last layer.
        `apply_ln` is `apply_ln_to_stack`, with statistics of their own before the unembedding. Labels are "0_pre",
        "0_mid", "final_post".
        """
        layer, pos_slice = self._layer(layer), _slice(pos_slice)
        streams, labels = [], []
        for above in range(layer + 1):
            last = above == self.model.cfg.n_layers
            streams.append(self._stream(above))
            labels.append("final_post" if last else f"{above}_pre")
            if not last and (mlp_input if above == layer else incl_mid):
                streams.append(self["resid_mid", above])
                labels.append(f"{above}_mid")
        stack = torch.stack([pos_slice.apply(stream, dim=-2) for stream in streams])
        if apply_ln:
            final = layer == self.model.cfg.n_layers
            stack = self.apply_ln_to_stack(
                stack, layer, mlp_input, pos_slice, has_batch_dim=self.has_batch_dim, recompute_ln=final
            )
        return (stack, labels) if return_labels else stack

    def logit_attrs(
        self,
        residual_stack: torch.Tensor,
        tokens: str | int | torch.Tensor,
        incorrect_tokens: str | int | torch.Tensor | None = None,
        pos_slice: Slice | SliceInput = None,
        batch_slice: Slice | SliceInput = None,
        has_batch_dim: bool = True,
    ) -> torch.Tensor:
        """What each part of a stack `part ... d_model` adds to the logits of `tokens`, minus `incorrect_tokens`.

        That is the product of the part, through the final norm with its cached scale, and the tokens' columns of W_U:
        `part ...`. Tokens are one, one for each row of the batch, or `batch pos`. One for each row serves all positions
        of it; TransformerLens takes them for tokens of positions if there are as many. The slices are those that the
        stack has been made with; `batch_slice` is applied here, unless the stack has no batch axis (`has_batch_dim`).
        Raises `InputError` for two shapes of tokens, `ShapeError` where these don't fit the stack.
        """
        pos_slice, batch_slice = _slice(pos_slice), _slice(batch_slice)
        if has_batch_dim:
            residual_stack = batch_slice.apply(residual_stack, dim=1)
        rows = residual_stack.shape[1] if has_batch_dim and residual_stack.ndim == 4 else None
        directions, versus = self._directions(tokens, rows), None
        if incorrect_tokens is not None:
            shapes = [tuple(getattr(given, "shape", ())) for given in (tokens, incorrect_tokens)]
            if shapes[0] != shapes[1]:
                raise _core.InputError(f"tokens of shape {shapes[0]} but incorrect_tokens of shape {shapes[1]}")
            versus = self._directions(incorrect_tokens, rows)
        norm = self._frozen_norm(self.model.cfg.n_layers, False, pos_slice, batch_slice)
        return _core.logit_attributions(residual_stack, directions, versus, norm)

    def decompose_resid(
        self,
        layer: int | None = None,
        mlp_input: bool = False,
        mode: Literal["all", "mlp", "attn"] = "all",
        apply_ln: bool = False,
        pos_slice: Slice | SliceInput = None,
        incl_embeds: bool = True,
        return_labels: bool = False,
    ) -> Labelled:
        """What the sublayers before `layer` write: `part ... d_model`, labelled "embed", "pos_embed", "0_attn_out",
        "0_mlp_out" and so on.

        `mode` leaves out attention ("mlp") or MLPs ("attn"); `incl_embeds` says whether embeddings are there. With
        "all" and embeddings the parts sum to the stream: "pos_embed" is 0 for "shortformer" positions, which aren't
        written into it (TransformerLens gives the positions' vectors). Raises `InputError` for another mode (for
        TransformerLens it is "all") and where no part is left.
        """
        if mode not in _MODES:
            raise _core.InputError(f"mode is {mode!r}; expected one of {', '.join(_MODES)}")
        layer, pos_slice = self._layer(layer), _slice(pos_slice)
        parts, labels = self._embeds(pos_slice) if incl_embeds else ([], [])
        with_attn, with_mlp = mode != "mlp", mode != "attn" and not self.model.cfg.attn_only
        for below in range(self._attn_layers(layer, mlp_input) if with_attn else layer):
            if with_attn:
                parts.append(pos_slice.apply(self["attn_out", below], dim=-2))
                labels.append(f"{below}_attn_out")
            if with_mlp and below < layer:
                parts.append(pos_slice.apply(self["mlp_out", below], dim=-2))
                labels.append(f"{below}_mlp_out")
        if not parts:
            raise _core.InputError(f"no parts before layer {layer} with mode {mode!r} and without embeddings")
        stack = torch.stack(parts)
        if apply_ln:
            stack = self.apply_ln_to_stack(stack, layer, mlp_input, pos_slice)
        return (stack, labels) if return_labels else stack

    def compute_head_results(self) -> None:
        """Put what each head writes, z times W_O, into the cache as "hook_result" of every layer:
        `... head d_model`. Results that are there stay; a warning says if all are."""
        self._compute_head_results(self.model.cfg.n_layers)

    def stack_head_results(
        self,
        layer: int | None = -1,
        return_labels: bool = False,
        incl_remainder: bool = False,
        pos_slice: Slice | SliceInput = None,
        apply_ln: bool = False,
    ) -> Labelled:
        """What each head before `layer` writes: `part ... d_model`, labelled "L0H0".

        `incl_remainder` adds the rest of the stream there, "remainder"; before layer 0 that is all of it
        (TransformerLens gives the stream after the last layer). Results are put into the cache where they are missing.
        """
        layer, pos_slice = self._layer(layer), _slice(pos_slice)
        parts = _core.ResidualParts()
        labels = self._add_heads(parts, layer, pos_slice)
        return self._stacked(parts, labels, layer, incl_remainder, apply_ln, pos_slice, None, return_labels)

    def stack_activation(
        self, activation_name: str, layer: int | None = -1, sublayer_type: str | None = None
    ) -> torch.Tensor:
        """The activation of that name of each layer before `layer`: `layer ...`. Raises `InputError` for layer 0."""
        layer = self._layer(layer)
        if layer == 0:
            raise _core.InputError(f"no layers before layer 0 to stack {activation_name!r} of")
        return torch.stack([self[activation_name, below, sublayer_type] for below in range(layer)])

    def get_neuron_results(
        self,
        layer: int,
        neuron_slice: Slice | SliceInput = None,
        pos_slice: Slice | SliceInput = None,
        project_output_onto: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """What each neuron of a layer writes: `... neuron d_model`, without the neuron axis if `neuron_slice` is a
        number. With a projection `d_model` or `d_model out` the last axis is gone or `out`."""
        neuron_slice, pos_slice = _slice(neuron_slice), _slice(pos_slice)
        activations, W_out, after = self._neurons(layer, neuron_slice, pos_slice)
        return _core.neuron_results(activations, W_out, project_output_onto, after)

    def stack_neuron_results(
        self,
        layer: int | None,
        pos_slice: Slice | SliceInput = None,
        neuron_slice: Slice | SliceInput = None,
        return_labels: bool = False,
        incl_remainder: bool = False,
        apply_ln: bool = False,
        project_output_onto: torch.Tensor | None = None,
    ) -> Labelled:
        """What each neuron before `layer` writes: `part ... d_model`, labelled "L0N0"; large unless projected.

        `incl_remainder` is as in `stack_head_results`. A projection is as in `get_neuron_results`; it comes after
        `apply_ln`, and nothing of size d_model is made for it.
        """
        layer, pos_slice = self._layer(layer), _slice(pos_slice)
        parts = _core.ResidualParts()
        labels = self._add_neurons(parts, layer, _slice(neuron_slice), pos_slice)
        return self._stacked(
            parts, labels, layer, incl_remainder, apply_ln, pos_slice, project_output_onto, return_labels
        )

    def apply_ln_to_stack(
        self,
        residual_stack: torch.Tensor,
        layer: int | None = None,
        mlp_input: bool = False,
        pos_slice: Slice | SliceInput = None,
        batch_slice: Slice | SliceInput = None,
        has_batch_dim: bool = True,
        recompute_ln: bool = False,
    ) -> torch.Tensor:
        """Each part of a stack `part ... d_model` as the norm before `layer` (its MLP's with `mlp_input`) scaled the
        stream: centred if that norm centres, and divided by the cached scale. The norm's weight isn't applied.

        Nothing is done where there is no such norm. `pos_slice` is the one that the stack has been made with;
        `batch_slice` is applied here, unless the stack has no batch axis (`has_batch_dim`). With `recompute_ln` and the
        final norm, each part goes through the whole norm by itself. Raises `ShapeError` where stack and scale are for
        different positions or batches; TransformerLens may divide parts by scales of batch rows then. With `final_rms`
        nothing is centred before the unembedding; TransformerLens centres.
        """
        layer, pos_slice, batch_slice = self._layer(layer), _slice(pos_slice), _slice(batch_slice)
        if has_batch_dim:
            residual_stack = batch_slice.apply(residual_stack, dim=1)
        if self.model.cfg.normalization_type not in KINDS:
            return residual_stack
        if recompute_ln and layer == self.model.cfg.n_layers and hasattr(self.model, "ln_final"):
            return torch.stack([self._through_final_norm(part, has_batch_dim) for part in residual_stack])
        norm = self._frozen_norm(layer, mlp_input, pos_slice, batch_slice)
        return residual_stack if norm is None else _core.normed(residual_stack, norm)

    def get_full_resid_decomposition(
        self,
        layer: int | None = None,
        mlp_input: bool = False,
        expand_neurons: bool = True,
        apply_ln: bool = False,
        pos_slice: Slice | SliceInput = None,
        return_labels: bool = False,
        project_output_onto: torch.Tensor | None = None,
    ) -> Labelled:
        """The stream before `layer` in its smallest parts: `part ... d_model`, which sum to it.

        First heads ("L0H0"), then neurons ("L0N0"; without `expand_neurons` MLPs, "0_mlp_out"), "embed", "pos_embed" as
        in `decompose_resid`, and "bias", the sum of the sublayers' biases. Projections and `apply_ln` are as in
        `stack_neuron_results`; with `mlp_input` all parts have the scale of the norm before the MLP (TransformerLens
        takes another for projected neurons). Raises `InputError` for `mlp_input` of the unembedding.
        """
        layer, pos_slice = self._layer(layer), _slice(pos_slice)
        parts = _core.ResidualParts()
        labels = self._add_heads(parts, self._attn_layers(layer, mlp_input), pos_slice)
        if layer > 0 and not self.model.cfg.attn_only:
            if expand_neurons:
                labels += self._add_neurons(parts, layer, Slice(), pos_slice)
            else:
                mlps, mlp_labels = self.decompose_resid(
                    layer, mode="mlp", pos_slice=pos_slice, incl_embeds=False, return_labels=True
                )
                parts.add(mlps)
                labels += mlp_labels
        embeds, embed_labels = self._embeds(pos_slice)
        for embed in embeds:
            parts.add(embed[None])
        self._add_bias(parts, layer, mlp_input, expand_neurons, pos_slice)
        labels += [*embed_labels, "bias"]
        norm = self._frozen_norm(layer, mlp_input, pos_slice) if apply_ln else None
        stack = parts.stack(norm, project_output_onto)
        return (stack, labels) if return_labels else stack

    def ssm_layers(self, mixer_type: Any = None) -> list[int]:
        """The layers that are state-space models: none, in the architectures that Glassformer has."""
        return []

    def compute_ssm_effective_attention(
        self, layer: int | None = None, include_dt_scaling: bool = False, per_state_coord: bool = False
    ) -> torch.Tensor:
        """Raises `UnsupportedError`: there are no state-space layers."""
        raise _core.UnsupportedError("this model has no state-space layers, so no effective attention of them")

    def compute_ssm_state(self, layer: int | None = None, time_step: int | None = None) -> torch.Tensor:
        """Raises `UnsupportedError`: there are no state-space layers."""
        raise _core.UnsupportedError("this model has no state-space layers, so no state of them")

    def _layer(self, layer: int | None) -> int:
        """`layer` as a number from 0 to n_layers."""
        n_layers = self.model.cfg.n_layers
        if layer is None or layer == -1:
            return n_layers
        if not 0 <= layer <= n_layers:
            raise _core.InputError(
                f"layer is {layer}; expected 0 to {n_layers}, where {n_layers}, -1 and None are the end"
            )
        return layer

    def _attn_layers(self, layer: int, mlp_input: bool) -> int:
        """How many layers' attention the input of `layer`, or of its MLP, has."""
        if not mlp_input:
            return layer
        if layer == self.model.cfg.n_layers:
            raise _core.InputError(
                f"mlp_input of layer {layer}, which is the unembedding; expected at most {layer - 1}"
            )
        return layer if getattr(self.model.cfg, "parallel_attn_mlp", False) else layer + 1

    def _directions(self, tokens: str | int | torch.Tensor, rows: int | None) -> torch.Tensor:
        """The tokens' columns of W_U: `d_model`, `pos d_model` or `batch pos d_model`; one for each of `rows` of a
        batch with positions: `batch 1 d_model`."""
        directions = self.model.tokens_to_residual_directions(tokens)
        return directions[:, None] if directions.ndim == 2 and len(directions) == rows else directions

    def _stream(self, layer: int) -> torch.Tensor:
        """The residual stream before `layer`: `batch pos d_model`."""
        return self["resid_pre", layer] if layer < self.model.cfg.n_layers else self["resid_post", layer - 1]

    def _through_final_norm(self, part: torch.Tensor, has_batch_dim: bool) -> torch.Tensor:
        """`part` through the last norm as a model calls it, on `batch pos d_model`: its hooks may look at places."""
        whole = part if has_batch_dim else part[None]
        while whole.ndim < 3:
            whole = whole.unsqueeze(-2)
        return self.model.ln_final(whole).reshape(part.shape)

    def _scale(self, norm: str, pos_slice: Slice) -> torch.Tensor:
        """A norm's cached scale at these positions: `... 1`. The copies that a norm makes for each head (of split
        inputs) must agree."""
        scale = self[f"{norm}.hook_scale"]
        if scale.ndim > 2 + self.has_batch_dim:
            first = scale.select(-2, 0)
            if not torch.allclose(scale, first.unsqueeze(-2).expand_as(scale), equal_nan=True):
                raise _core.InputError(f"{norm} scaled its input differently for each head; no single scale to apply")
            scale = first
        return pos_slice.apply(scale, dim=-2)

    def _frozen_norm(
        self, layer: int, mlp_input: bool, pos_slice: Slice, batch_slice: Slice | None = None
    ) -> _core.FrozenNorm | None:
        """The norm before `layer` or its MLP, without its weight; None where there is none."""
        cfg = self.model.cfg
        final = layer == cfg.n_layers
        if cfg.normalization_type not in KINDS or (not final and has_norms_only_behind(cfg)):
            return None
        scale = self._scale("ln_final" if final else f"blocks.{layer}.ln{2 if mlp_input else 1}", pos_slice)
        if batch_slice is not None and self.has_batch_dim:
            scale = batch_slice.apply(scale)
        center = cfg.normalization_type in _CENTERING and not (final and getattr(cfg, "final_rms", False))
        return _core.FrozenNorm(scale, center, None)

    def _norm_after(self, layer: int, sublayer: int, pos_slice: Slice) -> _core.FrozenNorm | None:
        """The norm between a sublayer (1 is attention, 2 the MLP) and the stream; None where there is none."""
        cfg = self.model.cfg
        if cfg.normalization_type not in KINDS:
            return None
        if getattr(cfg, "use_normalization_before_and_after", False):
            name = f"ln{sublayer}_post"
        elif has_norms_only_behind(cfg):
            name = f"ln{sublayer}"
        else:
            return None
        norm = getattr(self.model.blocks[layer], name)
        if getattr(norm, "b", None) is not None:
            raise _core.UnsupportedError(f"blocks.{layer}.{name} has a bias; parts are taken only through RMS norms")
        return _core.FrozenNorm(
            self._scale(f"blocks.{layer}.{name}", pos_slice),
            cfg.normalization_type in _CENTERING,
            getattr(norm, "w", None),
        )

    def _add_places(self, parts: _core.ResidualParts, pos_slice: Slice) -> None:
        """No part at all, of the shape that parts have."""
        parts.add(pos_slice.apply(self["embed"] if self.has_embed else self._stream(0), dim=-2)[None][:0])

    def _compute_head_results(self, layers: int) -> None:
        """Those of the first layers, and of the others where z is in the cache."""
        names = [get_act_name("result", layer) for layer in range(self.model.cfg.n_layers)]
        missing = {layer: name for layer, name in enumerate(names) if name not in self.cache_dict}
        if not missing:
            logging.warning("Tried to compute head results when they were already cached")
        for layer, name in missing.items():
            if layer < layers or get_act_name("z", layer) in self.cache_dict:
                W_O = self.model.blocks[layer].attn.W_O
                self.cache_dict[name] = _core.head_results(self["z", layer], W_O)

    def _add_heads(self, parts: _core.ResidualParts, layers: int, pos_slice: Slice) -> list[str]:
        """The heads of the first layers; returns their labels."""
        self._compute_head_results(layers)
        if layers == 0:
            self._add_places(parts, pos_slice)
        for layer in range(layers):
            results = pos_slice.apply(self["result", layer], dim=-3)
            parts.add_heads(results, self._norm_after(layer, 1, pos_slice))
        return [f"L{layer}H{head}" for layer in range(layers) for head in range(self.model.cfg.n_heads)]

    def _neurons(
        self, layer: int, neuron_slice: Slice, pos_slice: Slice
    ) -> tuple[torch.Tensor, torch.Tensor, _core.FrozenNorm | None]:
        """Activations and rows of W_out of a layer's neurons, and the norm after them."""
        activations = neuron_slice.apply(pos_slice.apply(self["post", layer], dim=-2), dim=-1)
        layer = range(self.model.cfg.n_layers)[layer]
        W_out = neuron_slice.apply(self.model.blocks[layer].mlp.W_out, dim=0)
        return activations, W_out, self._norm_after(layer, 2, pos_slice)

    def _add_neurons(self, parts: _core.ResidualParts, layers: int, neuron_slice: Slice, pos_slice: Slice) -> list[str]:
        """The neurons of the first layers; returns their labels."""
        if neuron_slice.mode == "int":
            neuron_slice = Slice([neuron_slice.slice])
        if layers == 0:
            self._add_places(parts, pos_slice)
            return []
        for layer in range(layers):
            parts.add_neurons(*self._neurons(layer, neuron_slice, pos_slice))
        neurons = np.arange(self.model.cfg.d_mlp)[neuron_slice.slice]
        return [f"L{layer}N{neuron}" for layer in range(layers) for neuron in neurons.tolist()]

    def _embeds(self, pos_slice: Slice) -> tuple[list[torch.Tensor], list[str]]:
        """What the embeddings write, `... d_model` each, and labels."""
        parts, labels = [], []
        if self.has_embed:
            parts.append(pos_slice.apply(self["embed"], dim=-2))
            labels.append("embed")
        if self.has_pos_embed:
            positions = pos_slice.apply(self["pos_embed"], dim=-2)
            written = self.model.cfg.positional_embedding_type != "shortformer"
            parts.append(positions if written else torch.zeros_like(positions))
            labels.append("pos_embed")
        return parts, labels

    def _add_bias(
        self, parts: _core.ResidualParts, layer: int, mlp_input: bool, with_mlps: bool, pos_slice: Slice
    ) -> None:
        """The sum of the biases that sublayers write; it depends on the place where norms come after them."""
        sublayers = [(below, 1) for below in range(self._attn_layers(layer, mlp_input))]
        if with_mlps and not self.model.cfg.attn_only:
            sublayers += [(below, 2) for below in range(layer)]
        biases = []
        for below, sublayer in sublayers:
            block = self.model.blocks[below]
            bias = block.attn.b_O if sublayer == 1 else block.mlp.b_out
            biases.append((bias, self._norm_after(below, sublayer, pos_slice)))
        parts.add_bias(biases)

    def _stacked(
        self,
        parts: _core.ResidualParts,
        labels: list[str],
        layer: int,
        incl_remainder: bool,
        apply_ln: bool,
        pos_slice: Slice,
        projection: torch.Tensor | None,
        return_labels: bool,
    ) -> Labelled:
        """The parts laid out, with the rest of the stream, the norm and the labels that were asked for."""
        if incl_remainder:
            whole = self["resid_post", layer - 1] if layer > 0 else self["resid_pre", 0]
            parts.add_rest(pos_slice.apply(whole, dim=-2))
            labels.append("remainder")
        stack = parts.stack(self._frozen_norm(layer, False, pos_slice) if apply_ln else None, projection)
        return (stack, labels) if return_labels else stack


def _slice(given: Slice | SliceInput) -> Slice:
    """A number drops its axis here, unlike in `Slice.unwrap`."""
    return given if isinstance(given, Slice) else Slice(given)

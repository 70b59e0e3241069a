"""HookedTransformer: a transformer whose values can be read and changed while it runs."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn

from glassformer import _core
from glassformer.transformer_lens._engine import CacheRequest, Engine, Pass
from glassformer.transformer_lens._generation import GenerationMethods
from glassformer.transformer_lens._loading import LoadingMethods
from glassformer.transformer_lens._tokens import TokenMethods
from glassformer.transformer_lens._weights import WeightMethods
from glassformer.transformer_lens.cache import TransformerLensKeyValueCache
from glassformer.transformer_lens.components import Embed, PosEmbed, TransformerBlock, Unembed
from glassformer.transformer_lens.components.norms import KINDS, last_norm
from glassformer.transformer_lens.config import HookedTransformerConfig
from glassformer.transformer_lens.hook_points import HookPoint, NamesFilter, names_matcher
from glassformer.transformer_lens.HookedRootModule import HookedRootModule
from glassformer.transformer_lens.utilities.activation_functions import apply_softcap
from glassformer.transformer_lens.utilities.defaults_utils import USE_DEFAULT_VALUE, LocallyOverridenDefaults
from glassformer.transformer_lens.utilities.devices import move_to_and_update_config
from glassformer.transformer_lens.utilities.slice import Slice, SliceInput
from glassformer.transformer_lens.utilities.tokenize_utils import get_attention_mask
from glassformer.transformer_lens.utilities.typed_module_list import TypedModuleList


class Output(NamedTuple):
    """What a call with `return_type="both"` returns."""

    logits: torch.Tensor
    loss: torch.Tensor


def _has_graph(past: TransformerLensKeyValueCache | None) -> bool:
    return past is not None and torch.is_grad_enabled() and any(entry.past_keys.requires_grad for entry in past)


_FLAGS = {
    "use_attn_result": ("attn.hook_result",),
    "use_split_qkv_input": ("hook_q_input", "hook_k_input", "hook_v_input"),
    "use_hook_mlp_in": ("mlp_in",),
    "use_attn_in": ("attn_in",),
}
"""Names that end so have a value only while the flag is on."""


class HookedTransformer(LoadingMethods, TokenMethods, WeightMethods, GenerationMethods, HookedRootModule):
    """A transformer with TransformerLens' names: its hook points, parameters, methods and arguments.

    It is computed by the core, on the memory of the parameters. Make one with `from_pretrained`, or with random weights
    from a `HookedTransformerConfig` (or a dict of its fields); `tokenizer` is one of `transformers`, and
    `default_padding_side` the side that it pads.
    """

    def __init__(
        self,
        cfg: HookedTransformerConfig | dict[str, Any],
        tokenizer: Any = None,
        move_to_device: bool = True,
        default_padding_side: str | None = None,
    ) -> None:
        super().__init__()
        if isinstance(cfg, str):
            raise ValueError(
                "cfg is a HookedTransformerConfig or a dict; for a model by its name use from_pretrained()"
            )
        self.cfg = HookedTransformerConfig.unwrap(cfg)
        if self.cfg.n_devices > 1:
            raise _core.UnsupportedError(
                f"n_devices is {self.cfg.n_devices}: models on several devices are not supported"
            )
        self._find_tokenizer(tokenizer, default_padding_side)
        self._add_modules()
        if self.cfg.init_weights:
            self.init_weights()
        if move_to_device:
            self.move_model_modules_to_device()
        self.dataset: Any = None
        self.setup()

    def _add_modules(self) -> None:
        cfg = self.cfg
        self.embed = Embed(cfg)
        self.hook_embed = HookPoint()  # batch pos d_model
        if cfg.positional_embedding_type != "rotary":
            self.pos_embed = PosEmbed(cfg)
            self.hook_pos_embed = HookPoint()  # batch pos d_model
        if cfg.use_hook_tokens:
            self.hook_tokens = HookPoint()  # batch pos
        self.blocks = TypedModuleList([TransformerBlock(cfg, layer) for layer in range(cfg.n_layers)])
        if cfg.normalization_type in KINDS:
            self.ln_final = last_norm(cfg)
        self.unembed = Unembed(cfg)

    def setup(self) -> None:
        """Give every module its `name`, and collect them in `mod_dict`, the hook points in `hook_dict`."""
        super().setup()
        self._drop_engine()

    @property
    def _engine(self) -> Engine:
        if self.__dict__.get("_engine_made") is None:
            self.__dict__["_engine_made"] = Engine(self)
        return self.__dict__["_engine_made"]

    def _drop_engine(self) -> None:
        self.__dict__["_engine_made"] = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_engine_made": None}

    # Hooks and flags.

    def _closing_flag(self, name: str) -> str | None:
        closing = (flag for flag, ends in _FLAGS.items() if name.endswith(ends) and not getattr(self.cfg, flag))
        return next(closing, None)

    def _is_open(self, name: str) -> bool:
        return self._closing_flag(name) is None

    def check_hooks_to_add(
        self,
        hook_point: HookPoint,
        hook_point_name: str,
        hook: Any,
        dir: str = "fwd",
        is_permanent: bool = False,
        prepend: bool = False,
    ) -> None:
        """Raises AssertionError for a hook point whose flag (such as `cfg.use_attn_result`) is off."""
        if (flag := self._closing_flag(hook_point_name)) is not None:
            raise AssertionError(f"'{hook_point_name}' has no value while cfg.{flag} is off; call set_{flag}(True)")

    def set_use_attn_result(self, use_attn_result: bool) -> None:
        """Whether `attn.hook_result`, what each head adds to the residual stream, is there."""
        self.cfg.use_attn_result = use_attn_result

    def set_use_split_qkv_input(self, use_split_qkv_input: bool) -> None:
        """Whether `hook_q_input`, `hook_k_input` and `hook_v_input`, each head's own inputs, are there."""
        self.cfg.use_split_qkv_input = use_split_qkv_input

    def set_use_hook_mlp_in(self, use_hook_mlp_in: bool) -> None:
        """Whether `hook_mlp_in`, the MLP's own input, is there."""
        assert not self.cfg.attn_only, "a model of attention only has no hook_mlp_in"
        self.cfg.use_hook_mlp_in = use_hook_mlp_in

    def set_use_attn_in(self, use_attn_in: bool) -> None:
        """Whether `hook_attn_in`, each head's own input, is there."""
        assert self.cfg.n_key_value_heads is None, (
            "with groups of heads (n_key_value_heads) there is no hook_attn_in; call set_use_split_qkv_input(True)"
        )
        self.cfg.use_attn_in = use_attn_in

    def set_ungroup_grouped_query_attention(self, ungroup_grouped_query_attention: bool) -> None:
        """Whether keys and values are repeated for every head of their group."""
        self.cfg.ungroup_grouped_query_attention = ungroup_grouped_query_attention

    # Running.

    def _mask_for(
        self,
        tokens: torch.Tensor,
        prepend_bos: bool | None,
        attention_mask: torch.Tensor | None,
        past_kv_cache: TransformerLensKeyValueCache | None,
    ) -> torch.Tensor | None:
        pads_left = self.tokenizer is not None and self.tokenizer.padding_side == "left"
        if not pads_left and attention_mask is None and past_kv_cache is None:
            return None
        if attention_mask is None:
            if self.tokenizer is None:
                raise _core.InputError(
                    "without a tokenizer, a KV cache needs an attention_mask: batch pos, 1 at tokens"
                )
            prepend_bos = self.cfg.default_prepend_bos if prepend_bos is USE_DEFAULT_VALUE else prepend_bos
            attention_mask = get_attention_mask(self.tokenizer, tokens, prepend_bos)
        assert attention_mask.shape == tokens.shape, (
            f"attention_mask has shape {list(attention_mask.shape)}; expected that of the tokens, {list(tokens.shape)}"
        )
        attention_mask = attention_mask.to(tokens.device)
        return attention_mask if past_kv_cache is None else past_kv_cache.append_attention_mask(attention_mask)

    def _tokens_of(self, input: Any, prepend_bos: bool | None, padding_side: str | None) -> torch.Tensor:
        if isinstance(input, str | list):
            assert self.tokenizer is not None, "a text as input needs a tokenizer; this model has none"
            input = self.to_tokens(input, prepend_bos=prepend_bos, padding_side=padding_side)
        tokens = input[None] if input.ndim == 1 else input
        return tokens.to(self._device)

    @property
    def _device(self) -> torch.device:
        return self.unembed.W_U.device

    def forward(
        self,
        input: Any,
        return_type: str | None = "logits",
        loss_per_token: bool = False,
        prepend_bos: bool | None = USE_DEFAULT_VALUE,
        padding_side: str | None = USE_DEFAULT_VALUE,
        start_at_layer: int | None = None,
        tokens: torch.Tensor | None = None,
        shortformer_pos_embed: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        stop_at_layer: int | None = None,
        past_kv_cache: TransformerLensKeyValueCache | None = None,
    ) -> Any:
        """Run the model on texts or tokens (batch pos), or on a residual stream (batch pos d_model).

        `return_type`: "logits" (batch pos d_vocab), "loss" (of the next token; one number, or batch pos-1 with
        `loss_per_token`), "both" (an `Output`), or None. `start_at_layer` begins before that layer: `input` is the
        residual stream there, `tokens` are those for the loss, `shortformer_pos_embed` what that kind of model adds.
        `stop_at_layer` ends before that layer and returns the residual stream. Both may count from the end.
        `attention_mask` (batch pos, 1 at tokens) hides padding; it is found out from the tokens where the tokenizer
        pads on the left or a cache is given. `past_kv_cache` holds what came before, and gets what is new.
        `prepend_bos` and `padding_side` stand for this call.

        Every hook between start and stop is called once, in the order of computing.
        """
        with LocallyOverridenDefaults(self, prepend_bos=prepend_bos, padding_side=padding_side):
            residual = None
            if start_at_layer is None:
                tokens = self._tokens_of(input, prepend_bos, padding_side)
                attention_mask = self._mask_for(tokens, prepend_bos, attention_mask, past_kv_cache)
                self._check_past(past_kv_cache, tokens.shape[0])
            else:
                assert isinstance(input, torch.Tensor), f"start_at_layer takes a residual stream; found {type(input)}"
                residual = input
            layers = range(self.cfg.n_layers)[start_at_layer:stop_at_layer]
            made = self._run(
                tokens,
                residual,
                layers,
                stop_at_layer is not None,
                return_type,
                attention_mask,
                past_kv_cache,
                shortformer_pos_embed,
            )
            if stop_at_layer is not None or return_type in (None, "logits"):
                return made
            assert tokens is not None, "return_type 'loss' and 'both' need tokens where the run starts at a layer"
            loss = self.loss_fn(made, tokens, attention_mask, per_token=loss_per_token)
            if return_type == "loss":
                return loss
            if return_type == "both":
                return Output(made, loss)
            logging.warning(f"return_type is {return_type!r}; expected None, 'logits', 'loss' or 'both'")
            return None

    def _check_past(self, past: TransformerLensKeyValueCache | None, batch: int) -> None:
        if past is None:
            return
        cfg, keys = self.cfg, past[0].past_keys
        expected = (batch, cfg.n_heads if cfg.n_key_value_heads is None else cfg.n_key_value_heads, cfg.d_head)
        found = (keys.shape[0], *keys.shape[2:])
        assert found == expected, f"the KV cache has batch, heads and d_head {found}; this call needs {expected}"

    def _run(
        self,
        tokens: torch.Tensor | None,
        residual: torch.Tensor | None,
        layers: range,
        stops: bool,
        return_type: str | None,
        attention_mask: torch.Tensor | None,
        past: TransformerLensKeyValueCache | None,
        pos_embed: torch.Tensor | None,
    ) -> Any:
        if not self._engine.is_own() or _has_graph(past):
            return self._run_modules(tokens, residual, layers, stops, return_type, attention_mask, past, pos_embed)
        n_layers, request = self.cfg.n_layers, self.__dict__.get("_cache_request")
        if residual is not None:
            given = torch.zeros(residual.shape[:2], dtype=torch.int64, device=self._device)
        else:
            given = tokens
            if self.cfg.use_hook_tokens:
                given = self.hook_tokens.run_hooks(tokens)
                if request is not None:
                    request.take("hook_tokens", given)
        one = Pass(self._engine, given, attention_mask, past)
        if residual is not None:
            first = layers.start if len(layers) else n_layers
            if stops and not len(layers):
                return residual
            one.start_at(first, residual, pos_embed)

        def is_in_pass(name: str) -> bool:
            if name.startswith("blocks."):
                return int(name.split(".")[1]) in layers and self._is_open(name)
            if name.startswith(("ln_final.", "unembed.")):
                return not stops and (return_type is not None or name.startswith("ln_final."))
            return residual is None and name != "hook_tokens"

        one.add_hooks(is_in_pass)
        until = self._last_node(layers, stops, return_type)
        one.run(until)
        if request is not None:
            one.fill(request, is_in_pass)
        if past is not None:
            one.keep_past(layers)
        if stops:
            return one.read(f"blocks.{layers[-1]}.hook_resid_post" if len(layers) else "blocks.0.hook_resid_pre")
        return None if return_type is None else one.read("logits")

    def _run_modules(
        self,
        tokens: torch.Tensor | None,
        residual: torch.Tensor | None,
        layers: range,
        stops: bool,
        return_type: str | None,
        attention_mask: torch.Tensor | None,
        past: TransformerLensKeyValueCache | None,
        pos_embed: torch.Tensor | None,
    ) -> Any:
        """`_run` by the modules themselves, where some are not ours, have torch's own hooks, or a past has a graph."""
        cfg = self.cfg
        if residual is None:
            tokens = self.hook_tokens(tokens) if cfg.use_hook_tokens else tokens
            residual = self.hook_embed(self.embed(tokens))
            if cfg.positional_embedding_type in ("standard", "shortformer"):
                n_past = 0 if past is None else past[0].past_keys.shape[1]
                pos_embed = self.hook_pos_embed(self.pos_embed(tokens, n_past, attention_mask))
                if cfg.positional_embedding_type == "standard":
                    residual, pos_embed = residual + pos_embed, None
        for layer in layers:
            residual = self.blocks[layer](
                residual,
                shortformer_pos_embed=pos_embed,
                past_kv_cache_entry=None if past is None else past[layer],
                attention_mask=attention_mask,
            )
        if stops:
            return residual
        if cfg.normalization_type is not None:
            residual = self.ln_final(residual)
        return None if return_type is None else apply_softcap(self.unembed(residual), cfg.output_logits_soft_cap)

    def _last_node(self, layers: range, stops: bool, return_type: str | None) -> str:
        if not stops and return_type is not None:
            return "logits"
        if not stops and self.cfg.normalization_type is not None:
            return "ln_final.hook_normalized"
        if len(layers):
            return f"blocks.{layers[-1]}.hook_resid_post"
        return "hook_embed" if self.cfg.positional_embedding_type in ("rotary", "alibi") else "hook_pos_embed"

    def loss_fn(
        self,
        logits: torch.Tensor,
        tokens: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        per_token: bool = False,
    ) -> torch.Tensor:
        """`utils.lm_cross_entropy_loss` of logits (batch pos d_vocab) and tokens (batch pos)."""
        from glassformer.transformer_lens.utilities import lm_cross_entropy_loss

        return lm_cross_entropy_loss(logits, tokens.to(logits.device), attention_mask, per_token)

    def run_with_cache(
        self,
        *model_args: Any,
        return_cache_object: bool = True,
        remove_batch_dim: bool = False,
        names_filter: NamesFilter = None,
        device: Any = None,
        incl_bwd: bool = False,
        reset_hooks_end: bool = True,
        clear_contexts: bool = False,
        pos_slice: Slice | SliceInput = None,
        **kwargs: Any,
    ) -> Any:
        """The model's output, and an `ActivationCache` of the values at its hook points (a dict if
        `return_cache_object` is False).

        `names_filter` says which points: None for all, a name, a list, or a function of the name. `device` is where the
        values are kept; `remove_batch_dim` keeps those of the one sequence, `pos_slice` those at some positions.
        `incl_bwd` runs backward from the output, one number, and keeps the gradients as name + "_grad". Further
        arguments are those of `forward`. Values are those that hooks left, and stay as they are.
        """
        kept = {"device": device, "remove_batch_dim": remove_batch_dim, "pos_slice": pos_slice}
        cache, fwd_hooks, bwd_hooks = self.get_caching_hooks(names_filter, incl_bwd, **kept)
        if self._engine.is_own():
            fwd_hooks = []
        request = CacheRequest(names_matcher(names_filter), device, remove_batch_dim, Slice.unwrap(pos_slice), cache)
        with self.hooks(fwd_hooks, bwd_hooks, reset_hooks_end, clear_contexts), self._caching(request):
            output = self(*model_args, **kwargs)
            if incl_bwd:
                output.backward()
        if not return_cache_object:
            return output, cache
        from glassformer.transformer_lens.ActivationCache import ActivationCache

        return output, ActivationCache(cache, self, has_batch_dim=not remove_batch_dim)

    @contextmanager
    def _caching(self, request: CacheRequest) -> Iterator[None]:
        before = self.__dict__.get("_cache_request")
        self.__dict__["_cache_request"] = request
        try:
            yield
        finally:
            self.__dict__["_cache_request"] = before

    # Devices and dtypes.

    def to(self, device_or_dtype: Any, print_details: bool = True) -> HookedTransformer:
        """This model moved to a device or turned into a dtype, in place; `cfg` then says so."""
        return move_to_and_update_config(self, device_or_dtype, print_details)

    def cuda(self, device: int | torch.device | None = None) -> HookedTransformer:
        """`to` a CUDA device."""
        return self.to("cuda" if device is None else f"cuda:{device}" if isinstance(device, int) else device)

    def cpu(self) -> HookedTransformer:
        """`to` the CPU."""
        return self.to(torch.device("cpu"))

    def mps(self) -> HookedTransformer:
        """`to` Apple's GPU, where the core doesn't compute: UnsupportedError."""
        raise _core.UnsupportedError("device mps is not supported; use cpu or cuda")

    def move_model_modules_to_device(self) -> None:
        """Move every parameter to `cfg.device`."""
        if self.cfg.device is not None:
            nn.Module.to(self, self.cfg.device)

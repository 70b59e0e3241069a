"""HookedTransformer: a transformer whose values can be read and changed while it runs."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn

from glassformer import _core
from glassformer.transformer_lens._engine import CacheRequest, Engine, Pass, made_with
from glassformer.transformer_lens._generation import GenerationMethods
from glassformer.transformer_lens._loading import LoadingMethods
from glassformer.transformer_lens._tokens import TokenMethods
from glassformer.transformer_lens._weights import WeightMethods
from glassformer.transformer_lens.cache import TransformerLensKeyValueCache
from glassformer.transformer_lens.components import Embed, PosEmbed, TransformerBlock, Unembed
from glassformer.transformer_lens.components.norms import last_norm_class
from glassformer.transformer_lens.config import HookedTransformerConfig
from glassformer.transformer_lens.hook_points import HookPoint, NamesFilter, names_matcher
from glassformer.transformer_lens.HookedRootModule import HookedRootModule
from glassformer.transformer_lens.utilities.activation_functions import apply_softcap
from glassformer.transformer_lens.utilities.defaults_utils import USE_DEFAULT_VALUE, LocallyOverridenDefaults
from glassformer.transformer_lens.utilities.devices import checked_device, move_to_and_update_config
from glassformer.transformer_lens.utilities.slice import Slice, SliceInput
from glassformer.transformer_lens.utilities.tokenize_utils import get_attention_mask
from glassformer.transformer_lens.utilities.typed_module_list import TypedModuleList


class Output(NamedTuple):
    """What a call with `return_type="both"` returns."""

    logits: torch.Tensor
    loss: torch.Tensor


class Run(NamedTuple):
    """A forward pass that is asked for: of tokens, batch pos, or of a residual stream, batch pos d_model."""

    tokens: torch.Tensor | None
    residual: torch.Tensor | None
    layers: range
    stops: bool  # Behind those layers; else it goes on to the last norm, and to the logits where `has_logits`.
    has_logits: bool
    attention_mask: torch.Tensor | None
    past: TransformerLensKeyValueCache | None
    pos_embed: torch.Tensor | None

    def past_has_graph(self) -> bool:
        """Whether gradients are to flow into what came before."""
        past = self.past
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
        self._made_with = made_with(self.cfg)
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
        if (norm := last_norm_class(cfg)) is not None:
            self.ln_final = norm(cfg)
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
        if attention_mask.is_floating_point():
            if not bool(((attention_mask == 0) | (attention_mask == 1)).all()):
                raise _core.InputError("attention_mask is 1 at tokens and 0 at padding; found other numbers")
            attention_mask = attention_mask.long()
        attention_mask = attention_mask.to(tokens.device)
        return attention_mask if past_kv_cache is None else past_kv_cache.append_attention_mask(attention_mask)

    def _tokens_of(self, input: Any, prepend_bos: bool | None, padding_side: str | None) -> torch.Tensor:
        if isinstance(input, str | list):
            assert self.tokenizer is not None, "a text as input needs a tokenizer; this model has none"
            input = self.to_tokens(input, prepend_bos=prepend_bos, padding_side=padding_side)
        if not isinstance(input, torch.Tensor):
            raise _core.InputError(f"input is a text, a list of texts or a tensor; found {type(input).__name__}")
        if input.ndim not in (1, 2):
            raise _core.ShapeError(
                f"expected tokens, batch pos; found shape {list(input.shape)}; a residual stream needs start_at_layer"
            )
        tokens = input[None] if input.ndim == 1 else input
        return tokens.to(self._device)

    def _has_usual_forward(self) -> bool:
        return type(self).forward is HookedTransformer.forward and "forward" not in vars(self)

    def _read(
        self,
        input: Any,
        prepend_bos: bool | None,
        padding_side: str | None,
        attention_mask: torch.Tensor | None,
        past: TransformerLensKeyValueCache | None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The tokens of an input as their hooks leave them, and the mask of them and of what was before."""
        tokens = self._tokens_of(input, prepend_bos, padding_side)
        self.get_pos_offset(past, tokens.shape[0])
        attention_mask = self._mask_for(tokens, prepend_bos, attention_mask, past)
        return self.hook_tokens(tokens) if self.cfg.use_hook_tokens else tokens, attention_mask

    def get_pos_offset(self, past_kv_cache: TransformerLensKeyValueCache | None, batch_size: int) -> int:
        """How many positions a cache holds, 0 without one. AssertionError for a cache of another batch or model."""
        if past_kv_cache is None:
            return 0
        cfg, (batch, length, *heads) = self.cfg, past_kv_cache[0].past_keys.shape
        expected = [batch_size, cfg.n_heads if cfg.n_key_value_heads is None else cfg.n_key_value_heads, cfg.d_head]
        found = [batch, *heads]
        assert found == expected, f"the KV cache has batch, heads and d_head {found}; this call needs {expected}"
        return length

    def _embedded(
        self, tokens: torch.Tensor, attention_mask: torch.Tensor | None, past: TransformerLensKeyValueCache | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        offset = self.get_pos_offset(past, tokens.shape[0])
        embed = self.hook_embed(self.embed(tokens))
        return self.get_residual(embed, offset, attention_mask=attention_mask, tokens=tokens)

    def get_residual(
        self,
        embed: torch.Tensor,
        pos_offset: int,
        prepend_bos: bool | None = USE_DEFAULT_VALUE,
        attention_mask: torch.Tensor | None = None,
        tokens: torch.Tensor | None = None,
        return_shortformer_pos_embed: bool = True,
        device: torch.device | str | None = None,
    ) -> Any:
        """The residual stream that begins with embeddings (batch pos d_model), and, unless
        `return_shortformer_pos_embed` is False, what "shortformer" positions add to queries and keys (else None).

        Positions count from `pos_offset`, or over what `attention_mask` (batch past+pos) doesn't hide.
        `prepend_bos` and `device` say nothing here. ValueError for a kind of positions that there is not.
        """
        kind, positions = self.cfg.positional_embedding_type, None
        if kind in ("standard", "shortformer"):
            if tokens is None:  # Only their number counts.
                tokens = torch.ones(embed.shape[:2], dtype=torch.int64, device=embed.device)
            positions = self.hook_pos_embed(self.pos_embed(tokens, pos_offset, attention_mask))
        elif kind not in ("rotary", "alibi"):
            raise _core.InputError(f"cfg.positional_embedding_type is {kind!r}: such positions are not known")
        residual = embed + positions if kind == "standard" else embed
        return (residual, positions if kind == "shortformer" else None) if return_shortformer_pos_embed else residual

    def input_to_embed(
        self,
        input: Any,
        prepend_bos: bool | None = USE_DEFAULT_VALUE,
        padding_side: str | None = USE_DEFAULT_VALUE,
        attention_mask: torch.Tensor | None = None,
        past_kv_cache: TransformerLensKeyValueCache | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """What `forward` with `start_at_layer=0` takes in the place of texts or tokens: the residual stream before the
        first block, the tokens, `shortformer_pos_embed`, and the attention mask; None where there is none. Hooks on
        embeddings are called. A cache gets the mask of what is new, unless it is frozen."""
        with LocallyOverridenDefaults(self, prepend_bos=prepend_bos, padding_side=padding_side):
            tokens, mask = self._read(input, prepend_bos, padding_side, attention_mask, past_kv_cache)
            residual, positions = self._embedded(tokens, mask, past_kv_cache)
            return residual, tokens, positions, mask

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
                tokens, attention_mask = self._read(input, prepend_bos, padding_side, attention_mask, past_kv_cache)
            else:
                assert isinstance(input, torch.Tensor), f"start_at_layer takes a residual stream; found {type(input)}"
                if input.ndim != 3 or input.shape[-1] != self.cfg.d_model:
                    expected = f"batch pos {self.cfg.d_model}"
                    raise _core.ShapeError(
                        f"start_at_layer takes a residual stream, {expected}; found {list(input.shape)}"
                    )
                residual = input
            layers = range(self.cfg.n_layers)[start_at_layer:stop_at_layer]
            stops, has_logits = stop_at_layer is not None, return_type is not None
            given = (tokens, residual, layers, stops, has_logits, attention_mask, past_kv_cache, shortformer_pos_embed)
            made = self._run(Run(*given))
            if stops or return_type in (None, "logits"):
                return made
            assert tokens is not None, "return_type 'loss' and 'both' need tokens where the run starts at a layer"
            loss = self.loss_fn(made, tokens, attention_mask, per_token=loss_per_token)
            if return_type == "loss":
                return loss
            if return_type == "both":
                return Output(made, loss)
            logging.warning(f"return_type is {return_type!r}; expected None, 'logits', 'loss' or 'both'")
            return None

    def _run(self, run: Run) -> Any:
        """The logits, or the residual stream where the run stops before them, or None where nothing is asked for."""
        request, layers = self.__dict__.get("_cache_request"), run.layers
        if request is not None and run.residual is None and self.cfg.use_hook_tokens:
            request.take("hook_tokens", run.tokens)
        if not self._engine.is_own() or run.past_has_graph():
            if request is None:
                return self._run_modules(run)
            with self.hooks(request.hooks):
                return self._run_modules(run)
        if run.residual is None:
            one = Pass(self._engine, run.tokens, run.attention_mask, run.past)
        elif run.stops and not len(layers):
            return run.residual
        else:
            tokens = torch.zeros(run.residual.shape[:2], dtype=torch.int64, device=self._device)
            one = Pass(self._engine, tokens, run.attention_mask, run.past)
            one.start_at(layers.start if len(layers) else self.cfg.n_layers, run.residual, run.pos_embed)

        def is_in_pass(name: str) -> bool:
            if name.startswith("blocks."):
                return int(name.split(".")[1]) in layers and self._is_open(name)
            if name.startswith(("ln_final.", "unembed.")):
                return not run.stops and (run.has_logits or name.startswith("ln_final."))
            return run.residual is None and name != "hook_tokens"

        one.add_hooks(is_in_pass)
        one.run(self._last_node(run))
        if request is not None:
            one.fill(request, is_in_pass)
        if run.past is not None:
            one.keep_past(layers)
        if run.stops:
            return one.read(f"blocks.{layers[-1]}.hook_resid_post" if len(layers) else "blocks.0.hook_resid_pre")
        return one.read("logits") if run.has_logits else None

    def _run_modules(self, run: Run) -> Any:
        """`_run` by the modules themselves, where some are not ours, have torch's own hooks, or a past has a graph."""
        cfg, residual, pos_embed = self.cfg, run.residual, run.pos_embed
        if residual is None:
            residual, pos_embed = self._embedded(run.tokens, run.attention_mask, run.past)
        for layer in run.layers:
            residual = self.blocks[layer](
                residual,
                shortformer_pos_embed=pos_embed,
                past_kv_cache_entry=None if run.past is None else run.past[layer],
                attention_mask=run.attention_mask,
            )
        if run.stops:
            return residual
        if cfg.normalization_type is not None:
            residual = self.ln_final(residual)
        return apply_softcap(self.unembed(residual), cfg.output_logits_soft_cap) if run.has_logits else None

    def _last_node(self, run: Run) -> str:
        if not run.stops and run.has_logits:
            return "logits"
        if not run.stops and self.cfg.normalization_type is not None:
            return "ln_final.hook_normalized"
        if len(run.layers):
            return f"blocks.{run.layers[-1]}.hook_resid_post"
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
        request = None
        if self._engine.is_own():
            usual, matches = self._has_usual_forward(), names_matcher(names_filter)
            hooks = fwd_hooks if usual else []  # A forward of one's own may call the modules.
            request = CacheRequest(matches, device, remove_batch_dim, Slice.unwrap(pos_slice), cache, hooks)
            fwd_hooks = [] if usual else fwd_hooks
        with self.hooks(fwd_hooks, bwd_hooks, reset_hooks_end, clear_contexts), self._caching(request):
            output = self(*model_args, **kwargs)
            if incl_bwd:
                output.backward()
        if not return_cache_object:
            return output, cache
        from glassformer.transformer_lens.ActivationCache import ActivationCache

        return output, ActivationCache(cache, self, has_batch_dim=not remove_batch_dim)

    @contextmanager
    def _caching(self, request: CacheRequest | None) -> Iterator[None]:
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
        return self.to("mps")

    def move_model_modules_to_device(self) -> None:
        """Move every parameter to `cfg.device`; UnsupportedError where that is not there."""
        if self.cfg.device is not None:
            nn.Module.to(self, checked_device(self.cfg.device))

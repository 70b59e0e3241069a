"""Attention, with keys and values for each head or for groups of heads."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import nn

from glassformer import _core
from glassformer.transformer_lens.cache import TransformerLensKeyValueCacheEntry
from glassformer.transformer_lens.components.norms import RMSNorm
from glassformer.transformer_lens.config import HookedTransformerConfig
from glassformer.transformer_lens.config.core_config import core_math
from glassformer.transformer_lens.FactoredMatrix import FactoredMatrix
from glassformer.transformer_lens.hook_points import HookPoint
from glassformer.transformer_lens.utilities.attention import clamp_qkv, complex_attn_linear, simple_attn_linear
from glassformer.transformer_lens.utilities.tensors import get_offset_position_ids

WHOLE_WIDTH_NORMS = ("OlmoeForCausalLM", "Olmo2ForCausalLM", "Olmo3ForCausalLM")
"""Architectures that normalise queries and keys over all heads at once."""


def by_head(n_heads: int, d_model: int, d_head: int, dtype: torch.dtype) -> nn.Parameter:
    """A weight head d_model d_head, in memory as the core has it: head d_head d_model."""
    return nn.Parameter(torch.empty(n_heads, d_head, d_model, dtype=dtype).transpose(1, 2))


class AbstractAttention(nn.Module):
    """What attention of either kind has: the weights `W_Q` (head d_model d_head), `W_O` (head d_head d_model), `b_Q`,
    `b_O`, its hook points, and its parts as methods."""

    ROTARY_INITIAL_CACHE_SIZE = 2048

    def __init__(
        self, cfg: HookedTransformerConfig | dict[str, Any], attn_type: str = "global", layer_id: int | None = None
    ) -> None:
        super().__init__()
        self.cfg = cfg = HookedTransformerConfig.unwrap(cfg)
        if cfg.load_in_4bit:
            raise _core.UnsupportedError("load_in_4bit: 4-bit weights are not supported; load the model dequantised")
        self.W_Q = by_head(cfg.n_heads, cfg.d_model, cfg.d_head, cfg.dtype)
        self.W_O = nn.Parameter(torch.empty(cfg.n_heads, cfg.d_head, cfg.d_model, dtype=cfg.dtype))
        self.b_Q = nn.Parameter(torch.zeros(cfg.n_heads, cfg.d_head, dtype=cfg.dtype))
        self.b_O = nn.Parameter(torch.zeros(cfg.d_model, dtype=cfg.dtype))
        self._buffers_seen: list[tuple[int, int]] = []
        self._set_norms()
        self.attn_type, self.layer_id = attn_type, layer_id
        if attn_type not in ("global", "local"):
            raise ValueError(f"attention is 'global' or 'local'; found {attn_type!r}")
        if attn_type == "local" and not isinstance(cfg.window_size, int):
            raise ValueError(f"local attention needs a window_size; found {cfg.window_size!r}")
        if cfg.scale_attn_by_inverse_layer_idx and layer_id is None:
            raise ValueError("scale_attn_by_inverse_layer_idx needs the number of the layer; found None")
        self.attn_scale = self._own_scale()
        self.register_buffer("mask", torch.empty((0, 0), dtype=torch.bool))  # For state dicts alone.
        self.register_buffer("IGNORE", torch.tensor(-torch.inf))
        if cfg.use_attention_sinks:
            self.sinks = nn.Parameter(torch.zeros(cfg.n_heads, dtype=cfg.dtype))
        self._set_points()

    def _own_scale(self) -> float:
        scale = self.cfg.attn_scale if self.cfg.use_attn_scale else 1.0
        return scale * (self.layer_id + 1) if self.cfg.scale_attn_by_inverse_layer_idx else scale

    def follows_config(self) -> bool:
        """Whether nothing here was changed since it was made."""
        cfg = self.cfg
        own_type = cfg.attn_types[self.layer_id] if cfg.use_local_attn else "global"
        self._check_buffers()
        return self.attn_type == own_type and self.attn_scale == self._own_scale()

    def _check_buffers(self) -> None:
        """They are there for state dicts alone: another value in one would say what isn't computed."""
        seen = [(id(buffer), buffer.is_inference() or buffer._version) for buffer in self._buffers.values()]
        if seen == self._buffers_seen or self.W_O.is_meta:
            return
        expected = {"IGNORE": torch.tensor(-torch.inf)}
        if "rotary_sin" in self._buffers:
            sin, cos = core_math(self.cfg, training=True).rotary_tables(len(self.rotary_sin), self.attn_type == "local")
            expected |= {"rotary_sin": sin, "rotary_cos": cos}
        for name, value in expected.items():
            found = self._buffers[name]
            if not torch.allclose(found.cpu(), value.to(found.dtype), rtol=0, atol=0.01):
                raise _core.UnsupportedError(
                    f"{self.__dict__.get('name', 'attention')}.{name} was changed; masks and rotary angles are made "
                    "from the config: use hooks, or another config"
                )
        self._buffers_seen = seen

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *more: Any) -> None:
        own = {prefix + name: buffer for name, buffer in self._buffers.items() if prefix + name in state_dict}
        super()._load_from_state_dict({**state_dict, **own}, prefix, *more)

    def _set_norms(self) -> None:
        cfg = self.cfg
        self.q_norm: RMSNorm | None = None
        self.k_norm: RMSNorm | None = None
        if cfg.use_qk_norm:
            self.q_norm, self.k_norm = RMSNorm(cfg, cfg.d_head), RMSNorm(cfg, cfg.d_head)
        elif cfg.original_architecture in WHOLE_WIDTH_NORMS:
            n_kv_heads = cfg.n_key_value_heads
            self.q_norm = RMSNorm(cfg, cfg.d_model)
            self.k_norm = RMSNorm(cfg, cfg.d_model if n_kv_heads is None else cfg.d_head * n_kv_heads)

    def _set_points(self) -> None:
        self.hook_k = HookPoint()  # batch pos head d_head
        self.hook_q = HookPoint()  # batch pos head d_head
        self.hook_v = HookPoint()  # batch pos head d_head
        self.hook_z = HookPoint()  # batch pos head d_head
        self.hook_attn_scores = HookPoint()  # batch head query_pos key_pos
        self.hook_pattern = HookPoint()  # batch head query_pos key_pos
        self.hook_result = HookPoint()  # batch pos head d_model
        kind = self.cfg.positional_embedding_type
        if kind == "shortformer":
            self.hook_attn_input = HookPoint()  # Stands here and is never called.
        elif kind == "rotary":
            self.hook_rot_k = HookPoint()  # batch key_pos head d_head
            self.hook_rot_q = HookPoint()  # batch pos head d_head
            length = min(self.cfg.n_ctx, self.ROTARY_INITIAL_CACHE_SIZE)
            sin, cos = core_math(self.cfg, training=True).rotary_tables(length, self.attn_type == "local")
            self.register_buffer("rotary_sin", sin.to(self.cfg.dtype))  # For state dicts alone.
            self.register_buffer("rotary_cos", cos.to(self.cfg.dtype))
        elif kind == "alibi":
            self.alibi = None

    @property
    def OV(self) -> FactoredMatrix:
        """W_V W_O of every head: head d_model d_model, factored."""
        return FactoredMatrix(self.W_V, self.W_O)

    @property
    def QK(self) -> FactoredMatrix:
        """W_Q W_K^T of every head: head d_model d_model, factored."""
        return FactoredMatrix(self.W_Q, self.W_K.transpose(-2, -1))

    def _project(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """batch pos d_model, or batch pos head d_model: each head its own -> batch pos head d_head"""
        return (complex_attn_linear if x.ndim == 4 else simple_attn_linear)(x, weight, bias)

    def _normalised(self, x: torch.Tensor, norm: RMSNorm) -> torch.Tensor:
        if self.cfg.use_qk_norm:
            return norm(x.reshape(-1, x.shape[-1])).reshape(x.shape)
        return norm(x.flatten(-2)).reshape(x.shape)

    def calculate_qkv_matrices(
        self, query_input: torch.Tensor, key_input: torch.Tensor, value_input: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries, keys and values, batch pos head d_head, of inputs batch pos d_model or batch pos head d_model."""
        q = self.hook_q(self._project(query_input, self.W_Q, self.b_Q))
        k = self.hook_k(self._project(key_input, *self._key_weights()))
        v = self.hook_v(self._project(value_input, *self._value_weights()))
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self._normalised(q, self.q_norm), self._normalised(k, self.k_norm)
        return q, k, v

    def _key_weights(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.W_K, self.b_K

    def _value_weights(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.W_V, self.b_V

    def _positions(self, start: int, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        if mask is not None:
            return get_offset_position_ids(start, mask)
        return torch.arange(start, start + x.shape[1], device=x.device).expand(x.shape[:2])

    def forward(
        self,
        query_input: torch.Tensor,
        key_input: torch.Tensor,
        value_input: torch.Tensor,
        past_kv_cache_entry: TransformerLensKeyValueCacheEntry | None = None,
        additive_attention_mask: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_bias: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """What attention adds to the residual stream: batch pos d_model.

        The inputs, normalised, are batch pos d_model, or batch pos head d_model: each head its own. Keys and values of
        the cache entry come before, and the new ones are put behind them there. `additive_attention_mask` is added to
        the scores, `attention_mask` (batch key_pos) hides keys. `position_bias` is for encoders: UnsupportedError.
        """
        if position_bias is not None:
            raise _core.UnsupportedError("position_bias: relative position biases are not supported")
        cfg = self.cfg
        q, k, v = self.calculate_qkv_matrices(query_input, key_input, value_input)
        if cfg.clip_qkv is not None:
            q, k, v = clamp_qkv(q, k, v, cfg.clip_qkv)
        n_past = 0
        if past_kv_cache_entry is not None:
            n_past = past_kv_cache_entry.past_keys.size(1)
            k, v = past_kv_cache_entry.append(k, v)
        if cfg.positional_embedding_type == "rotary":
            q = self.hook_rot_q(self.apply_rotary(q, n_past, attention_mask))
            k = self.hook_rot_k(self.apply_rotary(k, 0, attention_mask))
        if cfg.use_logn_attn and not self.training:
            q = _core.steps.scale_by_log(q, n_past, cfg.train_seq_length or cfg.n_ctx)
        scores = self.calculate_attention_scores(q, k)
        if cfg.positional_embedding_type == "alibi":
            wide = torch.promote_types(scores.dtype, torch.float32)
            bias = _core.steps.alibi_bias(cfg.n_heads, n_past, k.shape[1], wide, scores.device)
            scores = scores + bias.to(scores.dtype)
        if cfg.attention_dir == "causal":
            scores = self.apply_causal_mask(scores, n_past, attention_mask)
        elif attention_mask is not None:
            scores = _core.steps.mask_scores(
                scores, scores.shape[-1], 0, attention_mask
            )  # Behind all keys: none is later.
        if additive_attention_mask is not None:
            scores = scores + additive_attention_mask
        pattern = self.hook_pattern(
            _core.steps.pattern(self.hook_attn_scores(scores), v.dtype, getattr(self, "sinks", None))
        )
        z = self.calculate_z_scores(v, pattern)
        rows = self.W_O.flatten(0, 1).mT
        if not self.cfg.use_attn_result:
            return _core.steps.linear(z.flatten(-2), rows, self.b_O)
        return _core.steps.sum_heads(self.hook_result(_core.steps.head_results(z, rows)), self.b_O)

    def calculate_attention_scores(self, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        """Products of queries and keys over `attn_scale`, capped softly where the config says so: batch head query_pos
        key_pos, from batch pos head d_head each. Nothing is masked."""
        return _core.steps.scores(q, k, 1 / self.attn_scale, max(self.cfg.attn_scores_soft_cap, 0.0))

    def calculate_z_scores(self, v: torch.Tensor, pattern: torch.Tensor) -> torch.Tensor:
        """Values (batch key_pos head d_head) mixed by a pattern (batch head query_pos key_pos), through `hook_z`: batch
        query_pos head d_head."""
        return self.hook_z(_core.steps.mix_values(pattern, v))

    def apply_causal_mask(
        self, attn_scores: torch.Tensor, past_kv_pos_offset: int = 0, attention_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Scores (batch head query_pos key_pos), -inf for later keys, keys before a local layer's window, and those
        that `attention_mask` (batch key_pos) hides. ValueError unless there are as many keys as queries and
        `past_kv_pos_offset`."""
        n_queries, n_keys = attn_scores.shape[-2:]
        if n_queries + past_kv_pos_offset != n_keys:
            raise _core.ShapeError(f"{n_queries} queries behind {past_kv_pos_offset} positions, but {n_keys} keys")
        window = self.cfg.window_size if self.attn_type == "local" else 0
        return _core.steps.mask_scores(attn_scores, past_kv_pos_offset, window, attention_mask)

    def calculate_sin_cos_rotary(
        self, rotary_dim: int, n_ctx: int, base: float = 10000, dtype: torch.dtype = torch.float32
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The sines and cosines of the angles by which each position turns the dimensions of a head, scaled as the
        config says: pos rotary_dim each."""
        local = {} if self.cfg.rotary_base_local is None else {"rotary_base_local": base}
        changed = {"rotary_dim": rotary_dim, "rotary_base": base, "n_ctx": n_ctx, "seed": None, **local}
        cfg = dataclasses.replace(self.cfg, positional_embedding_type="rotary", **changed)
        sin, cos = core_math(cfg).rotary_tables(n_ctx, self.attn_type == "local")
        return sin.to(dtype), cos.to(dtype)

    def rotate_every_two(self, x: torch.Tensor) -> torch.Tensor:
        """The two numbers of each pair (adjacent ones, or those half an axis apart, as the config says) exchanged, the
        first of them then negated."""
        by_pair = x.unflatten(-1, (-1, 2) if self.cfg.rotary_adjacent_pairs else (2, -1))
        axis = -1 if self.cfg.rotary_adjacent_pairs else -2
        first, second = by_pair.unbind(axis)
        return torch.stack([-second, first], dim=axis).flatten(-2)

    def apply_rotary(
        self, x: torch.Tensor, past_kv_pos_offset: int = 0, attention_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Queries or keys (batch pos head d_head), turned by their positions, which count from `past_kv_pos_offset`, or
        over what `attention_mask` (batch past+pos) doesn't hide."""
        positions = self._positions(past_kv_pos_offset, x, attention_mask)
        return core_math(self.cfg, self.training).rotate(x, positions, self.attn_type == "local")

    @staticmethod
    def create_alibi_slope(n_ctx: int, device: torch.device | str | None = None) -> torch.Tensor:
        """Key minus query position, 0 for later keys: query key."""
        places = torch.arange(n_ctx, dtype=torch.float32, device=device)
        return (places - places.unsqueeze(1)).clamp(max=0)

    @staticmethod
    def create_alibi_multipliers(n_heads: int, device: torch.device | str | None = None) -> torch.Tensor:
        """ALiBi's slope of each head: head."""
        return -AbstractAttention.create_alibi_bias(n_heads, 2, device)[:, 1, 0]

    @staticmethod
    def create_alibi_bias(n_heads: int, n_ctx: int, device: torch.device | str | None = None) -> torch.Tensor:
        """What ALiBi adds to scores: head query_pos key_pos."""
        return _core.steps.alibi_bias(n_heads, 0, n_ctx, torch.float32, torch.device(device or "cpu"))


class Attention(AbstractAttention):
    """Attention in which every head has keys and values of its own: `W_K`, `W_V` head d_model d_head."""

    def __init__(
        self, cfg: HookedTransformerConfig | dict[str, Any], attn_type: str = "global", layer_id: int | None = None
    ) -> None:
        super().__init__(cfg, attn_type, layer_id)
        cfg = self.cfg
        self.W_K = by_head(cfg.n_heads, cfg.d_model, cfg.d_head, cfg.dtype)
        self.W_V = by_head(cfg.n_heads, cfg.d_model, cfg.d_head, cfg.dtype)
        self.b_K = nn.Parameter(torch.zeros(cfg.n_heads, cfg.d_head, dtype=cfg.dtype))
        self.b_V = nn.Parameter(torch.zeros(cfg.n_heads, cfg.d_head, dtype=cfg.dtype))


def _repeated(name: str) -> property:
    def get(self: GroupedQueryAttention) -> torch.Tensor:
        return getattr(self, name).repeat_interleave(self.repeat_kv_heads, dim=0)

    def put(self: GroupedQueryAttention, value: torch.Tensor) -> None:
        setattr(self, name, value)

    return property(get, put, doc=f"`{name}`, repeated for every head of its group.")


class GroupedQueryAttention(AbstractAttention):
    """Attention whose heads share keys and values in groups: the parameters are `_W_K`, `_W_V` (kv_head d_model
    d_head), `_b_K`, `_b_V`; `W_K` and its like repeat them for every head."""

    def __init__(
        self, cfg: HookedTransformerConfig | dict[str, Any], attn_type: str = "global", layer_id: int | None = None
    ) -> None:
        cfg = HookedTransformerConfig.unwrap(cfg)
        assert cfg.n_key_value_heads is not None, "grouped attention needs n_key_value_heads"
        super().__init__(cfg, attn_type, layer_id)
        n_kv_heads = cfg.n_key_value_heads
        self.repeat_kv_heads = cfg.n_heads // n_kv_heads
        self._W_K = by_head(n_kv_heads, cfg.d_model, cfg.d_head, cfg.dtype)
        self._W_V = by_head(n_kv_heads, cfg.d_model, cfg.d_head, cfg.dtype)
        self._b_K = nn.Parameter(torch.zeros(n_kv_heads, cfg.d_head, dtype=cfg.dtype))
        self._b_V = nn.Parameter(torch.zeros(n_kv_heads, cfg.d_head, dtype=cfg.dtype))

    W_K, W_V = _repeated("_W_K"), _repeated("_W_V")
    b_K, b_V = _repeated("_b_K"), _repeated("_b_V")

    def _key_weights(self) -> tuple[torch.Tensor, torch.Tensor]:
        return (self.W_K, self.b_K) if self.cfg.ungroup_grouped_query_attention else (self._W_K, self._b_K)

    def _value_weights(self) -> tuple[torch.Tensor, torch.Tensor]:
        return (self.W_V, self.b_V) if self.cfg.ungroup_grouped_query_attention else (self._W_V, self._b_V)


def attention_class(cfg: HookedTransformerConfig) -> type[AbstractAttention]:
    """Of the attention that a config asks for."""
    return Attention if cfg.n_key_value_heads is None else GroupedQueryAttention

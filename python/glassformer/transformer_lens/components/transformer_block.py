"""One block: attention and an MLP, each reading the residual stream and adding to it."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from glassformer.transformer_lens.cache import TransformerLensKeyValueCacheEntry
from glassformer.transformer_lens.components.attention import attention_class
from glassformer.transformer_lens.components.mlps import mlp_class, mlp_for
from glassformer.transformer_lens.components.norms import KINDS, norm_behind, norm_behind_class, norm_for
from glassformer.transformer_lens.config import HookedTransformerConfig
from glassformer.transformer_lens.hook_points import HookPoint
from glassformer.transformer_lens.utilities.tensors import repeat_along_head_dimension

POST_NORM_ARCHITECTURES = ("Olmo2ForCausalLM", "Olmo3ForCausalLM")


def has_norms_only_behind(cfg: Any) -> bool:
    """Whether `ln1` and `ln2` stand behind attention and MLP."""
    return getattr(cfg, "original_architecture", None) in POST_NORM_ARCHITECTURES


class TransformerBlock(nn.Module):
    """A block with the hook points of its residual stream; called on batch pos d_model, it returns the same shape."""

    def __init__(self, cfg: HookedTransformerConfig | dict[str, Any], block_index: int) -> None:
        super().__init__()
        self.cfg = cfg = HookedTransformerConfig.unwrap(cfg)
        self.normalization_type = cfg.normalization_type
        self.ln1 = norm_for(cfg)
        if cfg.use_normalization_before_and_after:
            self.ln1_post = norm_behind(cfg)
        if not cfg.attn_only:
            self.ln2 = norm_for(cfg)
            if cfg.use_normalization_before_and_after:
                self.ln2_post = norm_behind(cfg)
        if cfg.use_local_attn and cfg.attn_types is None:
            raise ValueError("use_local_attn needs attn_types; found None")
        self.attn = attention_class(cfg)(
            cfg, cfg.attn_types[block_index] if cfg.use_local_attn else "global", block_index
        )
        if not cfg.attn_only:
            self.mlp = mlp_for(cfg)
        self.hook_attn_in = HookPoint()  # batch pos head d_model
        self.hook_q_input = HookPoint()  # batch pos head d_model
        self.hook_k_input = HookPoint()  # batch pos head d_model
        self.hook_v_input = HookPoint()  # batch pos head d_model
        self.hook_mlp_in = HookPoint()  # batch pos d_model
        self.hook_attn_out = HookPoint()  # batch pos d_model
        self.hook_mlp_out = HookPoint()  # batch pos d_model
        self.hook_resid_pre = HookPoint()  # batch pos d_model
        if not cfg.attn_only and not cfg.parallel_attn_mlp:
            self.hook_resid_mid = HookPoint()  # batch pos d_model
        self.hook_resid_post = HookPoint()  # batch pos d_model

    def has_usual_parts(self) -> bool:
        """Whether norms, attention and MLP are of the classes that the config asks for."""
        cfg = self.cfg
        norm = KINDS.get(cfg.normalization_type, nn.Identity)
        usual = type(self.ln1) is norm and type(self.attn) is attention_class(cfg)
        if cfg.use_normalization_before_and_after:
            usual = usual and type(self.ln1_post) is norm_behind_class(cfg)
        if cfg.attn_only:
            return usual
        if cfg.use_normalization_before_and_after:
            usual = usual and type(self.ln2_post) is norm_behind_class(cfg)
        return usual and type(self.ln2) is norm and type(self.mlp) is mlp_class(cfg)

    def _attention_inputs(self, resid_pre: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        cfg = self.cfg
        attn_in = resid_pre
        if cfg.use_attn_in:
            attn_in = self.hook_attn_in(repeat_along_head_dimension(resid_pre, cfg.n_heads))
        if not cfg.use_split_qkv_input:
            return attn_in, attn_in, attn_in
        if cfg.use_attn_in and cfg.n_key_value_heads is None:
            q, k, v = (attn_in.clone() for _ in "qkv")
        else:
            grouped = cfg.n_key_value_heads is not None and not cfg.ungroup_grouped_query_attention
            n_kv_heads = cfg.n_key_value_heads if grouped else cfg.n_heads
            q, k, v = (repeat_along_head_dimension(resid_pre, n) for n in (cfg.n_heads, n_kv_heads, n_kv_heads))
        return self.hook_q_input(q), self.hook_k_input(k), self.hook_v_input(v)

    def _attention(self, resid_pre: torch.Tensor, shortformer_pos_embed: torch.Tensor | None, **given: Any) -> Any:
        inputs = self._attention_inputs(resid_pre)
        if has_norms_only_behind(self.cfg):
            out = self._attend(*inputs, **given)
            return self.ln1(self.ln1_post(out) if self.cfg.use_normalization_before_and_after else out)
        q, k, v = (self.ln1(each) for each in inputs)
        if shortformer_pos_embed is not None:
            pos = shortformer_pos_embed.unsqueeze(2) if q.ndim == 4 else shortformer_pos_embed
            q, k = q + pos, k + pos
        out = self._attend(q, k, v, **given)
        return self.ln1_post(out) if self.cfg.use_normalization_before_and_after else out

    def _attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **given: Any) -> torch.Tensor:
        return self.attn(query_input=q, key_input=k, value_input=v, **given)

    def forward(
        self,
        resid_pre: torch.Tensor,
        shortformer_pos_embed: torch.Tensor | None = None,
        past_kv_cache_entry: TransformerLensKeyValueCacheEntry | None = None,
        attention_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The residual stream behind this block: batch pos d_model.

        `shortformer_pos_embed` (batch pos d_model) is added to what queries and keys are made of; `attention_mask`
        (batch key_pos) hides keys; the cache entry holds the keys and values before, and gets the new ones.
        """
        cfg = self.cfg
        resid_pre = self.hook_resid_pre(resid_pre)
        given = {"past_kv_cache_entry": past_kv_cache_entry, "attention_mask": attention_mask}
        attn_out = self.hook_attn_out(self._attention(resid_pre, shortformer_pos_embed, **given))
        if cfg.parallel_attn_mlp:
            mlp_in = self.hook_mlp_in(resid_pre.clone()) if cfg.use_hook_mlp_in else resid_pre
            return self.hook_resid_post(resid_pre + attn_out + self.apply_mlp(self.ln2(mlp_in)))
        if cfg.attn_only:
            return self.hook_resid_post(resid_pre + attn_out)
        resid_mid = self.hook_resid_mid(resid_pre + attn_out)
        mlp_in = self.hook_mlp_in(resid_mid.clone()) if cfg.use_hook_mlp_in else resid_mid
        post_norm = has_norms_only_behind(cfg)
        return self.hook_resid_post(resid_mid + self.apply_mlp(mlp_in if post_norm else self.ln2(mlp_in)))

    def apply_mlp(self, normalized_resid: torch.Tensor) -> torch.Tensor:
        """What the MLP adds to the residual stream, with the norms behind it: batch pos d_model."""
        out = self.mlp(normalized_resid)
        if self.cfg.use_normalization_before_and_after:
            out = self.ln2_post(out)
        if has_norms_only_behind(self.cfg):
            out = self.ln2(out)
        return self.hook_mlp_out(out)

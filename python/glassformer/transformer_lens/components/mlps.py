"""MLPs: plain, gated, and mixtures of experts."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from glassformer import _core
from glassformer.transformer_lens.components.norms import LayerNorm, LayerNormPre
from glassformer.transformer_lens.config import HookedTransformerConfig
from glassformer.transformer_lens.factories.activation_function_factory import ActivationFunctionFactory
from glassformer.transformer_lens.hook_points import HookPoint


class CanBeUsedAsMLP(nn.Module):
    """What stands at a block's `mlp`: batch pos d_model -> batch pos d_model."""

    def __init__(self, cfg: HookedTransformerConfig | dict[str, Any]) -> None:
        super().__init__()
        self.cfg = HookedTransformerConfig.unwrap(cfg)
        if self.cfg.d_mlp is None:
            raise ValueError("an MLP needs d_mlp; the config has None")
        self.d_mlp = self.cfg.d_mlp

    def select_activation_function(self) -> None:
        """Set `act_fn`, and what stands behind it where its name ends in "_ln"."""
        self.act_fn = ActivationFunctionFactory.pick_activation_function(self.cfg)
        if self.cfg.is_layer_norm_activation():
            self.hook_mid = HookPoint()  # batch pos d_mlp
            self.ln = LayerNorm(self.cfg, self.d_mlp) if self.cfg.normalization_type == "LN" else LayerNormPre(self.cfg)


class MLP(CanBeUsedAsMLP):
    """act(x W_in + b_in) W_out + b_out, with a LayerNorm behind the activation where its name ends in "_ln"."""

    def __init__(self, cfg: HookedTransformerConfig | dict[str, Any]) -> None:
        super().__init__(cfg)
        self.select_activation_function()
        d_model, dtype = self.cfg.d_model, self.cfg.dtype
        self.W_in = nn.Parameter(torch.empty(d_model, self.d_mlp, dtype=dtype))
        self.b_in = nn.Parameter(torch.zeros(self.d_mlp, dtype=dtype))
        self.W_out = nn.Parameter(torch.empty(self.d_mlp, d_model, dtype=dtype))
        self.b_out = nn.Parameter(torch.zeros(d_model, dtype=dtype))
        self.hook_pre = HookPoint()  # batch pos d_mlp
        self.hook_post = HookPoint()  # batch pos d_mlp

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """batch pos d_model -> batch pos d_model"""
        activated = self.act_fn(self.hook_pre(_core.steps.linear(x, self.W_in.mT, self.b_in)))
        if self.cfg.is_layer_norm_activation():
            activated = self.ln(self.hook_mid(activated))
        return _core.steps.linear(self.hook_post(activated), self.W_out.mT, self.b_out)


class GatedMLP(CanBeUsedAsMLP):
    """(act(x W_gate) * (x W_in) + b_in) W_out + b_out; where the activation's name ends in "_ln", a LayerNorm stands in
    the place of the product."""

    def __init__(self, cfg: HookedTransformerConfig | dict[str, Any]) -> None:
        super().__init__(cfg)
        self.select_activation_function()
        d_model, dtype = self.cfg.d_model, self.cfg.dtype
        self.W_in = nn.Parameter(torch.empty(d_model, self.d_mlp, dtype=dtype))
        self.W_out = nn.Parameter(torch.empty(self.d_mlp, d_model, dtype=dtype))
        self.W_gate = nn.Parameter(torch.empty(d_model, self.d_mlp, dtype=dtype))
        self.b_in = nn.Parameter(torch.zeros(self.d_mlp, dtype=dtype))
        self.b_out = nn.Parameter(torch.zeros(d_model, dtype=dtype))
        self.hook_pre = HookPoint()  # batch pos d_mlp: the gate before the activation
        self.hook_pre_linear = HookPoint()  # batch pos d_mlp
        self.hook_post = HookPoint()  # batch pos d_mlp

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """batch pos d_model -> batch pos d_model"""
        gate = self.hook_pre(_core.steps.linear(x, self.W_gate.mT))
        if self.cfg.is_layer_norm_activation():
            post = self.hook_post(self.ln(self.hook_mid(self.act_fn(gate))))
        else:
            linear = self.hook_pre_linear(_core.steps.linear(x, self.W_in.mT))
            post = self.hook_post(self.act_fn(gate) * linear + self.b_in)
        return _core.steps.linear(post, self.W_out.mT, self.b_out)


class MoEGatedMLP(nn.Module):
    """One expert: (act(x W_gate) * (x W_in)) W_out, without biases."""

    def __init__(self, cfg: HookedTransformerConfig) -> None:
        super().__init__()
        self.cfg = cfg
        if self.cfg.d_mlp is None:
            raise ValueError("an MLP needs d_mlp; the config has None")
        self.d_mlp = self.cfg.d_mlp
        self.W_in = nn.Linear(cfg.d_model, self.d_mlp, bias=False, dtype=cfg.dtype)
        self.W_out = nn.Linear(self.d_mlp, cfg.d_model, bias=False, dtype=cfg.dtype)
        self.W_gate = nn.Linear(cfg.d_model, self.d_mlp, bias=False, dtype=cfg.dtype)
        self.hook_gate = HookPoint()  # row d_mlp: rows are the tokens that this expert was chosen for
        self.hook_pre = HookPoint()  # row d_mlp
        self.hook_post = HookPoint()  # row d_mlp
        self.act_fn = ActivationFunctionFactory.pick_activation_function(cfg)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """row d_model -> row d_model"""
        gate = self.hook_gate(_core.steps.linear(x, self.W_gate.weight))
        linear = self.hook_pre(_core.steps.linear(x, self.W_in.weight))
        post = self.hook_post(self.act_fn(gate) * linear)
        return _core.steps.linear(post, self.W_out.weight)


class MoE(CanBeUsedAsMLP):
    """A mixture of experts: every token goes through the `experts_per_token` experts that the router prefers."""

    def __init__(self, cfg: HookedTransformerConfig | dict[str, Any]) -> None:
        super().__init__(cfg)
        assert self.cfg.num_experts is not None, "a mixture of experts needs num_experts"
        assert self.cfg.experts_per_token, "a mixture of experts needs experts_per_token"
        assert self.cfg.experts_per_token <= self.cfg.num_experts, (
            f"experts_per_token ({self.cfg.experts_per_token}) is more than num_experts ({self.cfg.num_experts})"
        )
        self.num_experts, self.experts_per_token = self.cfg.num_experts, self.cfg.experts_per_token
        self.experts = nn.ModuleList([MoEGatedMLP(self.cfg) for _ in range(self.num_experts)])
        self.W_gate = nn.Linear(self.cfg.d_model, self.num_experts, bias=False, dtype=self.cfg.dtype)
        self.hook_expert_weights = HookPoint()  # row expert: the router's softmax
        self.hook_expert_indices = HookPoint()  # row experts_per_token

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """batch pos d_model -> batch pos d_model"""
        rows = x.flatten(0, 1)
        router = self.hook_expert_weights(_core.steps.softmax(_core.steps.linear(rows, self.W_gate.weight)))
        weights, chosen = router.topk(self.experts_per_token, dim=-1)
        if self.cfg.norm_topk_prob:
            weights = weights / weights.sum(dim=-1, keepdim=True)
        chosen, weights = self.hook_expert_indices(chosen), weights.to(x.dtype)
        out = torch.zeros_like(rows)
        for number, expert in enumerate(self.experts):
            row, place = (chosen == number).nonzero(as_tuple=True)
            out = out.index_add(0, row, expert(rows[row]) * weights[row, place, None])
        return out.view_as(x)


def mlp_for(cfg: HookedTransformerConfig) -> CanBeUsedAsMLP:
    """The MLP that a config asks for; UnsupportedError for GPT-OSS' experts."""
    if cfg.num_experts and cfg.original_architecture == "GptOssForCausalLM":
        raise _core.UnsupportedError("GptOssForCausalLM: experts with biases and a clamped gate are not supported yet")
    if cfg.num_experts:
        return MoE(cfg)
    return GatedMLP(cfg) if cfg.gated_mlp else MLP(cfg)

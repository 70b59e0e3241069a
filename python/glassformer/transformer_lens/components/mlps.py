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
from glassformer.transformer_lens.utilities.activation_functions import SUPPORTED_ACTIVATIONS, XIELU


class CanBeUsedAsMLP(nn.Module):
    """What stands at a block's `mlp`: batch pos d_model -> batch pos d_model."""

    def __init__(self, cfg: HookedTransformerConfig | dict[str, Any]) -> None:
        super().__init__()
        self.cfg = HookedTransformerConfig.unwrap(cfg)
        if self.cfg.d_mlp is None:
            raise ValueError("an MLP needs d_mlp; the config has None")
        self.d_mlp = self.cfg.d_mlp

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`x`, for subclasses to do more."""
        return x

    def select_activation_function(self) -> None:
        """Set `act_fn`, and what stands behind it where its name ends in "_ln"."""
        self.act_fn = ActivationFunctionFactory.pick_activation_function(self.cfg)
        if self.cfg.is_layer_norm_activation():
            self.hook_mid = HookPoint()  # batch pos d_mlp
            self.ln = LayerNorm(self.cfg, self.d_mlp) if self.cfg.normalization_type == "LN" else LayerNormPre(self.cfg)

    def has_usual_parts(self) -> bool:
        """Whether the norm behind the activation, if there is one, is of the class that it was made with."""
        usual = LayerNorm if self.cfg.normalization_type == "LN" else LayerNormPre
        return not isinstance(getattr(self, "ln", None), nn.Module) or type(self.ln) is usual

    def follows_config(self) -> bool:
        """Whether nothing here was changed since it was made."""
        act_fn = getattr(self, "act_fn", None)  # A mixture's experts have their own.
        return act_fn is None or isinstance(act_fn, XIELU) or act_fn is SUPPORTED_ACTIVATIONS.get(self.cfg.act_fn)


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


class GatedMLP4Bit(CanBeUsedAsMLP):
    """A gated MLP with weights of 4 bits, which can't be made here: UnsupportedError."""

    def __init__(self, cfg: HookedTransformerConfig | dict[str, Any]) -> None:
        raise _core.UnsupportedError("4-bit weights are not supported; load the model dequantised")


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

    follows_config = CanBeUsedAsMLP.follows_config


class GptOssExpert(nn.Module):
    """One expert of GPT-OSS, with biases; its gate and what it multiplies are bounded, and that is 1 more."""

    def __init__(self, cfg: HookedTransformerConfig) -> None:
        super().__init__()
        self.cfg = cfg
        assert cfg.d_mlp is not None, "an MLP needs d_mlp; the config has None"
        self.W_gate = nn.Linear(cfg.d_model, cfg.d_mlp, dtype=cfg.dtype)
        self.W_in = nn.Linear(cfg.d_model, cfg.d_mlp, dtype=cfg.dtype)
        self.W_out = nn.Linear(cfg.d_mlp, cfg.d_model, dtype=cfg.dtype)
        self.hook_gate = HookPoint()  # row d_mlp: rows are the tokens that this expert was chosen for
        self.hook_pre = HookPoint()  # row d_mlp
        self.hook_post = HookPoint()  # row d_mlp

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """row d_model -> row d_model"""
        gate = self.hook_gate(_core.steps.linear(x, self.W_gate.weight, self.W_gate.bias))
        linear = self.hook_pre(_core.steps.linear(x, self.W_in.weight, self.W_in.bias))
        post = self.hook_post(_core.steps.clamped_glu(gate, linear))
        return _core.steps.linear(post, self.W_out.weight, self.W_out.bias)


class _Experts(CanBeUsedAsMLP):
    """A mixture of experts: every token goes through the `experts_per_token` experts that the router prefers."""

    def __init__(
        self, cfg: HookedTransformerConfig | dict[str, Any], expert: type[MoEGatedMLP | GptOssExpert], router_bias: bool
    ) -> None:
        super().__init__(cfg)
        assert self.cfg.num_experts is not None, "a mixture of experts needs num_experts"
        assert self.cfg.experts_per_token, "a mixture of experts needs experts_per_token"
        assert self.cfg.experts_per_token <= self.cfg.num_experts, (
            f"experts_per_token ({self.cfg.experts_per_token}) is more than num_experts ({self.cfg.num_experts})"
        )
        self.num_experts, self.experts_per_token = self.cfg.num_experts, self.cfg.experts_per_token
        self.experts = nn.ModuleList([expert(self.cfg) for _ in range(self.num_experts)])
        self.W_gate = nn.Linear(self.cfg.d_model, self.num_experts, bias=router_bias, dtype=self.cfg.dtype)
        self.hook_expert_weights = HookPoint()  # row expert: how much of each expert a row gets
        self.hook_expert_indices = HookPoint()  # row experts_per_token

    def follows_config(self) -> bool:
        """Whether nothing here was changed since it was made."""
        return self.experts_per_token == self.cfg.experts_per_token

    def _router_logits(self, rows: torch.Tensor) -> torch.Tensor:
        return _core.steps.linear(rows, self.W_gate.weight, self.W_gate.bias)

    def _mixed(self, x: torch.Tensor, chosen: torch.Tensor, shares: torch.Tensor, skips_absent: bool) -> torch.Tensor:
        """What the `chosen` experts (row experts_per_token) make of x, in these `shares`."""
        rows = x.flatten(0, 1)
        out = torch.zeros_like(rows)
        for number, expert in enumerate(self.experts):
            place, row = (number == chosen.T).nonzero(as_tuple=True)
            if not (skips_absent and row.numel() == 0):
                out = out.index_add(0, row, expert(rows[row]) * shares[row, place, None])
        return out.view_as(x)


class MoE(_Experts):
    """A mixture of experts as in Mixtral: a softmax over all of them, of which each token gets the largest parts."""

    def __init__(self, cfg: HookedTransformerConfig | dict[str, Any]) -> None:
        super().__init__(cfg, MoEGatedMLP, router_bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """batch pos d_model -> batch pos d_model"""
        logits = self._router_logits(x.flatten(0, 1))
        weights = self.hook_expert_weights(_core.steps.expert_weights(logits, self.experts_per_token, False))
        shares, chosen = weights.topk(self.experts_per_token, dim=-1)
        if self.cfg.norm_topk_prob:
            shares = shares / shares.sum(dim=-1, keepdim=True)
        return self._mixed(x, self.hook_expert_indices(chosen), shares.to(x.dtype), skips_absent=False)


class GptOssMoE(_Experts):
    """A mixture of experts as in GPT-OSS: a softmax over the chosen ones. An expert that no token is for isn't called.

    `hook_expert_weights` is row expert too: 0 where an expert wasn't chosen.
    """

    def __init__(self, cfg: HookedTransformerConfig | dict[str, Any]) -> None:
        super().__init__(cfg, GptOssExpert, router_bias=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """batch pos d_model -> batch pos d_model"""
        logits = self._router_logits(x.flatten(0, 1))
        weights = self.hook_expert_weights(_core.steps.expert_weights(logits, self.experts_per_token, True))
        chosen = self.hook_expert_indices(logits.topk(self.experts_per_token, dim=-1).indices)
        return self._mixed(x, chosen, weights.gather(-1, chosen).to(x.dtype), skips_absent=True)


def mlp_class(cfg: HookedTransformerConfig) -> type[CanBeUsedAsMLP]:
    """Of the MLP that a config asks for."""
    if cfg.num_experts:
        return GptOssMoE if cfg.original_architecture == "GptOssForCausalLM" else MoE
    return GatedMLP if cfg.gated_mlp else MLP


def mlp_for(cfg: HookedTransformerConfig) -> CanBeUsedAsMLP:
    """The MLP that a config asks for."""
    return mlp_class(cfg)(cfg)

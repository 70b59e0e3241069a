"""Weights rewritten so that they say more and do the same; computed by the core."""

from __future__ import annotations

import json
import re
from typing import Any

import torch

from glassformer import _core
from glassformer.transformer_lens.config import HookedTransformerConfig
from glassformer.transformer_lens.config.core_config import core_config
from glassformer.transformer_lens.utilities.attention import simple_attn_linear

_NO_STEPS = dict.fromkeys(
    ("fold_norms", "center_writing_weights", "center_unembed", "fold_value_biases", "refactor_attention"), False
)
StateDict = dict[str, torch.Tensor]


def processed(cfg: HookedTransformerConfig, state: StateDict, **steps: bool) -> _core.Model:
    """The core's model of a complete state dict, with these steps done; the state dict stays as it is."""
    kind, fields = cfg.normalization_type, core_config(cfg)
    if kind is not None and kind.endswith("Pre") and has_norms(state):
        fields["normalization_type"] = kind.removesuffix("Pre")
    core = _core.Model.from_tensors(json.dumps(fields), state, None, cfg.dtype, state["unembed.W_U"].device)
    return _core.process_weights(core, **{**_NO_STEPS, **steps})


def has_norms(state: StateDict) -> bool:
    """Whether a state dict has weights of norms, which could be folded."""
    return any(key.endswith((".ln1.w", ".ln2.w", "ln_final.w")) for key in state)


def _processed_state(state: StateDict, cfg: Any, adapter: Any, **steps: bool) -> StateDict:
    if adapter is not None:
        raise _core.UnsupportedError("adapter: state dicts have TransformerLens' own keys here; leave it out")
    cfg = HookedTransformerConfig.unwrap(cfg)
    made = processed(cfg, state, **steps).weights_as("transformer_lens", set(state))

    def of(name: str, given: torch.Tensor) -> torch.Tensor:
        if name in made:
            return made[name].detach().to(given.dtype)
        is_folded = steps.get("fold_norms", False) and re.search(r"(^|\.)(ln1|ln2|ln|ln_final)\.[wb]$", name)
        return given.clone() if not is_folded else torch.full_like(given, float(name.endswith("w")))

    return {name: of(name, tensor) for name, tensor in state.items()}


class ProcessWeights:
    """The steps by which a HookedTransformer's state dict is processed, each on a copy of one.

    State dicts are complete, with TransformerLens' keys, and `cfg` is the model's config. An `adapter`, which would
    translate other keys, is an UnsupportedError. `InputError` for a weight that is missing.
    """

    @staticmethod
    def process_weights(
        state_dict: StateDict,
        cfg: Any,
        fold_ln: bool = True,
        center_writing_weights: bool = True,
        center_unembed: bool = True,
        fold_value_biases: bool = True,
        refactor_factored_attn_matrices: bool = False,
        adapter: Any = None,
    ) -> StateDict:
        """Several steps in their order; see `HookedTransformer.load_and_process_state_dict`."""
        return _processed_state(
            state_dict,
            cfg,
            adapter,
            fold_norms=fold_ln,
            center_writing_weights=center_writing_weights,
            center_unembed=center_unembed,
            fold_value_biases=fold_value_biases,
            refactor_attention=refactor_factored_attn_matrices,
        )

    @staticmethod
    def fold_layer_norm(
        state_dict: StateDict, cfg: Any, fold_biases: bool = True, center_weights: bool = True, adapter: Any = None
    ) -> StateDict:
        """Norms' weights and biases in what follows them, which is centred where the norm centres; their own are 1 and
        0 then. For norms that centre, `fold_biases` and `center_weights` can't be left out: UnsupportedError. RMS norms
        have no biases, and nothing is centred behind them whatever is asked for: it would change what they do.
        """
        kind = HookedTransformerConfig.unwrap(cfg).normalization_type
        if kind in ("LN", "LNPre") and not (fold_biases and center_weights):
            raise _core.UnsupportedError("a LayerNorm is folded whole: leave out fold_biases and center_weights")
        return _processed_state(state_dict, cfg, adapter, fold_norms=True)

    @staticmethod
    def center_writing_weights(state_dict: StateDict, cfg: Any, adapter: Any = None) -> StateDict:
        """Everything that is written into the residual stream has mean 0; only where all norms centre."""
        return _processed_state(state_dict, cfg, adapter, center_writing_weights=True)

    @staticmethod
    def center_unembed(state_dict: StateDict, cfg: Any = None, adapter: Any = None) -> StateDict:
        """The logits of a position have mean 0: `W_U` and `b_U` less their means over the vocabulary."""
        if adapter is not None or cfg is not None:
            return _processed_state(state_dict, cfg, adapter, center_unembed=True)
        made = {name: tensor.clone() for name, tensor in state_dict.items()}
        for name in ("unembed.W_U", "unembed.b_U"):
            made[name] -= made[name].mean(-1, keepdim=True)
        return made

    @staticmethod
    def fold_value_biases(state_dict: StateDict, cfg: Any, adapter: Any = None) -> StateDict:
        """The biases of values are in `b_O`, since a pattern sums to 1, and are 0 themselves."""
        return _processed_state(state_dict, cfg, adapter, fold_value_biases=True)

    @staticmethod
    def refactor_factored_attn_matrices(state_dict: StateDict, cfg: Any, adapter: Any = None) -> StateDict:
        """W_Q and W_K, and W_V and W_O, factored by their products' singular values."""
        return _processed_state(state_dict, cfg, adapter, refactor_attention=True)

    @staticmethod
    def fold_layer_norm_bias_single(
        w_tensor: torch.Tensor, b_tensor: torch.Tensor, ln_bias: torch.Tensor
    ) -> torch.Tensor:
        """The biases of heads (head d_head) with what a norm's bias (d_model) makes of their weights (head d_model
        d_head)."""
        return simple_attn_linear(ln_bias[None, None], w_tensor, b_tensor)[0, 0]

    @staticmethod
    def fold_layer_norm_weight_single(w_tensor: torch.Tensor, ln_weight: torch.Tensor) -> torch.Tensor:
        """The weights of heads (head d_model d_head), each row times that number of a norm's weight (d_model)."""
        return w_tensor * ln_weight[:, None]

    @staticmethod
    def center_weight_single(w_tensor: torch.Tensor) -> torch.Tensor:
        """The weights of heads (head d_model d_head) less their mean over d_model."""
        return w_tensor - w_tensor.mean(1, keepdim=True)

    @staticmethod
    def fold_layer_norm_biases(
        wq_tensor: torch.Tensor,
        wk_tensor: torch.Tensor,
        wv_tensor: torch.Tensor,
        bq_tensor: torch.Tensor | None,
        bk_tensor: torch.Tensor | None,
        bv_tensor: torch.Tensor | None,
        ln_bias: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """`fold_layer_norm_bias_single` of queries, keys and values; a bias that is None is 0."""

        def folded(weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
            bias = weight.new_zeros(weight.shape[0], weight.shape[2]) if bias is None else bias
            return ProcessWeights.fold_layer_norm_bias_single(weight, bias, ln_bias)

        return folded(wq_tensor, bq_tensor), folded(wk_tensor, bk_tensor), folded(wv_tensor, bv_tensor)

    @staticmethod
    def fold_layer_norm_weights(
        wq_tensor: torch.Tensor, wk_tensor: torch.Tensor, wv_tensor: torch.Tensor, ln_weight: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """`fold_layer_norm_weight_single` of queries, keys and values."""
        single = ProcessWeights.fold_layer_norm_weight_single
        return single(wq_tensor, ln_weight), single(wk_tensor, ln_weight), single(wv_tensor, ln_weight)

    @staticmethod
    def center_attention_weights(
        wq_tensor: torch.Tensor, wk_tensor: torch.Tensor, wv_tensor: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """`center_weight_single` of queries, keys and values."""
        single = ProcessWeights.center_weight_single
        return single(wq_tensor), single(wk_tensor), single(wv_tensor)

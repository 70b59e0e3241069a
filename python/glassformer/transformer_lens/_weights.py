"""The weights of a HookedTransformer: as stacks over layers, as factored matrices, and processed."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import torch

from glassformer import _core
from glassformer.transformer_lens.components.norms import KINDS, LayerNormPre, RMSNormPre, last_norm_class
from glassformer.transformer_lens.FactoredMatrix import FactoredMatrix
from glassformer.transformer_lens.loading_from_pretrained import fill_missing_keys
from glassformer.transformer_lens.utilities.matrix import composition_scores
from glassformer.transformer_lens.weight_processing import ProcessWeights, has_norms, processed

if TYPE_CHECKING:
    from torch import nn


def _stacked(part: str, name: str, shape: str) -> property:
    def get(self: WeightMethods) -> torch.Tensor:
        return torch.stack([getattr(getattr(block, part), name) for block in self.blocks])

    return property(get, doc=f"Every layer's `{part}.{name}`: layer {shape}.")


class WeightMethods:
    """Weights as TransformerLens names and shapes them."""

    cfg: Any
    blocks: Any
    embed: nn.Module
    unembed: nn.Module

    W_Q, W_K, W_V = (_stacked("attn", name, "head d_model d_head") for name in ("W_Q", "W_K", "W_V"))
    W_O = _stacked("attn", "W_O", "head d_head d_model")
    b_Q, b_K, b_V = (_stacked("attn", name, "head d_head") for name in ("b_Q", "b_K", "b_V"))
    b_O = _stacked("attn", "b_O", "d_model")
    W_in, W_out = _stacked("mlp", "W_in", "d_model d_mlp"), _stacked("mlp", "W_out", "d_mlp d_model")
    b_in, b_out = _stacked("mlp", "b_in", "d_mlp"), _stacked("mlp", "b_out", "d_model")
    _W_gates = _stacked("mlp", "W_gate", "d_model d_mlp")

    @property
    def W_gate(self) -> torch.Tensor | None:
        """Every layer's `mlp.W_gate`: layer d_model d_mlp; None for MLPs without a gate."""
        return self._W_gates if self.cfg.gated_mlp else None

    @property
    def W_U(self) -> torch.Tensor:
        """The unembedding: d_model d_vocab."""
        return self.unembed.W_U

    @property
    def b_U(self) -> torch.Tensor:
        """The unembedding's bias: d_vocab."""
        return self.unembed.b_U

    @property
    def W_E(self) -> torch.Tensor:
        """The embedding: d_vocab d_model."""
        return self.embed.W_E

    @property
    def W_pos(self) -> torch.Tensor:
        """The embedding of positions, where there is one: n_ctx d_model."""
        return self.pos_embed.W_pos

    @property
    def W_E_pos(self) -> torch.Tensor:
        """Both embeddings, one below the other: d_vocab+n_ctx d_model."""
        return torch.cat([self.W_E, self.W_pos], dim=0)

    @property
    def QK(self) -> FactoredMatrix:
        """W_Q W_K^T of every head: layer head d_model d_model, factored."""
        return FactoredMatrix(self.W_Q, self.W_K.transpose(-2, -1))

    @property
    def OV(self) -> FactoredMatrix:
        """W_V W_O of every head: layer head d_model d_model, factored."""
        return FactoredMatrix(self.W_V, self.W_O)

    @property
    def n_params_total(self) -> int:
        """The number of parameters, of every kind; `cfg.n_params` counts those of attention and MLP weights alone."""
        return sum(parameter.numel() for parameter in self.parameters())

    def accumulated_bias(self, layer: int, mlp_input: bool = False, include_mlp_biases: bool = True) -> torch.Tensor:
        """The sum of all biases added to the residual stream before a layer (0 to n_layers): d_model.

        `mlp_input`: before that layer's MLP, hence with its attention's. Without `include_mlp_biases` those of
        attention alone. `InputError` for another layer.
        """
        if not 0 <= layer <= self.cfg.n_layers:
            raise _core.InputError(f"layer is {layer}; expected 0 to {self.cfg.n_layers}, the number of layers")
        total = torch.zeros(self.cfg.d_model, device=self.cfg.device)
        for block in self.blocks[:layer]:
            total = total + block.attn.b_O
            if include_mlp_biases:
                total = total + block.mlp.b_out
        if mlp_input:
            assert layer < self.cfg.n_layers, f"layer {layer} has no attention: the last is {self.cfg.n_layers - 1}"
            total = total + self.blocks[layer].attn.b_O
        return total

    def all_composition_scores(self, mode: str) -> torch.Tensor:
        """How much each head reads of what each earlier one writes: layer head layer head, writer first; 0 where the
        reader is not in a later layer. `mode`: through "Q", "K" or "V" (Elhage et al. 2021)."""
        if mode not in ("Q", "K", "V"):
            raise _core.InputError(f"mode is 'Q', 'K' or 'V'; found {mode!r}")
        right = {"Q": self.QK, "K": self.QK.T, "V": self.OV}[mode]
        scores = composition_scores(self.OV, right, broadcast_dims=True)
        layers = torch.arange(self.cfg.n_layers, device=scores.device)
        return scores.masked_fill(layers[:, None, None, None] >= layers[None, None, :, None], 0)

    def all_head_labels(self) -> list[str]:
        """ "L0H0", "L0H1", … for every head."""
        return [f"L{layer}H{head}" for layer in range(self.cfg.n_layers) for head in range(self.cfg.n_heads)]

    # Loading and processing.

    def init_weights(self) -> None:
        """Give the weights random numbers, as `cfg.init_mode`, `initializer_range` and `seed` say; biases stay 0."""
        from glassformer.transformer_lens.utilities.initialization_utils import init_weights

        init_weights(self)

    def fill_missing_keys(self, state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The state dict with this model's own values for what it lacks; a missing weight is warned of."""
        return fill_missing_keys(self, dict(state_dict))

    def load_and_process_state_dict(
        self,
        state_dict: dict[str, torch.Tensor],
        fold_ln: bool = True,
        center_writing_weights: bool = True,
        center_unembed: bool = True,
        fold_value_biases: bool = True,
        refactor_factored_attn_matrices: bool = False,
    ) -> None:
        """Take a state dict with TransformerLens' keys and process it; the predictions stay the same.

        `fold_ln`: norms' weights go into what follows. `center_writing_weights`: what is written into the residual
        stream gets mean 0, as does, with `center_unembed`, every logit row. `fold_value_biases`: value biases go into
        `b_O`. `refactor_factored_attn_matrices`: W_Q and W_K, W_V and W_O, with orthogonal columns and rows. The state
        dict given stays as it is.
        """
        if self.cfg.dtype not in (torch.float32, torch.float64):
            if fold_ln:
                logging.warning("with less than float32, better load with from_pretrained_no_processing")
            if self.cfg.num_experts and self.cfg.num_experts > 1:
                logging.warning("a mixture of experts needs more than 16 bits: which experts are chosen may change")
        if center_unembed and self.cfg.output_logits_soft_cap > 0:
            logging.warning("center_unembed is left out: before a soft cap on logits it changes predictions")
        full = self.fill_missing_keys(state_dict)
        fold_ln = fold_ln and self._can_fold(full)
        made = processed(
            self.cfg,
            full,
            fold_norms=fold_ln,
            center_writing_weights=center_writing_weights,
            center_unembed=center_unembed,
            fold_value_biases=fold_value_biases,
            refactor_attention=refactor_factored_attn_matrices,
        )
        if fold_ln:
            self._fold_norms()
        self._take(made, full)

    def process_weights_(
        self,
        fold_ln: bool = True,
        center_writing_weights: bool = True,
        center_unembed: bool = True,
        refactor_factored_attn_matrices: bool = False,
    ) -> None:
        """Process this model's own weights; see `load_and_process_state_dict`."""
        self.load_and_process_state_dict(
            self.state_dict(),
            fold_ln=fold_ln,
            center_writing_weights=center_writing_weights,
            center_unembed=center_unembed,
            refactor_factored_attn_matrices=refactor_factored_attn_matrices,
        )

    def fold_layer_norm(
        self, state_dict: dict[str, torch.Tensor], fold_biases: bool = True, center_weights: bool = True
    ) -> dict[str, torch.Tensor]:
        """`ProcessWeights.fold_layer_norm` of a state dict, completed by `fill_missing_keys`."""
        return ProcessWeights.fold_layer_norm(self.fill_missing_keys(state_dict), self.cfg, fold_biases, center_weights)

    def center_writing_weights(self, state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """`ProcessWeights.center_writing_weights` of a state dict, completed by `fill_missing_keys`."""
        return ProcessWeights.center_writing_weights(self.fill_missing_keys(state_dict), self.cfg)

    def center_unembed(self, state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """`ProcessWeights.center_unembed` of a state dict, completed by `fill_missing_keys`."""
        return ProcessWeights.center_unembed(self.fill_missing_keys(state_dict), self.cfg)

    def fold_value_biases(self, state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """`ProcessWeights.fold_value_biases` of a state dict, completed by `fill_missing_keys`."""
        return ProcessWeights.fold_value_biases(self.fill_missing_keys(state_dict), self.cfg)

    def refactor_factored_attn_matrices(self, state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """`ProcessWeights.refactor_factored_attn_matrices` of a state dict, completed by `fill_missing_keys`."""
        return ProcessWeights.refactor_factored_attn_matrices(self.fill_missing_keys(state_dict), self.cfg)

    def _can_fold(self, state: dict[str, torch.Tensor]) -> bool:
        if self.cfg.normalization_type not in KINDS:
            logging.warning("the model has no norms whose weights could be folded; fold_ln is left out")
            return False
        if not has_norms(state):
            logging.warning("the state dict has no weights of norms; they may be folded already. fold_ln is left out")
            return False
        return True

    def _fold_norms(self) -> None:
        cfg = self.cfg
        if not cfg.normalization_type.endswith("Pre"):
            cfg.normalization_type += "Pre"
            kind = RMSNormPre if cfg.normalization_type == "RMSPre" else LayerNormPre
            self.ln_final = last_norm_class(cfg)(cfg)
            for block in self.blocks:
                block.ln1 = kind(cfg)
                if not cfg.attn_only:
                    block.ln2 = kind(cfg)
                    if cfg.is_layer_norm_activation():
                        block.mlp.ln = LayerNormPre(cfg)
        self.setup()

    def _take(self, core: _core.Model, state: dict[str, torch.Tensor] | None = None) -> None:
        """Make the parameters out of a core model's weights: in its memory, but for what lies in that of `state` or of
        another parameter. What the core has no weight for is as in `state`, or 0."""
        state = state or {}
        parameters = dict(self.named_parameters())
        weights = core.weights_as("transformer_lens", set(parameters))
        taken = {tensor.untyped_storage().data_ptr() for tensor in state.values()}
        for name, parameter in parameters.items():
            if name not in weights:
                parameter.data = torch.zeros(parameter.shape, dtype=self.cfg.dtype, device=core.device)
                if name in state:
                    parameter.data.copy_(state[name])
                continue
            weight = weights[name].detach()
            if name == "pos_embed.W_pos":
                weight = weight[: self.cfg.n_ctx]  # Of a model whose context was made shorter.
            place = weight.untyped_storage().data_ptr()
            parameter.data = weight.clone() if place in taken else weight
            if weight.numel() == weight.untyped_storage().nbytes() // weight.element_size():
                taken.add(place)

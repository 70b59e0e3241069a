"""Between the config of this vocabulary and the core's."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

from glassformer import _core
from glassformer.transformer_lens.config.hooked_transformer_config import ACTIVATIONS, HookedTransformerConfig
from glassformer.transformer_lens.utilities.quantization import quantization_method

# What TransformerLens calls models of these types, and what it says of them whatever their config is.
_CLASSES = {"gpt2": "GPT2LMHeadModel", "llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM"}
_ALWAYS = {"llama": {"final_rms": True}}
_IN_EVALUATION = ("use_logn_attn", "use_dynamic_ntk_rope")
_NAMES_EQUAL_HEADS = ("mistral",)  # n_key_value_heads is given even where no head shares any.


def core_config(cfg: HookedTransformerConfig, unscaled: bool = False) -> dict[str, Any]:
    """The config.json by which the core builds the model: every field of `cfg` but its dtype, which is given apart.

    NumPy's numbers become Python's. Where all norms are RMS norms, `final_rms` says nothing more. `unscaled`: as
    `is_unscaled` says.
    """
    values = {field.name: getattr(cfg, field.name) for field in dataclasses.fields(cfg) if field.name != "dtype"}
    fields = {name: value.item() if hasattr(value, "item") else value for name, value in values.items()}
    fields["final_rms"] = cfg.final_rms and cfg.normalization_type in ("LN", "LNPre")
    if unscaled:
        fields |= dict.fromkeys(_IN_EVALUATION, False)
    return {**fields, "model_type": "transformer_lens", "device": str(cfg.device)}


def is_unscaled(cfg: HookedTransformerConfig, training: bool) -> bool:
    """Whether a module leaves out how the config scales contexts longer than those of training: while it is in training
    mode, as a new model is until `eval()`."""
    return training and any(getattr(cfg, name) for name in _IN_EVALUATION)


def core_math(cfg: HookedTransformerConfig, training: bool = False) -> _core.BlockMath:
    """The core's steps that depend on a config, for a module in this mode; made again when either has changed."""
    state = (cfg.version, is_unscaled(cfg, training))
    made = getattr(cfg, "_math", None)
    if made is None or made[0] != state:
        cfg._math = made = (state, _core.BlockMath(json.dumps(core_config(cfg, state[1]))))
    return made[1]


def config_of(
    core_model: _core.Model, hf_config: dict[str, Any] | None = None, name: str | None = None, **changes: Any
) -> HookedTransformerConfig:
    """The config of a loaded model, as TransformerLens gives it for the same one.

    `hf_config` is what config.json says; without it, the file in the model's folder is read, if there is one. `name` is
    where the model came from (else its own name), for `model_name` and `tokenizer_name`; `changes` are further fields.
    """
    file = Path(core_model.path) / "config.json"
    if hf_config is None and core_model.path and file.is_file():
        hf_config = json.loads(file.read_text())
    fields = fields_of(core_model.config, hf_config or {}, name or core_model.name)
    fields |= {"dtype": core_model.dtype, "device": str(core_model.device)}
    return HookedTransformerConfig.from_dict(fields | changes)


def fields_of(core: _core.ModelConfig, hf_config: dict[str, Any], name: str) -> dict[str, Any]:
    """The fields of a HookedTransformerConfig for the core's config and what config.json says ({}: nothing).

    What TransformerLens leaves out though the model has it is said: the width of the MLP and of heads, scalings of
    rotary angles, and the whole context. Dynamic and longrope scaling have no fields.
    """
    common = {
        "model_name": name.rstrip("/").split("/")[-1],
        "init_weights": False,
        "quantization_method": quantization_method(hf_config),
    }
    if core.architecture == "transformer_lens":
        known = {field.name for field in dataclasses.fields(HookedTransformerConfig)} - {"dtype", "device"}
        return {key: value for key, value in hf_config.items() if key in known} | common
    norms = {"layer": "LN", "rms": "RMS", "none": None}
    norm = norms[core.norm]
    grouped = core.n_kv_heads != core.n_heads or core.architecture in _NAMES_EQUAL_HEADS
    return {
        **common,
        "tokenizer_name": name,
        "original_architecture": _CLASSES.get(core.architecture) or (hf_config.get("architectures") or [None])[0],
        "n_layers": core.n_layers,
        "d_model": core.d_model,
        "d_head": core.d_head,
        "n_heads": core.n_heads,
        "n_key_value_heads": core.n_kv_heads if grouped else None,
        "d_mlp": core.d_mlp,
        "d_vocab": core.d_vocab,
        "d_vocab_out": core.d_vocab_out,
        "n_ctx": core.n_ctx,
        "eps": core.norm_eps,
        "normalization_type": norm if norm is None or core.norm_weights else f"{norm}Pre",
        "act_fn": _activation(core, hf_config),
        "gated_mlp": core.gated_mlp,
        "attn_only": core.attention_only,
        "parallel_attn_mlp": core.parallel,
        "attn_scores_soft_cap": core.score_cap or -1.0,
        "output_logits_soft_cap": core.logit_cap or -1.0,
        **_positions(core),
        **_attention(core),
        **_ALWAYS.get(core.architecture, {}),
    }


def _activation(core: _core.ModelConfig, hf_config: dict[str, Any]) -> str:
    given = hf_config.get("activation_function") or hf_config.get("hidden_act")
    return (given if given in ACTIVATIONS else core.activation) + ("_ln" if core.mlp_norm else "")


def _attention(core: _core.ModelConfig) -> dict[str, Any]:
    scales, usual = core.attention_scales, 1 / math.sqrt(core.d_head)
    found: dict[str, Any] = {}
    if not math.isclose(scales[0], usual):
        found = {"use_attn_scale": False} if scales[0] == 1 else {"attn_scale": 1 / scales[0]}
    found["scale_attn_by_inverse_layer_idx"] = len(scales) > 1 and math.isclose(scales[0], 2 * scales[1])
    if any(core.windows):
        found |= {"use_local_attn": True, "window_size": max(core.windows)}
        found["attn_types"] = ["local" if window else "global" for window in core.windows]
    return found


def _positions(core: _core.ModelConfig) -> dict[str, Any]:
    if core.positions != "rotary":
        return {"positional_embedding_type": "standard" if core.positions == "learned" else core.positions}
    rope = core.rope
    found = {
        "positional_embedding_type": "rotary",
        "rotary_dim": rope.dims,
        "rotary_base": rope.base,
        "rotary_adjacent_pairs": rope.adjacent_pairs,
    }
    if rope.scaling == "linear":
        return found | {"rotary_scaling_factor": rope.factor}
    if rope.scaling == "yarn":
        return found | {
            "use_yarn_rope": True,
            "yarn_factor": rope.factor,
            "yarn_attention_factor": rope.attention_factor,
            "yarn_beta_fast": rope.beta_fast,
            "yarn_beta_slow": rope.beta_slow,
            "yarn_original_max_position_embeddings": rope.original_n_ctx,
            "yarn_truncate": rope.truncate,
        }
    by_parts = (rope.factor, rope.low_freq_factor, rope.high_freq_factor, rope.original_n_ctx)
    if rope.scaling != "llama3":
        # Llama 3.1 and later in a GGUF file, which has divisors in the place of these numbers.
        by_parts = (max(rope.divisors, default=1.0), 1.0, 4.0, 8192)
        if by_parts[0] == 1 or not _divides_by_parts(rope, *by_parts):
            return found
    names = ("NTK_by_parts_factor", "NTK_by_parts_low_freq_factor", "NTK_by_parts_high_freq_factor")
    found |= dict(zip((*names, "NTK_original_ctx_len"), by_parts, strict=True))
    return found | {"use_NTK_by_parts_rope": True}


def _divides_by_parts(rope: _core.Rope, factor: float, low: float, high: float, length: int) -> bool:
    """Whether `rope.divisors` are those of Llama 3's scaling with these numbers."""
    for pair, divisor in enumerate(rope.divisors):
        turns = length / (2 * math.pi * rope.base ** (2 * pair / rope.dims))
        kept = min(max((turns - low) / (high - low), 0.0), 1.0)
        if not math.isclose(1 / divisor, kept + (1 - kept) / factor, rel_tol=1e-4):
            return False
    return True

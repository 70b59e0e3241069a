"""What a HookedTransformer is, as data."""

from __future__ import annotations

import math
import pprint
import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from glassformer.transformer_lens.config.transformer_lens_config import TransformerLensConfig
from glassformer.transformer_lens.utilities.devices import warn_if_mps

ACTIVATIONS = (
    "solu",
    "solu_ln",
    "gelu_new",
    "gelu_fast",
    "silu",
    "relu",
    "gelu",
    "gelu_pytorch_tanh",
    "xielu",
    "relu2",
)


@dataclass
class HookedTransformerConfig(TransformerLensConfig):
    """What a HookedTransformer is: its sizes, its switches, and where its weights come from.

    -1 and -1.0 stand for "not set": n_heads is then d_model / d_head, attn_scale sqrt(d_head), initializer_range
    0.8 / sqrt(d_model) (1 for modes other than "gpt2"), d_vocab_out d_vocab; a missing d_mlp is 4 d_model, a missing
    rotary_dim d_head, and n_params is counted. A seed is set everywhere at once.

    Raises ValueError if d_head does not divide d_model where heads are to be counted, and AssertionError if a field is
    missing that another one needs, or has a value that there is not.
    """

    model_name: str = "custom"
    use_attn_scale: bool = True
    attn_scale: float = -1.0  # Scores are divided by it.
    use_hook_mlp_in: bool = False
    use_attn_in: bool = False
    use_qk_norm: bool = False
    clip_qkv: float | None = None  # Queries, keys and values are held between -clip_qkv and clip_qkv.
    use_logn_attn: bool = False
    train_seq_length: int | None = None
    use_dynamic_ntk_rope: bool = False
    use_local_attn: bool = False  # The layers whose attn_types is "local" look back window_size positions.
    ungroup_grouped_query_attention: bool = False  # Shared keys and values are repeated for every head.
    original_architecture: str | None = None  # The class in transformers.
    from_checkpoint: bool = False
    checkpoint_index: int | None = None
    checkpoint_label_type: str | None = None  # "step" or "token"
    checkpoint_value: int | None = None
    tokenizer_name: str | None = None
    window_size: int | None = None
    attn_types: list | None = None

    init_mode: str = "gpt2"  # "xavier_uniform", "xavier_normal", "kaiming_uniform", "kaiming_normal", "muP"
    n_devices: int = 1
    attention_dir: str = "causal"  # "bidirectional"
    seed: int | None = None
    initializer_range: float = -1.0  # The standard deviation of "gpt2", of other modes the gain.
    init_weights: bool = True

    scale_attn_by_inverse_layer_idx: bool = False
    d_vocab_out: int = -1
    parallel_attn_mlp: bool = False  # The MLP reads what attention reads.
    rotary_dim: int | None = None
    n_params: int | None = None  # In attention and MLP, without biases, norms and embeddings; counted.
    use_hook_tokens: bool = False
    tokenizer_prepends_bos: bool | None = None  # Found out when a tokenizer is set.
    post_embedding_ln: bool = False
    rotary_base: float | int = 10000
    rotary_base_local: float | int | None = None  # Of local layers, where it is another one.
    rotary_scaling_factor: float = 1.0  # Positions are divided by it.
    trust_remote_code: bool = False
    rotary_adjacent_pairs: bool = False
    load_in_4bit: bool = False
    quantization_method: str | None = None  # What the original's config says.
    relative_attention_max_distance: int | None = None
    relative_attention_num_buckets: int | None = None
    decoder_start_token_id: int | None = None
    tie_word_embeddings: bool = False
    use_normalization_before_and_after: bool = False
    attn_scores_soft_cap: float = -1.0
    output_logits_soft_cap: float = -1.0

    # Rotary angles for contexts longer than in training: as Llama 3 has them, or yarn.
    use_NTK_by_parts_rope: bool = False
    NTK_by_parts_low_freq_factor: float = 1.0
    NTK_by_parts_high_freq_factor: float = 4.0
    NTK_by_parts_factor: float = 8.0
    NTK_original_ctx_len: int = 8192
    use_yarn_rope: bool = False
    yarn_factor: float = 1.0
    yarn_attention_factor: float = 1.0
    yarn_beta_fast: float = 32.0
    yarn_beta_slow: float = 1.0
    yarn_original_max_position_embeddings: int = 4096
    yarn_truncate: bool = True
    yarn_global_attn_only: bool = False

    use_attention_sinks: bool = False
    norm_topk_prob: bool = False  # The weights of the chosen experts add up to 1.

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.seed is not None:
            self.set_seed_everywhere(self.seed)
        self._check()
        self._derive_numbers()
        warn_if_mps(self.device)
        assert self.n_devices <= 1 or torch.cuda.device_count() >= self.n_devices, (
            f"n_devices is {self.n_devices}, and torch sees {torch.cuda.device_count()} CUDA devices"
        )

    def _check(self) -> None:
        if self.use_local_attn:
            assert self.window_size is not None, "use_local_attn needs window_size"
            assert self.attn_types is not None, "use_local_attn needs attn_types"
        assert self.attn_only or self.act_fn in ACTIVATIONS, f"act_fn is {self.act_fn!r}; expected one of {ACTIVATIONS}"
        assert (self.num_experts is None) == (self.experts_per_token is None), (
            f"num_experts is {self.num_experts}, experts_per_token {self.experts_per_token}: give both or none"
        )
        assert self.default_prepend_bos in (True, False), (
            f"default_prepend_bos is {self.default_prepend_bos!r}; expected True or False"
        )

    def _derive_numbers(self) -> None:
        if self.initializer_range < 0:
            self.initializer_range = 0.8 / math.sqrt(self.d_model) if self.init_mode == "gpt2" else 1.0
        if self.d_vocab_out == -1:
            self.d_vocab_out = self.d_vocab
        if self.positional_embedding_type == "rotary" and self.rotary_dim is None:
            self.rotary_dim = self.d_head
        if self.use_attn_scale and self.attn_scale == -1.0:
            self.attn_scale = math.sqrt(self.d_head)
        per_layer = 4 * self.d_model * self.d_head * self.n_heads
        if not self.attn_only:
            mlp = self.d_model * self.d_mlp * (2 + self.gated_mlp)
            per_layer += (mlp + self.d_model) * self.num_experts if self.num_experts else mlp
        self.n_params = self.n_layers * per_layer

    @classmethod
    def unwrap(cls, config: dict[str, Any] | HookedTransformerConfig) -> HookedTransformerConfig:
        """`config` itself, or one made from a dictionary or from another kind of config (by its `to_dict`)."""
        if isinstance(config, cls):
            return config
        return cls.from_dict(config if isinstance(config, dict) else config.to_dict())

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any]) -> HookedTransformerConfig:
        """A config with these fields; TypeError for one that there is not."""
        return cls(**config_dict)

    def to_dict(self) -> dict[str, Any]:
        """The fields by name; the config's own dictionary, so that changing it changes the config."""
        return vars(self)

    def __repr__(self) -> str:
        return "HookedTransformerConfig:\n" + pprint.pformat(self.to_dict())

    def set_seed_everywhere(self, seed: int) -> None:
        """Seed torch's, Python's and numpy's random numbers."""
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)

    def is_layer_norm_activation(self) -> bool:
        """Whether a layer norm stands after the activation."""
        return self.act_fn is not None and self.act_fn.endswith("_ln")

"""What models of every kind have in their configs."""

from __future__ import annotations

import dataclasses
import pprint
from dataclasses import dataclass
from typing import Any

import torch


class _Versioned:
    """Counts its changes, beside its fields."""

    __slots__ = ("_math", "_seen", "_version")

    def __getstate__(self) -> tuple[dict[str, Any], dict[str, Any]]:
        counted = ("_seen", "_version")  # What the core made of the fields can't be copied.
        return dict(vars(self)), {name: getattr(self, name) for name in counted if hasattr(self, name)}

    @property
    def version(self) -> int:
        """A number that has grown if any field is another one than when it was last read."""
        fields = {name: tuple(value) if isinstance(value, list) else value for name, value in vars(self).items()}
        if fields != getattr(self, "_seen", None):
            self._seen = fields
            self._version = getattr(self, "_version", 0) + 1
        return self._version


@dataclass
class TransformerLensConfig(_Versioned):
    """The sizes of a model, and what its kinds of parts are; see `HookedTransformerConfig`, which has more fields.

    -1 stands for "not set": n_heads is then d_model / d_head. A missing d_mlp is 4 d_model. Raises ValueError if d_head
    does not divide d_model where heads are to be counted.
    """

    # Sizes.
    d_model: int
    d_head: int
    n_layers: int
    n_ctx: int
    n_heads: int = -1
    d_mlp: int | None = None
    d_vocab: int = -1
    device: str | None = None

    # What is computed open, for hooks (more below).
    use_attn_result: bool = False  # What each head adds to the residual stream.
    use_split_qkv_input: bool = False  # What each head's queries, keys and values are made of.

    default_prepend_bos: bool = True
    positional_embedding_type: str = "standard"  # "rotary", "shortformer", "alibi", "relative_positional_bias"
    n_key_value_heads: int | None = None  # Fewer than n_heads: groups of heads share keys and values.
    attn_only: bool = False
    gated_mlp: bool = False
    uses_rms_norm: bool = False
    eps: float = 1e-5
    layer_norm_folding: bool = False
    act_fn: str = "relu"  # One of ACTIVATIONS; names with "_ln" have a layer norm after it.
    normalization_type: str | None = "LN"  # "LN", "RMS", "LNPre" and "RMSPre" without weights, or None.
    num_experts: int | None = None
    experts_per_token: int | None = None
    final_rms: bool = False  # The last norm is an RMS norm, whatever the others are.
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        self._derive_sizes()

    def _derive_sizes(self) -> None:
        if self.n_heads == -1:
            self.n_heads = self.d_model // self.d_head
            if self.d_model % self.d_head:
                raise ValueError(
                    f"d_model ({self.d_model}) is no multiple of d_head ({self.d_head}): say how many n_heads there are"
                )
        if self.device is None:
            self.device = "cuda" if torch.cuda.is_available() else "cpu"
        if self.d_mlp is None:
            self.d_mlp = 4 * self.d_model

    @classmethod
    def unwrap(cls, config: dict[str, Any] | TransformerLensConfig) -> TransformerLensConfig:
        """`config` itself, or one made from a dictionary."""
        return TransformerLensConfig.from_dict(config) if isinstance(config, dict) else config

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any]) -> TransformerLensConfig:
        """A config with those of these fields that it has."""
        known = {field.name for field in dataclasses.fields(cls)}
        return cls(**{name: value for name, value in config_dict.items() if name in known})

    def to_dict(self) -> dict[str, Any]:
        """A copy of the fields by name."""
        return dict(vars(self))

    def __repr__(self) -> str:
        return "TransformerLensConfig:\n" + pprint.pformat(self.to_dict())

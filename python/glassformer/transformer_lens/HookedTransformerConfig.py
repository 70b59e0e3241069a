"""The config where earlier versions of TransformerLens had it."""

from glassformer.transformer_lens.config.hooked_transformer_config import HookedTransformerConfig

__all__ = ["HookedTransformerConfig"]

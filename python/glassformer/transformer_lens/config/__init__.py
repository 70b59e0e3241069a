"""What models are, as data, by TransformerLens' names."""

from glassformer.transformer_lens.config.hooked_transformer_config import HookedTransformerConfig

__all__ = ["HookedTransformerConfig"]

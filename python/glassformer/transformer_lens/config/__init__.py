"""What models are, as data, by TransformerLens' names."""

from glassformer.transformer_lens.config.hooked_transformer_config import HookedTransformerConfig
from glassformer.transformer_lens.config.transformer_lens_config import TransformerLensConfig

__all__ = ["HookedTransformerConfig", "TransformerLensConfig"]

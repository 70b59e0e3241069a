"""TransformerLens' vocabulary over Glassformer: what version 3.9.0 of it understands by its names."""

from glassformer.transformer_lens import hook_points, utilities
from glassformer.transformer_lens.HookedRootModule import HookedRootModule

__all__ = ["HookedRootModule", "hook_points", "utilities"]

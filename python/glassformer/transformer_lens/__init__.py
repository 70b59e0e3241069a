"""TransformerLens' vocabulary over Glassformer: what version 3.9.0 of it understands by its names."""

from glassformer.transformer_lens import hook_points, utilities
from glassformer.transformer_lens.FactoredMatrix import FactoredMatrix
from glassformer.transformer_lens.HookedRootModule import HookedRootModule
from glassformer.transformer_lens.SVDInterpreter import SVDInterpreter

__all__ = ["FactoredMatrix", "HookedRootModule", "SVDInterpreter", "hook_points", "utilities"]

"""The MLP of a config."""

from __future__ import annotations

from glassformer.transformer_lens.components.mlps import CanBeUsedAsMLP, mlp_for
from glassformer.transformer_lens.config import HookedTransformerConfig


class MLPFactory:
    """Makes MLPs."""

    @staticmethod
    def create_mlp(cfg: HookedTransformerConfig) -> CanBeUsedAsMLP:
        """The MLP that a config asks for: plain, gated, or a mixture of experts."""
        return mlp_for(cfg)

"""The parts of a HookedTransformer: modules with TransformerLens' parameters and hook points, each of which can be
called on tensors. Their mathematics is the core's."""

from glassformer.transformer_lens.components.attention import AbstractAttention, Attention, GroupedQueryAttention
from glassformer.transformer_lens.components.embeddings import Embed, PosEmbed, Unembed
from glassformer.transformer_lens.components.mlps import MLP, CanBeUsedAsMLP, GatedMLP, MoE
from glassformer.transformer_lens.components.norms import LayerNorm, LayerNormPre, RMSNorm, RMSNormPre
from glassformer.transformer_lens.components.transformer_block import TransformerBlock

__all__ = [
    "MLP",
    "AbstractAttention",
    "Attention",
    "CanBeUsedAsMLP",
    "Embed",
    "GatedMLP",
    "GroupedQueryAttention",
    "LayerNorm",
    "LayerNormPre",
    "MoE",
    "PosEmbed",
    "RMSNorm",
    "RMSNormPre",
    "TransformerBlock",
    "Unembed",
]

"""Standard names for the modules of every architecture, and what is read by them; by nnterp's names."""

from glassformer.nnterp.accessors import AttentionProbabilitiesAccessor, IOType, LayerAccessor
from glassformer.nnterp.names import (
    AttnProbFunction,
    RenameConfig,
    RenamingError,
    check_model_renaming,
    get_hidden_size,
    get_ignores,
    get_num_attention_heads,
    get_rename_dict,
    get_vocab_size,
)

__all__ = [
    "AttentionProbabilitiesAccessor",
    "AttnProbFunction",
    "IOType",
    "LayerAccessor",
    "RenameConfig",
    "RenamingError",
    "check_model_renaming",
    "get_hidden_size",
    "get_ignores",
    "get_num_attention_heads",
    "get_rename_dict",
    "get_vocab_size",
]

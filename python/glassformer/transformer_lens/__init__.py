"""TransformerLens' vocabulary over Glassformer: what version 3.9.0 of it understands by its names."""

from typing import Any

from glassformer.transformer_lens import (
    components,
    evals,
    factories,
    head_detector,
    hook_points,
    patching,
    supported_models,
    train,
    utilities,
    utils,
    weight_processing,
)
from glassformer.transformer_lens import loading_from_pretrained as loading
from glassformer.transformer_lens._install import absent, install, mirror
from glassformer.transformer_lens.ActivationCache import ActivationCache
from glassformer.transformer_lens.cache import (
    HookedTransformerKeyValueCache,
    HookedTransformerKeyValueCacheEntry,
    TransformerLensKeyValueCache,
    TransformerLensKeyValueCacheEntry,
)
from glassformer.transformer_lens.FactoredMatrix import FactoredMatrix
from glassformer.transformer_lens.HookedRootModule import HookedRootModule
from glassformer.transformer_lens.HookedTransformer import HookedTransformer
from glassformer.transformer_lens.HookedTransformerConfig import HookedTransformerConfig
from glassformer.transformer_lens.SVDInterpreter import SVDInterpreter

__all__ = [
    "ActivationCache",
    "FactoredMatrix",
    "HookedRootModule",
    "HookedTransformer",
    "HookedTransformerConfig",
    "HookedTransformerKeyValueCache",
    "HookedTransformerKeyValueCacheEntry",
    "SVDInterpreter",
    "TransformerLensKeyValueCache",
    "TransformerLensKeyValueCacheEntry",
    "components",
    "evals",
    "factories",
    "head_detector",
    "hook_points",
    "install",
    "loading",
    "patching",
    "supported_models",
    "train",
    "utilities",
    "utils",
    "weight_processing",
]

mirror(__name__)


def __getattr__(name: str) -> Any:
    raise AttributeError(absent(name) or f"{__name__} has no '{name}'")

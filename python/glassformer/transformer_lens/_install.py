"""Glassformer under TransformerLens' own name, for files that say `import transformer_lens`."""

from __future__ import annotations

import importlib
import pkgutil
import sys
from typing import Any

from glassformer._take_name import take_name

_NAME, _OWN = "transformer_lens", "glassformer.transformer_lens"

_ELSEWHERE = {
    "cache.key_value_cache": "cache",
    "cache.key_value_cache_entry": "cache",
    "components.abstract_attention": "components.attention",
    "components.embed": "components.embeddings",
    "components.grouped_query_attention": "components.attention",
    "components.layer_norm": "components.norms",
    "components.layer_norm_pre": "components.norms",
    "components.mlps.can_be_used_as_mlp": "components.mlps",
    "components.mlps.gated_mlp": "components.mlps",
    "components.mlps.gated_mlp_4bit": "components.mlps",
    "components.mlps.gpt_oss_moe": "components.mlps",
    "components.mlps.mlp": "components.mlps",
    "components.mlps.moe": "components.mlps",
    "components.pos_embed": "components.embeddings",
    "components.rms_norm": "components.norms",
    "components.rms_norm_pre": "components.norms",
    "components.unembed": "components.embeddings",
    "past_key_value_caching": "cache",
}
"""TransformerLens' paths whose names stand in another module here."""

_ENCODERS = "encoders have no counterpart here; Glassformer runs decoders, as HookedTransformer"
_BRIDGE = "use HookedTransformer.from_pretrained(), which also takes a model of transformers as hf_model="
_ABSENT = {
    "BertNextSentencePrediction": _ENCODERS,
    "HookedAudioEncoder": _ENCODERS,
    "HookedEncoder": _ENCODERS,
    "HookedEncoderDecoder": _ENCODERS,
    "TransformerBridge": _BRIDGE,
    "TransformerBridgeConfig": _BRIDGE,
    "benchmarks": "it compares TransformerLens' own classes",
    "conversion_utils": _BRIDGE,
    "lit": "the Language Interpretability Tool has no counterpart here",
    "model_bridge": _BRIDGE,
    "pretrained": "weights are read by the core: use HookedTransformer.from_pretrained()",
    "remote_module_loading": "it is empty in TransformerLens",
    "tools": "it has no counterpart here; the names of models are in supported_models",
}
"""TransformerLens' names that have no counterpart, and what to do without."""


def absent(name: str) -> str | None:
    """Why a name of TransformerLens' is not here and what to do; None for others."""
    return f"{_OWN} has no '{name}': {_ABSENT[name]}" if name in _ABSENT else None


class _Absent:
    """The last finder of modules: an import of what TransformerLens has and this package hasn't says so."""

    @staticmethod
    def find_spec(full_name: str, path: Any = None, target: Any = None) -> None:
        for package in (_OWN, _NAME):
            name = full_name.removeprefix(f"{package}.").split(".")[0]
            ours = sys.modules.get(package) is sys.modules.get(_OWN)
            if full_name.startswith(f"{package}.") and ours and (reason := absent(name)):
                raise ModuleNotFoundError(reason)


sys.meta_path.append(_Absent)


def install(force: bool = False) -> None:
    """Let `import transformer_lens`, and its submodules that have a counterpart here, mean this package.

    RuntimeError if another `transformer_lens` was imported before, unless `force`: then its modules are forgotten, and
    what was taken from them stays theirs. A second call changes nothing.
    """
    package = importlib.import_module(_OWN)
    take_name(_NAME, package, force)
    mirror(_NAME)


def mirror(root: str) -> None:
    """Let every path of TransformerLens that has a counterpart be a module below `root`."""
    package = sys.modules[_OWN]
    own = [found.name.removeprefix(f"{_OWN}.") for found in pkgutil.walk_packages(package.__path__, f"{_OWN}.")]
    public = {name: name for name in own if not any(part.startswith("_") for part in name.split("."))}
    for name, target in {**public, **_ELSEWHERE}.items():
        module = importlib.import_module(f"{_OWN}.{target}")
        sys.modules[f"{root}.{name}"] = module
        parent, _, leaf = name.rpartition(".")
        holder = sys.modules[f"{root}.{parent}" if parent else root]
        if not hasattr(holder, leaf):
            setattr(holder, leaf, module)

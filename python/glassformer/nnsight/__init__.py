"""nnsight's vocabulary on Glassformer: traces whose bodies are ordinary Python, on real tensors, in any order.

`LanguageModel` is a language model that Glassformer's engine computes, by the module paths that it has in
`transformers`; `NNsight` wraps any torch module, which computes itself. Both have `trace`, `session`, `scan` and
`edit`; language models `generate` too. Nothing needs `save`. See docs/coming_from_nnsight.md.
"""

import builtins as _builtins
from typing import Any as _Any

from glassformer.nnsight._install import install
from glassformer.nnsight._save import SavedDict, SavedList, save
from glassformer.nnsight.envoy import Envoy
from glassformer.nnsight.language_model import LanguageModel
from glassformer.nnsight.nnsight_module import NNsight

__all__ = ["Envoy", "LanguageModel", "NNsight", "install", "save"]

_OLDER = {"dict": SavedDict, "list": SavedList}
_PLAIN = ("bool", "bytes", "float", "int", "set", "str", "tuple")
_INSTEAD = {
    "CONFIG": "there is nothing to configure: everything runs on this machine",
    "DiffusionModel": "diffusion models are no language models; NNsight(module) takes any torch module",
    "TransformersModel": "use LanguageModel, or NNsight(module) for other kinds of models",
    "VLLM": "vLLM has no counterpart here; use LanguageModel",
    "VisionLanguageModel": "use NNsight(module)",
    "apply": "call the function",
    "cond": "write `if`",
    "iter": "write `for`",
    "local": "every trace is local",
    "log": "call print",
    "ndif_status": "everything runs on this machine",
    "register": "everything runs on this machine",
    "trace": "decorators have no counterpart; use `with model.trace(…):`",
}
"""What other versions of nnsight have and this package hasn't."""


def __getattr__(name: str) -> _Any:
    if name in _OLDER or name in _PLAIN:  # Before version 0.5 these made values that were saved.
        return _OLDER.get(name) or getattr(_builtins, name)
    if name in _INSTEAD:
        raise AttributeError(f"glassformer.nnsight has no '{name}': {_INSTEAD[name]}")
    raise AttributeError(f"module 'glassformer.nnsight' has no attribute '{name}'")

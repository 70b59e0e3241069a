"""Transformer language models with every activation in the open: read any of them, change any of them, and only what
depends on the change is computed again.

    import glassformer

    model = glassformer.load("path/to/model")
    trace = model.trace("The cat sat on the")
    trace["resid_post", 3]                     # batch pos d_model
    patched = trace.fork()
    patched.set("blocks.3.attn.hook_z", 0, region=np.s_[:, :, 5])
    patched.logits_at(-1) - trace.logits_at(-1)
"""

import torch as _torch  # noqa: F401  (the compiled module needs its libraries)

from glassformer._core import (
    Error,
    FileError,
    HookCall,
    InputError,
    ModelConfig,
    NameError,
    OrderError,
    Rope,
    ShapeError,
    StaleEditError,
    UnavailableError,
    UnsupportedError,
    __version__,
)
from glassformer.analysis import (
    Explanation,
    activation_patching,
    attribution_patching,
    direct_logit_attribution,
    explain,
    logit_difference,
    logit_lens,
    process_weights,
)
from glassformer.extend import NewNode, UpTo, define, up_to
from glassformer.generation import Generated, GenerationRun, Sampler, StepEdit, StepHook
from glassformer.live_tensor import LiveTensor
from glassformer.model import Model, Node, NodeList, Weights, load
from glassformer.tokenizer import Tokenizer
from glassformer.trace import Batch, Trace, Window, read_all

__all__ = [
    "Batch",
    "Error",
    "Explanation",
    "FileError",
    "Generated",
    "GenerationRun",
    "HookCall",
    "InputError",
    "LiveTensor",
    "Model",
    "ModelConfig",
    "NameError",
    "NewNode",
    "Node",
    "NodeList",
    "OrderError",
    "Rope",
    "Sampler",
    "ShapeError",
    "StaleEditError",
    "StepEdit",
    "StepHook",
    "Tokenizer",
    "Trace",
    "UnavailableError",
    "UnsupportedError",
    "UpTo",
    "Weights",
    "Window",
    "__version__",
    "activation_patching",
    "attribution_patching",
    "define",
    "direct_logit_attribution",
    "explain",
    "load",
    "logit_difference",
    "logit_lens",
    "process_weights",
    "read_all",
    "up_to",
]

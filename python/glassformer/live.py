"""Models that `transformers` holds in memory, used without copying their weights."""

from __future__ import annotations

import os
from typing import Any

import torch

from glassformer import _core
from glassformer._arguments import device_of, dtype_of
from glassformer.tokenizer import Tokenizer


def is_live(source: Any) -> bool:
    """Whether `source` is a module with a config, as `transformers` makes them."""
    return isinstance(source, torch.nn.Module) and hasattr(source, "config")


def open_live(
    module: Any, tokenizer: Tokenizer | None, dtype: torch.dtype | str | None, device: torch.device | str | None
) -> _core.Model:
    """The core's model on a module's own parameters; only a change of dtype or device copies them.

    Detached aliases: the same storage and the same count of versions, so that what changes a parameter in place counts
    in every trace, but a `requires_grad` and a `grad` of their own.
    """
    tensors = {name: tensor.detach() for name, tensor in module.state_dict(keep_vars=True).items()}
    first = next(tensor for tensor in tensors.values() if tensor.is_floating_point())
    return _core.Model.from_tensors(
        module.config.to_json_string(use_diff=False),
        tensors,
        None if tokenizer is None else tokenizer.core,
        first.dtype if dtype is None else dtype_of(dtype),
        first.device if device is None else device_of(device),
    )


def tokenizer_of(given: Any) -> Tokenizer | None:
    """A tokenizer from one of ours, a fast one of `transformers`, or a path."""
    if given is None or isinstance(given, Tokenizer):
        return given
    if isinstance(given, str | os.PathLike):
        return Tokenizer.from_pretrained(given)
    backend = getattr(given, "backend_tokenizer", None)
    if backend is None:
        raise _core.UnsupportedError(
            f"a tokenizer of type {type(given).__name__}; expected a fast one, a path, or glassformer's"
        )
    made = Tokenizer.from_texts(
        backend.to_str(),
        chat_template=getattr(given, "chat_template", None),
        name_or_path=getattr(given, "name_or_path", ""),
    )
    for role in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"):
        token = getattr(given, f"{role}_token", None)
        if token is not None and made.core.id_of(str(token)) is not None:
            setattr(made, f"{role}_token", str(token))
    return made

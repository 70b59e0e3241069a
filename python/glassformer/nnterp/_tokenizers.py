"""Tokenizers that put no space before a text."""

from __future__ import annotations

import json
import os
from typing import Any

from glassformer import _core
from glassformer.tokenizer import ROLES, Tokenizer

PEAR = "🍐"
"""What no word begins with, and no space is put behind."""


def ids_of(tokenizer: Any, text: str) -> list[int]:
    """The ids of a text by itself."""
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def puts_space_before(tokenizer: Any) -> bool:
    """Whether a text by itself has other tokens than where something stands before it."""
    return ids_of(tokenizer, PEAR + "a") != ids_of(tokenizer, PEAR) + ids_of(tokenizer, "a")


def configured(
    tokenizer: Any, *, add_prefix_space: bool | None = None, padding_side: str = "left", **other: Any
) -> Any:
    """The tokenizer as keywords of transformers want it; `UnsupportedError` for what can't be had afterwards."""
    other = {name: value for name, value in other.items() if name not in ("use_fast", "trust_remote_code")}
    if other or (add_prefix_space and not puts_space_before(tokenizer)):
        name = next(iter(other), "add_prefix_space")
        raise _core.UnsupportedError(f"tokenizer_kwargs: {name} can't be set; give a tokenizer that has it so")
    if padding_side != "left":
        raise _core.UnsupportedError(f"tokenizer_kwargs: padding_side={padding_side!r}; values are padded at the left")
    return without_prefix_space(tokenizer) if add_prefix_space is False else tokenizer


def without_prefix_space(tokenizer: Any) -> Any:
    """The tokenizer itself where it puts no space before a text, else one made of its tokenizer.json that doesn't."""
    if tokenizer is None:
        raise _core.InputError("the model has no tokenizer; give one when it is loaded")
    if not puts_space_before(tokenizer):
        return tokenizer
    contents = json.loads(_tokenizer_json(tokenizer))
    for part in ("normalizer", "pre_tokenizer", "post_processor"):
        contents[part] = _without_prefix(contents.get(part))
    made = Tokenizer.from_texts(
        json.dumps(contents), chat_template=tokenizer.chat_template, name_or_path=tokenizer.name_or_path
    )
    for role in ROLES:
        setattr(made, f"{role}_token", getattr(tokenizer, f"{role}_token"))
    made.padding_side = tokenizer.padding_side
    return made


def _tokenizer_json(tokenizer: Any) -> str:
    if hasattr(tokenizer, "backend_tokenizer"):
        return tokenizer.backend_tokenizer.to_str()
    path = str(tokenizer.name_or_path)
    file = os.path.join(path, "tokenizer.json") if os.path.isdir(path) else path
    if not file.endswith(".json") or not os.path.isfile(file):
        raise _core.UnsupportedError(
            f"{path or 'the tokenizer'}: a tokenizer without a space before texts can only be made of a "
            "tokenizer.json; give such a tokenizer when the model is loaded"
        )
    with open(file, encoding="utf-8") as opened:
        return opened.read()


def _without_prefix(part: dict[str, Any] | None) -> dict[str, Any] | None:
    """A normaliser, pre-tokeniser or post-processor that adds no space; None where nothing is left of it."""
    if part is None or part["type"] == "Prepend":
        return None
    changed = dict(part)
    if "add_prefix_space" in part:
        changed["add_prefix_space"] = False
    for field in ("normalizers", "pretokenizers", "processors"):
        if field in part:
            changed[field] = [one for one in map(_without_prefix, part[field]) if one is not None]
    return changed

"""What users give to a trace, read as prompts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from glassformer import _core
from glassformer._arguments import tensor_of, token_rows
from glassformer.nnsight.runs import Prompts

_IGNORED = {
    "scan": "values are checked as they are read",
    "validate": "values are checked as they are read",
    "use_cache": "the engine keeps keys and values where that helps",
    "output_attentions": "patterns can be read from each attention",
    "output_hidden_states": "each block can be read",
    "return_dict": "the output answers both ways",
    "token_type_ids": "the supported models have none",
    "blocking": "runs are local",
    "logits_to_keep": "logits are computed where they are read",
}
"""Keywords of nnsight and transformers that make no difference here, and why."""


def read_prompts(model: Any, inputs: tuple[Any, ...], given: dict[str, Any]) -> Prompts | None:
    """The prompts in an invoke's arguments: texts, token ids, or transformers' keywords; None where there are none.

    Takes what it understands out of `given`; what stays there is nobody's. Raises `InputError` for several inputs or
    none of the known kinds.
    """
    if len(inputs) > 1:
        raise _core.InputError(f"expected one input (a text, a list of texts, token ids); found {len(inputs)}")
    mask = positions = labels = named = None
    if given:
        for name in _IGNORED.keys() & given.keys():
            del given[name]
        mask, positions, labels = (given.pop(name, None) for name in ("attention_mask", "position_ids", "labels"))
        named = given.pop("input_ids", None)
        if inputs and named is not None:
            raise _core.InputError("expected one input; found one and input_ids=")
    source = inputs[0] if inputs else named
    if not isinstance(source, torch.Tensor) and (isinstance(source, Mapping) or hasattr(source, "input_ids")):
        fields = dict(source)
        unknown = set(fields) - {"input_ids", "attention_mask", "position_ids", "labels", "token_type_ids"}
        if "input_ids" not in fields or unknown:
            raise _core.InputError(f"a mapping of input_ids, attention_mask, …; found {sorted(map(str, fields))}")
        mask = fields.get("attention_mask", mask)
        positions, labels = fields.get("position_ids", positions), fields.get("labels", labels)
        source = fields["input_ids"]
    if source is None:
        if mask is not None or positions is not None or labels is not None:
            raise _core.InputError("attention_mask, position_ids and labels come with an input; found none")
        return None
    if isinstance(source, torch.Tensor) and source.ndim == 2 and source.dtype == torch.int64 and source.numel() > 0:
        prompts = Prompts(whole=source)
    else:
        prompts = Prompts(_rows(model, source))
    if mask is None and labels is None and positions is None and prompts.sequences != []:
        return prompts
    return _checked(prompts, mask, positions, labels)


def _checked(prompts: Prompts, mask: Any, positions: Any, labels: Any) -> Prompts:
    rows = prompts.rows
    if not rows:
        raise _core.InputError("no prompts")
    labels = None if labels is None else _rectangle(labels)
    positions = None if positions is None else _rectangle(positions)
    if labels is not None and list(labels.shape) != [len(rows), max(len(row) for row in rows)]:
        raise _core.ShapeError(
            f"labels: expected batch={len(rows)} pos={max(len(row) for row in rows)}; found {list(labels.shape)}"
        )
    prompts.positions, prompts.labels = positions, labels
    if mask is None:
        return prompts
    kept = _rectangle(mask)
    padded = torch.stack(rows) if len({len(row) for row in rows}) == 1 else None
    if padded is None or kept.shape != padded.shape:
        raise _core.ShapeError(f"attention_mask: expected batch pos as input_ids have; found {list(kept.shape)}")
    if not bool(((kept == 0) | (kept == 1)).all()) or not bool(kept.bool().any(-1).all()):
        raise _core.InputError("attention_mask: expected 1 at tokens and 0 at padding, and a token in every row")
    kept = kept.bool()
    if bool(kept.all()):
        return prompts
    return Prompts(
        [row[keep] for row, keep in zip(padded, kept, strict=True)],
        None,
        padded,
        kept,
        _positions(kept, positions),
        labels,
    )


def _positions(mask: torch.Tensor, positions: torch.Tensor | None) -> torch.Tensor:
    """Positions count real tokens, as transformers' generate and nnsight's batches have them."""
    return (mask.long().cumsum(-1) - 1).clamp(min=0) if positions is None else positions


def _rectangle(given: Any) -> torch.Tensor:
    tensor = tensor_of(given)
    return tensor[None] if tensor.ndim == 1 else tensor


def _rows(model: Any, source: Any) -> list[torch.Tensor]:
    if isinstance(source, str):
        return [_encoded(model, source)]
    if isinstance(source, list | tuple) and source and all(isinstance(text, str) for text in source):
        return [_encoded(model, text) for text in source]
    single = int | float | bool | bytes | bytearray
    if isinstance(source, single) or not (hasattr(source, "__iter__") or hasattr(source, "ndim")):
        raise _core.InputError(f"expected a text, a list of texts, or token ids; found {type(source).__name__}")
    return token_rows(source)


def _encoded(model: Any, text: str) -> torch.Tensor:
    tokenizer = model.tokenizer
    if tokenizer is None:
        raise _core.InputError(
            "a text needs a tokenizer, and the model came without one: give tokenizer= to LanguageModel, or token ids"
        )
    return torch.tensor(list(tokenizer(text)["input_ids"]), dtype=torch.int64)

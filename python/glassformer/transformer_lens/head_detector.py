"""Finds heads that attend in a known way: to the token before, to the same token, or as induction heads do."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, get_args

import torch

from glassformer import _core
from glassformer.transformer_lens.utilities.tensors import is_lower_triangular, is_square

HeadName = Literal["previous_token_head", "duplicate_token_head", "induction_head"]
HEAD_NAMES: tuple[str, ...] = get_args(HeadName)
ErrorMeasure = Literal["abs", "mul"]
LayerHeadTuple = tuple[int, int]
LayerToHead = dict[int, list[int]]


def get_previous_token_head_detection_pattern(tokens: torch.Tensor) -> torch.Tensor:
    """`pos pos`, one where each query looks at the token before; tokens are `... pos`."""
    return _core.previous_token_pattern(tokens.shape[-1])


def get_duplicate_token_head_detection_pattern(tokens: torch.Tensor) -> torch.Tensor:
    """`pos pos`, one where a query looks at an earlier place of its own token; tokens are `pos` or `1 pos`.

    Tokens of more than one text are a ValueError.
    """
    return _core.duplicate_token_pattern(tokens)


def get_induction_head_detection_pattern(tokens: torch.Tensor) -> torch.Tensor:
    """`pos pos`, one where a query looks at what stood behind an earlier place of its own token; tokens as above."""
    return _core.induction_pattern(tokens)


_PATTERNS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "previous_token_head": get_previous_token_head_detection_pattern,
    "duplicate_token_head": get_duplicate_token_head_detection_pattern,
    "induction_head": get_induction_head_detection_pattern,
}


def get_supported_heads() -> None:
    """Print the names of the kinds of heads that are known."""
    print(f"Supported heads: {HEAD_NAMES}")


def detect_head(
    model: Any,
    seq: str | list[str],
    detection_pattern: torch.Tensor | HeadName,
    heads: Iterable[LayerHeadTuple] | Mapping[int, Iterable[int]] | None = None,
    cache: Any | None = None,
    *,
    exclude_bos: bool = False,
    exclude_current_token: bool = False,
    error_measure: ErrorMeasure = "mul",
) -> torch.Tensor:
    """How well the attention of each head on a text fits a pattern: `n_layers n_heads`, -1 for heads that `heads`
    (pairs, or a dict by layer) leaves out.

    The pattern is `pos pos`, with nothing above the diagonal, or a name of HEAD_NAMES; a list of texts gives the mean.
    "mul" measures which part of the attention lies where the pattern has ones: 0 to 1. "abs" measures 1 less the
    absolute difference, summed over keys, in the mean over queries: -1 to 1. The first token and the query's own can be
    left out of both. `cache` holds the activations of the text without a batch axis, if they are there already. Other
    names, measures and shapes are a ValueError, and so is a text of one token, or one that fills the context.
    """
    if error_measure not in get_args(ErrorMeasure):
        raise _core.InputError(f"error_measure is {error_measure!r}; expected one of {get_args(ErrorMeasure)}")
    options: dict[str, Any] = {
        "exclude_bos": exclude_bos,
        "exclude_current_token": exclude_current_token,
        "error_measure": error_measure,
    }
    if isinstance(seq, list):
        if cache is not None and len(seq) != 1:
            raise _core.InputError(f"a cache holds the activations of one text; leave it out for {len(seq)}")
        scores = [detect_head(model, each, detection_pattern, heads, cache, **options) for each in seq]
        return torch.stack(scores).mean(0)
    tokens = model.to_tokens(seq)
    length = tokens.shape[-1]
    pattern = _pattern_of(detection_pattern, tokens)
    if error_measure == "mul" and not set(pattern.unique().tolist()) <= {0, 1}:
        logging.warning("Using detection pattern with values other than 0 or 1 with error_measure 'mul'")
    if not 1 < length < model.cfg.n_ctx:
        raise _core.InputError(f"the text has {length} tokens; expected 2 to {model.cfg.n_ctx - 1}")
    if not is_lower_triangular(pattern) or len(pattern) != length:
        raise _core.ShapeError(
            f"detection_pattern has shape {list(pattern.shape)}; expected {[length, length]}, lower triangular"
        )
    if cache is None:
        _, cache = model.run_with_cache(tokens, remove_batch_dim=True)
    scores = -torch.ones(model.cfg.n_layers, model.cfg.n_heads, dtype=model.cfg.dtype)
    for layer, layer_heads in _by_layer(heads, model.cfg).items():
        attention = cache["pattern", layer, "attn"]
        for head in layer_heads:
            scores[layer, head] = compute_head_attention_similarity_score(attention[head], pattern, **options)
    return scores


def _pattern_of(given: torch.Tensor | str, tokens: torch.Tensor) -> torch.Tensor:
    if not isinstance(given, str):
        return given
    if given not in _PATTERNS:
        raise _core.InputError(f"detection_pattern is {given!r}; expected a tensor or one of {HEAD_NAMES}")
    return _PATTERNS[given](tokens)


def _by_layer(
    heads: Iterable[LayerHeadTuple] | Mapping[int, Iterable[int]] | None, cfg: Any
) -> Mapping[int, Iterable[int]]:
    if heads is None:
        return {layer: range(cfg.n_heads) for layer in range(cfg.n_layers)}
    if isinstance(heads, Mapping):
        return heads
    by_layer: LayerToHead = {}
    for layer, head in heads:
        by_layer.setdefault(layer, []).append(head)
    return by_layer


def compute_head_attention_similarity_score(
    attention_pattern: torch.Tensor,
    detection_pattern: torch.Tensor,
    *,
    exclude_bos: bool,
    exclude_current_token: bool,
    error_measure: ErrorMeasure,
) -> float:
    """How well the attention of one head, `pos pos`, fits a pattern of the same shape; see `detect_head`. "abs" is
    rounded to three digits. Other shapes are a ValueError, and with "abs" a difference above the diagonal."""
    if not is_square(attention_pattern):
        raise _core.ShapeError(f"attention_pattern has shape {list(attention_pattern.shape)}; expected pos pos")
    left_out = (exclude_bos, exclude_current_token)
    if error_measure == "mul":
        return _core.attention_share(attention_pattern, detection_pattern, *left_out).item()
    return 1 - round(_core.attention_distance(attention_pattern, detection_pattern, *left_out).item(), 3)

"""Tokens drawn from logits, and logits as a table."""

from __future__ import annotations

from typing import Any

import torch

from glassformer import _core
from glassformer.transformer_lens.utilities.library_utils import needed


def logits_to_df(logits: torch.Tensor, tokenizer: Any | None = None, top_k: int | None = None) -> Any:
    """Logits of one position, `d_vocab`, as a DataFrame of pandas, the most likely token first (`top_k` rows, or all).

    Its columns are token_index, token_string (what `tokenizer` decodes it to, if one is given), logit, log_prob and
    probability. ImportError without `pandas`; `ShapeError` for more than one axis.
    """
    table = needed("pandas", "logits_to_df()").DataFrame
    if logits.ndim != 1:
        raise _core.ShapeError(f"logits_to_df() takes logits of one position, d_vocab; found {list(logits.shape)}")
    logits = logits.detach()
    log_probs, ranking = _core.log_probabilities(logits.float()), _core.rank_tokens(logits.float())
    order = ranking.order[:top_k]
    columns: dict[str, list[Any]] = {"token_index": order.tolist()}
    if tokenizer is not None:
        columns["token_string"] = [tokenizer.decode([token]) for token in columns["token_index"]]
    named = {"logit": logits, "log_prob": log_probs, "probability": ranking.probabilities}
    return table(columns | {name: values[order].tolist() for name, values in named.items()})


def sample_logits(
    final_logits: torch.Tensor,
    top_k: int | None = None,
    top_p: float | None = None,
    temperature: float = 1.0,
    freq_penalty: float = 0.0,
    repetition_penalty: float = 1.0,
    tokens: torch.Tensor | None = None,
) -> torch.Tensor:
    """A token for each row of logits `batch d_vocab`: `batch`, drawn with torch's own generator; the most likely one at
    `temperature` 0.

    In this order: `repetition_penalty` divides positive logits of the tokens so far (`tokens`, `batch pos`) and
    multiplies negative ones; `temperature` divides all; `freq_penalty` is taken off for each time that a token stands
    there (not at temperature 0); only the `top_k` most likely are drawn from, or without it those that make up the
    probability `top_p`. Raises `AssertionError` for a `top_k` or `top_p` out of its range, `InputError` for
    other such values and for a `freq_penalty` without `tokens`.
    """
    texts: list[list[int]] = []
    sampled = temperature != 0.0
    frequency = freq_penalty if sampled and freq_penalty > 0 else 0.0
    if frequency and (tokens is None or tokens.ndim != 2):
        found = "none" if tokens is None else f"shape {list(tokens.shape)}"
        raise _core.InputError(f"freq_penalty needs the tokens so far, batch pos; found {found}")
    if tokens is not None and (frequency or repetition_penalty != 1.0):
        texts = tokens.tolist()
    assert not sampled or top_k is None or top_k > 0, f"top_k is {top_k}; expected 1 or more, or None"
    only_likely = sampled and top_k is None and top_p is not None
    assert not only_likely or 0 < top_p <= 1, f"top_p is {top_p}; expected more than 0, at most 1, or None"
    options = _core.SamplerOptions(
        sample=True,
        temperature=temperature,
        top_k=top_k or 0 if sampled else 0,
        top_p=top_p if only_likely else 1.0,
        frequency_penalty=frequency,
        repetition_penalty=repetition_penalty,
        order="transformer_lens",
    )
    return _core.sample(final_logits, texts, options)

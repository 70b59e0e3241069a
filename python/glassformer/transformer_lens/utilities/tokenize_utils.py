"""Texts into tokens, and the tokens that stand before and behind them."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch

from glassformer.transformer_lens.utilities.hf_utils import get_hf_token, keep_single_column
from glassformer.transformer_lens.utilities.library_utils import needed
from glassformer.transformer_lens.utilities.tensors import get_cumsum_along_dim

_LONG_TEXT_WARNING = "sequence-length-is-longer-than-the-specified-maximum"


def tokenize_and_concatenate(
    dataset: Any,
    tokenizer: Any,
    streaming: bool = False,
    max_length: int = 1024,
    column_name: str = "text",
    add_bos_token: bool = True,
    num_proc: int | None = 10,
    set_format: bool = True,
) -> Any:
    """A data set of rows of `max_length` tokens, in its one column "tokens": the texts of `column_name`, one behind the
    other with the end-of-text token between them, cut into pieces.

    `dataset` is one of `datasets`, `tokenizer` one of `transformers` with an end-of-text token (without a padding token
    it gets "<PAD>"). Each batch of texts is cut by itself: a rest that fills no row is dropped, but a batch that fills
    not even one is padded. `add_bos_token` begins every row with the begin-of-text token. Data sets that stream take
    `streaming=True` and `set_format=False`; others are tokenized in `num_proc` processes (None: in this one) and give
    torch tensors if `set_format`.
    """
    dataset = keep_single_column(dataset, column_name)
    has_pad_token = tokenizer.pad_token is not None
    if not has_pad_token:
        tokenizer.add_special_tokens({"pad_token": "<PAD>"})
    # Without a padding token of the model's own, "<PAD>" may lie outside its vocabulary.
    padding = tokenizer.pad_token_id if has_pad_token else tokenizer.eos_token_id
    length = max_length - 1 if add_bos_token else max_length

    def tokenize(examples: Any) -> dict[str, np.ndarray]:
        if tokenizer.eos_token is None:
            raise AssertionError("tokenize_and_concatenate() needs a tokenizer with an end-of-text token; found none")
        texts = examples[column_name]
        encoded = tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
        joined = [token for row in encoded for token in (*row, tokenizer.eos_token_id)][:-1]
        if not encoded:
            return {"tokens": np.array([], dtype=np.int64)}
        n_rows = max(len(joined) // length, 1)
        joined = joined[: n_rows * length] + [padding] * (length - len(joined))
        rows = np.array(joined, dtype=np.int64).reshape(n_rows, length)
        if add_bos_token:
            rows = np.concatenate([np.full((n_rows, 1), tokenizer.bos_token_id), rows], axis=1)
        return {"tokens": rows}

    # Texts may be longer than the model's context, since they are cut here.
    warned = getattr(tokenizer, "deprecation_warnings", {})
    before = dict(warned)
    warned[_LONG_TEXT_WARNING] = True
    try:
        processes = {} if streaming else {"num_proc": num_proc}
        tokenized = dataset.map(tokenize, batched=True, remove_columns=[column_name], **processes)
    finally:
        warned.clear()
        warned.update(before)
    if set_format:
        tokenized.set_format(type="torch", columns=["tokens"])
    return tokenized


def get_tokenizer_with_bos(tokenizer: Any) -> Any:
    """The tokenizer if it puts its begin-of-text token before texts or has none, else the same one loaded anew from its
    `name_or_path` so that it does; as it is if it was not loaded from anywhere (a KeyError in TransformerLens).
    ImportError without `transformers`."""
    if tokenizer.bos_token is None:
        return tokenizer
    options = copy.deepcopy(tokenizer.init_kwargs)
    name = options.pop("name_or_path", None)
    adds = options.pop("add_bos_token", None)
    if name is None or (getattr(tokenizer, "add_bos_token", False) if adds is None else adds):
        return tokenizer
    loader = needed("transformers", "get_tokenizer_with_bos()").AutoTokenizer
    try:
        loaded = loader.from_pretrained(name, add_bos_token=True, token=get_hf_token(), **options)
    except ValueError:  # Its post-processor can't spell tokens that have a colon.
        return tokenizer
    loaded.padding_side = tokenizer.padding_side
    return loaded


def get_input_with_manually_prepended_bos(bos_token: str | None, input: str | list[str]) -> str | list[str]:
    """A text, or each of a list, with the begin-of-text token before it; as it is where that is None."""
    if bos_token is None:
        return input
    return bos_token + input if isinstance(input, str) else [bos_token + text for text in input]


def get_tokens_with_bos_removed(tokenizer: Any, tokens: torch.Tensor, padding_side: str | None = None) -> torch.Tensor:
    """`batch pos` -> `batch pos-1`: tokens without the begin-of-text token of each row, which with padding on the left
    (`padding_side`, else the tokenizer's) stands behind it. A tokenizer that has no such token removes none."""
    if tokenizer.bos_token_id is None:
        return tokens
    if (padding_side or tokenizer.padding_side) == "right":
        return tokens[..., 1:]
    if tokenizer.bos_token_id == tokenizer.pad_token_id:
        bos_positions = _last_leading_pad(tokenizer, tokens)
    else:
        bos_positions = (tokens == tokenizer.bos_token_id).int().argmax(-1)
    keep = torch.ones_like(tokens, dtype=torch.bool).scatter_(-1, bos_positions.unsqueeze(-1), False)
    return tokens[keep].view(*tokens.shape[:-1], tokens.shape[-1] - 1)


def get_attention_mask(
    tokenizer: Any, tokens: torch.Tensor, prepend_bos: bool, padding_side: str | None = None
) -> torch.Tensor:
    """`batch pos` of tokens -> `batch pos`, 1 for tokens and 0 for padding: padding tokens up to the first other one,
    or from the last other one on where padding is on the right (`padding_side`, else the tokenizer's).

    With `prepend_bos`, the last of the padding tokens on the left counts as the begin-of-text token, if they are the
    same token. Without a tokenizer all are 1.
    """
    mask = torch.ones_like(tokens)
    if tokenizer is None:
        return mask
    on_the_right = (padding_side or tokenizer.padding_side) == "right"
    mask[get_cumsum_along_dim(tokens.ne(tokenizer.pad_token_id), -1, reverse=on_the_right) == 0] = 0
    if not on_the_right and prepend_bos and tokenizer.bos_token_id == tokenizer.pad_token_id:
        mask[torch.arange(len(mask)), _last_leading_pad(tokenizer, tokens)] = 1
    return mask


def _last_leading_pad(tokenizer: Any, tokens: torch.Tensor) -> torch.Tensor:
    """Where the padding tokens at the beginning of each row end: -1 (the last place) where there are none."""
    leading = get_cumsum_along_dim(tokens.ne(tokenizer.pad_token_id), -1) == 0
    return leading.sum(-1) - 1

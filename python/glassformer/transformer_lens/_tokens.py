"""Texts and tokens of a HookedTransformer."""

from __future__ import annotations

import logging
import os
from typing import Any

import numpy as np
import torch

from glassformer import _core
from glassformer.tokenizer import Tokenizer
from glassformer.transformer_lens import utilities
from glassformer.transformer_lens.utilities.defaults_utils import USE_DEFAULT_VALUE, LocallyOverridenDefaults
from glassformer.transformer_lens.utilities.library_utils import needed
from glassformer.transformer_lens.utilities.tokenize_utils import (
    get_input_with_manually_prepended_bos,
    get_tokenizer_with_bos,
    get_tokens_with_bos_removed,
)

_ADD_NO_BOS = ("OlmoForCausalLM", "OlmoeForCausalLM", "Olmo2ForCausalLM")
_LOADED_WITHOUT_BOS = (*_ADD_NO_BOS, "Qwen3ForCausalLM", "PhiForCausalLM")
_TRAINED_ON = {"neel": "c4_code", "neel-solu-old": "pile", "GPT2LMHeadModel": "openwebtext"} | dict.fromkeys(
    ("GPTNeoForCausalLM", "GPTNeoXForCausalLM", "GPTJForCausalLM", "OPTForCausalLM"), "pile"
)


def _not_hosted() -> list[str]:
    from glassformer.transformer_lens.loading_from_pretrained import NON_HF_HOSTED_MODEL_NAMES

    return NON_HF_HOSTED_MODEL_NAMES


class TokenMethods:
    """The methods between texts, tokens and directions.

    `prepend_bos` says whether a text gets a begin-of-text token in front (`cfg.default_prepend_bos` where it isn't
    given): leave it out for pieces of a longer text. `padding_side` is the tokenizer's where it isn't given.
    """

    cfg: Any
    tokenizer: Any
    dataset: Any

    def _find_tokenizer(self, tokenizer: Any, default_padding_side: str | None) -> None:
        name = self.cfg.tokenizer_name
        self.tokenizer = None
        if tokenizer is not None:
            self.set_tokenizer(tokenizer, default_padding_side=default_padding_side)
        elif name is None:
            assert self.cfg.d_vocab != -1, "without a tokenizer the config must say d_vocab"
            if default_padding_side is not None:
                logging.warning("default_padding_side is of no use without a tokenizer")
        elif name in _not_hosted():
            logging.warning(f"the tokenizer of {name} can't be loaded by its name; give it by set_tokenizer()")
        else:
            auto = needed("transformers", "tokenizers").AutoTokenizer
            loaded = auto.from_pretrained(
                name,
                add_bos_token=self.cfg.original_architecture not in _LOADED_WITHOUT_BOS,
                trust_remote_code=self.cfg.trust_remote_code,
                use_fast="phi" not in name.lower(),
                token=os.environ.get("HF_TOKEN") or None,
            )
            self.set_tokenizer(loaded, default_padding_side=default_padding_side)

    def set_tokenizer(self, tokenizer: Any, default_padding_side: str | None = None) -> None:
        """Use a tokenizer of `transformers` or glassformer's, which gets the special tokens that it lacks;
        `default_padding_side` is "left" or "right". Sets `cfg.d_vocab` where that is not set. Anything else is an
        AssertionError."""
        own = isinstance(tokenizer, Tokenizer)
        assert own or isinstance(tokenizer, needed("transformers", "tokenizers").PreTrainedTokenizerBase), (
            f"expected a tokenizer of transformers or glassformer's; found {type(tokenizer).__name__}"
        )
        assert default_padding_side in ("right", "left", None), (
            f"default_padding_side is 'right', 'left' or None; found {default_padding_side!r}"
        )
        if not own and self.cfg.original_architecture not in _ADD_NO_BOS:
            tokenizer = get_tokenizer_with_bos(tokenizer)
        self.tokenizer = tokenizer
        tokenizer.padding_side = default_padding_side or tokenizer.padding_side or "right"
        self.cfg.tokenizer_prepends_bos = len(tokenizer.encode("")) > 0
        if tokenizer.eos_token is None:
            tokenizer.eos_token = "<|endoftext|>"
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        if tokenizer.bos_token is None:
            tokenizer.bos_token = tokenizer.eos_token
        if self.cfg.d_vocab == -1:
            self.cfg.d_vocab = max(tokenizer.vocab.values()) + 1
        if self.cfg.d_vocab_out == -1:
            self.cfg.d_vocab_out = self.cfg.d_vocab

    def to_tokens(
        self,
        input: str | list[str],
        prepend_bos: bool | None = USE_DEFAULT_VALUE,
        padding_side: str | None = USE_DEFAULT_VALUE,
        move_to_device: bool = True,
        truncate: bool = True,
    ) -> torch.Tensor:
        """A text, or texts, as tokens: batch pos, padded, and cut to the context if `truncate`."""
        with LocallyOverridenDefaults(self, prepend_bos=prepend_bos, padding_side=padding_side):
            assert self.tokenizer is not None, "to_tokens needs a tokenizer; this model has none"
            wanted, comes = self.cfg.default_prepend_bos, self.cfg.tokenizer_prepends_bos
            assert comes is not None, "cfg.tokenizer_prepends_bos is not known; call set_tokenizer()"
            if wanted and not comes:
                input = get_input_with_manually_prepended_bos(self.tokenizer.bos_token, input)
            tokens = self.tokenizer(
                input,
                return_tensors="pt",
                padding=True,
                truncation=truncate,
                max_length=self.cfg.n_ctx if truncate else None,
            )["input_ids"]
            if comes and not wanted:
                tokens = get_tokens_with_bos_removed(self.tokenizer, tokens)
            return tokens.to(self.cfg.device) if move_to_device else tokens

    def to_string(self, tokens: Any) -> str | list[str]:
        """Tokens as a text, or those of batch pos as a list of texts; a tensor, an array or a list."""
        assert self.tokenizer is not None, "to_string needs a tokenizer; this model has none"
        tokens = tokens if isinstance(tokens, torch.Tensor) else torch.tensor(tokens)
        if tokens.ndim > 2:
            raise _core.ShapeError(f"expected tokens 'pos' or 'batch pos'; found shape {list(tokens.shape)}")
        decode = self.tokenizer.batch_decode if tokens.ndim == 2 else self.tokenizer.decode
        return decode(tokens, clean_up_tokenization_spaces=False)

    def to_str_tokens(
        self,
        input: Any,
        prepend_bos: bool | None = USE_DEFAULT_VALUE,
        padding_side: str | None = USE_DEFAULT_VALUE,
    ) -> list[str] | list[list[str]]:
        """Each token's text: of a text, or of the tokens of one sequence; of a list, a list of such lists."""
        with LocallyOverridenDefaults(self, prepend_bos=prepend_bos, padding_side=padding_side):
            assert self.tokenizer is not None, "to_str_tokens needs a tokenizer; this model has none"
            if isinstance(input, list):
                return [self.to_str_tokens(each, prepend_bos, padding_side) for each in input]
            if isinstance(input, str):
                tokens = self.to_tokens(input, prepend_bos=prepend_bos, padding_side=padding_side)[0]
            elif isinstance(input, torch.Tensor | np.ndarray):
                tokens = np.atleast_1d(np.asarray(input.cpu() if isinstance(input, torch.Tensor) else input).squeeze())
                assert tokens.ndim == 1, f"expected the tokens of one sequence; found shape {list(tokens.shape)}"
            else:
                raise _core.InputError(f"expected a text, tokens or a list of these; found {type(input).__name__}")
            return self.tokenizer.batch_decode([[int(each)] for each in tokens], clean_up_tokenization_spaces=False)

    def to_single_token(self, string: str) -> int:
        """The token of a text that is one token; AssertionError for others."""
        token = self.to_tokens(string, prepend_bos=False).squeeze()
        assert not token.shape, f"{string!r} is {token.numel()} tokens; expected one"
        return int(token)

    def to_single_str_token(self, int_token: int) -> str:
        """The text of one token."""
        assert isinstance(int_token, int), f"expected a token as an int; found {type(int_token).__name__}"
        return self.to_str_tokens(torch.tensor([int_token]))[0]

    def get_token_position(
        self,
        single_token: str | int | torch.Tensor,
        input: str | torch.Tensor,
        mode: str = "first",
        prepend_bos: bool | None = USE_DEFAULT_VALUE,
        padding_side: str | None = USE_DEFAULT_VALUE,
    ) -> int:
        """Where a token stands in a text or in the tokens of one sequence: the "first" or the "last" place.

        AssertionError where it doesn't occur, ValueError for another mode.
        """
        tokens = self.to_tokens(input, prepend_bos, padding_side) if isinstance(input, str) else input
        if tokens.ndim == 2:
            assert tokens.shape[0] == 1, f"expected the tokens of one sequence; found shape {list(tokens.shape)}"
            tokens = tokens[0]
        token = self.to_single_token(single_token) if isinstance(single_token, str) else int(single_token)
        places = (tokens == token).nonzero().flatten().tolist()
        assert places, f"the token {single_token!r} does not occur in the prompt"
        if mode not in ("first", "last"):
            raise _core.InputError(f"mode is 'first' or 'last'; found {mode!r}")
        return places[0] if mode == "first" else places[-1]

    def tokens_to_residual_directions(self, tokens: str | int | torch.Tensor) -> torch.Tensor:
        """The columns of `W_U` for tokens, … d_model: what in the residual stream makes their logits; d_model for one
        token (a text, an int or a tensor of one). Norms' weights must be folded, or it is not the whole direction."""
        if isinstance(tokens, torch.Tensor) and tokens.numel() > 1:
            return self.W_U.T[tokens]
        if isinstance(tokens, torch.Tensor) and tokens.numel() == 0:
            raise _core.InputError(f"expected a token or more; found a tensor of shape {list(tokens.shape)}")
        if not isinstance(tokens, str | int | torch.Tensor):
            raise _core.InputError(f"expected a token as a text, an int or a tensor; found {type(tokens).__name__}")
        return self.W_U[:, self.to_single_token(tokens) if isinstance(tokens, str) else int(tokens)]

    def load_sample_training_dataset(self, **kwargs: Any) -> Any:
        """Some thousand texts like those that the model was trained on, kept as `dataset`; `kwargs` as
        `utils.get_dataset` takes them. ValueError for architectures without such a data set."""
        name = _TRAINED_ON.get(self.cfg.original_architecture)
        if name is None:
            raise ValueError(
                f"there is no data set for models of architecture {self.cfg.original_architecture}; set model.dataset"
            )
        self.dataset = utilities.get_dataset(name, **kwargs)
        return self.dataset

    def sample_datapoint(
        self,
        tokenize: bool = False,
        prepend_bos: bool | None = USE_DEFAULT_VALUE,
        padding_side: str | None = USE_DEFAULT_VALUE,
    ) -> str | torch.Tensor:
        """A text of `dataset` by chance (NumPy's generator), or its tokens, 1 pos, cut to the context if `tokenize`;
        without a data set, `load_sample_training_dataset` gets one."""
        if self.dataset is None:
            self.load_sample_training_dataset()
        text = self.dataset[np.random.randint(0, len(self.dataset))]["text"]
        return self.to_tokens(text, prepend_bos, padding_side) if tokenize else text

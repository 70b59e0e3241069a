"""A tokenizer of words, and a tiny model of TransformerLens that has one."""

import tempfile
import warnings

import tokenizers
import torch
import transformer_lens
from transformers import PreTrainedTokenizerFast

WORDS = ["the", "cat", "sat", "on", "mat", "a", "dog", "ran", "road", "Why"]


def word_tokenizer(folder=None, bos="<s>", pad="<pad>", words=WORDS, **options):
    """Words as tokens; written to `folder` and read from there if one is given."""
    special = {"eos_token": "</s>", "unk_token": "<unk>"}
    special |= {} if bos is None else {"bos_token": bos}
    special |= {} if pad is None else {"pad_token": pad}
    vocab = {word: i for i, word in enumerate([*dict.fromkeys(special.values()), *words])}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab, unk_token="<unk>"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, **special, **options)
    if folder is None:
        return tokenizer
    tokenizer.save_pretrained(folder)
    return PreTrainedTokenizerFast.from_pretrained(folder)


def word_model(words=WORDS, dtype=torch.float64, d_vocab=None, seed=3, package=transformer_lens, **options):
    """Two layers and three heads on words, in random weights that are large enough for their heads to differ; the same
    in `glassformer.transformer_lens` as `package`."""
    config = {"n_layers": 2, "d_model": 24, "n_ctx": 40, "d_head": 8, "d_mlp": 20, "act_fn": "gelu", "dtype": dtype}
    config |= {"device": "cpu", "seed": seed, "initializer_range": 0.7, "default_prepend_bos": True}
    with tempfile.TemporaryDirectory(prefix="words") as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        tokenizer = word_tokenizer(folder, words=words)
        config |= {"d_vocab": len(tokenizer) if d_vocab is None else d_vocab} | options
        return package.HookedTransformer(package.HookedTransformerConfig(**config), tokenizer=tokenizer)

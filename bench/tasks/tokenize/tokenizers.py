import os

os.environ["TOKENIZERS_PARALLELISM"] = "false"

import gguf
from models import demo_gguf, some_texts
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers


def setup():
    """The vocabulary of the same file, with SmolLM2's own pre-tokenizer."""
    fields = gguf.GGUFReader(demo_gguf()).fields
    tokens, types, merges = (fields[f"tokenizer.ggml.{name}"].contents() for name in ("tokens", "token_type", "merges"))
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [tuple(merge.split(" ")) for merge in merges]))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.add_special_tokens([AddedToken(token) for token, kind in zip(tokens, types, strict=True) if kind == 3])
    return tokenizer, some_texts()


def run(state):
    tokenizer, texts = state
    return [encoding.ids for encoding in tokenizer.encode_batch_fast(texts)]  # The fastest way: no offsets.

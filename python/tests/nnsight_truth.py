"""A tiny GPT-2 in nnsight's vocabulary, and what torch's own hooks see in it."""

import functools

import torch
from small_models import byte_tokenizer
from tiny_models import make_model

from glassformer.nnsight import LanguageModel

PROMPT = "The Eiffel Tower is in the city of"
SHORT = "The cat sat"


@functools.cache
def reference():
    return make_model("gpt2", torch.float64, vocab_size=len(byte_tokenizer()))


def new_model():
    """Ours on its weights."""
    return LanguageModel(reference(), tokenizer=byte_tokenizer())


def truth(prompt, edits=None):
    """`(every block's output, logits)` of `transformers`; `edits` are functions of a block's output, by its number."""
    found = {}
    blocks = reference().transformer.h

    def hook(number):
        def run(module, args, output):
            changed = edits[number](output.clone()) if edits and number in edits else output
            found[number] = changed.clone()
            return changed

        return run

    handles = [block.register_forward_hook(hook(number)) for number, block in enumerate(blocks)]
    try:
        ids = byte_tokenizer()(prompt, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            logits = reference()(ids).logits
    finally:
        for handle in handles:
            handle.remove()
    return [found[number] for number in range(len(blocks))], logits


def same(found, expected):
    return found.shape == expected.shape and torch.allclose(found.detach(), expected, rtol=0, atol=1e-9)


def zero(value):
    return torch.zeros_like(value)

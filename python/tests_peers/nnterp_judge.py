"""nnterp's StandardizedTransformer and ours on the same published folder, asked the same."""

import dataclasses
import functools

import nnterp
import torch
from nnterp.rename_utils import AttnProbFunction, RenameConfig
from small_models import published

from glassformer.nnterp import StandardizedTransformer

SIX = [
    "The cat sat on the mat",
    "The dog ran to the road",
    "The capital of France is",
    "The capital of Spain is",
    "the city of Paris",
]
"""Texts of six tokens each."""
MIXED = ["The cat sat", "a", "The capital of France is", "hello said the king"]
"""Texts of different lengths. nnterp pads them at the left, and counts the padding as positions of GPT-2: it is asked
for one after the other instead."""
KINDS = ["gpt2", "llama", "mistral_window"]
DTYPE = torch.float64


class EagerAttention(AttnProbFunction):
    """Where transformers 5.23 computes the attention probabilities of every model; nnterp looks elsewhere for GPT-2."""

    def get_attention_prob_source(self, attention_module, return_module_source=False):
        source = attention_module.source.attention_interface_0.source
        return source if return_module_source else source.nn_functional_dropout_0


@dataclasses.dataclass(frozen=True)
class Pair:
    """The judge and ours, in float64, and how far their numbers may be apart: transformers has the norms of llama and
    mistral, and their rotary angles, in float32."""

    judge: nnterp.StandardizedTransformer
    ours: StandardizedTransformer
    tolerance: float

    def close(self, found, expected):
        """Equal to rounding, with the same shape and type."""
        assert type(expected) is torch.Tensor
        torch.testing.assert_close(found.as_subclass(torch.Tensor), expected, rtol=self.tolerance, atol=self.tolerance)

    def compare(self, prompts, body):
        """What a body gives is the same on both sides; returns ours."""
        expected, found = asked(self.judge, prompts, body), asked(self.ours, prompts, body)
        assert len(found) == len(expected) > 0
        for ours, theirs in zip(found, expected, strict=True):
            self.close(ours, theirs)
        return found


@functools.cache
def pair(kind, enable_attention_probs=False):
    """A tiny model on both sides."""
    _, folder = published(kind, DTYPE)
    options = {"rename_config": RenameConfig(attn_prob_source=EagerAttention())} if enable_attention_probs else {}
    judge = nnterp.StandardizedTransformer(
        folder, dtype=DTYPE, device_map="cpu", enable_attention_probs=enable_attention_probs, **options
    )
    ours = StandardizedTransformer(folder, dtype=DTYPE, enable_attention_probs=enable_attention_probs)
    return Pair(judge, ours, 1e-10 if kind == "gpt2" else 1e-5)


@torch.no_grad()
def asked(model, prompts, body):
    """What `body(model)`, a list of values, is inside a trace."""
    with model.trace(prompts):
        found = [value.clone() for value in body(model)].save()
    return found

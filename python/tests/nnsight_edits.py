"""What the tests of edits share."""

import torch
from tiny_models import random_tokens

TOKENS = random_tokens(2, 6)


def stream(model, ids=TOKENS, by_hand=lambda: None, **options):
    """The stream behind each block and the logits, with changes made by hand."""
    with model.trace(ids, **options):
        by_hand()
        found = [block.output[0].clone() for block in model.transformer.h]
        return [*found, model.output.logits.clone()]


def assert_equal(found, expected):
    for place, (a, b) in enumerate(zip(found, expected, strict=True)):
        assert torch.equal(a, b), f"{place}: {(a - b).abs().max():.3g}"

"""Every kind of edit as one that stays: recorded once, made in later traces of other prompts, and at every step of
generations."""

import random

import nnsight_bodies as parts
import nnsight_bodies_more as bodies
import pytest
import torch
from nnsight_judge import KINDS, PROMPT, assert_both_same, pair, quiet

PROMPTS = [PROMPT, "The cat sat on the mat", ["The dog ran to the road", "The cat sat on the mat"]]
EVERYWHERE = {  # Edits that make sense whatever the number of positions.
    "embedding assigned", "zero block", "by mask", "by method", "strided", "assign block", "block input",
    "block inputs", "first norm input", "first norm output",
    "attention input", "head off", "head off by slice", "heads assigned",
    "head scaled by split", "attention output", "attention output tuple", "attention output in place",
    "second norm input", "second norm output", "mlp input", "mlp input in place", "mlp output", "mlp output +=",
    "mlp last input", "mlp last output", "final norm input", "final norm output", "head input", "head output",
    "head output +=", "by copy", "qkv input", "pre", "act", "act input", "q input", "q", "k input", "k", "gate", "up",
    "gate input", "up input",
}  # fmt: skip


def in_order(edits):
    return [function for _, function in sorted(edits, key=lambda edit: edit[0])]


def all_edits():
    return [(kind, name) for kind in ("gpt2", "llama_grouped") for name in parts.edits_of(kind)]


@pytest.mark.parametrize(("kind", "name"), all_edits())
def test_each_edit(kind, name):
    functions = in_order([parts.edits_of(kind)[name]])
    found = assert_both_same(pair(kind), bodies.edited_by, PROMPTS, functions)
    plain = quiet(bodies.plain_logits, pair(kind).judge, PROMPT)
    pairs = zip([*found[0][0], found[0][1]], [*plain[0], plain[1]], strict=True)
    assert name == "logits of the model" or not all(torch.equal(mine, theirs) for mine, theirs in pairs)


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, name in all_edits() if name in EVERYWHERE])
def test_each_edit_in_generations(kind, name):
    with torch.no_grad():
        functions = in_order([parts.edits_of(kind)[name]])
        assert_both_same(pair(kind), bodies.edited_by_in_generation, PROMPT, 4, functions)


@pytest.mark.parametrize("kind", KINDS)
def test_random_edits_together(kind):
    chooser = random.Random(kind)
    edits = list(parts.edits_of(kind).items())
    for _ in range(8):
        chosen = chooser.sample(edits, chooser.randint(2, 6))
        try:
            assert_both_same(pair(kind), bodies.edited_by, PROMPTS, in_order([edit for _, edit in chosen]))
        except Exception as failure:
            failure.add_note(f"edits: {sorted((edit[0], name) for name, edit in chosen)}")
            raise

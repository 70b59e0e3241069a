"""Edits that later traces make, and scans: what they do to streams, generations, shapes and gradients."""

import nnsight_bodies_editing as bodies
import pytest
import torch
from nnsight_judge import KINDS, PROMPT, assert_both_same, assert_same, new_pair, padded_pair, pair, run_both

OF_ONE_LENGTH = ["The cat sat on the mat", "The dog ran to the road"]


@pytest.mark.parametrize("edit", bodies.EDITS, ids=lambda edit: edit.__name__)
@pytest.mark.parametrize("kind", KINDS)
def test_each_edit(kind, edit):
    edited, other, plain = assert_both_same(pair(kind), bodies.edited_by, edit, PROMPT)
    assert any(not torch.equal(a, b) for a, b in zip(edited, plain, strict=True)), "the edit has no effect"
    assert not torch.equal(other[0], plain[0])


@pytest.mark.parametrize("edit", bodies.EDITS, ids=lambda edit: edit.__name__)
def test_several_rows(edit):
    both = pair("llama_grouped")
    assert len({len(both.tokenizer(prompt)["input_ids"]) for prompt in OF_ONE_LENGTH}) == 1
    assert_both_same(both, bodies.edited_by, edit, OF_ONE_LENGTH)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("edit", [bodies.assigned, bodies.mlp_input, bodies.norm_input, bodies.layer_to_layer])
def test_generations(kind, edit):
    with torch.no_grad():
        both = pair(kind)
        assert_both_same(both, bodies.edited_generation, edit, PROMPT)
        assert_both_same(both, bodies.edited_generation_at_all, edit, PROMPT)
        for steps in (slice(None), slice(1, 3), slice(2, None), 1, [0, 3]):
            assert_both_same(both, bodies.edited_generation_at, edit, PROMPT, steps)


@pytest.mark.parametrize("kind", KINDS)
def test_in_place_and_cleared(kind):
    plain, first, second, cleared = assert_both_same(new_pair(kind), bodies.edited_in_place, PROMPT)
    assert torch.equal(plain[0], cleared[0])
    assert not torch.equal(first[0], plain[0]) and not torch.equal(second[0], first[0])


@pytest.mark.parametrize("kind", KINDS)
def test_changes_of_a_trace_come_afterwards(kind):
    assert_both_same(pair(kind), bodies.edited_and_changed, PROMPT)


@pytest.mark.parametrize("kind", KINDS)
def test_invokes(kind):
    assert_both_same(pair(kind), bodies.edited_invokes, OF_ONE_LENGTH)
    assert_both_same(padded_pair(kind), bodies.edited_invokes, [PROMPT, "The", "The cat sat on the mat"])


@pytest.mark.parametrize("kind", KINDS)
def test_autoencoder(kind):
    both = new_pair(kind)
    _, _, after, set_to, trained = assert_both_same(both, bodies.autoencoder, PROMPT, torch.float64)
    assert not torch.equal(after, set_to) and not torch.equal(after, trained[2])


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_modules(kind):
    found = assert_both_same(new_pair(kind), bodies.autoencoder_gradients, PROMPT, torch.float64)
    assert all(gradient.abs().max() > 0 for gradient in found)


@pytest.mark.parametrize("kind", KINDS)
def test_scan(kind):
    found, expected = run_both(pair(kind), bodies.scanned, PROMPT)
    assert_same(found, expected, 0)
    assert_same(*run_both(pair(kind), bodies.scanned, OF_ONE_LENGTH), 0)

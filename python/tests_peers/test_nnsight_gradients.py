"""Backward passes: gradients of what was read, gradients that are replaced, and graphs through edits and invokes."""

import nnsight_bodies as parts
import nnsight_bodies_gradients as bodies
import pytest
import torch
from nnsight_judge import (
    KINDS,
    PROMPT,
    assert_both_same,
    assert_same,
    demo_pair,
    padded_pair,
    pair,
    quiet,
    run_both,
    unpadded,
)

PROMPTS = [PROMPT, "The cat sat on the mat"]
OF_ONE_LENGTH = ["The cat sat on the mat", "The dog ran to the road"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("loss", ["one logit", "difference", "cross entropy"])
def test_gradients_of_layers(kind, loss):
    found, _ = assert_both_same(pair(kind), bodies.gradients_of_layers, PROMPT, loss)
    assert all(value.abs().max() > 0 for value in found)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_parts(kind):
    assert_both_same(pair(kind), bodies.gradients_of_parts, PROMPT)


@pytest.mark.parametrize("kind", KINDS)
def test_replaced_gradients(kind):
    both = pair(kind)
    for factor in (0, 1, -2.5):
        assert_both_same(both, bodies.replaced, PROMPT, factor)
    assert_both_same(both, bodies.replaced_in_part, PROMPT)
    assert_both_same(both, bodies.replaced_twice, PROMPT)


@pytest.mark.parametrize("kind", KINDS)
def test_several_passes(kind):
    assert_both_same(pair(kind), bodies.two_passes, PROMPT)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_through_edits(kind):
    both = pair(kind)
    for body in (bodies.through_edits, bodies.through_an_edit_in_place, bodies.of_a_vector, bodies.of_a_leaf):
        assert_both_same(both, body, PROMPT)


@pytest.mark.parametrize("kind", KINDS)
def test_torchs_own_ways(kind):
    both = pair(kind)
    for body in (bodies.with_autograd, bodies.behind_the_trace, bodies.entered_behind_the_trace):
        assert_both_same(both, body, PROMPT)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prompts", [PROMPTS, PROMPTS[::-1], OF_ONE_LENGTH])
def test_gradients_of_invokes(kind, prompts):
    both = padded_pair(kind)
    lengths = [len(both.tokenizer(prompt)["input_ids"]) for prompt in prompts]
    found, expected = run_both(both, bodies.each_invoke, prompts)
    for mine, theirs, length in zip(found, expected, lengths, strict=True):
        assert_same(unpadded(mine, length), [value[:, -length:] for value in theirs], both.tolerance)
    expected = quiet(bodies.of_both_invokes, both.judge, prompts, True)
    for barrier in (True, False):
        found = bodies.of_both_invokes(both.ours, prompts, barrier)
        for mine, theirs, length in zip(found, expected, lengths, strict=True):
            assert_same(unpadded(mine, length), [value[:, -length:] for value in theirs], both.tolerance)


@pytest.mark.parametrize("kind", ["gpt2", "llama_grouped"])
def test_attribution(kind):
    assert_both_same(pair(kind), bodies.attribution, *OF_ONE_LENGTH)


@pytest.mark.parametrize("kind", ["gpt2", "llama_grouped"])
def test_in_float32(kind):
    both = pair(kind, torch.float32)
    assert_both_same(both, bodies.gradients_of_parts, PROMPT)
    assert_both_same(both, bodies.replaced, PROMPT, 2)


@pytest.mark.parametrize("kind", KINDS)
def test_any_order(kind):
    """Gradients are read in any order, inside the pass or behind it, and a value's twice."""
    both = pair(kind)
    expected, _ = quiet(bodies.gradients_of_layers, both.judge, PROMPT, "one logit")
    model = both.ours
    with model.trace(PROMPT):
        loss = bodies.loss_of(model)
        values = [parts.hidden(block.output) for block in parts.blocks(model)]
        with loss.backward():
            forward = [value.grad for value in values]
            again = values[0].grad
    assert_same([*forward[::-1], again], [*expected, expected[-1]], both.tolerance)
    with model.trace(PROMPT):
        values = [parts.hidden(block.output) for block in parts.blocks(model)]
        bodies.loss_of(model).backward()
        plain = [value.grad for value in values]
    assert_same(plain[::-1], expected, both.tolerance)
    assert_same([value.grad for value in values][::-1], expected, both.tolerance)


@pytest.mark.parametrize("kind", KINDS)
def test_a_gradient_is_replaced_after_an_earlier_one_was_read(kind):
    both = pair(kind)
    expected = quiet(bodies.replaced, both.judge, PROMPT, -2.5)
    model = both.ours
    with model.trace(PROMPT):
        first, second = (parts.hidden(parts.blocks(model)[layer].output) for layer in (0, 1))
        with bodies.loss_of(model).backward():
            unchanged = first.grad
            second.grad = second.grad * -2.5
            changed = first.grad
    assert_same(changed, expected[1], both.tolerance)
    assert not torch.allclose(unchanged, changed)


def test_without_gradients():
    """No graph where torch's mode says so, and none in a generation."""
    model = pair("gpt2").ours
    with torch.no_grad(), model.trace(PROMPT):
        assert not model.lm_head.output.requires_grad
    with model.generate(PROMPT, max_new_tokens=2, do_sample=False):
        assert not model.lm_head.output.requires_grad


def test_the_demo_model():
    both = demo_pair()
    assert_both_same(both, bodies.gradients_of_layers, "The capital of France is", "one logit")
    assert_both_same(both, bodies.replaced, "The capital of France is", -0.5)

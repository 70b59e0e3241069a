"""Traces with several invokes: prompts of different lengths, and values that go from one to another."""

import nnsight_bodies_invokes as bodies
import pytest
import torch
from nnsight_bodies import blocks, hidden
from nnsight_judge import KINDS, PROMPT, assert_same, padded_pair, quiet, run_both, unpadded

PROMPTS = [PROMPT, "The", "The cat sat on the mat"]
OF_ONE_LENGTH = ["The cat sat on the mat", "The dog ran to the road"]


def assert_each_same(both, body, prompts, *args, **options):
    """Compares what a body gives for each prompt, at the tokens that are not padding; ours has no padding at all."""
    found, expected = run_both(both, body, prompts, *args, **options)
    lengths = [len(both.tokenizer(prompt)["input_ids"]) for prompt in prompts]
    assert len(found) == len(expected) == len(prompts)
    for mine, theirs, length in zip(found, expected, lengths, strict=True):
        assert_same(unpadded(mine, length), [value[:, -length:] for value in theirs], both.tolerance, body.__name__)
    return found


def assert_rows_same(both, found, expected, prompts):
    """Compares whole batches, padded on the left, at the tokens that are not padding."""
    lengths = [len(both.tokenizer(prompt)["input_ids"]) for prompt in prompts]
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.shape == theirs.shape
        for row, length in enumerate(lengths):
            assert_same(mine[row, -length:], theirs[row, -length:], both.tolerance, f"row {row}")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prompts", [PROMPTS, PROMPTS[::-1], OF_ONE_LENGTH, [PROMPT] * 2])
def test_each_invoke(kind, prompts):
    both = padded_pair(kind)
    for body in (bodies.read_each, bodies.edit_each, bodies.assign_each, bodies.result_of_each, bodies.trunk_of_each):
        assert_each_same(both, body, prompts)
    for which in range(len(prompts)):
        assert_each_same(both, bodies.edit_one, prompts, which)
    assert_each_same(both, bodies.read_each_by_name, prompts[:2])


@pytest.mark.parametrize("kind", ["gpt2", "llama_grouped"])
def test_each_invoke_in_float32(kind):
    both = padded_pair(kind, torch.float32)
    for body in (bodies.read_each, bodies.edit_each, bodies.assign_each):
        assert_each_same(both, body, PROMPTS)


@pytest.mark.parametrize("kind", KINDS)
def test_values_between_invokes(kind):
    both = padded_pair(kind)
    for prompts in (PROMPTS, PROMPTS[::-1]):
        for source, target in ((1, 1), (0, 2), (0, 0), (2, 2)):
            with_barrier = assert_each_same(both, bodies.passed_on, prompts[:2], source, target, True)
            without = bodies.passed_on(both.ours, prompts, source, target, False)
            assert_same(without, with_barrier, 1e-12)
        with_barrier = assert_each_same(both, bodies.passed_back, prompts[:2], True)
        assert_same(bodies.passed_back(both.ours, prompts, False), with_barrier, 1e-12)
        assert_each_same(both, bodies.added_up, prompts)


@pytest.mark.parametrize("kind", KINDS)
def test_against_the_order_of_the_layers(kind):
    """A later layer's value goes into an earlier layer of another prompt: the judge takes two traces for that."""
    both = padded_pair(kind)
    mine = bodies.passed_on(both.ours, PROMPTS, 2, 0, False)
    lengths = [len(both.tokenizer(prompt)["input_ids"]) for prompt in PROMPTS[:2]]
    theirs = quiet(two_traces, both.judge, *PROMPTS[:2])
    assert_same(mine, [[theirs[0][:, -lengths[0] :]], [theirs[1][:, -lengths[1] :]]], both.tolerance)


def two_traces(model, first, second):
    with model.trace(first):
        taken = bodies.hidden(bodies.blocks(model)[2].output)[:, -1].save()
        logits = model.lm_head.output.save()
    with model.trace(second):
        bodies.hidden(bodies.blocks(model)[0].output)[:, -1] = taken
        others = model.lm_head.output.save()
    return logits, others


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prompts", [PROMPTS, OF_ONE_LENGTH])
def test_the_whole_batch(kind, prompts):
    both = padded_pair(kind)
    (found, whole), (expected, theirs) = run_both(both, bodies.with_empty_invoke, prompts)
    assert_rows_same(both, whole, theirs, prompts)
    for mine, one, prompt in zip(found, expected, prompts, strict=True):
        length = len(both.tokenizer(prompt)["input_ids"])
        assert_same(unpadded(mine, length), [value[:, -length:] for value in one], both.tolerance)
    assert_rows_same(both, *run_both(both, bodies.edited_in_empty_invoke, prompts), prompts)
    (n_rows, tokens, best), (judge_rows, judge_tokens, judge_best) = run_both(
        both, bodies.inputs_of_empty_invoke, prompts
    )
    assert n_rows == judge_rows == len(prompts)
    assert_same(best, judge_best, 0)
    assert_rows_same(both, [tokens], [judge_tokens], prompts)


@pytest.mark.parametrize("kind", KINDS)
def test_several_rows_in_an_invoke(kind):
    both = padded_pair(kind)
    found, expected = run_both(both, bodies.rows_in_one_invoke, OF_ONE_LENGTH, PROMPT)
    lengths = [len(both.tokenizer(prompt)["input_ids"]) for prompt in (OF_ONE_LENGTH[0], PROMPT)]
    for mine, theirs, length in zip(found, expected, lengths, strict=True):
        assert_same(unpadded(mine, length), [value[:, -length:] for value in theirs], both.tolerance)
    found, expected = run_both(both, bodies.rows_in_one_invoke, OF_ONE_LENGTH, "The")
    for mine, theirs, length in zip(found, expected, (lengths[0], 1), strict=True):
        assert_same(unpadded(mine, length), [value[:, -length:] for value in theirs], both.tolerance)


@pytest.mark.parametrize("kind", KINDS)
def test_one_invoke(kind):
    both = padded_pair(kind)
    assert_same(*run_both(both, bodies.one_invoke, PROMPT), both.tolerance)


@pytest.mark.parametrize("kind", ["gpt2", "llama_grouped"])
def test_a_sweep_of_patches(kind):
    both = padded_pair(kind)
    for layer in range(3):
        assert_same(*run_both(both, bodies.compared, *OF_ONE_LENGTH, layer), both.tolerance, f"layer {layer}")


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_of_input_of_an_invoke(kind):
    both = padded_pair(kind)
    ids = both.tokenizer(PROMPT)["input_ids"]
    short = both.tokenizer(PROMPTS[2])["input_ids"]
    for one, other in ((ids, torch.tensor([short])), ({"input_ids": torch.tensor([ids])}, PROMPTS[2])):
        found, expected = run_both(both, bodies.read_each, [one, other])
        for mine, theirs, length in zip(found, expected, (len(ids), len(short)), strict=True):
            assert_same(unpadded(mine, length), [value[:, -length:] for value in theirs], both.tolerance)


@pytest.mark.parametrize("kind", KINDS)
def test_tokens(kind):
    """`.t[i]` and `.token[i]` count a prompt's own tokens; the judge has the padding before them."""
    both = padded_pair(kind)
    ours = both.ours
    expected = quiet(bodies.read_each, both.judge, PROMPTS)
    lengths = [len(both.tokenizer(prompt)["input_ids"]) for prompt in PROMPTS]
    for layer in range(3):
        own = [row[layer][:, -length:] for row, length in zip(expected, lengths, strict=True)]
        with ours.trace(PROMPTS):
            value = hidden(blocks(ours)[layer].output)
            first, last, listed = value.t[0], value.token[-1], value.t[[0, -1]]
        assert_same(first, torch.cat([one[:, 0] for one in own]), both.tolerance)
        assert_same(last, torch.cat([one[:, -1] for one in own]), both.tolerance)
        assert_same(listed, torch.cat([one[:, [0, -1]] for one in own]), both.tolerance)
        with ours.trace() as tracer:
            for prompt, one in zip(PROMPTS, own, strict=True):
                with tracer.invoke(prompt):
                    assert_same(hidden(blocks(ours)[layer].output).t[0], one[:, 0], both.tolerance)
            with tracer.invoke():
                assert_same(hidden(blocks(ours)[layer].output).t[0], first, both.tolerance)


def edited_first_tokens(model, prompt, layer):
    with model.trace(prompt):
        hidden(blocks(model)[layer].output)[:, 0] = 0.5
        hidden(blocks(model)[layer].output)[:, -1] *= 2
        logits = model.lm_head.output.save()
    return logits


@pytest.mark.parametrize("kind", KINDS)
def test_edits_of_tokens(kind):
    both = padded_pair(kind)
    ours = both.ours
    with ours.trace(PROMPTS):
        value = hidden(blocks(ours)[1].output)
        value.t[0] = 0.5
        value.t[-1] *= 2
        logits = ours.lm_head.output
    for row, prompt in enumerate(PROMPTS):
        expected = quiet(edited_first_tokens, both.judge, prompt, 1)
        assert_same(logits[row : row + 1, -expected.shape[1] :], expected, both.tolerance, prompt)

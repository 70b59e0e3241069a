"""Inside attention: the judge's `source` names lines of `transformers`' code, ours the nodes of the graph.

A pattern edited in what attention returns (`attn.output[1]`) is the pattern that the values are mixed with here; in the
judge nothing reads it any more, and its `source` has the one that is read.
"""

import nnsight_bodies as bodies
import pytest
import torch
from nnsight_judge import KINDS, PROMPT, assert_same, pair, quiet

LAYER = 1


def pattern_of(model):
    """Where the judge has the pattern that is used."""
    attention = bodies.attention(bodies.blocks(model)[LAYER])
    return attention.source.attention_interface_1.source.nn_functional_dropout_0


def one_head_off(pattern):
    pattern[:, 1] = 0


def uniform_head(pattern):
    n_queries = pattern.shape[2]
    pattern[:, 0] = torch.ones_like(pattern[:, 0]).tril() / torch.arange(1, n_queries + 1)[:, None]


def last_row(pattern):
    pattern[:, :, -1] = pattern[:, :, -1].flip(-1)


def scaled(pattern):
    pattern *= 1.5


EDITS = [one_head_off, uniform_head, last_row, scaled]


def edited_by_judge(model, prompt, edit):
    with model.trace(prompt):
        edit(pattern_of(model).output)
        stream = bodies.hidden(bodies.blocks(model)[LAYER].output).save()
        logits = model.lm_head.output.save()
    return stream, logits


def ours_by_output(model):
    return bodies.attention(bodies.blocks(model)[LAYER]).output[1]


def ours_by_source(model):
    return bodies.attention(bodies.blocks(model)[LAYER]).source.hook_pattern.output


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("way", [ours_by_output, ours_by_source])
def test_edited_patterns(kind, edit, way):
    both = pair(kind)
    model = both.ours
    with model.trace(PROMPT):
        edit(way(model))
        stream = bodies.hidden(bodies.blocks(model)[LAYER].output)
        logits = model.lm_head.output
    expected = quiet(edited_by_judge, both.judge, PROMPT, edit)
    assert_same([stream, logits], list(expected), both.tolerance)
    plain = quiet(bodies.read_everything, both.judge, PROMPT)
    assert not torch.allclose(logits, plain[3])


def returned_pattern_edited(model, prompt):
    with model.trace(prompt):
        bodies.attention(bodies.blocks(model)[LAYER]).output[1][:] = 0
        logits = model.lm_head.output.save()
    return logits


@pytest.mark.parametrize("kind", ["gpt2", "llama_grouped"])
def test_in_the_judge_the_returned_pattern_is_read_by_nothing(kind):
    judge = pair(kind).judge
    edited = quiet(returned_pattern_edited, judge, PROMPT)
    assert torch.equal(edited, quiet(bodies.read_everything, judge, PROMPT)[3])


def assigned_by_judge(model, prompt, value):
    with model.trace(prompt):
        pattern_of(model).output = value
        logits = model.lm_head.output.save()
    return logits


@pytest.mark.parametrize("kind", KINDS)
def test_assigned_patterns(kind):
    both = pair(kind)
    model = both.ours
    n_heads = both.reference.config.num_attention_heads
    generator = torch.Generator().manual_seed(1)
    value = torch.rand(1, n_heads, 11, 11, dtype=torch.float64, generator=generator).tril().softmax(-1).tril()
    expected = quiet(assigned_by_judge, both.judge, PROMPT, value)
    attention = bodies.attention(bodies.blocks(model)[LAYER])
    with model.trace(PROMPT):
        attention.source.hook_pattern.output = value
        by_source = model.lm_head.output
    with model.trace(PROMPT):
        attention.output = (attention.output[0], value)
        by_tuple = model.lm_head.output
    assert_same(by_source, expected, both.tolerance)
    assert_same(by_tuple, quiet(bodies.read_everything, both.judge, PROMPT)[3], both.tolerance)


def parts_by_judge(model, prompt):
    """Queries, keys and values by head, before rotation."""
    source = bodies.attention(bodies.blocks(model)[LAYER]).source
    is_gpt2 = hasattr(model, "transformer")
    with model.trace(prompt):
        query = None if is_gpt2 else source.query_states_0.output
        key = (source.key_states_2 if is_gpt2 else source.key_states_0).output.save()
        value = (source.value_states_2 if is_gpt2 else source.value_states_0).output.save()
        query = (source.query_states_1.output if is_gpt2 else query).save()
    return [part.transpose(1, 2) for part in (query, key, value)]


@pytest.mark.parametrize("kind", KINDS)
def test_parts_of_attention(kind):
    both = pair(kind)
    model = both.ours
    source = bodies.attention(bodies.blocks(model)[LAYER]).source
    with model.trace(PROMPT):
        found = [source.hook_q.output, source.hook_k.output, source.hook_v.output]
    assert_same(found, quiet(parts_by_judge, both.judge, PROMPT), both.tolerance)


def gradient_by_judge(model, prompt):
    with model.trace(prompt):
        pattern = pattern_of(model).output
        loss = model.lm_head.output[:, -1, 3].sum()
        with loss.backward():
            found = pattern.grad.save()
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_patterns(kind):
    both = pair(kind)
    model = both.ours
    expected = quiet(gradient_by_judge, both.judge, PROMPT)
    for way in (ours_by_output, ours_by_source):
        with model.trace(PROMPT):
            pattern = way(model)
            loss = model.lm_head.output[:, -1, 3].sum()
            with loss.backward():
                found = pattern.grad
        assert_same(found.tril(), expected.tril(), both.tolerance)

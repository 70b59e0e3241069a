"""Values that are changed in place, in every way that torch has: alone, in invokes, in batches, and at later steps."""

import nnsight_bodies as parts
import pytest
import torch
from nnsight_inplace_ops import IN_PLACE
from nnsight_judge import PROMPT, assert_same, padded_pair, pair, quiet, run_both, unpadded

KINDS = ["gpt2", "llama_grouped"]
PROMPTS = [PROMPT, "The", "The cat sat on the mat"]
PLACES = {  # A node as it is, heads side by side, several nodes side by side, an input that others have too.
    "gpt2": [
        "transformer.h.1.output",
        "transformer.h.1.attn.c_proj.input",
        "transformer.h.1.attn.c_attn.output",
        "transformer.h.1.mlp.output",
        "lm_head.output",
    ],
    "llama_grouped": [
        "model.layers.1.output",
        "model.layers.1.self_attn.o_proj.input",
        "model.layers.1.self_attn.k_proj.output",
        "model.layers.1.mlp.down_proj.input",
        "lm_head.output",
    ],
}


def changed(model, prompt, place, change, with_graph):
    with torch.set_grad_enabled(with_graph), model.trace(prompt):
        change(parts.hidden(model.get(place)))
        after = parts.hidden(model.get(place)).clone().save()
        logits = model.output.logits.clone().save()
    return after, logits


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", IN_PLACE)
@pytest.mark.parametrize("with_graph", [True, False])
def test_alone(kind, name, with_graph):
    both = pair(kind)
    for place in PLACES[kind]:
        found, expected = run_both(both, changed, PROMPT, place, IN_PLACE[name], with_graph)
        assert_same(found, expected, 10 * both.tolerance, f"{name} at {place}")


def changed_in_invokes(model, prompts, place, change):
    with torch.no_grad(), model.trace() as tracer:
        found = {}.save()
        for row, prompt in enumerate(prompts):
            with tracer.invoke(prompt):
                if row != 1:
                    change(parts.hidden(model.get(place))[:, -1:])
                found[row] = [parts.hidden(model.get(place)).clone(), model.output.logits.clone()]
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", IN_PLACE)
def test_in_invokes(kind, name):
    """At the last position, where nothing is padding."""
    both = padded_pair(kind)
    lengths = [len(both.tokenizer(prompt)["input_ids"]) for prompt in PROMPTS]
    for place in PLACES[kind]:
        found, expected = run_both(both, changed_in_invokes, PROMPTS, place, IN_PLACE[name])
        for row, length in enumerate(lengths):
            theirs = [value[:, -length:] for value in expected[row]]
            assert_same(unpadded(found[row], length), theirs, both.tolerance, f"{name} at {place}")


def changed_at_step(model, prompt, place, change, at):
    with torch.no_grad(), model.generate(prompt, max_new_tokens=4, min_new_tokens=4, do_sample=False) as tracer:
        found = [].save()
        for step in tracer.iter[:4]:
            value = parts.hidden(model.get(place))
            if step == at:
                change(value[:, -1:])
            found.append(model.output.logits[:, -1].clone())
        ids = tracer.result.save()
    return found, ids


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", IN_PLACE)
def test_at_steps(kind, name):
    both = pair(kind)
    for place in PLACES[kind]:
        for at in (0, 2):
            found, expected = run_both(both, changed_at_step, PROMPT, place, IN_PLACE[name], at)
            assert_same(found, expected, both.tolerance, f"{name} at {place}, step {at}")


def gradients(model, prompt, place, change):
    with model.trace(prompt):
        before = parts.blocks(model)[0].input
        change(parts.hidden(model.get(place)))
        loss = model.output.logits[:, -1, 3].sum()
        found = torch.autograd.grad(loss, before)[0].save()
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", IN_PLACE)
def test_gradients(kind, name):
    """Of the first block's input, through what was changed; where torch allows the change."""
    both = pair(kind)
    for place in PLACES[kind]:
        try:
            expected = quiet(gradients, both.judge, PROMPT, place, IN_PLACE[name])
        except RuntimeError:
            continue
        found = gradients(both.ours, PROMPT, place, IN_PLACE[name])
        assert_same(found, expected, 10 * both.tolerance, f"{name} at {place}")

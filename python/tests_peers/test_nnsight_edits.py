"""Edits inside a trace: what they do to the residual stream and to the logits."""

import random

import nnsight_bodies as bodies
import pytest
import torch
from nnsight_judge import KINDS, PROMPT, assert_both_same, demo_pair, pair, quiet

N_RANDOM = 12


def stream_of(model, edits, prompt=PROMPT):
    """The stream and the logits with some edits, each made where the forward pass has its place."""
    ordered = sorted(edits, key=lambda edit: edit[0])
    by_block = {
        number: [function for place, function in ordered if low <= place < high]
        for number, (low, high) in enumerate([(0, 10), (10, 20), (20, 30)])
    }
    before = [function for place, function in ordered if place < 0]
    after = [function for place, function in ordered if 90 <= place < 95]
    last = [function for place, function in ordered if place >= 95]
    return bodies.edited_stream(model, prompt, by_block, before, after, last)


def names(kinds):
    return [(kind, name) for kind in kinds for name in bodies.edits_of(kind)]


@pytest.mark.parametrize(("kind", "name"), names(KINDS))
def test_each_edit(kind, name):
    edit = bodies.edits_of(kind)[name]
    changed = assert_both_same(pair(kind), stream_of, [edit])
    plain = quiet(stream_of, pair(kind).judge, [])
    pairs = zip([*changed[0], *changed[1:]], [*plain[0], *plain[1:]], strict=True)
    assert not all(torch.equal(mine, theirs) for mine, theirs in pairs), "the edit has no effect"


@pytest.mark.parametrize("kind", ["gpt2", "llama_grouped"])
def test_each_edit_in_float32(kind):
    both = pair(kind, torch.float32)
    for edit in bodies.edits_of(kind).values():
        assert_both_same(both, stream_of, [edit])


@pytest.mark.parametrize("kind", KINDS)
def test_random_edits_together(kind):
    chooser = random.Random(kind)
    edits = list(bodies.edits_of(kind).items())
    for _ in range(N_RANDOM):
        chosen = chooser.sample(edits, chooser.randint(2, 7))
        try:
            assert_both_same(pair(kind), stream_of, [edit for _, edit in chosen])
        except Exception as failure:
            failure.add_note(f"edits: {sorted((edit[0], name) for name, edit in chosen)}")
            raise


@pytest.mark.parametrize("kind", KINDS)
def test_several_rows(kind):
    prompts = ["The cat sat on the mat", "The dog ran to the road"]
    both = pair(kind)
    lengths = {len(both.tokenizer(prompt)["input_ids"]) for prompt in prompts}
    assert len(lengths) == 1
    for name in ("corner", "by mask", "head off", "block input", "mlp output in place", "first norm input"):
        assert_both_same(both, stream_of, [bodies.edits_of(kind)[name]], prompts)


@pytest.mark.parametrize("kind", ["gpt2", "llama_grouped"])
def test_setting_the_input_of_a_norm_leaves_the_stream(kind):
    """The block adds what attention makes of the changed input to the stream that it had."""
    (stream, *_), (plain, *_) = (
        stream_of(pair(kind).ours, edits) for edits in ([bodies.EDITS["first norm input"]], [])
    )
    assert torch.equal(stream[2], plain[2]) and not torch.equal(stream[3], plain[3])


def test_the_demo_model():
    both = demo_pair()
    edits = bodies.edits_of("llama")
    for names in (["corner", "head off", "head output"], ["first norm input", "mlp output in place", "zero block"]):
        assert_both_same(both, stream_of, [edits[name] for name in names])
    assert_both_same(both, bodies.from_another_trace, PROMPT, "The capital of France is", 17)


@pytest.mark.parametrize("kind", KINDS)
def test_values_that_travel(kind):
    both = pair(kind)
    for source, target in ((0, 0), (0, 2), (1, 2)):
        assert_both_same(both, bodies.moved, PROMPT, source, target)
    assert_both_same(both, bodies.from_another_trace, PROMPT, "The cat sat", 1)
    assert_both_same(both, bodies.with_numpy_and_python, PROMPT)


def passed_on(model, prompt, first, second):
    """Sets what `second` has, and reads what `first` has, which is the same value passed on."""
    with model.trace(prompt):
        before = bodies.hidden(model.get(first)).clone().save()
        path, _, what = second.rpartition(".")
        setattr(model.get(path), what, bodies.hidden(model.get(second)) * 2)
        logits = model.lm_head.output.save()
    return before, logits


PASSED_ON = {
    "gpt2": [
        ("transformer.h.2.output", "transformer.ln_f.input"),
        ("transformer.h.1.mlp.c_proj.output", "transformer.h.1.mlp.output"),
        ("transformer.h.1.attn.c_proj.output", "transformer.h.1.attn.resid_dropout.output"),
        ("transformer.h.0.output", "transformer.h.1.input"),
        ("transformer.h.1.mlp.act.output", "transformer.h.1.mlp.c_proj.input"),
    ],
    "llama_grouped": [
        ("model.layers.2.output", "model.norm.input"),
        ("model.layers.1.mlp.down_proj.output", "model.layers.1.mlp.output"),
        ("model.layers.0.output", "model.layers.1.input"),
    ],
}


@pytest.mark.parametrize(("kind", "first", "second"), [(kind, *pair) for kind in PASSED_ON for pair in PASSED_ON[kind]])
def test_a_value_that_is_passed_on(kind, first, second):
    """What comes behind it is the same in both. In ours modules that pass a value on show the same one: whoever reads
    the first module afterwards has what was set."""
    assert_both_same(pair(kind), passed_on, PROMPT, first, second)

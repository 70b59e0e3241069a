"""Skipped modules, sessions, edits that stay, scans, caches, calls of modules, modules of one's own, and stops."""

import nnsight_bodies as parts
import nnsight_bodies_more as bodies
import pytest
import torch
from nnsight_judge import (
    KINDS,
    PROMPT,
    assert_both_same,
    assert_same,
    new_pair,
    padded_pair,
    pair,
    quiet,
    run_both,
    unpadded,
)

PROMPTS = [PROMPT, "The", "The cat sat on the mat"]


def lengths_of(both, prompts):
    return [len(both.tokenizer(prompt)["input_ids"]) for prompt in prompts]


def assert_each_same(both, body, prompts, *args):
    found, expected = run_both(both, body, prompts, *args)
    for mine, theirs, length in zip(found, expected, lengths_of(both, prompts), strict=True):
        assert_same(unpadded(mine, length), [value[:, -length:] for value in theirs], both.tolerance, body.__name__)


@pytest.mark.parametrize("kind", KINDS)
def test_skip(kind):
    both = pair(kind)
    for first, last in ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2)):
        assert_both_same(both, bodies.skipped, PROMPT, first, last)
    for factor in (1, 0, -3):
        assert_both_same(both, bodies.skipped_with_value, PROMPT, factor)
    shape = torch.Size([1, 11, both.reference.config.hidden_size])
    assert_both_same(both, bodies.skipped_with_constant, PROMPT, shape)
    assert_both_same(both, bodies.skipped_parts, PROMPT)
    assert_both_same(both, bodies.skipped_and_edited, PROMPT)
    for steps in ([0], [1, 3], [0, 1, 2, 3, 4]):
        assert_both_same(both, bodies.skipped_in_generation, PROMPT, 5, steps)
    assert_each_same(padded_pair(kind), bodies.skipped_in_invokes, PROMPTS)


@pytest.mark.parametrize("kind", ["gpt2", "llama_grouped"])
def test_skip_in_one_invoke(kind):
    """The judge skips in all invokes or none; here each has its own run, and the judge runs that one alone."""
    both = padded_pair(kind)
    ours, judge = both.ours, both.judge
    with ours.trace() as tracer:
        with tracer.invoke(PROMPT):
            block = parts.blocks(ours)[1]
            block.skip(block.input)
            skipped = ours.lm_head.output
        with tracer.invoke("The"):
            plain = ours.lm_head.output
    assert_same(skipped, quiet(bodies.skipped, judge, PROMPT, 1, 1)[1], both.tolerance)
    assert_same(plain, quiet(bodies.plain_logits, judge, "The")[1], both.tolerance)


@pytest.mark.parametrize("kind", KINDS)
def test_session(kind):
    both = pair(kind)
    assert_both_same(both, bodies.session, PROMPT, "The cat sat")
    assert_both_same(both, bodies.session_with_loop, PROMPTS)


@pytest.mark.parametrize("kind", KINDS)
def test_edits_that_stay(kind):
    both = pair(kind)
    once, plain, twice, other_way = assert_both_same(both, bodies.edited_models, PROMPT)
    assert not torch.allclose(once[1], plain[1]) and not torch.allclose(once[1], twice[1])
    assert_same(twice, other_way, 1e-9)  # They touch different layers.
    assert_both_same(both, bodies.edited_and_edited_in_trace, PROMPT)
    before, once, twice, after = assert_both_same(both, bodies.edited_in_place, PROMPT)
    assert_same(after, before, 0)
    assert not torch.allclose(once[1], before[1]) and torch.allclose(once[1] * 2, twice[1])
    assert_both_same(both, bodies.edited_with_value, PROMPT, "The cat sat")
    assert_each_same(padded_pair(kind), bodies.edited_in_invokes, PROMPTS)


@pytest.mark.parametrize("kind", KINDS)
def test_edits_that_stay_in_generations(kind):
    once, always, plain = assert_both_same(pair(kind), bodies.edited_generation, PROMPT, 5)
    assert not torch.allclose(once[0], plain[0]) and not torch.allclose(always[3], once[3])


@pytest.mark.parametrize("kind", KINDS)
def test_edit_as_older_versions_have_it(kind):
    """`as edited` is the edited model, `as (tracer, edited)` too."""
    both = pair(kind)
    expected = quiet(bodies.plain_logits, quiet(bodies.zeroed, both.judge, 0), PROMPT)
    with both.ours.edit() as edited:
        parts.hidden(parts.blocks(edited)[0].output)[:, -1] = 0.25
        parts.blocks(edited)[1].mlp.output = parts.blocks(edited)[1].mlp.output * 2
    assert_same(bodies.plain_logits(edited, PROMPT), expected, both.tolerance)


@pytest.mark.parametrize("kind", KINDS)
def test_scan(kind):
    assert_both_same(pair(kind), bodies.shapes, PROMPT)
    for prompt in ("The", [PROMPT, "The cat"]):
        assert_both_same(pair(kind), bodies.shapes, prompt)


# --- cache


def content_of(cache, paths):
    """`{path: hidden state of the output}`."""
    return {path: parts.hidden(cache[path].output) for path in paths}


def cached_paths(cache):
    """Blocks and what is in them, in the order that they are kept."""
    return [path for path in cache.keys() if path.count(".") > 1 and "rotary" not in path]  # noqa: SIM118


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("edit", [False, True])
def test_cache(kind, edit):
    both = pair(kind)
    found, expected = run_both(both, bodies.caches, PROMPT, edit=edit)
    paths = cached_paths(expected)
    assert set(paths) <= set(found.keys())
    assert_same(content_of(found, paths), content_of(expected, paths), both.tolerance)
    assert_same(found["model"].output.logits, expected["model"].output.logits, both.tolerance)
    assert not found[paths[0]].output.requires_grad
    block = paths[-1].rpartition(".")[0] if paths[-1].count(".") == 2 else paths[-1]
    assert block in found and "model.nothing" not in found


@pytest.mark.parametrize("kind", KINDS)
def test_cache_of_some_modules(kind):
    both = pair(kind)
    for chosen in (
        lambda model: [parts.blocks(model)[0]],
        lambda model: [parts.blocks(model)[2].mlp, parts.attention(parts.blocks(model)[0])],
        lambda model: [parts.blocks(model)[1].path, "model.lm_head"],
    ):
        for options in ({}, {"include_inputs": True}, {"include_inputs": True, "include_output": False}):
            found = bodies.caches(both.ours, PROMPT, chosen(both.ours), edit=True, **options)
            expected = quiet(bodies.caches, both.judge, PROMPT, chosen(both.judge), edit=True, **options)
            paths = list(expected.keys())
            assert set(found.keys()) == set(paths)
            for path in paths:
                if options.get("include_output", True):
                    assert_same(parts.hidden(found[path].output), parts.hidden(expected[path].output), both.tolerance)
                if options:
                    assert_same(found[path].input, expected[path].input, both.tolerance)
                    assert_same(found[path].inputs[0][0], expected[path].input, both.tolerance)


@pytest.mark.parametrize("kind", KINDS)
def test_ways_into_a_cache(kind):
    both = pair(kind)
    for cache in (bodies.caches(both.ours, PROMPT), quiet(bodies.caches, both.judge, PROMPT)):
        if kind.startswith("gpt2"):
            views = [cache.model.transformer.h[1], cache.transformer.h[1], cache["model.transformer.h.1"],
                     cache.model.transformer["h"][1]]  # fmt: skip
        else:
            views = [cache.model.model.layers[1], cache["model.model.layers.1"], cache.model.model["layers"][1]]
        for view in views:
            assert torch.equal(parts.hidden(view.output), parts.hidden(views[0].output))
        assert views[0].mlp.output.shape == parts.hidden(views[0].output).shape
        assert len(views[0]) == 1
        path = parts.blocks(both.ours)[1].path
        assert set(views[0].keys()) == {key for key in cache.keys() if f"{key}.".startswith(f"{path}.")}  # noqa: SIM118


@pytest.mark.parametrize("kind", ["gpt2", "llama_grouped"])
def test_cache_of_other_dtype(kind):
    both = pair(kind)
    found, expected = run_both(both, bodies.caches, PROMPT, dtype=torch.float32)
    path = parts.blocks(both.judge)[1].path
    assert_same(parts.hidden(found[path].output), parts.hidden(expected[path].output), 1e-6)
    kept = bodies.caches(both.ours, PROMPT, detach=False)
    assert parts.hidden(kept[path].output).requires_grad


@pytest.mark.parametrize("kind", KINDS)
def test_cache_of_a_generation(kind):
    both = pair(kind)
    chosen = [parts.blocks(both.judge)[1].path, parts.blocks(both.judge)[0].mlp.path]
    for options in ({}, {"include_inputs": True}):
        found, expected = run_both(both, bodies.cached_generation, PROMPT, 4, chosen, **options)
        paths = list(expected.keys())
        assert set(found.keys()) == set(paths)
        for path in paths:
            assert len(found[path]) == len(expected[path]) == 4
            mine, theirs = ([parts.hidden(value) for value in cache[path].output] for cache in (found, expected))
            assert_same(mine, theirs, both.tolerance, path)
            if options:
                assert_same(list(found[path].input), list(expected[path].input), both.tolerance, path)


@pytest.mark.parametrize("kind", KINDS)
def test_cache_of_each_invoke(kind):
    """Each has its invoke's rows."""
    both = padded_pair(kind)
    path = parts.blocks(both.judge)[1].path
    found, expected = run_both(both, bodies.cached_invokes, PROMPTS, [path])
    for mine, theirs, length in zip(found, expected, lengths_of(both, PROMPTS), strict=True):
        assert_same(
            unpadded([parts.hidden(mine[path].output)], length),
            [parts.hidden(theirs[path].output)[:, -length:]],
            both.tolerance,
        )


def test_cache_by_new_names():
    import nnsight_judge as judges

    both = pair("gpt2")
    rename = {"transformer.h": "layers", "mlp": "ffn"}
    ours = judges.ours_of(both.reference, rename=rename)
    judge = judges.nnsight.LanguageModel(
        judges.judge_of(both.reference)._module, tokenizer=both.tokenizer, rename=rename
    )
    for cache in (bodies.caches(ours, PROMPT), quiet(bodies.caches, judge, PROMPT)):
        assert torch.equal(cache.model.layers[1].ffn.output, cache["model.transformer.h.1.mlp"].output)
        assert torch.equal(cache["model.layers.1.ffn"].output, cache["model.transformer.h.1.mlp"].output)


# --- calls


@pytest.mark.parametrize("kind", KINDS)
def test_calls_of_modules(kind):
    both = pair(kind)
    lens, logits = assert_both_same(both, bodies.logit_lens, PROMPT)
    assert_same(lens[-1], logits, 1e-9)
    assert_both_same(both, bodies.called_modules, PROMPT)
    assert_both_same(both, bodies.called_outside)


@pytest.mark.parametrize("kind", KINDS)
def test_modules_of_ones_own(kind):
    assert_both_same(new_pair(kind), bodies.with_autoencoder, PROMPT)
    assert_both_same(new_pair(kind), bodies.with_autoencoder_in_an_edit, PROMPT)


@pytest.mark.parametrize("kind", KINDS)
def test_stop(kind):
    both = pair(kind)
    for layer in range(3):
        assert_both_same(both, bodies.stopped, PROMPT, layer)
    for limit in (0, 1, 5):
        assert_both_same(both, bodies.stopped_when, PROMPT, limit)
    assert_both_same(both, bodies.got, PROMPT)

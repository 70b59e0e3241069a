"""Every module's input and output, over the whole tree of every kind of model, and how the tree is walked."""

import random
import re

import nnsight_bodies as bodies
import pytest
import torch
from nnsight_judge import (
    KINDS,
    PROMPT,
    SHORT,
    assert_both_same,
    assert_same,
    demo_pair,
    new_pair,
    padded_pair,
    pair,
    quiet,
)
from tiny_models import CONFIGS, NO_FLOAT64

import glassformer

# Modules that `transformers` doesn't call, by the end of their path, and why.
NOT_CALLED = {
    "transformer.h": "a list",
    "model.layers": "a list",
    "attn.attn_dropout": "it drops out with a function, but where scores are upcast",
    "generator": "only in a generation",
    "generator.streamer": "only in a generation",
}
ALL_KINDS = [(kind, torch.float32 if kind in NO_FLOAT64 else torch.float64) for kind in CONFIGS]


def recorded(judge, prompt):
    """`{path: (arguments, output)}` of every module that was called, as the judge's own cache has it."""
    with judge.trace(prompt) as tracer:
        cache = tracer.cache(include_inputs=True)
    return {path: (cache[path].inputs, cache[path].output) for path in cache.keys()}  # noqa: SIM118


def paths_of(model, include=None):
    """The paths of all modules."""
    return [path for path, _ in model.named_modules(include)]


def is_called(path):
    return not any(path == f"model.{end}" or path.endswith(f".{end}") for end in NOT_CALLED)


@pytest.mark.parametrize(("kind", "dtype"), ALL_KINDS)
def test_every_module(kind, dtype):
    both = pair(kind, dtype)
    expected = quiet(recorded, both.judge, PROMPT)
    paths = paths_of(both.judge)
    assert paths_of(both.ours) == paths
    assert {path for path in paths if is_called(path)} == {path for path in expected if is_called(path)}
    random.Random(kind).shuffle(paths)
    with both.ours.trace(PROMPT):
        for path in filter(lambda path: path in expected, paths):
            (args, kwargs), output = expected[path]
            module = both.ours.get(path.removeprefix("model").removeprefix("."))
            first = args[0] if args else next(iter(kwargs.values()))
            assert_same(module.input, first, both.tolerance, f"{path}.input")
            assert_same(module.inputs[0][0], first, both.tolerance, f"{path}.inputs")
            assert_output(module.output, output, both.tolerance, path)
    for path in paths:
        if path.endswith("attn_dropout"):
            with both.ours.trace(PROMPT):
                dropout = both.ours.get(path.removeprefix("model."))
                assert_same(dropout.output, dropout.parent.output[1], 0)
        elif path not in expected and "generator" not in path:
            with pytest.raises(glassformer.UnavailableError), both.ours.trace(PROMPT):
                assert both.ours.get(path.removeprefix("model.")).output is None


def assert_output(found, expected, tolerance, path):
    """Blocks give tuples here, whatever `transformers` gives; its records have the values by name and by number."""
    if hasattr(expected, "logits"):
        assert_same(found.logits, expected.logits, tolerance, path)
        assert_same(found["logits"], expected.logits, tolerance, path)
        assert_same(found[0], expected.logits, tolerance, path)
    elif hasattr(expected, "last_hidden_state"):
        assert_same(found.last_hidden_state, expected.last_hidden_state, tolerance, path)
        assert_same(found[0], expected.last_hidden_state, tolerance, path)
    elif isinstance(expected, tuple):
        assert isinstance(found, tuple), path
        assert_same(found[: len(expected)], expected, tolerance, path)
    else:
        is_block = path.rpartition(".")[2].isdigit()
        assert isinstance(found, tuple) == is_block, path
        assert_same(bodies.hidden(found), expected, tolerance, path)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prompt", [PROMPT, SHORT])
def test_reads(kind, prompt):
    both = pair(kind)
    assert_both_same(both, bodies.read_everything, prompt)
    assert_both_same(both, bodies.read_result, prompt)
    for path in paths_of_layer(both, 1):
        for what in ("input", "output"):
            assert_both_same(both, bodies.read_module, prompt, path, what)


def paths_of_layer(both, layer):
    """The modules of a layer that are called, without "model"."""
    paths = [path.removeprefix("model.") for path in paths_of(both.judge) if is_called(path)]
    return [path for path in paths if f".{layer}." in path or path.endswith(f".{layer}")]


@pytest.mark.parametrize("kind", KINDS)
def test_all_arguments(kind):
    assert_both_same(pair(kind), bodies.read_inputs, PROMPT)


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_of_input(kind):
    both = pair(kind)
    ids = both.tokenizer(PROMPT)["input_ids"]
    tensor = torch.tensor([ids])
    two = torch.tensor([ids, ids[::-1]])
    for given in (PROMPT, [PROMPT], ids, [ids], torch.tensor(ids), tensor, {"input_ids": tensor}, two):
        assert_both_same(both, bodies.read_result, given)
    for given in (tensor, {"input_ids": two}):
        mask = torch.ones_like(given if given is tensor else two)
        assert_both_same(both, bodies.read_result, given, attention_mask=mask)
    encoding = both.tokenizer(PROMPT, return_tensors="pt")
    assert_both_same(both, bodies.read_result, encoding)


@pytest.mark.parametrize("kind", KINDS)
def test_prompts_of_different_lengths_in_one_input(kind):
    """An input with several prompts is one batch, padded on the left, as the judge has it."""
    both = padded_pair(kind)
    prompts = [PROMPT, SHORT, "The cat sat on the mat"]
    ids = [both.tokenizer(prompt)["input_ids"] for prompt in prompts]
    for given in (prompts, ids):
        found, expected = bodies.read_result(both.ours, given), quiet(bodies.read_result, both.judge, given)
        assert found.shape == expected.shape
        for row, one in enumerate(ids):
            assert_same(found[row, -len(one) :], expected[row, -len(one) :], both.tolerance, prompts[row])


@pytest.mark.parametrize("kind", KINDS)
def test_call_without_a_trace(kind):
    both = pair(kind)
    found, expected = both.ours.trace(PROMPT, trace=False), both.judge.trace(PROMPT, trace=False)
    assert_same(found.logits, expected.logits, both.tolerance)


# --- the tree


@pytest.mark.parametrize("kind", KINDS)
def test_the_tree(kind):
    both = pair(kind)
    ours, judge = both.ours, both.judge
    assert len(bodies.blocks(ours)) == len(bodies.blocks(judge)) == 3
    assert [block.path for block in bodies.blocks(ours)] == [block.path for block in bodies.blocks(judge)]
    assert bodies.blocks(ours)[-1].path == bodies.blocks(judge)[-1].path
    assert [block.path for block in bodies.blocks(ours)[1:]] == [block.path for block in bodies.blocks(judge)[1:]]
    assert bodies.blocks(ours)["1"].path == bodies.blocks(judge)["1"].path
    assert paths_of(ours) == paths_of(judge)
    assert [module.path for module in ours.modules()] == paths_of(judge)

    def is_norm(module):
        return "norm" in module.path or "ln_" in module.path

    assert paths_of(ours, is_norm) == paths_of(judge, is_norm)
    for path, module in judge.named_modules():
        mine = dict(ours.named_modules())[path]
        assert (module.parent and module.parent.path) == (mine.parent and mine.parent.path), path
        assert mine.root is ours and module.root is judge
        assert [child.path for child in mine] == [child.path for child in module]
    name = "transformer.h.1.mlp" if kind.startswith("gpt2") else "model.layers.1.mlp"
    assert ours.get(name).path == judge.get(name).path == f"model.{name}"
    assert ours.device == judge.device
    with pytest.raises(AttributeError):
        judge.get("no.such.module")
    with pytest.raises(AttributeError):
        ours.get("no.such.module")


@pytest.mark.parametrize("kind", KINDS)
def test_weights_of_a_module(kind):
    both = pair(kind)
    for path, module in both.judge.named_modules(lambda module: "generator" not in module.path):
        for name, parameter in module._module.named_parameters(recurse=False):
            found = getattr(dict(both.ours.named_modules())[path], name)
            assert_same(found, parameter.detach(), 0, f"{path}.{name}")


@pytest.mark.parametrize("kind", KINDS)
def test_printing(kind):
    both = pair(kind)
    text = repr(both.ours)
    assert re.sub(r"Conv1D\(.*\)", "Conv1D()", text) == repr(both.judge)  # It leaves these out.
    assert text.startswith(repr(both.reference).removesuffix("\n)"))
    block = "transformer.h.0" if kind.startswith("gpt2") else "model.layers.0"
    assert repr(both.ours.get(block).mlp).startswith(repr(both.reference.get_submodule(block).mlp))


RENAMES = {
    "gpt2": {"transformer.h": "layers", "attn": "self_attn", "mlp": ["ffn", "feed"], "transformer": "trunk"},
    "llama_grouped": {"model.layers": "layers", "self_attn": "attn", "mlp": ["ffn", "feed"], "model": "trunk"},
}


@pytest.mark.parametrize("kind", RENAMES)
def test_rename(kind):
    import nnsight_judge as judges

    both = pair(kind)
    rename = RENAMES[kind]
    ours = judges.ours_of(both.reference, rename=rename)
    judge = quiet(judges.nnsight.LanguageModel, judges.judge_of(both.reference)._module, tokenizer=both.tokenizer,
                  rename=rename)  # fmt: skip
    attention = rename["attn"] if kind == "gpt2" else rename["self_attn"]
    for model in (ours, judge):
        assert model.layers[1].path == bodies.blocks(model)[1].path
        assert model.trunk.path == bodies.trunk(model).path
        assert model.layers[0].ffn.path == model.layers[0].feed.path == model.layers[0].mlp.path
        assert getattr(model.layers[2], attention).path == bodies.attention(model.layers[2]).path
    found, expected = through_alias(ours, PROMPT, attention), quiet(through_alias, judge, PROMPT, attention)
    assert_same(found, expected, both.tolerance)
    for model in (ours, judge):
        assert "(layers): " in repr(model) and "(ffn/feed/mlp): " in repr(model) and f"({attention}/" in repr(model)


def through_alias(model, prompt, attention):
    with model.trace(prompt):
        pattern = getattr(model.layers[0], attention).output[1].save()
        model.layers[1].ffn.output[:] = 0
        logits = model.lm_head.output.save()
    return pattern, logits


@pytest.mark.parametrize("kind", ["gpt2", "llama_grouped"])
def test_a_model_that_is_trained_on(kind):
    """Weights that change count on both sides."""
    both = new_pair(kind)
    for model in (both.ours, both.judge):
        with torch.no_grad():
            model.lm_head.weight.mul_(2)
    assert_both_same(both, bodies.read_everything, PROMPT)


def test_the_demo_model():
    both = demo_pair()
    for prompt in (PROMPT, "The capital of France is"):
        assert_both_same(both, bodies.read_everything, prompt)
    assert paths_of(both.ours) == paths_of(both.judge)
    for path in paths_of_layer(both, 17):
        for what in ("input", "output"):
            assert_both_same(both, bodies.read_module, PROMPT, path, what)

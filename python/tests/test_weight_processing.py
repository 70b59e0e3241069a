"""Weights that are rewritten: the same predictions, and what each rewriting promises."""

import pytest
import torch
from helpers import assert_close, subject
from tiny_models import random_tokens

import glassformer

KINDS = ["gpt2", "gpt2_untied", "llama", "llama_grouped", "mistral_window"]
STEPS = ["fold_norms", "center_writing_weights", "center_unembed", "fold_value_biases", "refactor_attention"]


def log_probabilities(model):
    return model.trace(random_tokens(2, 9)).logits.log_softmax(-1)


def processed(kind, steps):
    return glassformer.process_weights(subject(kind).model, **{step: step in steps for step in STEPS})


@pytest.mark.parametrize("step", [*STEPS, "all"])
@pytest.mark.parametrize("kind", KINDS)
def test_predictions_stay(kind, step):
    model = subject(kind).model
    if step == "refactor_attention" and not kind.startswith("gpt2"):
        with pytest.raises(glassformer.UnsupportedError, match="refactored"):
            processed(kind, [step])
        return
    made = processed(
        kind, [s for s in STEPS if s != "refactor_attention" or kind.startswith("gpt2")] if step == "all" else [step]
    )
    assert_close(log_probabilities(made), log_probabilities(model), 1e-9)
    assert made.config.n_layers == model.config.n_layers and made.tokenizer is model.tokenizer


@pytest.mark.parametrize("kind", ["gpt2", "llama_grouped"])
def test_each_does_what_it_says(kind):
    is_gpt2 = kind == "gpt2"
    made = processed(kind, STEPS[:4])
    names = list(made.weights)
    assert not [name for name in names if "ln" in name]
    assert made.weights["unembed.weight"].mean(0).abs().max() < 1e-12
    centred = made.weights["blocks.1.attn.o.weight"].mean(0).abs().max()
    assert bool(centred < 1e-12) == is_gpt2  # RMS norms don't centre, so what is written may have a mean.
    if is_gpt2:
        assert not made.weights["blocks.1.attn.v.bias"].any()
        for name in ("embed.weight", "pos_embed.weight", "blocks.0.attn.q.weight", "blocks.2.mlp.in.weight"):
            assert made.weights[name].mean(1).abs().max() < 1e-12, name
    trace = made.trace(random_tokens(1, 5))
    assert_close(trace["blocks.0.ln1.hook_out"], trace["blocks.0.ln1.hook_normalized"], 1e-12)


def test_refactored_attention_is_even_and_orthogonal():
    made, n_heads = processed("gpt2", STEPS), 4
    q, k = (made.weights[f"blocks.1.attn.{part}.weight"] for part in "qk")
    bias = [made.weights[f"blocks.1.attn.{part}.bias"] for part in "qk"]
    sizes = [(w.square().sum(1) + b.square()) for w, b in zip((q, k), bias, strict=True)]
    assert_close(*sizes, 1e-10)
    out = made.weights["blocks.1.attn.o.weight"].unflatten(1, (n_heads, -1)).transpose(0, 1)
    # `center_writing_weights` comes first, so a rotation is what is left of it.
    assert_close(out.transpose(1, 2) @ out, torch.eye(out.shape[-1], dtype=out.dtype).expand(n_heads, -1, -1), 1e-10)


def test_the_model_below_stays_as_it_is():
    tiny = subject.__wrapped__("gpt2")
    before = {name: weight.clone() for name, weight in tiny.model.weights.items()}
    made = glassformer.process_weights(tiny.model)
    assert all(torch.equal(tiny.model.weights[name], weight) for name, weight in before.items())
    with torch.no_grad():
        for weight in made.weights.values():
            weight.zero_()
    assert all(torch.equal(tiny.model.weights[name], weight) for name, weight in before.items())


def test_models_with_nodes_of_their_own_are_refused():
    model = subject("gpt2").model.splice("resid_post1", "sae", lambda x: x, lambda x: x)
    with pytest.raises(glassformer.UnsupportedError, match="nodes of its own"):
        glassformer.process_weights(model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_dtypes(dtype):
    model = subject("gpt2").model
    exact = glassformer.process_weights(model)
    found = glassformer.process_weights(model.to(dtype))
    assert found.dtype == dtype
    for name, weight in exact.weights.items():
        assert_close(found.weights[name].double(), weight, 0.02 if dtype == torch.bfloat16 else 1e-5, name)

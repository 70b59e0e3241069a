"""Every activation that TransformerLens' HookedTransformer and we both have, on the same weights."""

import pytest
import torch
from helpers import assert_close
from tiny_models import random_tokens
from tl_judge import cache_of, pair

KINDS = [
    "gpt2",
    "gpt2_relu",
    "gpt2_inverse_layer",
    "gpt2_unscaled",
    "gpt2_untied",
    "llama",
    "llama_grouped",
    "llama_one_kv_head",
    "llama_tied",
    "llama_theta",
    "llama_llama3",
    "mistral",
    "mistral_window",
]
TOLERANCE = 1e-6


def compare(found, cache, logits):
    assert_close(found.logits, logits, TOLERANCE, "logits")
    for name, expected in cache.items():
        assert_close(found[name], expected, TOLERANCE, name)


@pytest.mark.parametrize("kind", KINDS)
def test_every_activation_of_the_judge(kind):
    both = pair(kind)
    tokens = random_tokens(2, 9)
    logits, cache = cache_of(both.judge, tokens)
    assert len(cache) > 15 * both.model.config.n_layers
    compare(both.model.trace(tokens), cache, logits)


# The flags change the shapes of the first norm in the judge (a private one for each head), so those are left out.
FLAGS = {
    "use_attn_result": ["attn.hook_result"],
    "use_hook_mlp_in": ["hook_mlp_in"],
    "use_split_qkv_input": ["hook_q_input", "hook_k_input", "hook_v_input"],
    "use_attn_in": ["hook_attn_in"],
}


@pytest.mark.parametrize("flag", FLAGS)
@pytest.mark.parametrize("kind", ["gpt2", "llama", "llama_grouped"])
def test_activations_behind_flags(kind, flag):
    if flag == "use_attn_in" and kind == "llama_grouped":
        pytest.skip("the judge has no hook_attn_in with grouped keys")
    both = pair(kind)
    tokens = random_tokens(2, 7, seed=1)
    getattr(both.judge, f"set_{flag}")(True)
    try:
        logits, cache = cache_of(both.judge, tokens)
    finally:
        getattr(both.judge, f"set_{flag}")(False)
    wanted = [f"blocks.{layer}.{part}" for layer in range(both.model.config.n_layers) for part in FLAGS[flag]]
    assert set(wanted) <= set(cache)
    compare(both.model.trace(tokens), {name: cache[name] for name in cache if ".ln1." not in name}, logits)


@pytest.mark.parametrize("kind", ["gpt2", "llama_grouped"])
def test_short_names_mean_the_same(kind):
    both = pair(kind)
    tokens = random_tokens(1, 5)
    _, cache = cache_of(both.judge, tokens)
    trace = both.model.trace(tokens)
    names = ["k2", "pattern1", "scale2ln1", "normalized1ln2", "q1", "embed", "post0"]
    names += [("resid_pre", 1), ("scale", 2, "ln2"), ("post", 0), ("pre", 1), ("attn", 1), ("z", 2), ("v", 0)]
    names += [("attn_scores", 0), ("mlp_out", 2), ("resid_post", 0)]
    for name in names:
        assert_close(trace[name], cache[name], TOLERANCE, str(name))


@pytest.mark.parametrize("kind", ["gpt2", "llama_grouped"])
def test_prompts_of_different_lengths(kind):
    both = pair(kind)
    prompts = [random_tokens(length, seed=length).tolist() for length in (4, 9, 6)]
    longest = max(map(len, prompts))
    padded = torch.tensor([[0] * (longest - len(ids)) + ids for ids in prompts])
    mask = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in prompts])
    logits, cache = cache_of(both.judge, padded, attention_mask=mask, padding_side="left")
    batch = both.model.trace(prompts)
    real = batch.mask
    assert torch.equal(real, mask.bool())
    assert_close(batch.logits[real], logits[real], TOLERANCE, "logits")
    by_position = ["resid_pre", "resid_post", "z", "q", "k", "v", "mlp_out"]
    for layer in range(both.model.config.n_layers):
        for name in by_position:
            assert_close(batch[name, layer][real], cache[name, layer][real], TOLERANCE, f"{name} {layer}")
        pattern = batch["pattern", layer].transpose(1, 2)[real]
        assert_close(pattern, cache["pattern", layer].transpose(1, 2)[real], TOLERANCE, f"pattern {layer}")


@pytest.mark.parametrize("kind", ["gpt2", "llama_grouped"])
@pytest.mark.parametrize("node", ["resid_pre", "resid_mid", "attn_out", "q", "k", "v", "z", "pattern", "post"])
def test_an_edit_has_the_effect_of_a_hook(kind, node):
    both = pair(kind)
    tokens = random_tokens(2, 8, seed=3)
    trace = both.model.trace(tokens)
    name = trace.model.node_name((node, 1))
    changed = trace[name].roll(1, 0) * 0.5
    with torch.no_grad():
        expected = both.judge.run_with_hooks(tokens, fwd_hooks=[(name, lambda value, hook: changed)])
        plain = both.judge(tokens)
    trace[name] = changed
    assert (expected - plain).abs().max() > 1e-3
    assert_close(trace.logits, expected, TOLERANCE, node)

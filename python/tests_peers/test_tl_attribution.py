"""Logit lens and direct logit attribution: TransformerLens' numbers and ours."""

import pytest
import torch
from helpers import assert_close
from tiny_models import random_tokens
from tl_judge import cache_of, pair

import glassformer

KINDS = ["gpt2", "gpt2_untied", "llama_grouped"]
FOLDED = 1e-5  # The judge rounds weights to float32 when it folds norms into them; the parts then cancel.


@pytest.mark.parametrize("kind", KINDS)
def test_logit_lens(kind):
    both = pair(kind)
    tokens = random_tokens(2, 6)
    logits, cache = cache_of(both.judge, tokens)
    n_layers = both.model.config.n_layers
    streams = [cache["resid_pre", layer] for layer in range(n_layers)] + [cache["resid_post", n_layers - 1]]
    with torch.no_grad():
        expected = torch.stack([both.judge.unembed(both.judge.ln_final(stream)) for stream in streams])
    found = glassformer.logit_lens(both.model.trace(tokens), top_k=3, target=5, return_logits=True)
    assert_close(found.logits, expected, 1e-6)
    assert_close(found.logits[-1], logits, 1e-6)
    values, ids = expected.topk(3)
    assert torch.equal(found.top_ids, ids)
    assert_close(found.top_logits, values, 1e-6)
    assert_close(found.top_probabilities, expected.softmax(-1).gather(-1, ids), 1e-6)
    assert_close(found.target_probability, expected.softmax(-1)[..., 5], 1e-6)
    assert torch.equal(found.target_rank, (expected > expected[..., 5:6]).sum(-1))


@pytest.mark.parametrize("versus", [None, 40])
@pytest.mark.parametrize("position", [-1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_direct_logit_attribution(kind, position, versus):
    both = pair(kind, folded=True)
    tokens, token = random_tokens(2, 6, seed=1), 17
    logits, cache = cache_of(both.judge, tokens)
    at = position % tokens.shape[1]

    def attribution(stack):  # Divides by the final norm's scale itself.
        return cache.logit_attrs(stack, token, pos_slice=at, incorrect_tokens=versus)

    with torch.no_grad():
        stack, labels = cache.decompose_resid(pos_slice=at, return_labels=True)
        heads = cache.stack_head_results(pos_slice=at)
        expected = dict(zip(labels, attribution(stack), strict=True))
        expected_heads = attribution(heads)
    found = glassformer.direct_logit_attribution(both.model.trace(tokens), token, versus, position)
    ours = {part.name: part.logit for part in found.components}
    bias = ours.pop("bias", torch.zeros(2))
    assert len(ours) == len(expected)
    for label, value in expected.items():
        name = label.replace("_attn_out", ".attn").replace("_mlp_out", ".mlp")
        assert_close(ours[name], value, FOLDED, label)
    assert_close(found.heads.flatten(0, 1), expected_heads, FOLDED, "heads")
    b_U = both.judge.b_U.detach()
    assert_close(bias, (b_U[token] - (0 if versus is None else b_U[versus])).expand(2), FOLDED, "bias")
    logit = logits[:, at, token] - (0 if versus is None else logits[:, at, versus])
    assert_close(found.logit, logit, FOLDED, "logit")
    assert_close(sum(part.logit for part in found.components), found.logit, 1e-12, "sum")

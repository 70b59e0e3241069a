"""Activation patching: TransformerLens' maps and ours."""

import pytest
import torch
from helpers import assert_close
from tiny_models import random_tokens
from tl_judge import cache_of, pair
from transformer_lens import patching

import glassformer

ANSWER, VERSUS = 17, 40
BY_POSITION = {"by_position": True, "by_head": False}
BY_HEAD = {"by_position": False, "by_head": True}
BY_BOTH = {"by_position": True, "by_head": True}
MAPS = {
    "resid_pre": ("resid_pre", BY_POSITION, ["layer", "pos"]),
    "resid_mid": ("resid_mid", BY_POSITION, ["layer", "pos"]),
    "attn_out": ("attn_out", BY_POSITION, ["layer", "pos"]),
    "mlp_out": ("mlp_out", BY_POSITION, ["layer", "pos"]),
    "attn_head_out_all_pos": ("z", BY_HEAD, ["layer", "head"]),
    "attn_head_q_all_pos": ("q", BY_HEAD, ["layer", "head"]),
    "attn_head_k_all_pos": ("k", BY_HEAD, ["layer", "head"]),
    "attn_head_v_all_pos": ("v", BY_HEAD, ["layer", "head"]),
    "attn_head_pattern_all_pos": ("pattern", BY_HEAD, ["layer", "head"]),
    "attn_head_out_by_pos": ("z", BY_BOTH, ["layer", "pos", "head"]),
    "attn_head_q_by_pos": ("q", BY_BOTH, ["layer", "pos", "head"]),
    "attn_head_k_by_pos": ("k", BY_BOTH, ["layer", "pos", "head"]),
    "attn_head_v_by_pos": ("v", BY_BOTH, ["layer", "pos", "head"]),
    "attn_head_pattern_by_pos": ("pattern", BY_BOTH, ["layer", "pos", "head"]),
}


def difference(logits):
    return (logits[:, -1, ANSWER] - logits[:, -1, VERSUS]).mean()


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.setattr(patching, "tqdm", lambda rows, **_: rows)
    with torch.no_grad():
        yield


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("kind", ["gpt2", "llama_grouped"])
def test_maps(kind, name):
    both = pair(kind)
    clean, corrupted = random_tokens(2, 7, seed=1), random_tokens(2, 7, seed=2)
    _, cache = cache_of(both.judge, clean)
    expected = getattr(patching, f"get_act_patch_{name}")(both.judge, corrupted, cache, difference)
    if name == "attn_head_pattern_by_pos":  # The judge's axes here: layer, head, pos.
        expected = expected.transpose(1, 2)
    activation, places, axes = MAPS[name]
    traces = both.model.trace(clean), both.model.trace(corrupted)
    metric = glassformer.logit_difference(both.model, ANSWER, VERSUS)
    found = glassformer.activation_patching(*traces, metric, activation=activation, **places)
    assert found.axes == axes
    assert_close(found.values, expected, 1e-6, name)
    assert expected.std() > 1e-3
    assert found.clean == pytest.approx(difference(both.judge(clean)).item(), rel=1e-6)
    assert found.corrupted == pytest.approx(difference(both.judge(corrupted)).item(), rel=1e-6)


def test_a_metric_of_ones_own_on_all_positions():
    both = pair("gpt2")
    clean, corrupted = random_tokens(1, 6, seed=3), random_tokens(1, 6, seed=4)
    _, cache = cache_of(both.judge, clean)

    def metric(logits):
        return logits.log_softmax(-1)[..., ANSWER].mean()

    expected = patching.get_act_patch_resid_pre(both.judge, corrupted, cache, metric)
    traces = both.model.trace(clean), both.model.trace(corrupted)
    found = glassformer.activation_patching(*traces, metric, activation="resid_pre", positions=None)
    assert_close(found.values, expected, 1e-6)


def test_effects_in_float32():
    both = pair("gpt2", torch.float32)
    clean, corrupted = random_tokens(1, 12, seed=5), random_tokens(1, 12, seed=6)
    _, cache = cache_of(both.judge, clean)
    expected = patching.get_act_patch_resid_pre(both.judge, corrupted, cache, difference)
    traces = both.model.trace(clean), both.model.trace(corrupted)
    metric = glassformer.logit_difference(both.model, ANSWER, VERSUS)
    assert_close(glassformer.activation_patching(*traces, metric).values, expected, 1e-5)

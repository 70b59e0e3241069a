"""Every field of a config, changed on a model that is there: it does what it does in the judge, or is refused."""

import copy
import dataclasses

import pytest
import torch
from helpers import assert_close
from test_tl_hooked_transformer import KINDS, pair_of, tokens_of
from test_tl_native import LOCAL, ROTARY, SWITCHES

from glassformer import _core
from glassformer.transformer_lens import HookedTransformerConfig

CLOSE = 1e-5  # The judge's rotary angles are of float32, and what is changed here can be steep.
CHOSEN = {
    **{name: KINDS[name] for name in ("gpt2_like", "llama_like", "attention_only_shortformer", "alibi", "solu")},
    "local": {"act_fn": "gelu", **LOCAL},
    "rotary_local": {"act_fn": "gelu", **ROTARY, **LOCAL},
    "experts": SWITCHES["experts"],
    "query_key_norms": SWITCHES["query_key_norms"],
}
VALUES = {
    "act_fn": ["relu", "gelu", "solu_ln", "nonsense"],
    "attention_dir": ["bidirectional", "sideways"],
    "attn_scores_soft_cap": [0.5, -1.0],
    "attn_types": [["global", "local"], ["local", "local"], None],
    "clip_qkv": [0.1],
    "device": [],  # Of one device alone there is no other.
    "dtype": [torch.float32],
    "experts_per_token": [1, None],
    "n_ctx": [5, 12, 32],
    "n_layers": [1, 3],
    "n_key_value_heads": [1, None, 3],
    "normalization_type": ["LN", "RMS", "LNPre", "RMSPre", "nonsense", None],
    "num_experts": [3, None],
    "original_architecture": ["Olmo2ForCausalLM", "OlmoeForCausalLM", "GptOssForCausalLM", "LlamaForCausalLM"],
    "output_logits_soft_cap": [0.5, -1.0],
    "positional_embedding_type": ["standard", "rotary", "shortformer", "alibi", "relative_positional_bias"],
    "rotary_base_local": [50.0],
    "rotary_dim": [4, 2],
    "train_seq_length": [4],
    "window_size": [None, 2],
}
FIELDS = [field.name for field in dataclasses.fields(HookedTransformerConfig)]


def assert_same_values(ours, judge):
    assert list(ours) == list(judge)
    for name, expected in judge.items():  # The judge's routers are in float32 whatever the dtype.
        assert_close(ours[name].double(), expected.double(), CLOSE, name)


def others(name, value):
    if name in VALUES:
        return [other for other in VALUES[name] if other != value]
    if isinstance(value, bool):
        return [not value]
    return [value * 2 + 1, value + 1] if isinstance(value, int | float) else [1]


def outcome(model, tokens):
    try:
        with torch.no_grad():
            return model.run_with_cache(tokens, return_cache_object=False)
    except Exception as error:
        return error


@pytest.fixture(scope="module", params=CHOSEN)
def both(request):
    return pair_of(CHOSEN[request.param])


@pytest.mark.parametrize("training", [True, False])
def test_every_field(both, training):
    judge, ours = both
    tokens, refused, taken = tokens_of(), set(), set()
    for model in both:
        model.train(training)
    before = ours(tokens)
    for name in FIELDS:
        usual = getattr(judge.cfg, name)
        for value in others(name, usual):
            for model in both:
                setattr(model.cfg, name, copy.copy(value))
            expected, found = outcome(judge, tokens), outcome(ours, tokens)
            for model in both:
                setattr(model.cfg, name, usual)
            if isinstance(found, Exception):
                assert isinstance(found, _core.Error | AssertionError) and "\n" not in str(found), (name, value, found)
                refused.add(name)
                continue
            taken.add(name)
            assert not isinstance(expected, Exception), (name, value, expected)
            assert_close(found[0], expected[0], CLOSE, f"{name}={value}")
            assert_same_values(found[1], expected[1])
    assert torch.equal(ours(tokens), before)
    assert {"use_attn_result", "n_ctx", "output_logits_soft_cap", "clip_qkv", "n_layers", "attention_dir"} <= taken
    assert {"eps", "attn_scale", "d_model"} <= refused - taken


def test_what_can_not_be_changed_is_said():
    _, ours = pair_of(KINDS["gpt2_like"])
    ours.cfg.eps = 0.1
    with pytest.raises(ValueError, match=r"^cfg.eps was 1e-05 when the model was made, and is 0.1 now: put it back"):
        ours(tokens_of())
    ours.cfg.eps = 1e-5
    ours(tokens_of())
    ours.cfg.n_layers = 3
    with pytest.raises(ValueError, match=r"cfg\.n_layers is 3, but there are 2 blocks"):
        ours(tokens_of())
    ours.cfg.n_layers = 2
    other = copy.deepcopy(ours)
    other.cfg.attn_only = True
    with pytest.raises(_core.InputError):
        other.generate(tokens_of(), verbose=False, stop_at_eos=False)
    ours(tokens_of())


def test_another_type_is_told_by_the_weights():
    _, ours = pair_of(KINDS["gpt2_like"])
    ours.float()
    found = ours(tokens_of())
    ours.cfg.dtype = torch.float32
    assert torch.equal(ours(tokens_of()), found) and found.dtype == torch.float32


@pytest.mark.parametrize("kind", ["logs", "angles"])
def test_only_models_that_do_not_train_scale_by_the_length(kind):
    scaled = {"logs": {"use_logn_attn": True}, "angles": {"use_dynamic_ntk_rope": True, **ROTARY}}[kind]
    judge, ours = pair_of({"act_fn": "gelu", "train_seq_length": 4, **scaled})
    made = {}
    for training in (True, False):
        for model in (judge, ours):
            model.train(training)
        made[training] = ours(tokens_of())
        assert_close(made[training], judge(tokens_of()), CLOSE)
        x = torch.randn(2, 9, 24, dtype=torch.float64)
        assert_close(ours.blocks[1](x), judge.blocks[1](x), CLOSE, "a block by itself")
    assert not torch.allclose(made[True], made[False])

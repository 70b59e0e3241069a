"""The same activations in TransformerLens' cache and in ours."""

import itertools
import types
import warnings

import torch
import transformer_lens
from helpers import assert_close

from glassformer.transformer_lens import ActivationCache, HookedTransformer

REFUSED = (AssertionError, KeyError, ValueError, RuntimeError)
N_LAYERS, D_MODEL, N_HEADS, D_MLP, D_VOCAB = 3, 12, 3, 10, 17
SIZES = {
    "n_layers": N_LAYERS,
    "d_model": D_MODEL,
    "n_heads": N_HEADS,
    "d_head": 4,
    "d_mlp": D_MLP,
    "d_vocab": D_VOCAB,
    "n_ctx": 9,
}
CONFIGS = {
    "LN": {},
    "LNPre": {"normalization_type": "LNPre", "act_fn": "relu"},
    "RMS": {"normalization_type": "RMS", "gated_mlp": True, "positional_embedding_type": "rotary", "rotary_dim": 4},
    "RMSPre": {"normalization_type": "RMSPre", "gated_mlp": True, "act_fn": "silu"},
    "no norms": {"normalization_type": None},
    "attention only": {"attn_only": True, "d_mlp": None, "normalization_type": "LNPre"},
    "attention only without norms": {"attn_only": True, "normalization_type": None},
    "parallel": {"parallel_attn_mlp": True, "positional_embedding_type": "rotary", "rotary_dim": 4},
    "grouped queries": {"n_key_value_heads": 1, "normalization_type": "RMS"},
    "solu": {"act_fn": "solu_ln", "use_attn_result": True},
    "alibi, results": {"positional_embedding_type": "alibi", "use_attn_result": True, "normalization_type": "RMS"},
    "all inputs": {"use_hook_mlp_in": True, "use_attn_result": True, "use_hook_tokens": True},
}
# What the judge gets wrong about these is in tests of their own.
ALSO = {
    "split inputs": {"use_split_qkv_input": True},
    "attention's input": {"use_attn_in": True, "normalization_type": "RMS"},
    "shortformer": {"positional_embedding_type": "shortformer"},
    "final RMS": {"final_rms": True},
    "norms before and after": {
        "normalization_type": "RMS",
        "gated_mlp": True,
        "use_normalization_before_and_after": True,
        "positional_embedding_type": "rotary",
        "rotary_dim": 4,
    },
    "norms only after": {
        "normalization_type": "RMS",
        "gated_mlp": True,
        "original_architecture": "Olmo2ForCausalLM",
        "positional_embedding_type": "rotary",
        "rotary_dim": 4,
    },
    "experts": {"num_experts": 3, "experts_per_token": 2, "gated_mlp": True, "normalization_type": "RMS"},
}
LAYERS = [None, -1, 0, 1, N_LAYERS, N_LAYERS + 1]
POSITIONS = [None, -1, (1, 4, 2), [0, 3]]


def judge_of(name, dtype=torch.float64, **changed):
    given = dict(SIZES, act_fn="gelu", normalization_type="LN", seed=0, device="cpu", dtype=dtype)
    config = transformer_lens.HookedTransformerConfig(**{**given, **{**CONFIGS, **ALSO}[name], **changed})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        model = transformer_lens.HookedTransformer(config)
    torch.manual_seed(1)
    for parameter in model.parameters():  # No norm's weight stays at 1, no bias at 0.
        torch.nn.init.normal_(parameter, std=0.5)
    model.to_single_token = {"a": 3, "b": 5}.__getitem__
    return model


def own_of(judge):
    """Our model with the judge's weights."""
    own = HookedTransformer({**judge.cfg.to_dict(), "init_weights": False}).to(judge.cfg.dtype, print_details=False)
    assert not any(own.load_state_dict(judge.state_dict()))
    own.to_single_token = judge.to_single_token
    return own


def pair_of(name, batch=2, pos=5, batch_dim=True, graph=False, dtype=torch.float64, **changed):
    """The activations of one run of the judge's model in its cache and in ours, each with its own model."""
    model = judge_of(name, dtype, **changed)
    own = own_of(model)
    tokens = torch.randint(D_VOCAB, (batch, pos), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        _, cache = model.run_with_cache(tokens, return_cache_object=False)
    if graph:
        cache = {key: value.requires_grad_(value.is_floating_point()) for key, value in cache.items()}
    ours, theirs = ActivationCache(dict(cache), own), transformer_lens.ActivationCache(dict(cache), model)
    if not batch_dim:
        ours.remove_batch_dim(), theirs.remove_batch_dim()
    return types.SimpleNamespace(ours=ours, judge=theirs, model=model, own=own, tokens=tokens)


def compare(found, expected, tolerance=1e-10, what=""):
    if isinstance(expected, tuple):
        assert found[1] == expected[1], what
        found, expected = found[0], expected[0]
    assert found.dtype == expected.dtype, what
    assert_close(found.detach(), expected.detach(), tolerance, what) if expected.numel() else None
    assert found.shape == expected.shape, what


def result_of(cache, method, options):
    try:
        return getattr(cache, method)(**options)
    except REFUSED:
        return None


def alike(both, method, differs=lambda **options: False, **choices):
    """The method's results with all combinations of options are the judge's, or both refuse. Returns how many."""
    count = 0
    for values in itertools.product(*choices.values()):
        options = dict(zip(choices, values, strict=True))
        if differs(**options):
            continue
        expected = result_of(both.judge, method, options)
        found = result_of(both.ours, method, options)
        if options.get("layer") == N_LAYERS + 1:  # The judge looks no further than it must.
            assert found is None, (method, options)
            continue
        assert (found is None) == (expected is None), (method, options)
        if expected is not None:
            compare(found, expected, what=f"{method} {options}")
            count += 1
    return count

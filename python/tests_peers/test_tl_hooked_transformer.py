"""HookedTransformer beside the judge's: what comes out, what is cached, gradients, hooks, and every way to call it."""

import copy
import random
import warnings

import pytest
import torch
from helpers import assert_close
from test_tl_native import SMALL, TOYS, judge_of, random_config

import glassformer.transformer_lens as tl
from glassformer.transformer_lens import HookedTransformer

EXACT = 1e-6  # Rotary angles and alibi's slopes are of float32 somewhere in either.
KINDS = {
    **TOYS,
    "gpt2_like": {"act_fn": "gelu_new"},
    "llama_like": {
        "n_heads": 4,
        "n_key_value_heads": 2,
        "act_fn": "silu",
        "gated_mlp": True,
        "normalization_type": "RMS",
        "positional_embedding_type": "rotary",
        "rotary_dim": 8,
    },
    "neox_like": {"act_fn": "gelu", "parallel_attn_mlp": True, "positional_embedding_type": "rotary", "rotary_dim": 4},
    "alibi": {"act_fn": "relu", "positional_embedding_type": "alibi"},
}


def pair_of(options, seed=0):
    """The judge's model and ours, with the same weights."""
    judge = judge_of(options, seed)
    ours = HookedTransformer({**SMALL, **options, "device": "cpu", "init_weights": False})
    assert not any(ours.load_state_dict(judge.state_dict()))
    return judge, ours


def tokens_of(batch=2, length=9, seed=0):
    return torch.randint(SMALL["d_vocab"], (batch, length), generator=torch.Generator().manual_seed(seed))


def some(value, seed=0):
    """Fixed weights for the sum of a value, so that no gradient is trivial."""
    weights = torch.randn(value.shape, generator=torch.Generator().manual_seed(seed), dtype=value.dtype)
    return (value * weights).sum()


def assert_same_cache(ours, judge, tolerance=EXACT):
    assert list(ours) == list(judge)
    for name, expected in judge.items():
        assert ours[name].dtype == expected.dtype, name
        assert_close(ours[name], expected, tolerance, name)


@pytest.fixture(params=KINDS)
def both(request):
    return pair_of(KINDS[request.param])


def test_keys_and_shapes_of_the_state_dict(both):
    judge, ours = both
    expected, found = judge.state_dict(), ours.state_dict()
    assert list(found) == list(expected)
    for name in expected:
        assert_close(found[name].double(), expected[name].double(), EXACT, name)
    assert [name for name, _ in ours.named_parameters()] == [name for name, _ in judge.named_parameters()]
    assert list(ours.hook_dict) == list(judge.hook_dict)
    assert ours.n_params_total == judge.n_params_total


def test_logits_loss_and_cache(both):
    judge, ours = both
    tokens = tokens_of()
    if judge.cfg.d_vocab_out == judge.cfg.d_vocab:
        expected, found = judge(tokens, return_type="both"), ours(tokens, return_type="both")
        assert_close(found.loss, expected.loss, EXACT)
        for per_token in (False, True):
            arguments = {"return_type": "loss", "loss_per_token": per_token}
            assert_close(ours(tokens, **arguments), judge(tokens, **arguments), EXACT)
    assert_close(ours(tokens), judge(tokens), EXACT)
    assert ours(tokens, return_type=None) is None
    _, expected = judge.run_with_cache(tokens, return_cache_object=False)
    _, found = ours.run_with_cache(tokens, return_cache_object=False)
    assert_same_cache(found, expected)
    assert not any(value.requires_grad for value in found.values())


def test_gradients_of_parameters_and_an_optimisers_step(both):
    judge, ours = (copy.deepcopy(model) for model in both)
    tokens = tokens_of()
    optimisers = [torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9) for model in (judge, ours)]
    for _ in range(2):
        for model, optimiser in zip((judge, ours), optimisers, strict=True):
            optimiser.zero_grad()
            some(model(tokens)).backward()
            optimiser.step()
        scale = max(weight.grad.abs().max().item() for weight in judge.parameters() if weight.grad is not None)
        for (name, expected), found in zip(judge.named_parameters(), ours.parameters(), strict=True):
            if expected.grad is None:
                assert found.grad is None or not found.grad.any(), name
            else:
                # Some are 0 but for rounding: no key's bias changes a pattern.
                torch.testing.assert_close(found.grad, expected.grad, rtol=0, atol=EXACT * scale)
            assert_close(found, expected, EXACT, name)
    assert_close(ours(tokens), judge(tokens), EXACT)


def test_weights_may_be_changed_replaced_and_copied(both):
    judge, ours = (copy.deepcopy(model) for model in both)
    tokens = tokens_of()
    before = ours(tokens)
    for model in (judge, ours):
        with torch.no_grad():
            model.blocks[1].attn.W_O.mul_(1.5)
            model.blocks[0].attn.W_Q[1] += 0.1
    assert_close(ours(tokens), judge(tokens), EXACT, "in place")
    assert not torch.allclose(ours(tokens), before)
    for model in (judge, ours):
        weight = model.embed.W_E.detach() * 2
        model.embed.W_E = torch.nn.Parameter(weight)
        model.blocks[0].attn.W_Q.data = model.blocks[0].attn.W_Q.data.contiguous() * 0.5
    assert_close(ours(tokens), judge(tokens), EXACT, "replaced")
    twin = copy.deepcopy(ours)
    with torch.no_grad():
        twin.unembed.b_U.add_(1)
    assert_close(twin(tokens), judge(tokens) + 1, EXACT, "a copy")
    assert_close(ours(tokens), judge(tokens), EXACT, "the original")


def shifting(value, hook):
    return value + 0.25


def shifting_in_place(value, hook):
    value[:, -1:] *= 0.5


def test_every_hook_counts(both):
    """One hook at a time, at each point, that returns a value or changes it in place."""
    judge, ours = both
    tokens = tokens_of()
    with torch.no_grad():
        names = judge.run_with_cache(tokens)[1].keys()
        for name in names:
            if name.endswith(("hook_scale", "hook_attn_scores")) or "expert_indices" in name:
                continue
            for hook in (shifting, shifting_in_place):
                expected = judge.run_with_hooks(tokens, fwd_hooks=[(name, hook)])
                found = ours.run_with_hooks(tokens, fwd_hooks=[(name, hook)])
                if ".ln1." in name and hook is shifting_in_place:
                    continue  # The judge's is called three times on values that share no memory.
                assert_close(found, expected, EXACT, f"{name}, {hook.__name__}")


def test_hooks_are_called_once_in_order_also_without_output(both):
    judge, ours = both
    tokens = tokens_of()
    for return_type in ("logits", None):
        calls = {}
        for model in (judge, ours):
            seen = calls[model] = []

            def note(value, hook, seen=seen):
                seen.append((hook.name, tuple(value.shape)))

            with model.hooks([(lambda name: True, note)]):
                model(tokens, return_type=return_type)
        once = list(dict.fromkeys(calls[judge]))
        assert calls[ours] == once


def test_gradients_at_hook_points(both):
    judge, ours = both
    tokens = tokens_of()
    if judge.cfg.d_vocab_out != judge.cfg.d_vocab:
        pytest.skip("a loss needs logits for every token")
    arguments = {"return_type": "loss", "incl_bwd": True, "return_cache_object": False}
    loss, expected = judge.run_with_cache(tokens, **arguments)
    ours_loss, found = ours.run_with_cache(tokens, **arguments)
    judge.zero_grad(), ours.zero_grad()
    assert_close(ours_loss, loss, EXACT)
    assert set(found) == set(expected)
    for name, value in expected.items():
        if ".ln1." in name and name.endswith("_grad"):
            continue  # One of three calls of the judge's.
        assert_close(found[name], value, EXACT, name)


@pytest.mark.parametrize("start", [None, 0, 1, -1])
@pytest.mark.parametrize("stop", [None, 0, 1, -1, 2])
def test_start_and_stop(both, start, stop):
    judge, ours = both
    tokens = tokens_of()
    given = tokens if start is None else torch.randn(2, 9, SMALL["d_model"], dtype=torch.float64)
    arguments = {"start_at_layer": start, "stop_at_layer": stop}
    if judge.cfg.positional_embedding_type == "shortformer" and start is not None:
        arguments["shortformer_pos_embed"] = torch.randn(2, 9, SMALL["d_model"], dtype=torch.float64)
    seen = {}
    for model in (judge, ours):
        with torch.no_grad():
            seen[model] = model.run_with_cache(given, **arguments, return_cache_object=False)
    assert_close(seen[ours][0], seen[judge][0], EXACT)
    assert_same_cache(seen[ours][1], seen[judge][1])


FLAGS = ["use_attn_result", "use_split_qkv_input", "use_hook_mlp_in", "use_attn_in"]


@pytest.mark.parametrize("flags", [[flag] for flag in FLAGS] + [FLAGS])
def test_flags(both, flags):
    judge, ours = (copy.deepcopy(model) for model in both)
    tokens = tokens_of()
    for flag in flags:
        outcome = []
        for model in (judge, ours):
            try:
                getattr(model, f"set_{flag}")(True)
                outcome.append(None)
            except AssertionError:
                outcome.append(AssertionError)
        assert outcome[0] == outcome[1], flag
    with torch.no_grad():
        _, expected = judge.run_with_cache(tokens, return_cache_object=False)
        _, found = ours.run_with_cache(tokens, return_cache_object=False)
        assert_same_cache(found, expected)
        for name in ("blocks.1.attn.hook_result", "blocks.1.hook_q_input", "blocks.1.hook_k_input"):
            if name in expected:
                hooked = [model.run_with_hooks(tokens, fwd_hooks=[(name, shifting)]) for model in (judge, ours)]
                assert_close(hooked[1], hooked[0], EXACT, name)
    for flag in flags:
        setattr(judge.cfg, flag, False)
        setattr(ours.cfg, flag, False)
    with torch.no_grad():
        _, expected = judge.run_with_cache(tokens, return_cache_object=False)
        _, found = ours.run_with_cache(tokens, return_cache_object=False)
    assert_same_cache(found, expected)


@pytest.mark.parametrize("seed", range(40))
def test_random_configs_with_hooks(seed):
    judge, ours = pair_of(random_config(seed), seed)
    pick, tokens = random.Random(seed), tokens_of(seed=seed)
    with torch.no_grad():
        _, cache = judge.run_with_cache(tokens, return_cache_object=False)
        _, found = ours.run_with_cache(tokens, return_cache_object=False)
        assert_same_cache(found, cache)
        for _ in range(4):
            names = [name for name in cache if not name.endswith("hook_scale") and ".ln1." not in name]
            hooks = [(name, pick.choice([shifting, shifting_in_place])) for name in pick.sample(names, 3)]
            expected = judge.run_with_hooks(tokens, fwd_hooks=hooks)
            assert_close(ours.run_with_hooks(tokens, fwd_hooks=hooks), expected, EXACT, str(hooks))


def test_left_padding_and_masks(both):
    judge, ours = both
    tokens = tokens_of(3)
    mask = torch.ones(3, 9, dtype=torch.int64)
    mask[0, :3] = mask[1, :1] = 0
    with torch.no_grad():
        expected = judge.run_with_cache(tokens, attention_mask=mask, return_cache_object=False)
        found = ours.run_with_cache(tokens, attention_mask=mask, return_cache_object=False)
    assert_close(found[0][mask.bool()], expected[0][mask.bool()], EXACT)
    for name, value in expected[1].items():
        real = mask.bool()
        ours_value = found[1][name]
        assert ours_value.shape == value.shape
        if name.endswith(("hook_attn_scores", "hook_pattern")):
            assert_close(ours_value.transpose(1, 2)[real], value.transpose(1, 2)[real], EXACT, name)
        else:
            assert_close(ours_value[real], value[real], EXACT, name)
            assert ours_value.isfinite().all()


def test_kv_cache(both):
    judge, ours = both
    tokens, more = tokens_of(length=5), tokens_of(length=3, seed=1)
    mask = torch.ones(2, 5, dtype=torch.int64)
    mask[0, :2] = 0
    cls = {judge: type_of_cache(judge), ours: tl.HookedTransformerKeyValueCache}
    caches = {}
    with torch.no_grad():
        for model in (judge, ours):
            caches[model] = cls[model].init_cache(model.cfg, "cpu", 2)
            model(tokens, attention_mask=mask, past_kv_cache=caches[model])
            caches[model].freeze()
        ones = torch.ones(2, 3, dtype=torch.int64)
        for frozen in (True, False):
            if not frozen:
                caches[judge].unfreeze(), caches[ours].unfreeze()
            expected, found = (
                model.run_with_cache(more, attention_mask=ones, past_kv_cache=caches[model], return_cache_object=False)
                for model in (judge, ours)
            )
            assert_close(found[0], expected[0], EXACT)
            assert list(found[1]) == list(expected[1])
            for name, value in expected[1].items():
                assert found[1][name].shape == value.shape, name
                if name.endswith("hook_rot_k"):  # Padding is turned by other angles.
                    assert_close(found[1][name][:, 2:], value[:, 2:], EXACT, name)
                else:
                    assert_close(found[1][name], value, EXACT, name)
        for ours_entry, entry in zip(caches[ours], caches[judge].entries, strict=True):
            assert ours_entry.past_keys.shape[1] == 8
            assert_close(ours_entry.past_keys[:, 2:], entry.past_keys[:, 2:], EXACT)
            assert_close(ours_entry.past_values[:, 2:], entry.past_values[:, 2:], EXACT)
        assert torch.equal(caches[ours].previous_attention_mask, caches[judge].previous_attention_mask)


def type_of_cache(judge):
    from transformer_lens.cache.key_value_cache import TransformerLensKeyValueCache

    return TransformerLensKeyValueCache


def test_modules_can_be_called(both):
    judge, ours = both
    tokens = tokens_of()
    x = torch.randn(2, 9, SMALL["d_model"], dtype=torch.float64)
    with torch.no_grad():
        assert_close(ours.embed(tokens), judge.embed(tokens), EXACT)
        assert_close(ours.unembed(x), judge.unembed(x), EXACT)
        if judge.cfg.positional_embedding_type != "rotary":
            assert_close(ours.pos_embed(tokens), judge.pos_embed(tokens), EXACT)
        if judge.cfg.normalization_type is not None:
            assert_close(ours.unembed(ours.ln_final(x)), judge.unembed(judge.ln_final(x)), EXACT)
            assert_close(ours.blocks[1].ln1(x), judge.blocks[1].ln1(x), EXACT)
        if not judge.cfg.attn_only:
            assert_close(ours.blocks[1].mlp(x), judge.blocks[1].mlp(x), EXACT)
        assert_close(ours.blocks[1].attn(x, x * 2, x * 3), judge.blocks[1].attn(x, x * 2, x * 3), EXACT)
        assert_close(ours.blocks[0](x), judge.blocks[0](x), EXACT)


def test_weights_and_what_is_made_of_them(both):
    judge, ours = both
    names = ["W_E", "W_U", "b_U", "W_Q", "W_K", "W_V", "W_O", "b_Q", "b_K", "b_V", "b_O"]
    names += [] if judge.cfg.attn_only else ["W_in", "W_out", "b_in", "b_out", "W_gate"]
    names += ["W_pos", "W_E_pos"] if judge.cfg.positional_embedding_type != "rotary" else []
    for name in names:
        expected, found = getattr(judge, name), getattr(ours, name)
        assert (found is None) == (expected is None)
        if expected is not None:
            assert_close(found, expected, EXACT, name)
    assert_close(ours.QK.AB, judge.QK.AB, EXACT)
    assert_close(ours.OV[1, 0].AB, judge.OV[1, 0].AB, EXACT)
    assert ours.all_head_labels() == judge.all_head_labels()
    for mode in "QKV":
        assert_close(ours.all_composition_scores(mode), judge.all_composition_scores(mode), 1e-6)
    if not judge.cfg.attn_only:
        for layer, mlp_input, mlps in [(0, False, True), (1, True, True), (2, False, False)]:
            arguments = (layer, mlp_input, mlps)
            assert_close(ours.accumulated_bias(*arguments), judge.accumulated_bias(*arguments), 1e-6)


PROCESSING = ["fold_ln", "center_writing_weights", "center_unembed", "fold_value_biases"]


@pytest.mark.parametrize("only", [None, *PROCESSING])
def test_processing(both, only):
    judge, ours = (copy.deepcopy(model) for model in both)
    tokens = tokens_of()
    steps = {name: only in (None, name) for name in PROCESSING}
    before = ours(tokens).log_softmax(-1)
    state = {name: value.clone() for name, value in judge.state_dict().items()}
    left = {name: value.clone() for name, value in state.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ours.load_and_process_state_dict(state, **steps)
        assert all(torch.equal(state[name].nan_to_num(), left[name].nan_to_num()) for name in left)
        try:
            judge.load_and_process_state_dict({name: value.clone() for name, value in left.items()}, **steps)
        except (KeyError, AttributeError, TypeError, ValueError) as error:
            pytest.skip(f"the judge fails: {error}")
    found = dict(ours.named_parameters())
    for name, expected in judge.named_parameters():
        if name in found:
            assert_close(found[name], expected, 1e-5, name)
    assert_close(ours(tokens), judge(tokens), 1e-5)
    if judge.cfg.positional_embedding_type != "shortformer" and judge.cfg.normalization_type not in (None, "RMS"):
        assert_close(ours(tokens).log_softmax(-1), before, 1e-5)


def test_modules_of_ones_own_and_torchs_hooks(both):
    """What the core doesn't know runs as the modules that it is."""
    judge, ours = (copy.deepcopy(model) for model in both)
    tokens = tokens_of()
    doubling = [
        model.blocks[1].attn.register_forward_hook(lambda module, given, out: out * 2) for model in (judge, ours)
    ]
    assert_close(ours(tokens), judge(tokens), EXACT, "a hook of torch's")
    assert_close(
        ours.run_with_hooks(tokens, fwd_hooks=[("blocks.0.hook_resid_post", shifting)]),
        judge.run_with_hooks(tokens, fwd_hooks=[("blocks.0.hook_resid_post", shifting)]),
        EXACT,
    )
    for handle in doubling:
        handle.remove()
    torch.manual_seed(0)
    d_model = SMALL["d_model"]
    own = torch.nn.Sequential(torch.nn.Linear(d_model, 5), torch.nn.Tanh(), torch.nn.Linear(5, d_model)).double()
    for model in (judge, ours):
        setattr(model.blocks[0], "attn_out_probe" if judge.cfg.attn_only else "mlp", copy.deepcopy(own))
        model.setup()
    expected = judge.run_with_cache(tokens, return_cache_object=False)
    found = ours.run_with_cache(tokens, return_cache_object=False)
    assert_close(found[0], expected[0], EXACT, "a module of one's own")
    if judge.cfg.d_vocab_out == judge.cfg.d_vocab:
        greedy = {"max_new_tokens": 4, "do_sample": False, "stop_at_eos": False, "verbose": False}
        assert torch.equal(ours.generate(tokens, **greedy), judge.generate(tokens, **greedy, use_past_kv_cache=False))
    assert_same_cache(found[1], expected[1])
    for model in (judge, ours):
        some(model(tokens)).backward()
    for (name, weight), twin in zip(judge.named_parameters(), ours.parameters(), strict=True):
        if weight.grad is not None:
            torch.testing.assert_close(twin.grad, weight.grad, rtol=EXACT, atol=1e-5, msg=name)


def test_ungrouped_heads():
    judge, ours = pair_of({**KINDS["llama_like"], "ungroup_grouped_query_attention": True})
    tokens = tokens_of()
    assert judge.cfg.ungroup_grouped_query_attention

    def first_head_only(value, hook):
        value[:, :, 1:] = value[:, :, 1:] * 0.5

    with torch.no_grad():
        for split in (False, True):
            for model in (judge, ours):
                model.set_use_split_qkv_input(split)
            expected = judge.run_with_cache(tokens, return_cache_object=False)
            found = ours.run_with_cache(tokens, return_cache_object=False)
            assert_close(found[0], expected[0], EXACT)
            assert_same_cache(found[1], expected[1])
            names = ["blocks.0.attn.hook_k", "blocks.1.attn.hook_v", "blocks.0.attn.hook_rot_k"]
            for name in names + (["blocks.0.hook_k_input", "blocks.1.hook_v_input"] if split else []):
                hooks = [(name, first_head_only)]
                assert_close(
                    ours.run_with_hooks(tokens, fwd_hooks=hooks),
                    judge.run_with_hooks(tokens, fwd_hooks=hooks),
                    EXACT,
                    name,
                )
    for model in (judge, ours):
        model.set_use_split_qkv_input(False)
        model.set_ungroup_grouped_query_attention(False)
    with torch.no_grad():
        _, expected = judge.run_with_cache(tokens, return_cache_object=False)
        _, found = ours.run_with_cache(tokens, return_cache_object=False)
    assert_same_cache(found, expected)
    assert found["blocks.0.attn.hook_k"].shape[2] == 2

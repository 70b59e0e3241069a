"""Parts of models and of processing by themselves, beside the judge's."""

import itertools
import types

import pytest
import torch
import transformer_lens.utilities as judge_utilities
from helpers import assert_close
from test_tl_hooked_transformer import EXACT, KINDS, pair_of, tokens_of
from test_tl_native import LOCAL, ROTARY, SMALL, judge_of
from tiny_models import make_model
from tl_words import word_tokenizer
from transformer_lens.components import AbstractAttention as JudgeAttention
from transformer_lens.loading_from_pretrained import get_pretrained_state_dict as judges_state_dict
from transformer_lens.utilities import addmm as judge_addmm
from transformer_lens.utilities import attention as judge_attention
from transformer_lens.utilities import multi_gpu as judge_devices
from transformer_lens.weight_processing import ProcessWeights as JudgeProcessing

from glassformer import _core
from glassformer.transformer_lens import HookedTransformer, components, factories, loading, utilities
from glassformer.transformer_lens.cache import TransformerLensKeyValueCache
from glassformer.transformer_lens.factories.mlp_factory import MLPFactory
from glassformer.transformer_lens.utilities import addmm, attention, multi_gpu
from glassformer.transformer_lens.utilities.quantization import quantization_method
from glassformer.transformer_lens.weight_processing import ProcessWeights

ATTENTIONS = {
    "plain": KINDS["gpt2_like"],
    "grouped": KINDS["llama_like"],
    "ungrouped": {**KINDS["llama_like"], "ungroup_grouped_query_attention": True},
    "adjacent": {**ROTARY, "rotary_dim": 4, "rotary_adjacent_pairs": True},
    "local": {**ROTARY, **LOCAL, "rotary_base_local": 50.0},
    "by parts": {**ROTARY, "use_NTK_by_parts_rope": True, "NTK_original_ctx_len": 8},
    "yarn": {**ROTARY, "use_yarn_rope": True, "yarn_factor": 4.0, "yarn_original_max_position_embeddings": 8},
    "capped": {"attn_scores_soft_cap": 0.7, "attn_scale": 3.0},
    "alibi": KINDS["alibi"],
    "bidirectional": {"attention_dir": "bidirectional"},
    "clipped": {"clip_qkv": 0.3},
    "logarithms": {"use_logn_attn": True, "train_seq_length": 4},
}


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture(scope="module", params=ATTENTIONS)
def attentions(request):
    models = pair_of({"act_fn": "gelu", **ATTENTIONS[request.param]})
    return [[model.eval().blocks[layer].attn for layer in (0, 1)] for model in models]


def test_methods_of_attention(attentions):
    for theirs, here in zip(*attentions, strict=True):
        n_heads = theirs.cfg.n_heads
        n_kv = theirs.cfg.n_key_value_heads
        n_kv = n_heads if n_kv is None or theirs.cfg.ungroup_grouped_query_attention else n_kv
        q, k, v = drawn(2, 4, n_heads, 8), drawn(2, 9, n_kv, 8, seed=1), drawn(2, 9, n_kv, 8, seed=2)
        scores = theirs.calculate_attention_scores(q, k)
        assert_close(here.calculate_attention_scores(q, k), scores, EXACT)
        assert_close(
            here.calculate_z_scores(v, scores.softmax(-1)), theirs.calculate_z_scores(v, scores.softmax(-1)), EXACT
        )
        hides = torch.ones(2, 9, dtype=torch.int64)
        hides[1, :2] = 0
        for mask in (None, hides):
            assert_close(here.apply_causal_mask(scores, 5, mask), theirs.apply_causal_mask(scores, 5, mask), EXACT)
        for given in (scores[..., :7], scores):
            with pytest.raises(ValueError, match="4 queries behind 0 positions"):
                here.apply_causal_mask(given)
            with pytest.raises(ValueError):
                theirs.apply_causal_mask(given)
        x = drawn(2, 9, 24)
        if theirs.cfg.attention_dir == "bidirectional":  # There the judge leaves the mask out.
            hides = torch.ones_like(hides)
        for additive in (None, drawn(2, 1, 1, 9, seed=3)):
            expected = theirs(x, x * 2, x * 3, additive_attention_mask=additive, attention_mask=hides)
            assert_close(here(x, x * 2, x * 3, additive_attention_mask=additive, attention_mask=hides), expected, EXACT)


def test_rotary_parts_of_attention(attentions):
    for theirs, here in zip(*attentions, strict=True):
        if theirs.cfg.positional_embedding_type != "rotary":
            continue
        x = drawn(2, 5, theirs.cfg.n_heads, 8)
        hides = torch.tensor([[1] * 8, [0, 0, 1, 1, 1, 1, 1, 1]])
        for offset, mask in [(0, None), (3, None), (3, hides)]:
            assert_close(here.apply_rotary(x, offset, mask), theirs.apply_rotary(x, offset, mask), EXACT)
        assert torch.equal(here.rotate_every_two(x), theirs.rotate_every_two(x))
        for arguments in [(4, 12), (8, 3, 500.0), (4, 12, 10000, torch.float64)]:
            for found, expected in zip(
                *(each.calculate_sin_cos_rotary(*arguments) for each in (here, theirs)), strict=True
            ):
                assert found.dtype == expected.dtype
                assert_close(found, expected, EXACT)


def test_alibi_by_itself():
    ours = components.AbstractAttention
    for n_heads, n_ctx in itertools.product([1, 3, 8], [1, 2, 7]):
        assert torch.equal(ours.create_alibi_slope(n_ctx), JudgeAttention.create_alibi_slope(n_ctx))
        assert_close(ours.create_alibi_multipliers(n_heads), JudgeAttention.create_alibi_multipliers(n_heads), EXACT)
        assert_close(ours.create_alibi_bias(n_heads, n_ctx), JudgeAttention.create_alibi_bias(n_heads, n_ctx), EXACT)


def test_products():
    x, weight, bias = drawn(2, 3, 5), drawn(5, 4, seed=1), drawn(4, seed=2)
    assert_close(addmm.batch_addmm(bias, weight, x), judge_addmm.batch_addmm(bias, weight, x), 1e-12)
    for added in (bias, drawn(3, 1), drawn(3, 4)):
        assert_close(addmm.vanilla_addmm(added, x[0], weight), judge_addmm.vanilla_addmm(added, x[0], weight), 1e-12)
    with pytest.raises(ValueError, match="expected matrices 'm n' and 'n o'"):
        addmm.vanilla_addmm(bias, x, weight)
    w, b = drawn(3, 5, 4), drawn(3, 4, seed=1)
    given = drawn(2, 7, 5), drawn(2, 7, 3, 5)
    assert_close(
        attention.simple_attn_linear(given[0], w, b), judge_attention.simple_attn_linear(given[0], w, b), 1e-12
    )
    assert_close(
        attention.complex_attn_linear(given[1], w, b), judge_attention.complex_attn_linear(given[1], w, b), 1e-12
    )
    with pytest.raises(ValueError, match="inputs of 2 heads, but weights of 3"):
        attention.complex_attn_linear(given[1][:, :, :2], w, b)
    for found, expected in zip(attention.clamp_qkv(x, w, b, 0.3), judge_attention.clamp_qkv(x, w, b, 0.3), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("kind", ["gpt2_like", "attention_only", "neox_like", "llama_like", "alibi", "solu"])
@pytest.mark.parametrize("step", ["fold_layer_norm", "center_writing_weights", "center_unembed", "fold_value_biases"])
def test_processing_of_state_dicts(step, kind):
    judge, ours = pair_of(KINDS[kind])
    rms = judge.cfg.normalization_type == "RMS"
    torch.manual_seed(0)
    with torch.no_grad():
        for model in (judge, ours):
            torch.manual_seed(0)
            for parameter in model.parameters():
                parameter.normal_()
    state = judge.state_dict()
    flags = {"fold_biases": not rms, "center_weights": not rms} if step == "fold_layer_norm" else {}
    expected = getattr(JudgeProcessing, step)(dict(state), judge.cfg, **flags)
    if step == "center_writing_weights" and rms:
        expected = state  # The judge leaves the choice to its callers.
    given = {name: value.clone() for name, value in state.items()}
    for found in (getattr(ProcessWeights, step)(given, ours.cfg, **flags), getattr(ours, step)(given, **flags)):
        assert list(found) == list(state)
        for name, value in expected.items():
            assert_close(found[name].nan_to_num(), value.nan_to_num(), 1e-4, name)
            assert found[name].dtype == value.dtype
    assert all(torch.equal(given[name], state[name]) for name in state)
    ours.load_state_dict(found)
    torch.testing.assert_close(ours(tokens_of()).log_softmax(-1), judge(tokens_of()).log_softmax(-1), rtol=0, atol=2e-3)


def test_processing_in_one_go_and_what_is_refused():
    judge, ours = pair_of(KINDS["gpt2_like"])
    state = judge.state_dict()
    expected = JudgeProcessing.process_weights(dict(state), judge.cfg)
    found = ProcessWeights.process_weights(state, ours.cfg)
    for name, value in expected.items():
        assert_close(found[name].double().nan_to_num(), value.double().nan_to_num(), 1e-5, name)
    refactored = ProcessWeights.refactor_factored_attn_matrices(state, ours.cfg)
    ours.load_state_dict(refactored)
    assert_close(ours(tokens_of()), judge(tokens_of()), EXACT)
    for wrong in ({"fold_biases": False}, {"center_weights": False}, {"adapter": object()}):
        with pytest.raises(_core.UnsupportedError):
            ProcessWeights.fold_layer_norm(state, ours.cfg, **wrong)
    with pytest.raises(KeyError, match=r"blocks\.1\.attn\.W_Q"):
        ProcessWeights.fold_layer_norm(
            {name: value for name, value in state.items() if "1.attn.W_Q" not in name}, ours.cfg
        )


def test_processing_of_single_weights():
    weights, biases = [drawn(3, 24, 8, seed=i) for i in range(3)], [drawn(3, 8, seed=i) for i in (4, 5)]
    w, b = drawn(24, seed=7), drawn(24, seed=8)
    for name, arguments in {
        "fold_layer_norm_bias_single": (weights[0], biases[0], b),
        "fold_layer_norm_weight_single": (weights[0], w),
        "center_weight_single": (weights[0],),
        "fold_layer_norm_biases": (*weights, biases[0], None, biases[1], b),
        "fold_layer_norm_weights": (*weights, w),
        "center_attention_weights": weights,
    }.items():
        found, expected = (getattr(each, name)(*arguments) for each in (ProcessWeights, JudgeProcessing))
        for ours, theirs in zip(
            *(each if isinstance(each, tuple) else (each,) for each in (found, expected)), strict=True
        ):
            assert_close(ours, theirs, 1e-12, name)


@pytest.mark.parametrize("kind", ["gpt2_like", "attention_only_shortformer", "llama_like", "alibi"])
def test_from_input_to_the_first_block(kind, tmp_path):
    models = judge, ours = pair_of({**KINDS[kind], "use_hook_tokens": True})
    for model in models:
        model.set_tokenizer(word_tokenizer(tmp_path / type(model).__module__))
        model.add_hook("hook_tokens", lambda tokens, hook: tokens.flip(-1))
        model.add_hook("hook_embed", lambda value, hook: value * 2)
    mask = torch.ones(2, 9, dtype=torch.int64)
    mask[0, :3] = 0
    calls = {
        "tokens": lambda model: model.input_to_embed(tokens_of()),
        "masked": lambda model: model.input_to_embed(tokens_of(), attention_mask=mask),
        "text": lambda model: model.input_to_embed("the cat sat"),
        "without bos": lambda model: model.input_to_embed(["the cat", "a"], prepend_bos=False),
        "residual": lambda model: model.get_residual(model.embed(tokens_of()), 2),
        "residual alone": lambda model: (model.get_residual(drawn(1, 4, 24), 0, return_shortformer_pos_embed=False),),
        "offset": lambda model: (torch.tensor(model.get_pos_offset(None, 3)),),
        "loss": lambda model: (model(tokens_of(), return_type="loss"),),
    }
    for name, call in calls.items():
        for expected, found in zip(call(judge), call(ours), strict=True):
            assert (found is None) == (expected is None), name
            if expected is not None:
                assert_close(found.double(), expected.double(), EXACT, name)
    residual, _, positions, mask = ours.input_to_embed(tokens_of())
    logits = ours(residual, start_at_layer=0, shortformer_pos_embed=positions, attention_mask=mask)
    assert_close(logits, ours(tokens_of()), EXACT)
    residual, _, _, mask = ours.input_to_embed(["the cat sat", "a"], padding_side="left")
    assert mask.tolist() == [[1, 1, 1, 1], [0, 0, 1, 1]] and residual.shape == (2, 4, 24)


def test_positions_behind_a_cache():
    _, ours = pair_of(KINDS["gpt2_like"])
    cache = TransformerLensKeyValueCache.init_cache(ours.cfg, "cpu", 2)
    ours(tokens_of(2, 4), past_kv_cache=cache, attention_mask=torch.ones(2, 4))
    assert ours.get_pos_offset(cache, 2) == 4
    residual = ours.input_to_embed(tokens_of(2, 3), past_kv_cache=cache, attention_mask=torch.ones(2, 3))[0]
    assert_close(residual, ours.embed(tokens_of(2, 3)) + ours.W_pos[4:7], 1e-12)
    with pytest.raises(AssertionError, match="the KV cache has batch"):
        ours.get_pos_offset(cache, 3)


def test_devices(monkeypatch):
    memory = {0: 5, 1: 30, 2: 10}
    for name, made in {
        "get_device_properties": lambda i: types.SimpleNamespace(total_memory=memory[i] + i),
        "memory_allocated": lambda i: i,
        "device_count": lambda: 3,
        "is_available": lambda: True,
    }.items():
        monkeypatch.setattr(torch.cuda, name, made)
    cpu, gpus = (types.SimpleNamespace(device=device, n_devices=3, n_layers=7) for device in ("cpu", "cuda"))
    calls = [
        lambda side: side.determine_available_memory_for_available_devices(3),
        lambda side: side.sort_devices_based_on_available_memory([(0, 1), (1, 9), (2, 4)]),
        lambda side: side.get_best_available_cuda_device(),
        lambda side: side.get_best_available_cuda_device(1),
        lambda side: side.get_best_available_cuda_device(0),
        lambda side: [side.get_best_available_device(cfg) for cfg in (cpu, gpus)],
        lambda side: [side.get_device_for_block_index(i, cfg) for cfg in (cpu, gpus) for i in range(7)],
        lambda side: side.get_device_for_block_index(3, cpu, "cuda:1"),
    ]
    for number, call in enumerate(calls):
        made = []
        for side in (judge_devices, multi_gpu):
            try:
                made.append(call(side))
            except (ValueError, OSError) as error:
                made.append(OSError if isinstance(error, OSError) else ValueError)
        assert made[0] == made[1], number
    names = [
        name for name in vars(multi_gpu) if name in judge_utilities.__dict__ and callable(getattr(multi_gpu, name))
    ]
    assert all(getattr(utilities, name) is getattr(multi_gpu, name) for name in names) and len(names) > 5


@pytest.mark.parametrize("kind", ["gpt2", "llama_grouped"])
def test_a_state_dict_of_a_pretrained_model(kind, tmp_path):
    reference = make_model(kind)
    reference.save_pretrained(tmp_path)
    cfg = loading.get_pretrained_model_config(str(tmp_path), dtype=torch.float32, device="cpu")
    found = loading.get_pretrained_state_dict(str(tmp_path), cfg)
    for more in (found, loading.get_pretrained_state_dict(kind, cfg, hf_model=reference)):
        for name, value in judges_state_dict(str(tmp_path), cfg, reference, dtype=torch.float32).items():
            if name in more:
                assert_close(more[name], value, 1e-6, name)
    model = HookedTransformer({**cfg.to_dict(), "tokenizer_name": None})
    model.load_and_process_state_dict(found)
    tokens = tokens_of() % cfg.d_vocab
    expected = reference(tokens).logits.detach()
    torch.testing.assert_close(model(tokens).detach().log_softmax(-1), expected.log_softmax(-1), rtol=0, atol=1e-4)


def test_what_configs_ask_for():
    small = {**SMALL, "act_fn": "gelu", "device": "cpu"}
    for more in ({}, {"gated_mlp": True}, {"num_experts": 3, "experts_per_token": 2}):
        cfg = judge_of({"act_fn": "gelu", **more}).cfg
        made = MLPFactory.create_mlp(HookedTransformer({**small, **more}).cfg)
        assert type(made).__name__ == type(judge_of({"act_fn": "gelu", **more}).blocks[0].mlp).__name__, cfg
    assert factories.mlp_factory.MLPFactory is MLPFactory
    with pytest.raises(_core.UnsupportedError, match="4-bit"):
        components.mlps.GatedMLP4Bit(HookedTransformer(small).cfg)
    x = drawn(2, 3)
    assert components.CanBeUsedAsMLP(small)(x) is x


def test_how_weights_are_quantised():
    config = types.SimpleNamespace
    for given, expected in [
        ({"quantization_config": {"quant_method": "gptq"}}, "gptq"),
        (config(quantization_config=config(quant_method=config(value="awq"))), "awq"),
        (config(quantization_config={"quant_method": 3}), None),
        ({"quantization_config": None}, None),
        (config(), None),
        (None, None),
    ]:
        assert quantization_method(given) == expected

"""Models by TransformerLens' own configs: every activation of the judge, on the same weights, for random configs."""

import contextlib
import io
import json
import random
import warnings

import pytest
import torch
from helpers import assert_close
from transformer_lens import HookedTransformer, HookedTransformerConfig

import glassformer
from glassformer import _core
from glassformer.transformer_lens.presentation import presentations

SMALL = {"n_layers": 2, "d_model": 24, "d_head": 8, "n_heads": 3, "n_ctx": 16, "d_vocab": 19, "dtype": torch.float64}
N_RANDOM = 200
ACTIVATIONS = ["relu", "gelu", "gelu_new", "gelu_fast", "silu", "solu_ln", "solu", "gelu_pytorch_tanh"]
TOYS = {
    "attention_only": {"attn_only": True},
    "attention_only_shortformer": {"attn_only": True, "positional_embedding_type": "shortformer"},
    "solu": {"act_fn": "solu_ln"},
    "squared_relu": {"act_fn": "relu2"},
    "solu_folded": {"act_fn": "solu_ln", "normalization_type": "LNPre"},
    "relu_without_norm": {"act_fn": "relu", "normalization_type": None},
    "other_outputs": {"act_fn": "relu", "d_vocab_out": 5},
}
LOCAL = {"use_local_attn": True, "window_size": 3, "attn_types": ["local", "global"]}
ROTARY = {"positional_embedding_type": "rotary"}
GROUPED = {"n_heads": 4, "n_key_value_heads": 2, "gated_mlp": True, "normalization_type": "RMS", **ROTARY}
FAMILIES = {
    "gpt2_like": {"act_fn": "gelu_new"},
    "gpt_neo_like": {"act_fn": "gelu_new", "use_attn_scale": False, **LOCAL},
    "gptj_like": {
        "act_fn": "gelu_new",
        "parallel_attn_mlp": True,
        "rotary_dim": 4,
        "rotary_adjacent_pairs": True,
        **ROTARY,
    },
    "neox_like": {"act_fn": "gelu", "parallel_attn_mlp": True, "rotary_dim": 4, **ROTARY},
    "opt_like": {"act_fn": "relu"},
    "llama_like": {"act_fn": "silu", "rotary_dim": 8, **GROUPED},
    "mistral_like": {"act_fn": "silu", **GROUPED, **LOCAL, "attn_types": ["local", "local"]},
    "qwen2_like": {"act_fn": "silu", "rotary_base": 1_000_000, **GROUPED},
    "gemma_like": {"act_fn": "gelu_new", "final_rms": True, **GROUPED, "n_key_value_heads": 1},
    "gemma2_like": {
        "act_fn": "gelu_pytorch_tanh",
        "final_rms": True,
        "use_normalization_before_and_after": True,
        "attn_scores_soft_cap": 2.0,
        "output_logits_soft_cap": 1.5,
        **GROUPED,
        **LOCAL,
    },
}
SWITCHES = {
    "experts": {"num_experts": 5, "experts_per_token": 2, "act_fn": "silu"},
    "experts_that_sum_to_1": {"num_experts": 4, "experts_per_token": 3, "norm_topk_prob": True, "act_fn": "gelu"},
    "one_expert_each": {"num_experts": 4, "experts_per_token": 1, "act_fn": "silu", "normalization_type": "RMS"},
    "all_experts": {"num_experts": 3, "experts_per_token": 3, "act_fn": "solu_ln", "normalization_type": None},
    "experts_parallel": {"num_experts": 4, "experts_per_token": 2, "act_fn": "silu", "parallel_attn_mlp": True},
    "olmoe": {
        "num_experts": 4,
        "experts_per_token": 2,
        "act_fn": "silu",
        "original_architecture": "OlmoeForCausalLM",
        "normalization_type": "RMS",
        "clip_qkv": 1.0,
        **ROTARY,
    },
    "gpt_oss": {
        "num_experts": 6,
        "experts_per_token": 2,
        "act_fn": "silu",
        "original_architecture": "GptOssForCausalLM",
        "use_attention_sinks": True,
        "normalization_type": "RMS",
        **ROTARY,
        **LOCAL,
    },
    "query_key_norms": {"use_qk_norm": True, "act_fn": "gelu", **ROTARY},
    "query_key_norms_grouped": {"use_qk_norm": True, "act_fn": "gelu", "n_key_value_heads": 1},
    "norms_before_and_after": {
        "use_normalization_before_and_after": True,
        "normalization_type": "RMS",
        "act_fn": "gelu",
        "gated_mlp": True,
    },
    "norms_before_and_after_folded": {
        "use_normalization_before_and_after": True,
        "normalization_type": "RMSPre",
        "act_fn": "gelu",
        "parallel_attn_mlp": True,
    },
    "embedding_norm": {"post_embedding_ln": True, "positional_embedding_type": "alibi", "act_fn": "gelu"},
    "embedding_norm_rms": {"post_embedding_ln": True, "normalization_type": "RMS", "act_fn": "gelu"},
    "final_rms": {"final_rms": True, "act_fn": "solu_ln"},
    "final_rms_folded": {"final_rms": True, "act_fn": "solu_ln", "normalization_type": "LNPre"},
    "clip": {"clip_qkv": 0.5, "act_fn": "relu"},
    "sinks": {"use_attention_sinks": True, "act_fn": "relu"},
    "bidirectional": {"attention_dir": "bidirectional", "act_fn": "relu"},
    "bidirectional_local": {"attention_dir": "bidirectional", "act_fn": "relu", **LOCAL, **ROTARY},
    "local_rotary_base": {"act_fn": "relu", "rotary_base_local": 50, "rotary_scaling_factor": 8.0, **LOCAL, **ROTARY},
    "rotary_scaling": {"act_fn": "relu", "rotary_scaling_factor": 3.0, **ROTARY},
    "olmo2": {"original_architecture": "Olmo2ForCausalLM", "normalization_type": "RMS", "act_fn": "silu", **ROTARY},
    "olmo3": {
        "original_architecture": "Olmo3ForCausalLM",
        "normalization_type": "LN",
        "act_fn": "silu",
        "gated_mlp": True,
        "n_key_value_heads": 1,
        "use_yarn_rope": True,
        "yarn_factor": 4.0,
        "yarn_attention_factor": 1.2,
        "yarn_global_attn_only": True,
        "yarn_original_max_position_embeddings": 8,
        **LOCAL,
        **ROTARY,
    },
    "solu_gated": {"act_fn": "solu_ln", "gated_mlp": True},
    "xielu": {"act_fn": "xielu"},
    "xielu_gated": {"act_fn": "xielu", "gated_mlp": True},
    "relu_squared": {"act_fn": "relu2"},
    "log_n": {"use_logn_attn": True, "train_seq_length": 5, "act_fn": "relu"},
    "dynamic_ntk": {"use_dynamic_ntk_rope": True, "train_seq_length": 4, "act_fn": "relu", **ROTARY},
    "qwen": {
        "use_dynamic_ntk_rope": True,
        "use_logn_attn": True,
        "train_seq_length": 3,
        "act_fn": "silu",
        "gated_mlp": True,
        "normalization_type": "RMS",
        "rotary_base_local": 100,
        **LOCAL,
        **ROTARY,
    },
}


def random_config(seed):
    """A config at random; from seed 100 on with all that newer architectures have."""
    pick = random.Random(seed)
    made = {
        "d_head": pick.choice([4, 8]),
        "n_heads": pick.choice([2, 4]),
        "act_fn": pick.choice(ACTIVATIONS),
        "normalization_type": pick.choice(["LN", "LNPre", "RMS", "RMSPre", None]),
        "positional_embedding_type": pick.choice(["standard", "rotary", "rotary", "shortformer", "alibi"]),
        "attn_only": pick.random() < 0.2,
        "gated_mlp": pick.random() < 0.3,
        "parallel_attn_mlp": pick.random() < 0.3,
        "scale_attn_by_inverse_layer_idx": pick.random() < 0.2,
        "use_attn_scale": pick.random() < 0.8,
        "eps": pick.choice([1e-5, 1e-2]),
        "d_vocab_out": pick.choice([-1, 7]),
    }
    if made["attn_only"] or made["act_fn"] == "solu_ln":
        made |= {"gated_mlp": False}
    if made["attn_only"]:
        made |= {"parallel_attn_mlp": False}  # The judge looks for the second norm all the same.
    if pick.random() < 0.3:
        made |= {"use_local_attn": True, "window_size": 3, "attn_types": ["local", "global"]}
    if pick.random() < 0.3:
        made |= {"attn_scores_soft_cap": 1.5, "output_logits_soft_cap": 2.0}
    if made["positional_embedding_type"] == "rotary":
        made |= {"rotary_adjacent_pairs": pick.random() < 0.5, "rotary_dim": pick.choice([2, 4])}
        if pick.random() < 0.2:
            made |= {"use_NTK_by_parts_rope": True, "NTK_original_ctx_len": 8}
    if made["n_heads"] == 4 and pick.random() < 0.4 and made["positional_embedding_type"] != "shortformer":
        made["n_key_value_heads"] = pick.choice([1, 2])
    return made if seed < 100 else _with_newer_switches(made, pick)


def _with_newer_switches(made, pick):
    rms, rotary = (made["normalization_type"] or "").startswith("RMS"), made["positional_embedding_type"] == "rotary"
    chance = lambda: pick.random() < 0.35  # noqa: E731
    if not made["attn_only"] and pick.random() < 0.5:
        count = pick.choice([2, 3, 7])
        made |= {"num_experts": count, "experts_per_token": pick.randint(1, count), "norm_topk_prob": chance()}
    if pick.random() < 0.6:
        made |= {"original_architecture": pick.choice(["OlmoeForCausalLM", "Olmo2ForCausalLM", "GptOssForCausalLM"])}
        if made["positional_embedding_type"] == "shortformer":
            made |= {"original_architecture": "OlmoeForCausalLM"}
    if made.get("original_architecture", "").startswith("Olmo"):
        made |= {"d_head": SMALL["d_model"] // made["n_heads"]}
        if made["original_architecture"] == "Olmo2ForCausalLM":
            made |= {"parallel_attn_mlp": False}
    elif chance():
        made |= {"use_qk_norm": True}
    made |= {"use_normalization_before_and_after": (rms or made["normalization_type"] is None) and chance()}
    made |= {"post_embedding_ln": chance(), "final_rms": chance(), "use_attention_sinks": chance()}
    made |= {"attention_dir": pick.choice(["causal", "causal", "bidirectional"]), "use_logn_attn": chance()}
    made |= {"clip_qkv": 0.7 if chance() else None, "train_seq_length": pick.choice([None, 4, 6])}
    if made["act_fn"] == "relu" and "num_experts" not in made:
        made |= {"act_fn": pick.choice(["xielu", "relu2"])}
    if rotary:
        made |= {"rotary_base_local": pick.choice([None, 100]), "rotary_scaling_factor": pick.choice([1.0, 4.0])}
        plain = made["rotary_scaling_factor"] == 1 and not made.get("use_NTK_by_parts_rope")
        made |= {"rotary_dim": 4, "use_dynamic_ntk_rope": plain and chance()}
    return made


def tolerance_of(options):
    """The judge's rotary angles are of float32, which grows without norms; with exact ones all agree to 1e-12."""
    grows = (options.get("normalization_type", "LN"), options.get("positional_embedding_type")) == (None, "rotary")
    return 1e-4 if grows else 1e-6


def judge_of(options, seed=0):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        judge = HookedTransformer(HookedTransformerConfig(**{**SMALL, **options, "seed": seed, "device": "cpu"}))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():  # Every one away from its usual start value, biases and norms too.
        for weight in judge.parameters():
            weight.add_(torch.randn(weight.shape, generator=generator, dtype=weight.dtype) * 0.3)
    with contextlib.redirect_stdout(io.StringIO()):
        return judge.to(torch.float64).eval()  # The experts come in float32 whatever the config says.


def ours_of(judge, of_weight=torch.Tensor.detach):
    """Our model on the judge's weights, or on what `of_weight` makes of them."""
    config = {"model_type": "transformer_lens"}
    for name, value in judge.cfg.to_dict().items():
        if isinstance(value, (bool, int, float, str, list)) or value is None:
            config[name] = value
    tensors = {name: of_weight(weight) for name, weight in judge.named_parameters()}
    core = _core.Model.from_tensors(json.dumps(config), tensors, None, torch.float64, torch.device("cpu"))
    return glassformer.Model(core)


def compare(options, seed=0):
    judge = judge_of(options, seed)
    model = ours_of(judge)
    tokens = torch.randint(SMALL["d_vocab"], (2, 9), generator=torch.Generator().manual_seed(seed))
    trace = model.trace(tokens)
    with torch.no_grad():
        logits, cache = judge.run_with_cache(tokens)
    shown, tolerance = presentations(model), tolerance_of(options)
    for name, expected in cache.items():
        assert_close(show(trace, shown[name]), expected, tolerance, name)
    assert_close(trace.logits, logits, tolerance, "logits")
    assert [name for name in shown if name in cache] == list(cache.keys()), "the order"
    fork = trace.fork()
    for name in cache:  # With every step open.
        fork.hook(shown[name].node, lambda value, call: value * 1)
    assert_close(fork.logits, logits, tolerance, "open")


def show(trace, presented):
    """What TransformerLens has under a name."""
    return presented.show(trace[presented.node], trace[presented.indices] if presented.indices else None)


@pytest.mark.parametrize("family", FAMILIES)
def test_families(family):
    compare(FAMILIES[family])


@pytest.mark.parametrize("toy", TOYS)
def test_toys(toy):
    compare(TOYS[toy])


@pytest.mark.parametrize("switch", SWITCHES)
def test_switches(switch):
    compare(SWITCHES[switch])


@pytest.mark.parametrize("seed", range(N_RANDOM))
def test_random_configs(seed):
    compare(random_config(seed), seed)


def changed(value):
    """What hooks put in the place of a value; of whole numbers, others that are allowed."""
    return value * 0.6 + 0.05 if value.is_floating_point() else value.flip(-1) * 0


@pytest.mark.parametrize("switch", SWITCHES)
def test_hooks_on_every_node(switch):
    options = {"use_split_qkv_input": True, "use_attn_result": True, "use_hook_mlp_in": True}
    judge = judge_of(SWITCHES[switch] | options)
    model = ours_of(judge)
    tokens = torch.randint(SMALL["d_vocab"], (2, 7), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        _, cache = judge.run_with_cache(tokens)
    trace, shown = model.trace(tokens), presentations(model)
    for name in cache:
        with torch.no_grad():
            expected = judge.run_with_hooks(tokens, fwd_hooks=[(name, lambda value, hook: changed(value))])
        fork = trace.fork()
        fork.hook(shown[name].node, shown[name].hook(lambda value, call: changed(value)))
        assert_close(fork.logits, expected, 1e-6, name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("switch", SWITCHES)
def test_other_dtypes(switch, dtype):
    """Every node is there; the numbers as near as they can be, where no expert was chosen by a hair."""
    exact = ours_of(judge_of(SWITCHES[switch]))
    model, tokens = exact.to(dtype), torch.tensor([[3, 1, 4, 1, 5, 9], [2, 6, 5, 3, 5, 8]])
    trace, reference = model.trace(tokens), exact.trace(tokens)
    for node in model.nodes():
        assert trace.read(node.name).shape == reference.read(node.name).shape
    chosen = [node.name for node in model.nodes() if node.name.endswith("hook_expert_indices")]
    if all(torch.equal(trace.read(name), reference.read(name)) for name in chosen):
        tolerance = {torch.float32: 1e-5, torch.bfloat16: 0.1, torch.float16: 0.02}[dtype]
        assert_close(trace.logits, reference.logits, tolerance, switch)
    trace.requires_grad_()
    assert trace.logits.requires_grad


@pytest.mark.parametrize("switch", SWITCHES)
def test_gradients_of_every_weight(switch):
    judge = judge_of(SWITCHES[switch])
    model = ours_of(judge)
    tokens = torch.randint(SMALL["d_vocab"], (2, 7), generator=torch.Generator().manual_seed(4))
    factors = torch.randn(2, 7, SMALL["d_vocab"], dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    (judge(tokens) * factors).sum().backward()
    expected = ours_of(judge, lambda weight: torch.zeros_like(weight) if weight.grad is None else weight.grad)
    for weight in model.weights.values():
        weight.requires_grad_()
    trace = model.trace(tokens)
    (trace.logits * factors).sum().backward()
    for name, gradient in expected.weights.items():
        found = model.weights[name].grad
        if found is None:
            assert not gradient.any(), name
        else:
            largest = max(1.0, gradient.abs().max().item())  # Some are rounding alone: of what a softmax doesn't see.
            assert (found - gradient).abs().max() < 1e-5 * largest, name


@pytest.mark.parametrize("switch", SWITCHES)
def test_gradients_of_every_node(switch):
    judge = judge_of(SWITCHES[switch])
    model = ours_of(judge)
    tokens = torch.randint(SMALL["d_vocab"], (2, 7), generator=torch.Generator().manual_seed(8))
    loss, cache = judge.run_with_cache(tokens, incl_bwd=True, return_type="loss")
    shown = presentations(model)
    # The judge runs the first norm once each for q, k and v, and keeps one of the three gradients.
    names = [name for name in shown if f"{name}_grad" in cache and (".ln1." not in name or switch.startswith("olmo2"))]
    assert any(".experts." in name for name in names) == ("num_experts" in SWITCHES[switch]) and len(names) > 20
    trace = model.trace(tokens).requires_grad_()
    ours = -trace.logits.log_softmax(-1)[:, :-1].gather(-1, tokens[:, 1:, None]).mean()
    assert_close(ours.detach(), loss, 1e-6, "loss")
    for name in names:
        gradient = trace.grad(ours, shown[name].node)
        indices = trace.read(shown[name].indices) if shown[name].indices else None
        expected = cache[f"{name}_grad"]
        found = shown[name].show(gradient, indices)
        assert found.shape == expected.shape, name
        if expected.numel() > 0:  # Some are rounding alone.
            largest = max(1e-3, expected.abs().max().item())
            assert (found - expected).abs().max() < 1e-5 * largest, name


@pytest.mark.parametrize("switch", SWITCHES)
def test_appending_equals_one_pass(switch):
    judge = judge_of(SWITCHES[switch])
    model = ours_of(judge)
    tokens = torch.randint(SMALL["d_vocab"], (2, 9), generator=torch.Generator().manual_seed(6))
    trace = model.trace(tokens[:, :2])
    if switch.startswith("bidirectional"):
        with pytest.raises(glassformer.UnsupportedError, match="trace the longer input anew"):
            trace.append(tokens[:, 2:])
        return
    for begin, end in ((2, 3), (3, 6), (6, 9)):
        trace.append(tokens[:, begin:end])
        with torch.no_grad():
            expected = judge(tokens[:, :end])
        assert_close(trace.logits, expected, 1e-6, f"{end} tokens")
    later = model.trace(tokens[:, 5:], past=[(k[:, :5], v[:, :5]) for k, v in trace.past()])
    assert_close(later.logits, expected[:, 5:], 1e-6, "after a past")


@pytest.mark.parametrize("switch", SWITCHES)
def test_attribution(switch):
    """Its parts sum to the logit, and the heads to what attention adds beside biases."""
    model = ours_of(judge_of({name: value for name, value in SWITCHES[switch].items() if "cap" not in name}))
    with torch.no_grad():
        for name, weight in model.weights.items():
            if name.endswith(("attn.o.bias", "ln1.bias")):
                weight.zero_()
    trace = model.trace([3, 1, 4, 1, 5])
    found = glassformer.direct_logit_attribution(trace, 2)
    parts = [each for each in found.components if each.kind == "attn"]
    assert_close(sum(each.logit for each in found.components), found.logit, 1e-9, "the whole")
    assert_close(found.heads.sum(1), torch.stack([each.logit for each in parts]), 1e-9, "heads")


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"attention_dir": "sideways"}, "attention_dir sideways"),
        ({"use_qk_norm": True, "original_architecture": "Olmo2ForCausalLM"}, "use_qk_norm"),
        ({"num_experts": 2, "experts_per_token": 1, "act_fn": "xielu"}, "xielu with num_experts"),
        ({"use_normalization_before_and_after": True}, "use_normalization_before_and_after with normalization_type LN"),
        ({"parallel_attn_mlp": True, "original_architecture": "Olmo3ForCausalLM"}, "parallel_attn_mlp"),
        ({"positional_embedding_type": "relative_positional_bias"}, "positional_embedding_type"),
        ({"positional_embedding_type": "shortformer", "original_architecture": "Olmo2ForCausalLM"}, "shortformer"),
        ({"use_dynamic_ntk_rope": True, "rotary_scaling_factor": 2.0, **ROTARY}, "use_dynamic_ntk_rope"),
        ({"use_logn_attn": True, "train_seq_length": 1}, "train_seq_length 1"),
        ({"load_in_4bit": True}, "load_in_4bit"),
    ],
)
def test_what_is_refused_by_name(options, field):
    config = {**SMALL, "act_fn": "relu", "model_type": "transformer_lens", **options}
    config.pop("dtype")
    with pytest.raises(glassformer.UnsupportedError, match=field):
        _core.Model.from_tensors(json.dumps(config), {}, None, torch.float64, torch.device("cpu"))


STEPS = ["fold_ln", "center_writing_weights", "center_unembed", "fold_value_biases"]


# Where the judge's own rewriting changes predictions: it centres experts' outputs along the wrong axis and drops biases
# beside them, takes RMS norms for centring ones, folds a norm that stands behind the weights, and value biases where a
# pattern doesn't sum to 1 or values are clipped.
JUDGE_CHANGES_PREDICTIONS = {
    "experts",
    "experts_that_sum_to_1",
    "experts_parallel",
    "olmoe",
    "gpt_oss",
    "final_rms",
    "final_rms_folded",
    "clip",
    "sinks",
    "olmo2",
    "olmo3",
    "solu_gated",
}


@pytest.mark.parametrize("step", [*STEPS, "all"])
@pytest.mark.parametrize("switch", sorted(set(SWITCHES) - JUDGE_CHANGES_PREDICTIONS))
def test_weight_processing_with_new_switches(switch, step):
    compare_processed(SWITCHES[switch], 0, step)


@pytest.mark.parametrize("switch", ["olmoe", "gpt_oss"])
def test_norms_are_folded_into_experts(switch):
    compare_processed(SWITCHES[switch], 0, "fold_ln")


@pytest.mark.parametrize("switch", SWITCHES)
def test_processed_weights_leave_predictions(switch):
    judge = judge_of(SWITCHES[switch])
    tokens = torch.randint(SMALL["d_vocab"], (2, 8), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        expected = judge(tokens).log_softmax(-1)
    processed = glassformer.process_weights(ours_of(judge), fold_norms=switch != "xielu_gated")
    assert_close(processed.trace(tokens).logits.log_softmax(-1), expected, 1e-6, switch)


@pytest.mark.parametrize("switch", ["clip", "sinks", "query_key_norms_grouped", "experts", "log_n"])
def test_refactored_attention(switch):
    options = {name: value for name, value in SWITCHES[switch].items() if name != "n_key_value_heads"}
    judge = judge_of(options)
    model = ours_of(judge)
    if switch not in ("experts", "log_n"):
        with pytest.raises(glassformer.UnsupportedError, match="norms or bounds"):
            glassformer.process_weights(model, refactor_attention=True)
        return
    tokens = torch.randint(SMALL["d_vocab"], (2, 8), generator=torch.Generator().manual_seed(2))
    processed = glassformer.process_weights(model, refactor_attention=True)
    expected = model.trace(tokens).logits.log_softmax(-1)
    assert_close(processed.trace(tokens).logits.log_softmax(-1), expected, 1e-6, switch)


@pytest.mark.parametrize("step", [*STEPS, "all", "refactored"])
@pytest.mark.parametrize("family", FAMILIES)
def test_weight_processing_of_families(family, step):
    compare_processed(FAMILIES[family], 0, step)


@pytest.mark.parametrize("step", [*STEPS, "all", "refactored"])
@pytest.mark.parametrize("seed", range(20))
def test_weight_processing(seed, step):
    compare_processed(random_config(seed), seed, step)


def compare_processed(options, seed, step):
    """Key by key, as the judge rewrites its own state dict, which it does in float32."""
    options = {"gated_mlp": False, "normalization_type": "LN", "positional_embedding_type": "standard", **options}
    if options["gated_mlp"] and options["normalization_type"] == "LN":
        pytest.skip("the judge loses the second norm's bias at the gate")
    if step == "refactored" and (options["positional_embedding_type"] == "rotary" or "n_key_value_heads" in options):
        pytest.skip("refused by both")
    if options["act_fn"] == "solu_ln" and options["normalization_type"] == "RMS":
        pytest.skip("the judge looks for a bias that there is not")
    judge = judge_of(options, seed)
    wanted = {name: step in (name, "all", "refactored") for name in STEPS}
    # As the judge's `from_pretrained` has it: before a soft cap it would change predictions.
    wanted["center_unembed"] &= "output_logits_soft_cap" not in options
    model = glassformer.process_weights(
        ours_of(judge),
        fold_norms=wanted["fold_ln"],
        center_writing_weights=wanted["center_writing_weights"],
        center_unembed=wanted["center_unembed"],
        fold_value_biases=wanted["fold_value_biases"],
        refactor_attention=step == "refactored",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        state = {name: weight.clone() for name, weight in judge.state_dict().items()}
        judge.load_and_process_state_dict(state, **wanted, refactor_factored_attn_matrices=step == "refactored")
    expected = ours_of(judge)
    assert list(model.weights) == list(expected.weights)
    for name, weight in expected.weights.items():
        found = model.weights[name]
        if step == "refactored" and ".attn." in name and not name.endswith("o.bias"):
            weight, found = weight.abs(), found.abs()  # Up to sign.
        assert_close(found, weight, 1e-4 if step == "refactored" else 1e-5, name)

"""Glassformer against `transformers`: the same numbers at every layer, in every dtype, from memory and from files."""

import copy
import json

import pytest
import torch
import transformers
from helpers import assert_close, error, residuals, run_reference
from tiny_models import CONFIGS, NO_FLOAT64, as_dtype, make_model, random_tokens
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

import glassformer

ALL = list(CONFIGS)
IN_FLOAT64 = [name for name in ALL if name not in NO_FLOAT64]
TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-4}
TIMES_THEIR_ERROR = 2  # Below float32: that many times transformers' own distance from float32.


def compare(model, reference, tokens, tolerance, **options):
    expected = run_reference(reference, tokens, **options)
    trace = model.trace(tokens)
    assert_close(trace.logits, expected.logits, tolerance, "logits")
    for layer, hidden in enumerate(residuals(expected)):
        assert_close(trace["resid_pre", layer], hidden, tolerance, f"resid_pre {layer}")
    for layer, pattern in enumerate(expected.attentions):
        assert_close(trace["pattern", layer], pattern, tolerance, f"pattern {layer}")


@pytest.mark.parametrize("name", IN_FLOAT64)
def test_float64(name):
    reference = make_model(name, torch.float64)
    compare(glassformer.load(reference), reference, random_tokens(2, 13), TOLERANCE[torch.float64])


@pytest.mark.parametrize("name", ALL)
def test_float32(name):
    reference = make_model(name)
    compare(glassformer.load(reference), reference, random_tokens(2, 13), TOLERANCE[torch.float32])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ALL)
def test_half_precision(name, dtype):
    """At most twice as far from the float32 result of the same weights as transformers in the same precision."""
    reference = make_model(name, dtype)
    model = glassformer.load(reference)
    assert model.dtype == dtype
    tokens = random_tokens(2, 13)
    exact, rounded = (
        run_reference(as_dtype(copy.deepcopy(reference), torch.float32), tokens),
        run_reference(reference, tokens),
    )
    trace = model.trace(tokens)

    def check(found, narrow, wide, what):
        assert found.dtype == dtype
        assert error(found, wide) <= TIMES_THEIR_ERROR * error(narrow, wide) + 1e-6, what

    check(trace.logits, rounded.logits, exact.logits, "logits")
    for layer in range(1, model.config.n_layers):
        check(trace["resid_pre", layer], rounded.hidden_states[layer], exact.hidden_states[layer], f"layer {layer}")
    for layer in range(model.config.n_layers):
        check(trace["pattern", layer], rounded.attentions[layer], exact.attentions[layer], f"pattern {layer}")


@pytest.mark.parametrize("name", ["llama_dynamic", "llama_longrope", "llama_yarn", "llama_linear", "mistral_window"])
def test_long_prompts(name):
    """Beyond the length that the scaling was made for, and (dynamic) beyond max_position_embeddings."""
    reference = make_model(name, torch.float64)
    model = glassformer.load(reference)
    for length in (9, 10, 11, 15, 16, 17, 30):
        compare(model, reference, random_tokens(1, length, seed=length), TOLERANCE[torch.float64])


@pytest.mark.parametrize("name", [name for name in ALL if not name.startswith("gpt2")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_rotary_tables_agree_to_the_last_bit(name, dtype):
    reference = make_model(name, dtype)
    trace = glassformer.load(reference).trace(random_tokens(1, 15))
    cos, sin = reference.model.rotary_emb(torch.zeros((), dtype=dtype), torch.arange(15)[None])
    assert torch.equal(trace["rotary.hook_cos"], cos)
    assert torch.equal(trace["rotary.hook_sin"], sin)


# From files.


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("shard_size", ["5GB", "9KB"])
def test_saved_model_equals_live_one(tmp_path, name, shard_size):
    reference = make_model(name)
    reference.save_pretrained(tmp_path, max_shard_size=shard_size)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1 or shard_size == "5GB"
    saved, live = glassformer.load(tmp_path), glassformer.load(reference)
    assert saved.dtype == torch.float32 and list(saved.weights) == list(live.weights)
    for weight in live.weights:
        assert torch.equal(saved.weights[weight], live.weights[weight]), weight
    tokens = random_tokens(2, 11)
    assert_close(saved.trace(tokens).logits, live.trace(tokens).logits, 1e-6)
    assert_close(saved.trace(tokens).logits, run_reference(reference, tokens).logits, 1e-4)
    assert saved.n_parameters == live.n_parameters == sum(p.numel() for p in reference.parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_file_opens_as_float32(tmp_path, dtype):
    make_model("llama_grouped", dtype).save_pretrained(tmp_path)
    tokens = random_tokens(1, 9)
    expected = run_reference(as_dtype(make_model("llama_grouped", dtype), torch.float32), tokens).logits
    model = glassformer.load(tmp_path)
    assert model.dtype == torch.float32
    assert_close(model.trace(tokens).logits, expected, 1e-4)
    assert glassformer.load(tmp_path, dtype="bfloat16").trace(tokens).logits.dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["gpt2", "llama_grouped"])
def test_base_model_without_head(tmp_path, name):
    """A checkpoint of the bare model has no prefix and, where tied, needs no head."""
    reference = make_model(name, tie_word_embeddings=True)
    reference.base_model.save_pretrained(tmp_path)
    tokens = random_tokens(1, 9)
    expected = run_reference(reference, tokens).logits
    assert_close(glassformer.load(tmp_path).trace(tokens).logits, expected, 1e-4)
    assert_close(glassformer.load(reference.base_model).trace(tokens).logits, expected, 1e-4)


def test_config_with_what_older_files_say(tmp_path):
    """rope_theta and rope_scaling at the top, as files before transformers 5 have them."""
    reference = make_model("llama_llama3")
    reference.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    parameters = config.pop("rope_parameters")
    config["rope_theta"] = parameters.pop("rope_theta")
    config["rope_scaling"] = parameters
    (tmp_path / "config.json").write_text(json.dumps(config))
    tokens = random_tokens(1, 30)
    assert_close(glassformer.load(tmp_path).trace(tokens).logits, run_reference(reference, tokens).logits, 1e-4)


@pytest.mark.parametrize("name", ["gpt2", "llama", "mistral_window"])
def test_config_without_what_goes_without_saying(tmp_path, name):
    """A key that isn't there means what transformers takes for it."""
    changes = {"num_attention_heads": 8, "num_key_value_heads": 8, "head_dim": 4} if name == "mistral_window" else {}
    defaults = {"gpt2": {"n_positions": 1024}}.get(name, {"rms_norm_eps": 1e-6, "max_position_embeddings": 2048})
    reference = make_model(name, **{**changes, **defaults})
    reference.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    usual = type(reference.config)().to_dict()
    config = {key: value for key, value in config.items() if key == "model_type" or usual.get(key) != value}
    config.pop("rope_parameters", None)
    (tmp_path / "config.json").write_text(json.dumps(config))
    tokens = random_tokens(1, 20)
    assert_close(glassformer.load(tmp_path).trace(tokens).logits, run_reference(reference, tokens).logits, 1e-4)


def test_mistral_has_a_window_unless_its_config_says_no(tmp_path):
    window = transformers.MistralConfig().sliding_window
    sizes = {"num_hidden_layers": 1, "max_position_embeddings": window + 10}
    make_model("mistral", **sizes).save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    config = json.loads(file.read_text())
    tokens = random_tokens(2, window + 1)
    tokens[1, 1:] = tokens[0, 1:]  # Only the first differs, which the last can't see through the window.

    def ends_alike(config):
        file.write_text(json.dumps(config))
        first, second = glassformer.load(tmp_path).trace(tokens).logits_at(-1)
        return error(first, second) < 1e-6

    assert not ends_alike({**config, "sliding_window": None})
    assert ends_alike({**config, "sliding_window": window})
    config.pop("sliding_window")
    assert ends_alike(config)


def test_llama_has_no_window_whatever_its_config_says():
    reference = make_model("llama", torch.float64)
    reference.config.sliding_window = 3
    compare(glassformer.load(reference), reference, random_tokens(1, 9), 1e-5)


# Without a copy.


def test_live_weights_are_used_in_place():
    reference = make_model("llama_grouped")
    model = glassformer.load(reference)
    layer = reference.model.layers[1]
    for name, parameter in {
        "blocks.1.attn.q.weight": layer.self_attn.q_proj.weight,
        "blocks.1.attn.o.weight": layer.self_attn.o_proj.weight,
        "blocks.1.mlp.gate.weight": layer.mlp.gate_proj.weight,
        "blocks.1.mlp.in.weight": layer.mlp.up_proj.weight,
        "blocks.1.ln2.weight": layer.post_attention_layernorm.weight,
        "embed.weight": reference.model.embed_tokens.weight,
        "unembed.weight": reference.lm_head.weight,
        "ln_final.weight": reference.model.norm.weight,
    }.items():
        assert model.weights[name].data_ptr() == parameter.data_ptr(), name
        assert torch.equal(model.weights[name], parameter.detach())
        assert not model.weights[name].requires_grad


def test_live_conv1d_weights_are_transposed_views():
    reference = make_model("gpt2")
    model = glassformer.load(reference)
    block, size = reference.transformer.h[2], 24
    fused = block.attn.c_attn.weight
    for part, name in enumerate("qkv"):
        weight = model.weights[f"blocks.2.attn.{name}.weight"]
        assert weight.data_ptr() == fused.data_ptr() + part * size * 4
        assert torch.equal(weight, fused.detach()[:, part * size : (part + 1) * size].T)
        bias = model.weights[f"blocks.2.attn.{name}.bias"]
        assert bias.data_ptr() == block.attn.c_attn.bias.data_ptr() + part * size * 4
    assert model.weights["blocks.2.mlp.in.weight"].data_ptr() == block.mlp.c_fc.weight.data_ptr()
    assert model.weights["unembed.weight"].data_ptr() == reference.transformer.wte.weight.data_ptr()


def test_dtype_of_a_live_model():
    reference = make_model("gpt2", torch.float64)
    assert glassformer.load(reference).dtype == torch.float64
    for asked in (torch.float32, "float32", "torch.float32"):
        assert glassformer.load(reference, dtype=asked).dtype == torch.float32


# Prompts of different lengths.


@pytest.mark.parametrize("name", ["gpt2", "llama_grouped", "llama_dynamic", "llama_longrope", "mistral_window"])
def test_prompts_of_different_lengths(name):
    reference = make_model(name, torch.float64)
    model = glassformer.load(reference)
    prompts = [random_tokens(length, seed=length).tolist() for length in (5, 12, 1, 8)]
    batch = model.trace(prompts)
    assert isinstance(batch, glassformer.Batch) and len(batch) == 4 and batch.length == 12
    logits, pattern, z = batch.logits, batch["pattern", 1], batch["z", 2]
    for row, prompt in enumerate(prompts):
        alone, real = model.trace(prompt), slice(12 - len(prompt), None)
        assert batch.mask[row].tolist() == [False] * (12 - len(prompt)) + [True] * len(prompt)
        assert batch.tokens[row, real].tolist() == prompt
        assert_close(logits[row, real], alone.logits[0], 1e-12)
        assert_close(z[row, real], alone["z", 2][0], 1e-12)
        assert_close(pattern[row, :, real, real], alone["pattern", 1][0], 1e-12)
        assert not logits[row, : real.start].any() and not pattern[row, :, real, : real.start].any()
        assert_close(batch.logits_at(-1)[row], alone.logits_at(-1)[0], 1e-12)


@pytest.mark.parametrize("name", ["gpt2", "llama_grouped", "mistral_window"])
def test_left_padding_as_transformers_does_it(name):
    """Both ways: prompts as they are, and padded ones with a mask and positions. (In float64 transformers gets NaN.)"""
    reference = make_model(name, torch.float32)
    model = glassformer.load(reference)
    prompts = [random_tokens(length, seed=length) for length in (5, 12, 2)]
    padded = torch.zeros(3, 12, dtype=torch.int64)
    mask = torch.zeros(3, 12, dtype=torch.int64)
    for row, prompt in enumerate(prompts):
        padded[row, 12 - len(prompt) :] = prompt
        mask[row, 12 - len(prompt) :] = 1
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    expected = run_reference(reference, padded, attention_mask=mask, position_ids=positions)
    batch = model.trace([prompt.tolist() for prompt in prompts])
    rectangle = model.trace(padded, attention_mask=mask, positions=positions)
    assert isinstance(rectangle, glassformer.Trace)
    real = mask.bool()
    assert_close(batch.logits[real], expected.logits[real], 1e-4)
    assert_close(rectangle.logits[real], expected.logits[real], 1e-4)
    for layer in range(3):
        assert_close(rectangle["resid_pre", layer][real], expected.hidden_states[layer][real], 1e-4)
        queries = real[:, None, :, None].expand_as(expected.attentions[layer])
        for found in (batch["pattern", layer], rectangle["pattern", layer]):
            assert_close(found[queries], expected.attentions[layer][queries], 1e-4)


# Nodes inside the blocks, by hooks on the modules of transformers.


class Recorder:
    """Inputs and outputs of modules during one forward pass."""

    def __init__(self, reference):
        self.inputs, self.outputs = {}, {}
        for name, module in reference.named_modules():
            module.register_forward_hook(self._hook(name))

    def _hook(self, name):
        def keep(_module, arguments, output):
            self.inputs[name] = arguments[0] if arguments else None
            self.outputs[name] = output[0] if isinstance(output, tuple) else output

        return keep


def check_nodes(trace, expected, tolerance=1e-5):
    for name, value in expected.items():
        assert_close(trace[name], value, tolerance, name)


@pytest.mark.parametrize("name", [name for name in IN_FLOAT64 if name.startswith("gpt2")])
def test_nodes_inside_gpt2(name):
    reference = make_model(name, torch.float64)
    model, tokens = glassformer.load(reference), random_tokens(2, 9)
    seen = Recorder(reference)
    expected = run_seen(reference, tokens)
    trace, heads = model.trace(tokens), (model.config.n_heads, model.config.d_head)
    check_nodes(
        trace, {"hook_embed": seen.outputs["transformer.wte"], "ln_final.hook_out": seen.outputs["transformer.ln_f"]}
    )
    check_nodes(trace, {"hook_pos_embed": seen.outputs["transformer.wpe"].expand(2, -1, -1)})
    for layer, block in enumerate(reference.transformer.h):
        base = f"transformer.h.{layer}."
        q, k, v = (x.unflatten(-1, heads) for x in seen.outputs[base + "attn.c_attn"].chunk(3, dim=-1))
        z = seen.inputs[base + "attn.c_proj"].unflatten(-1, heads)
        by_head = block.attn.c_proj.weight.unflatten(0, heads)
        prefix = f"blocks.{layer}."
        check_nodes(
            trace,
            {
                prefix + "attn.hook_q": q,
                prefix + "attn.hook_k": k,
                prefix + "attn.hook_v": v,
                prefix + "attn.hook_z": z,
                prefix + "attn.hook_result": torch.einsum("bphe,hed->bphd", z, by_head),
                prefix + "hook_attn_out": seen.outputs[base + "attn"],
                prefix + "hook_resid_mid": seen.inputs[base + "ln_2"],
                prefix + "hook_mlp_in": seen.inputs[base + "ln_2"],
                prefix + "ln1.hook_out": seen.outputs[base + "ln_1"],
                prefix + "ln2.hook_out": seen.outputs[base + "ln_2"],
                prefix + "mlp.hook_pre": seen.outputs[base + "mlp.c_fc"],
                prefix + "mlp.hook_post": seen.inputs[base + "mlp.c_proj"],
                prefix + "hook_mlp_out": seen.outputs[base + "mlp"],
            },
        )
        scores = torch.einsum("bqhe,bkhe->bhqk", q, k) * block.attn.scaling
        check_scores(trace, layer, scores, expected.attentions[layer])
        check_norm(trace, prefix + "ln1", seen.inputs[base + "ln_1"], block.ln_1.eps, centre=True)


@pytest.mark.parametrize("name", [name for name in IN_FLOAT64 if not name.startswith("gpt2")])
def test_nodes_inside_llama(name):
    reference = make_model(name, torch.float64)
    model, tokens = glassformer.load(reference), random_tokens(2, 19)
    seen = Recorder(reference)
    expected = run_seen(reference, tokens)
    trace, config = model.trace(tokens), model.config
    cos, sin = reference.model.rotary_emb(seen.outputs["model.embed_tokens"], torch.arange(19)[None])
    check_nodes(
        trace, {"hook_embed": seen.outputs["model.embed_tokens"], "ln_final.hook_out": seen.outputs["model.norm"]}
    )
    check_nodes(trace, {"rotary.hook_cos": cos.expand(2, -1, -1), "rotary.hook_sin": sin.expand(2, -1, -1)})
    for layer, block in enumerate(reference.model.layers):
        base, prefix = f"model.layers.{layer}.", f"blocks.{layer}."
        q, k, v = (seen.outputs[f"{base}self_attn.{part}_proj"].unflatten(-1, (-1, config.d_head)) for part in "qkv")
        rot_q, rot_k = apply_rotary_pos_emb(q, k, cos, sin, unsqueeze_dim=2)
        z = seen.inputs[base + "self_attn.o_proj"].unflatten(-1, (config.n_heads, config.d_head))
        by_head = block.self_attn.o_proj.weight.unflatten(1, (config.n_heads, config.d_head))
        check_nodes(
            trace,
            {
                prefix + "attn.hook_q": q,
                prefix + "attn.hook_k": k,
                prefix + "attn.hook_v": v,
                prefix + "attn.hook_rot_q": rot_q,
                prefix + "attn.hook_rot_k": rot_k,
                prefix + "attn.hook_z": z,
                prefix + "attn.hook_result": torch.einsum("bphe,dhe->bphd", z, by_head),
                prefix + "hook_attn_out": seen.outputs[base + "self_attn"],
                prefix + "hook_resid_mid": seen.inputs[base + "post_attention_layernorm"],
                prefix + "ln1.hook_out": seen.outputs[base + "input_layernorm"],
                prefix + "ln2.hook_out": seen.outputs[base + "post_attention_layernorm"],
                prefix + "mlp.hook_pre": seen.outputs[base + "mlp.gate_proj"],
                prefix + "mlp.hook_act": seen.outputs[base + "mlp.act_fn"],
                prefix + "mlp.hook_pre_linear": seen.outputs[base + "mlp.up_proj"],
                prefix + "mlp.hook_post": seen.inputs[base + "mlp.down_proj"],
                prefix + "hook_mlp_out": seen.outputs[base + "mlp"],
            },
        )
        group = config.n_heads // config.n_kv_heads
        scores = torch.einsum("bqhe,bkhe->bhqk", rot_q, rot_k.repeat_interleave(group, 2)) * config.d_head**-0.5
        check_scores(trace, layer, scores, expected.attentions[layer])
        check_norm(trace, prefix + "ln2", seen.inputs[base + "post_attention_layernorm"], 1e-5, centre=False)


def run_seen(reference, tokens):
    with torch.no_grad():
        return reference(tokens, output_attentions=True, use_cache=False)


def check_scores(trace, layer, scores, pattern):
    found, allowed = trace["attn_scores", layer], pattern > 0
    assert_close(found[allowed], scores[allowed], 1e-5, f"scores {layer}")
    assert (found[~allowed] == -torch.inf).all()


def check_norm(trace, name, x, eps, centre):
    x = x - x.mean(-1, keepdim=True) if centre else x
    scale = (x.square().mean(-1, keepdim=True) + eps).sqrt()
    check_nodes(trace, {f"{name}.hook_scale": scale, f"{name}.hook_normalized": x / scale})

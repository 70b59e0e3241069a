"""Llama models written as GGUF files, as llama.cpp's converter lays them out, against `transformers`."""

import gguf
import numpy as np
import pytest
import torch
from helpers import assert_close, run_reference
from tiny_models import make_model, random_tokens

import glassformer

NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def gguf_name(name):
    name = name.removeprefix("model.")
    if not name.startswith("layers."):
        return name.replace("embed_tokens", "token_embd").replace("lm_head", "output").replace("norm.", "output_norm.")
    _, layer, rest = name.split(".", 2)
    module, kind = rest.rsplit(".", 1)
    return f"blk.{layer}.{NAMES[module]}.{kind}"


def in_pairs(values, n_heads):
    """The order in which llama.cpp turns rows: neighbours instead of halves."""
    return values.reshape(n_heads, 2, -1, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)


def write(path, reference, frequencies=None):
    config = reference.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    rope = config.rope_parameters
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(rope["rope_type"]))
        writer.add_rope_scaling_factor(rope["factor"])
        if "original_max_position_embeddings" in rope:
            writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    for name, tensor in reference.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        values = tensor.float().numpy()
        for part, n_heads in (("q_proj", config.num_attention_heads), ("k_proj", config.num_key_value_heads)):
            if part in name:
                values = in_pairs(values, n_heads)
        writer.add_tensor(gguf_name(name), np.ascontiguousarray(values))
    if frequencies is not None:
        writer.add_tensor("rope_freqs.weight", frequencies.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def compare(path, reference):
    model = glassformer.load(path)
    for length in (7, 19):
        tokens = random_tokens(2, length)
        assert_close(model.trace(tokens).logits, run_reference(reference, tokens).logits, 1e-4)


@pytest.mark.parametrize("name", ["llama", "llama_grouped", "llama_tied", "llama_linear", "llama_yarn", "llama_theta"])
def test_as_written(tmp_path, name):
    reference = make_model(name)
    write(tmp_path / "model.gguf", reference)
    compare(tmp_path / "model.gguf", reference)


@pytest.mark.parametrize("which", ["attention_bias", "mlp_bias", "both"])
def test_biases(tmp_path, which):
    biases = dict.fromkeys(("attention_bias", "mlp_bias") if which == "both" else (which,), True)
    reference = make_model("llama_grouped", **biases)
    write(tmp_path / "model.gguf", reference)
    compare(tmp_path / "model.gguf", reference)


def test_llama3_scaling_as_divisors(tmp_path):
    reference = make_model("llama_llama3")
    rope = reference.config.rope_parameters
    plain = 1 / rope["rope_theta"] ** (torch.arange(0, reference.config.head_dim, 2) / reference.config.head_dim)
    divisors = plain / reference.model.rotary_emb.inv_freq
    assert divisors.max() > 1.5
    write(tmp_path / "model.gguf", reference, divisors)
    compare(tmp_path / "model.gguf", reference)


def test_divisors_of_the_wrong_number(tmp_path):
    write(tmp_path / "model.gguf", make_model("llama"), torch.ones(3))
    with pytest.raises(glassformer.FileError, match=r"'rope_freqs.weight' has 3 values of type F32; expected"):
        glassformer.load(tmp_path / "model.gguf")

"""Tiny random models of every supported kind, made by `transformers` without a network.

A new architecture is a row (or a few) in `CONFIGS`. Every parameter is random, so that no zero bias and no norm of ones
hides a missing term.
"""

import copy
import functools

import torch
import transformers

torch.set_num_threads(1)  # For matrices as small as these, a second thread is only waited for.

D_VOCAB = 61
N_CTX = 48

GPT2 = {
    "vocab_size": D_VOCAB,
    "n_positions": N_CTX,
    "n_embd": 24,
    "n_layer": 3,
    "n_head": 4,
}
LLAMA = {
    "vocab_size": D_VOCAB,
    "max_position_embeddings": N_CTX,
    "hidden_size": 32,
    "intermediate_size": 44,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
}


def rope(kind, **values):
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 1000.0, **values}}


LONG_FACTORS = {"short_factor": [1.0, 1.3, 1.7, 2.1], "long_factor": [1.5, 2.5, 4.0, 7.0]}

CONFIGS = {
    "gpt2": ("gpt2", {}),
    "gpt2_gelu": ("gpt2", {"activation_function": "gelu"}),
    "gpt2_relu": ("gpt2", {"activation_function": "relu", "n_head": 1}),
    "gpt2_inverse_layer": ("gpt2", {"scale_attn_by_inverse_layer_idx": True}),
    "gpt2_upcast": ("gpt2", {"reorder_and_upcast_attn": True, "scale_attn_by_inverse_layer_idx": True}),
    "gpt2_inner": ("gpt2", {"n_inner": 40, "layer_norm_epsilon": 1e-2}),
    "gpt2_unscaled": ("gpt2", {"scale_attn_weights": False}),
    "gpt2_untied": ("gpt2", {"tie_word_embeddings": False, "n_head": 6}),
    "llama": ("llama", {"num_key_value_heads": 4}),
    "llama_grouped": ("llama", {}),
    "llama_one_kv_head": ("llama", {"num_key_value_heads": 1}),
    "llama_tied": ("llama", {"tie_word_embeddings": True}),
    "llama_attention_bias": ("llama", {"attention_bias": True}),
    "llama_mlp_bias": ("llama", {"mlp_bias": True, "num_key_value_heads": 4}),
    "llama_head_dim": ("llama", {"head_dim": 12, "hidden_act": "gelu_pytorch_tanh"}),
    "llama_theta": ("llama", rope("default")),
    "llama_linear": ("llama", rope("linear", factor=3.0)),
    "llama_dynamic": ("llama", {**rope("dynamic", factor=2.0), "max_position_embeddings": 16}),
    "llama_yarn": ("llama", rope("yarn", factor=4.0, original_max_position_embeddings=12)),
    "llama_yarn_options": (
        "llama",
        rope(
            "yarn",
            factor=4.0,
            original_max_position_embeddings=12,
            beta_fast=8.0,
            beta_slow=0.5,
            mscale=1.2,
            mscale_all_dim=0.8,
            truncate=False,
        ),
    ),
    "llama_longrope": ("llama", rope("longrope", original_max_position_embeddings=10, **LONG_FACTORS)),
    "llama_llama3": (
        "llama",
        rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=24),
    ),
    "mistral": ("mistral", {"sliding_window": None}),
    "mistral_window": ("mistral", {"sliding_window": 4, "head_dim": 10}),
}

# Where HF itself has no float64 (it checks that upcast scores are float32).
NO_FLOAT64 = {"gpt2_upcast"}


def make_config(name, **changes):
    kind, options = CONFIGS[name]
    made, basis = {
        "gpt2": (transformers.GPT2Config, GPT2),
        "llama": (transformers.LlamaConfig, LLAMA),
        "mistral": (transformers.MistralConfig, LLAMA),
    }[kind]
    return made(**copy.deepcopy({**basis, **options, **changes}), bos_token_id=1, eos_token_id=2)


@functools.cache
def _built(name, seed, changes):
    config = make_config(name, **dict(changes))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(noise * (0.25 if parameter.ndim == 1 else 0.22))
    return model.eval()


def make_model(name, dtype=torch.float32, seed=7, **changes):
    """A new `transformers` model of that row of the table, the same one each time."""
    return as_dtype(copy.deepcopy(_built(name, seed, tuple(sorted(changes.items())))), dtype)


def as_dtype(model, dtype):
    """As `from_pretrained(dtype=...)` makes it: rotary frequencies, which are no weights, stay in float32."""
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model.to(dtype)
    for name, buffer in buffers.items():
        owner, _, attribute = name.rpartition(".")
        model.get_submodule(owner)._buffers[attribute] = buffer
    return model


def random_tokens(*shape, seed=0):
    return torch.randint(0, D_VOCAB, shape, generator=torch.Generator().manual_seed(seed))

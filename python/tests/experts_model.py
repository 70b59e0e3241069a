"""A tiny model with experts, norms of queries and keys, and attention sinks: three times, as `helpers.subject` has it.

It is none of transformers': a Llama of theirs lends its attention, embeddings and norms, and holds the other weights.
"""

import json
import types

import torch
from oracle import Oracle, _Pass
from tiny_models import make_model
from torch import nn

import glassformer
from glassformer import _core

N_EXPERTS, PER_TOKEN, D_MLP = 4, 2, 12


def experts_subject(dtype=torch.float64):
    reference = make_model("llama_attention_bias", dtype)
    generator = torch.Generator().manual_seed(5)
    config, layers = reference.config, reference.model.layers

    def some(*shape, around=0.0):
        return nn.Parameter(torch.randn(shape, generator=generator, dtype=dtype) * 0.3 + around)

    for layer in layers:
        layer.mlp = nn.Module()
        layer.mlp.router = some(N_EXPERTS, config.hidden_size)
        for part, shape in (("gate", (D_MLP, config.hidden_size)), ("in", (D_MLP, config.hidden_size))):
            layer.mlp.register_module(part, nn.ParameterList(some(*shape) for _ in range(N_EXPERTS)))
        layer.mlp.out = nn.ParameterList(some(config.hidden_size, D_MLP) for _ in range(N_EXPERTS))
        attention = layer.self_attn
        attention.q_norm, attention.k_norm = nn.Module(), nn.Module()
        attention.q_norm.weight, attention.k_norm.weight = some(attention.head_dim, around=1.0), some(8, around=1.0)
        attention.sinks = some(config.num_attention_heads)
    model = _core.Model.from_tensors(json.dumps(_config(config)), _tensors(reference), None, dtype, torch.device("cpu"))
    return types.SimpleNamespace(reference=reference, model=glassformer.Model(model), oracle=ExpertsOracle(reference))


def _config(config):
    return {
        "model_type": "transformer_lens",
        "n_layers": config.num_hidden_layers,
        "d_model": config.hidden_size,
        "d_head": config.head_dim,
        "n_heads": config.num_attention_heads,
        "n_key_value_heads": config.num_key_value_heads,
        "d_mlp": D_MLP,
        "d_vocab": config.vocab_size,
        "n_ctx": config.max_position_embeddings,
        "normalization_type": "RMS",
        "eps": config.rms_norm_eps,
        "positional_embedding_type": "rotary",
        "act_fn": "silu",
        "num_experts": N_EXPERTS,
        "experts_per_token": PER_TOKEN,
        "norm_topk_prob": True,
        "use_qk_norm": True,
        "use_attention_sinks": True,
    }


def _tensors(reference):
    """Under TransformerLens' names; the same memory."""
    made = {
        "embed.W_E": reference.model.embed_tokens.weight,
        "ln_final.w": reference.model.norm.weight,
        "unembed.W_U": reference.lm_head.weight.T,
        "unembed.b_U": torch.zeros(reference.config.vocab_size, dtype=reference.dtype),
    }
    for number, layer in enumerate(reference.model.layers):
        block, attention = f"blocks.{number}.", layer.self_attn
        d_head = attention.head_dim
        for name, linear in (("W_Q", attention.q_proj), ("_W_K", attention.k_proj), ("_W_V", attention.v_proj)):
            made[f"{block}attn.{name}"] = linear.weight.unflatten(0, (-1, d_head)).transpose(1, 2)
            made[f"{block}attn.{name.replace('W', 'b')}"] = linear.bias.unflatten(0, (-1, d_head))
        made |= {
            f"{block}ln1.w": layer.input_layernorm.weight,
            f"{block}ln2.w": layer.post_attention_layernorm.weight,
            f"{block}attn.W_O": attention.o_proj.weight.T.unflatten(0, (-1, d_head)),
            f"{block}attn.b_O": attention.o_proj.bias,
            f"{block}attn.q_norm.w": attention.q_norm.weight,
            f"{block}attn.k_norm.w": attention.k_norm.weight,
            f"{block}attn.sinks": attention.sinks,
            f"{block}mlp.W_gate.weight": layer.mlp.router,
        }
        for part in ("gate", "in", "out"):
            for expert, weight in enumerate(layer.mlp.get_submodule(part)):
                made[f"{block}mlp.experts.{expert}.W_{part}.weight"] = weight
    return {name: tensor.detach() for name, tensor in made.items()}


class ExpertsOracle(Oracle):
    norms_keys = True

    def pass_type(self):
        return _ExpertsPass


class _ExpertsPass(_Pass):
    def mlp(self, node, base, x):
        weights = self.oracle.weights
        logits = self.put(f"{node}hook_router_logits", x @ weights[f"{base}router"].T)
        shares = self.put(f"{node}hook_expert_weights", logits.softmax(-1, dtype=torch.float32))
        top = shares.topk(PER_TOKEN, dim=-1)
        chosen = self.put(f"{node}hook_expert_indices", top.indices)

        def through(inputs, part):  # Every row by the weights of its expert.
            all_weights = torch.stack([weights[f"{base}{part}.{expert}"] for expert in range(N_EXPERTS)])
            return torch.einsum("bpsi,bpsoi->bpso", inputs, all_weights[chosen])

        each = x[:, :, None].expand(-1, -1, PER_TOKEN, -1)
        gate = self.put(f"{node}hook_expert_gate", through(each, "gate"))
        pre = self.put(f"{node}hook_expert_pre", through(each, "in"))
        post = self.put(f"{node}hook_expert_post", gate / (1 + torch.exp(-gate)) * pre)
        out = self.put(f"{node}hook_expert_out", through(post, "out"))
        parts = top.values / top.values.sum(-1, keepdim=True)
        return (out * parts.to(out.dtype)[..., None]).sum(2)

    def before_rotation(self, attn, source, part, x):
        return self.norm(f"{attn}{part}_norm", x, f"{source}{part}_norm")

    def soften(self, source, scores):
        sink = self.oracle.weights[f"{source}sinks"][None, :, None, None].expand(*scores.shape[:3], 1)
        return torch.cat([scores, sink], dim=-1).softmax(-1)[..., :-1]

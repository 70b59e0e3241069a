"""Edits of traces against the same edits made by hooks on the modules of `transformers`."""

import copy

import numpy as np
import pytest
import torch
from helpers import assert_close, run_reference, subject
from tiny_models import random_tokens
from transformers.models.gpt2 import modeling_gpt2
from transformers.models.llama import modeling_llama

KINDS = ["gpt2", "llama", "llama_grouped"]
TOLERANCE = 1e-5  # transformers has norms and softmax of Llama in float32 whatever the dtype.


class Hooked:
    """A copy of a `transformers` model with hooks, and where its parts are."""

    def __init__(self, tiny):
        self.model = copy.deepcopy(tiny.reference)
        self.gpt2 = tiny.reference.config.model_type == "gpt2"
        self.layers = self.model.transformer.h if self.gpt2 else self.model.model.layers
        self.d_head = tiny.model.config.d_head

    def attention_output(self, layer):
        block = self.layers[layer]
        return block.attn.c_proj if self.gpt2 else block.self_attn.o_proj

    def edit_output(self, module, change):
        def hook(_module, _arguments, output):
            value = (output[0] if isinstance(output, tuple) else output).clone()
            change(value)
            return (value, *output[1:]) if isinstance(output, tuple) else value

        module.register_forward_hook(hook)

    def edit_input(self, module, change):
        def hook(_module, arguments):
            value = arguments[0].clone()
            change(value)
            return (value, *arguments[1:])

        module.register_forward_pre_hook(hook)

    def logits(self, tokens):
        return run_reference(self.model, tokens).logits


@pytest.fixture(params=KINDS)
def tiny(request):
    return subject(request.param)


@pytest.fixture
def edit_pattern(monkeypatch):
    """Makes the eager attention of transformers call `change(pattern)` in one layer."""

    def install(layer, change):
        def attention(module, query, key, value, attention_mask, scaling=None, **_options):
            group = query.shape[1] // key.shape[1]
            key, value = key.repeat_interleave(group, dim=1), value.repeat_interleave(group, dim=1)
            scores = query @ key.transpose(-1, -2) * scaling
            pattern = (scores + attention_mask).softmax(-1)
            if module.layer_idx == layer:
                change(pattern)
            return (pattern @ value).transpose(1, 2).contiguous(), pattern

        for module in (modeling_gpt2, modeling_llama):
            monkeypatch.setattr(module, "eager_attention_forward", attention)

    return install


def test_head_ablation(tiny):
    tokens = random_tokens(2, 8)
    hooked = Hooked(tiny)
    columns = slice(2 * hooked.d_head, 3 * hooked.d_head)
    hooked.edit_input(hooked.attention_output(1), lambda z: z[:, :, columns].zero_())
    trace = tiny.model.trace(tokens)
    trace.logits_at(-1)
    trace.set("z1", 0, np.s_[:, :, 2])
    assert_close(trace.logits, hooked.logits(tokens), TOLERANCE)


def test_residual_stream_at_positions(tiny):
    tokens = random_tokens(2, 8)
    value = torch.randn(2, 2, tiny.model.config.d_model, dtype=torch.float64)
    hooked = Hooked(tiny)
    hooked.edit_output(hooked.layers[0], lambda residual: residual.__setitem__((slice(None), [2, 5]), value))
    trace = tiny.model.trace(tokens)
    trace.at([2, 5])["resid_post0"] = value
    assert_close(trace.logits, hooked.logits(tokens), TOLERANCE)
    again = tiny.model.trace(tokens)
    again.set("resid_pre1", value, np.s_[:, [2, 5]])
    assert_close(again.logits, hooked.logits(tokens), TOLERANCE)


def test_mean_ablation_of_an_mlp(tiny):
    tokens = random_tokens(2, 8)
    hooked = Hooked(tiny)
    hooked.edit_output(hooked.layers[2].mlp, lambda out: out.copy_(out.mean((0, 1), keepdim=True)))
    trace = tiny.model.trace(tokens)
    trace["mlp_out2"] = trace["mlp_out2"].mean((0, 1), keepdim=True)
    assert_close(trace.logits, hooked.logits(tokens), TOLERANCE)


def test_row_of_a_pattern(tiny, edit_pattern):
    tokens = random_tokens(1, 8)
    row = torch.tensor([0.1, 0.2, 0, 0.3, 0.4, 0, 0, 0], dtype=torch.float64)
    edit_pattern(1, lambda pattern: pattern[0, 3, 4].copy_(row))
    trace = tiny.model.trace(tokens)
    trace.logits_at(-1)
    trace.set("pattern1", row, np.s_[0, 3, 4])
    assert_close(trace.logits, Hooked(tiny).logits(tokens), TOLERANCE)


def test_pattern_that_looks_ahead(tiny, edit_pattern):
    """Then a layer isn't causal: what is edited at the last position reaches the first."""
    tokens = random_tokens(1, 8)

    def look_ahead(pattern):
        pattern[0, 1, 0] = 1 / 8

    edit_pattern(1, look_ahead)
    hooked = Hooked(tiny)
    hooked.edit_output(hooked.layers[0], lambda residual: residual[:, 7].fill_(0.7))
    for order in (["pattern1", "resid_post0"], ["resid_post0", "pattern1"]):
        trace = tiny.model.trace(tokens)
        for name in order:
            if name == "pattern1":
                trace.set(name, 1 / 8, np.s_[0, 1, 0])
            else:
                trace.set(name, 0.7, np.s_[:, 7])
            trace.logits_at(0)
        assert_close(trace.logits, hooked.logits(tokens), TOLERANCE, order)


def test_patching_from_another_prompt(tiny):
    """The classic: an activation of a clean run put into a corrupted one, at every layer and position."""
    clean_tokens, tokens = random_tokens(1, 6, seed=1), random_tokens(1, 6, seed=2)
    clean, corrupted = tiny.model.trace(clean_tokens), tiny.model.trace(tokens)
    for layer in range(3):
        source = run_reference(tiny.reference, clean_tokens).hidden_states[layer]
        for position in (0, 3, 5):
            fork = corrupted.fork()
            fork.at(position)["resid_pre", layer] = clean.at(position)["resid_pre", layer]
            hooked = Hooked(tiny)
            value = source[:, position]
            hooked.edit_input(
                hooked.layers[layer], lambda x, position=position, value=value: x[:, position].copy_(value)
            )
            assert_close(fork.logits, hooked.logits(tokens), TOLERANCE, f"{layer} {position}")


def test_a_hook_of_an_earlier_segment_is_called_again_where_a_pattern_lets_it_see_a_later_edit(tiny):
    tokens = random_tokens(1, 6)

    def made():
        trace = tiny.model.trace(tokens[:, :3])
        trace.append(tokens[:, 3:])
        trace.set("pattern0", 1 / 6)
        trace.hook("resid_post1", lambda value, call: value * 2)
        return trace

    trace, fresh = made(), made()
    trace.read("logits")
    for each in (trace, fresh):
        each.set("hook_embed", 0.5, (slice(None), 4))
    assert_close(trace.logits, fresh.logits, 1e-10)

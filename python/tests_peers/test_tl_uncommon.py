"""What few models or calls have: numbers that are no vectors among the parameters, norms behind attention while each
head has its own input, single vectors; beside the judge's."""

import pytest
import torch
from helpers import assert_close
from test_tl_hooked_transformer import EXACT, assert_same_cache, pair_of, shifting, tokens_of
from test_tl_native import SMALL

from glassformer.transformer_lens.utilities import Slice


def test_processing_leaves_numbers_numbers():
    """As `alpha_p` of xIELU is: without axes."""
    judge, ours = pair_of({"act_fn": "xielu"})
    for model in (judge, ours):
        model.process_weights_()
    expected, found = judge.state_dict(), ours.state_dict()
    for name in expected:
        if "act_fn.alpha" in name:
            assert found[name].shape == expected[name].shape == ()
    assert_close(ours(tokens_of()), judge(tokens_of()), EXACT)


@pytest.mark.parametrize("flag", ["use_split_qkv_input", "use_attn_in"])
def test_norms_behind_attention_with_inputs_by_head(flag):
    """There ln1 is one norm for all heads, in the cache and for hooks."""
    options = {"original_architecture": "Olmo2ForCausalLM", "normalization_type": "RMS", "act_fn": "silu"}
    judge, ours = pair_of(options | {"positional_embedding_type": "rotary", flag: True})
    tokens = tokens_of()
    assert_same_cache(*(model.run_with_cache(tokens, return_cache_object=False)[1] for model in (ours, judge)))
    for name in ("blocks.1.ln1.hook_scale", "blocks.0.ln1.hook_normalized"):
        found, expected = (model.run_with_hooks(tokens, fwd_hooks=[(name, shifting)]) for model in (ours, judge))
        assert_close(found, expected, EXACT, name)
        assert not torch.allclose(found, ours(tokens))


@pytest.mark.parametrize("kind", ["LN", "LNPre", "RMS", "RMSPre"])
def test_modules_of_one_vector(kind):
    judge, ours = pair_of({"normalization_type": kind, "act_fn": "gelu"})
    x = torch.randn(SMALL["d_model"], dtype=torch.float64)
    for call in (
        lambda model: model.ln_final(x),
        lambda model: model.unembed(model.ln_final(x)),
        lambda model: model.blocks[0].mlp(x),
        lambda model: model.embed(torch.tensor(3)),
    ):
        assert_close(call(ours).detach(), call(judge).detach(), EXACT, kind)


@pytest.mark.parametrize("flag", ["use_split_qkv_input", "use_attn_in", "use_attn_result"])
@pytest.mark.parametrize("positions", [-1, (1, 3), [2, 0]], ids=str)
def test_positions_of_what_each_head_has(flag, positions):
    """The judge cuts heads out of rotated queries and keys, and out of inputs by head and their norms."""
    judge, ours = pair_of({"act_fn": "relu", "positional_embedding_type": "rotary", flag: True})
    tokens = tokens_of()
    whole, cut, theirs = (
        model.run_with_cache(tokens, return_cache_object=False, pos_slice=pos_slice)[1]
        for model, pos_slice in [(ours, None), (ours, positions), (judge, positions)]
    )
    differ = set()
    for name, value in whole.items():
        axis = 2 if name.endswith(("hook_attn_scores", "hook_pattern")) else 1
        assert_close(cut[name], Slice.unwrap(positions).apply(value, dim=axis), EXACT, name)
        if cut[name].shape != theirs[name].shape:
            differ.add(name.rpartition(".")[2])
        else:
            assert_close(cut[name], theirs[name], EXACT, name)
    inputs = {"hook_q_input", "hook_k_input", "hook_v_input"} if flag == "use_split_qkv_input" else {"hook_attn_in"}
    by_head = set() if flag == "use_attn_result" else {*inputs, "hook_scale", "hook_normalized"}
    assert differ == {"hook_rot_q", "hook_rot_k", *by_head}

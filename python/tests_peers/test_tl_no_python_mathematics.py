"""The mathematics is the core's: everything here runs while Python's own products, softmaxes and the like raise."""

import pytest
import torch
from test_tl_hooked_transformer import KINDS, SMALL, tokens_of

import glassformer.transformer_lens as tl
from glassformer.transformer_lens import FactoredMatrix, HookedTransformer, patching, utils

OF_TENSORS = ["matmul", "mm", "bmm", "mv", "dot", "addmm", "baddbmm", "softmax", "log_softmax", "logsumexp", "norm"]
OF_TORCH = [*OF_TENSORS, "einsum", "tensordot", "layer_norm", "rms_norm", "conv1d", "embedding", "bilinear"]
OF_FUNCTIONAL = ["linear", "softmax", "log_softmax", "cross_entropy", "gelu", "silu", "relu", "layer_norm", "rms_norm"]
OF_FUNCTIONAL += ["scaled_dot_product_attention", "embedding", "nll_loss"]


@pytest.fixture
def none_in_python(monkeypatch):
    def refuse(*given, **more):
        raise AssertionError("computed in Python")

    for owner, names in (
        (torch.Tensor, [*OF_TENSORS, "__matmul__", "__rmatmul__"]),
        (torch, OF_TORCH),
        (torch.nn.functional, OF_FUNCTIONAL),
        (torch.linalg, ["norm", "svd", "matmul", "qr"]),
    ):
        for name in names:
            if hasattr(owner, name):
                monkeypatch.setattr(owner, name, refuse)
    with pytest.raises(AssertionError, match="computed in Python"):
        torch.ones(2) @ torch.ones(2)


def small(options):
    torch.manual_seed(0)
    return HookedTransformer({**SMALL, **options, "device": "cpu", "seed": 0})


@pytest.mark.parametrize("kind", KINDS)
def test_calls_of_a_model(kind, none_in_python):
    model, tokens = small(KINDS[kind]), tokens_of()
    logits, cache = model.run_with_cache(tokens)
    assert logits.isfinite().all()
    if model.cfg.d_vocab_out == model.cfg.d_vocab:
        model(tokens, return_type="loss").backward()
        model.generate(tokens, max_new_tokens=3, stop_at_eos=False, verbose=False, temperature=0.7, top_k=5)
        patching.get_act_patch_resid_pre(model, tokens, cache, lambda logits: logits[0, -1, 1])
        utils.lm_accuracy(logits, tokens)
    model.run_with_hooks(tokens, fwd_hooks=[("blocks.1.attn.hook_z", lambda value, hook: value * 0)])
    x = cache["resid_pre", 1].clone()
    model.blocks[1](x)
    model.unembed(x)
    model.process_weights_()
    model(tokens)
    cache.accumulated_resid(apply_ln=model.cfg.normalization_type is not None)
    cache.decompose_resid()
    cache.stack_head_results()
    if model.cfg.d_vocab_out == model.cfg.d_vocab:
        cache.logit_attrs(cache.decompose_resid(), tokens=3)
    model.all_composition_scores("K")
    plain_mlp = not (model.cfg.attn_only or model.cfg.num_experts)
    model.accumulated_bias(1, mlp_input=not model.cfg.attn_only, include_mlp_biases=plain_mlp)
    for init_mode in ("xavier_normal", "kaiming_uniform", "muP"):
        small({**KINDS[kind], "init_mode": init_mode})


def test_parts(none_in_python):
    matrix = FactoredMatrix(torch.randn(4, 6, 3), torch.randn(4, 3, 6))
    assert (matrix @ torch.randn(6, 2)).AB.shape == (4, 6, 2)
    matrix.svd(), matrix.norm(), matrix.eigenvalues, matrix.make_even()
    utils.composition_scores(matrix, matrix, broadcast_dims=True)
    for name in ("gelu_new", "gelu_fast", "solu"):
        getattr(utils, name)(torch.randn(2, 3))
    utils.sample_logits(torch.randn(2, 9), temperature=0.5, top_p=0.9)
    pattern = torch.rand(2, 5, 5).tril()
    assert tl.head_detector.get_previous_token_head_detection_pattern(torch.arange(5)[None]).shape == (5, 5)
    assert pattern.shape == (2, 5, 5)

"""Caches of activations: TransformerLens' numbers and ours, of the same model and the same activations."""

import logging
import types

import numpy as np
import pytest
import torch
from helpers import assert_close
from tl_caches import CONFIGS, D_MLP, D_MODEL, D_VOCAB, LAYERS, N_LAYERS, POSITIONS, REFUSED, alike, compare, pair_of
from transformer_lens.utilities import Slice as JudgeSlice

from glassformer.transformer_lens import ActivationCache
from glassformer.transformer_lens.utilities import Slice


@pytest.fixture(autouse=True)
def double(monkeypatch):
    """The judge adds biases up in torch's default dtype."""
    monkeypatch.setattr(logging, "warning", lambda *arguments: None)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="module", params=[(2, 5, True), (1, 5, False)], ids=str)
def size(request):
    return dict(zip(["batch", "pos", "batch_dim"], request.param, strict=True))


@pytest.mark.parametrize("name", CONFIGS)
class TestValues:
    def test_accumulated(self, name, size):
        both = pair_of(name, **size)
        flags = [False, True]
        count = alike(
            both,
            "accumulated_resid",
            layer=LAYERS,
            incl_mid=flags,
            apply_ln=flags,
            pos_slice=POSITIONS,
            mlp_input=flags,
            return_labels=flags,
        )
        assert count > 100

    def test_decomposed(self, name, size):
        both = pair_of(name, **size)
        flags = [False, True]
        parallel = both.model.cfg.parallel_attn_mlp
        count = alike(
            both,
            "decompose_resid",
            lambda mlp_input, **_: mlp_input and parallel,
            layer=LAYERS,
            mlp_input=flags,
            mode=["all", "mlp", "attn"],
            apply_ln=flags,
            pos_slice=POSITIONS,
            incl_embeds=flags,
            return_labels=flags,
        )
        assert count > 150

    def test_heads(self, name, size):
        both = pair_of(name, **size)
        no_heads = "blocks.0.attn.hook_result" not in both.judge.cache_dict
        assert no_heads != both.model.cfg.use_attn_result
        both.ours.compute_head_results(), both.judge.compute_head_results()
        assert set(both.ours) == set(both.judge)
        for key in both.judge:
            compare(both.ours[key], both.judge[key], what=key)
        flags = [False, True]
        count = alike(
            both,
            "stack_head_results",
            lambda layer, incl_remainder, **_: layer == 0 and incl_remainder,
            layer=LAYERS,
            incl_remainder=flags,
            apply_ln=flags,
            pos_slice=POSITIONS,
            return_labels=flags,
        )
        assert count > 100

    def test_neurons(self, name, size):
        both = pair_of(name, **size)
        if both.model.cfg.attn_only:
            for cache in (both.ours, both.judge):
                with pytest.raises((*REFUSED, AttributeError)):
                    cache.get_neuron_results(0)
                with pytest.raises((*REFUSED, AttributeError)):
                    cache.stack_neuron_results(1)
            return
        neurons = [None, (2, 7), [1, 1, -2], (0, 9, 3), np.array([4])]
        projections = [None, torch.randn(D_MODEL), torch.randn(D_MODEL, 2), torch.randn(D_MODEL, 1)]
        flags = [False, True]
        no_norms = both.model.cfg.normalization_type is None
        assert alike(
            both,
            "get_neuron_results",
            lambda neuron_slice, project_output_onto, **_: neuron_slice == 3 and project_output_onto is not None,
            layer=[0, 2, -1, N_LAYERS],
            pos_slice=POSITIONS,
            neuron_slice=[*neurons[:3], 3],
            project_output_onto=projections,
        )
        count = alike(
            both,
            "stack_neuron_results",
            lambda layer, incl_remainder, apply_ln, project_output_onto, **_: (
                (layer == 0 and incl_remainder) or (no_norms and apply_ln and project_output_onto is not None)
            ),
            layer=LAYERS,
            pos_slice=[None, -1, (1, 4)],
            neuron_slice=neurons[:3],
            incl_remainder=flags,
            apply_ln=flags,
            project_output_onto=projections,
            return_labels=flags,
        )
        assert count > 250

    def test_everything(self, name, size):
        both = pair_of(name, **size)
        cfg, flags = both.model.cfg, [False, True]

        def differs(layer, mlp_input, expand_neurons, apply_ln, project_output_onto, **_):
            projected_norm = apply_ln and project_output_onto is not None
            return (
                (mlp_input and cfg.parallel_attn_mlp)
                or (cfg.attn_only and expand_neurons)
                or (projected_norm and (mlp_input or cfg.normalization_type is None))
            )

        count = alike(
            both,
            "get_full_resid_decomposition",
            differs,
            layer=LAYERS,
            mlp_input=flags,
            expand_neurons=flags,
            apply_ln=flags,
            pos_slice=POSITIONS[:3],
            project_output_onto=[None, torch.randn(D_MODEL), torch.randn(D_MODEL, 3)],
            return_labels=flags,
        )
        assert count > 100

    def test_norms(self, name, size):
        both = pair_of(name, **size)
        stack, flags = both.judge.decompose_resid(), [False, True]
        no_norms = both.model.cfg.normalization_type is None
        batches = [None] if no_norms or not size["batch_dim"] else [None, 0, (0, 2), [1, 0]]
        options = {"layer": LAYERS, "mlp_input": flags, "batch_slice": batches, "has_batch_dim": [size["batch_dim"]]}
        count = alike(both, "apply_ln_to_stack", residual_stack=[stack], recompute_ln=flags, **options)
        for pos_slice in [-1, (1, 3)]:
            part = both.judge.decompose_resid(pos_slice=pos_slice)
            count += alike(both, "apply_ln_to_stack", residual_stack=[part], pos_slice=[pos_slice], **options)
        assert count > 10

    def test_logits(self, name, size):
        both = pair_of(name, **size)
        batched, batch = size["batch_dim"], both.tokens
        whole, last = both.judge.decompose_resid(), both.judge.decompose_resid(pos_slice=-1)
        options = {"batch_slice": [None], "has_batch_dim": [batched]}
        for tokens, wrong in [(3, 5), ("a", "b"), (torch.tensor(2), torch.tensor(4)), (torch.tensor([2]), None)]:
            assert alike(
                both, "logit_attrs", residual_stack=[whole], tokens=[tokens], incorrect_tokens=[None, wrong], **options
            )
            assert alike(both, "logit_attrs", residual_stack=[last], tokens=[tokens], pos_slice=[-1], **options)
        tokens, wrong = batch if batched else batch[0], (batch + 1) % D_VOCAB
        wrong = wrong if batched else wrong[0]
        assert alike(
            both, "logit_attrs", residual_stack=[whole], tokens=[tokens], incorrect_tokens=[None, wrong], **options
        )
        of_last = batch[:, -1]
        assert alike(both, "logit_attrs", residual_stack=[last], tokens=[of_last], pos_slice=[-1], **options)
        if batched and both.model.cfg.normalization_type is not None:
            for rows in [0, (0, 2)]:
                sliced = {"batch_slice": [rows], "has_batch_dim": [True]}
                part = batch[Slice(rows).slice]
                assert alike(both, "logit_attrs", residual_stack=[whole], tokens=[part], **sliced)
                assert alike(both, "logit_attrs", residual_stack=[last], tokens=[7], pos_slice=[-1], **sliced)

    def test_gradients(self, name):
        both = pair_of(name, graph=True)
        attn_only = both.model.cfg.attn_only
        values = [value for value in both.ours.values() if value.requires_grad]
        learned = [[*model.parameters(), *values] for model in (both.own, both.model)]
        apply_ln = both.model.cfg.normalization_type is not None
        projection = torch.randn(D_MODEL, 2)
        made = {
            "accumulated": lambda cache: cache.accumulated_resid(1, apply_ln=True),
            "lens": lambda cache: cache.accumulated_resid(apply_ln=True),
            "decomposed": lambda cache: cache.decompose_resid(1, apply_ln=True),
            "heads": lambda cache: cache.stack_head_results(incl_remainder=True, apply_ln=True),
            "logits": lambda cache: cache.logit_attrs(cache.stack_head_results(), both.tokens),
            "everything": lambda cache: cache.get_full_resid_decomposition(expand_neurons=not attn_only, apply_ln=True),
        }
        if not attn_only:
            made["neurons"] = lambda cache: cache.stack_neuron_results(-1, incl_remainder=True, apply_ln=True)
            made["projected"] = lambda cache: cache.stack_neuron_results(
                2, apply_ln=apply_ln, project_output_onto=projection, incl_remainder=True
            )
            made["of a layer"] = lambda cache: cache.get_neuron_results(1, project_output_onto=projection)
        for what, make in made.items():
            results = [make(cache) for cache in (both.ours, both.judge)]
            compare(*results, what=what)
            found, expected = (
                torch.autograd.grad(result.pow(3).sum(), by, retain_graph=True, allow_unused=True)
                for result, by in zip(results, learned, strict=True)
            )
            for one, other in zip(found, expected, strict=True):
                if other is not None and other.any():
                    assert_close(one, other, 1e-8, what)
                else:
                    assert one is None or one.abs().max() < 1e-10, what


class TestDictionary:
    def test_names(self):
        both = pair_of("LN")
        assert len(both.ours) == len(both.judge) and repr(both.ours) == repr(both.judge)
        assert list(both.ours.keys()) == list(both.judge.keys()) and list(both.ours) == list(both.judge)
        for (key, value), (other, expected) in zip(both.ours.items(), both.judge.items(), strict=True):
            assert key == other and value is expected
        assert all(one is other for one, other in zip(both.ours.values(), both.judge.values(), strict=True))
        assert both.ours.has_embed and both.ours.has_pos_embed and both.ours.has_batch_dim
        assert both.ours.model is both.own
        keys = ["hook_embed", "embed", "k1", "blocks.2.hook_resid_mid", "scale1ln2", "scale", "z2", "attn0"]
        keys += [("k", 1), ("k", -1), ("scale", -2, "ln1"), ("scale", None, None), ("post", 0, "mlp"), ("resid_pre", 0)]
        keys += [("embed",), ("embed", None), ("pattern", -3, "a"), ("k", np.int64(-1)), ("z", torch.tensor(-2))]
        for key in keys:
            assert both.ours[key] is both.judge[key], key

    def test_activations_in_a_stack(self):
        both = pair_of("grouped queries")
        choices = {"activation_name": ["z", "k", "resid_post", "pattern"], "layer": LAYERS, "sublayer_type": [None]}
        assert alike(both, "stack_activation", **choices)
        assert alike(both, "stack_activation", activation_name=["scale"], layer=LAYERS, sublayer_type=["ln1", "ln2"])

    def test_results_of_some_layers(self):
        """Of a run that kept no more than these."""
        both = pair_of("alibi, results")
        kept = ["blocks.0.attn.hook_result", "blocks.1.attn.hook_result"]
        for cache in (both.ours, both.judge):
            cache.cache_dict = {name: cache[name] for name in kept}
        assert alike(both, "stack_head_results", layer=[1, 2, 3], apply_ln=[False], return_labels=[False, True]) == 4
        assert list(both.ours) == kept

    @pytest.mark.parametrize("rows", [None, 1, -1, (0, 2), [2, 0], torch.tensor([1])], ids=str)
    @pytest.mark.parametrize("name", ["LN", "alibi, results", "split inputs"])
    def test_rows(self, name, rows):
        both = pair_of(name, batch=3)
        ours, judge = (cache.apply_slice_to_batch_dim(rows) for cache in (both.ours, both.judge))
        assert type(ours) is ActivationCache and ours.has_batch_dim == judge.has_batch_dim
        assert all(torch.equal(ours[key], judge[key]) for key in judge) and len(ours) == len(judge)
        compare(ours.decompose_resid(), judge.decompose_resid())
        sliced = both.ours.apply_slice_to_batch_dim(Slice(rows))
        assert all(torch.equal(ours[key], sliced[key]) for key in ours)
        judge = both.judge.apply_slice_to_batch_dim(JudgeSlice(rows))
        assert all(torch.equal(ours[key], judge[key]) for key in ours)

    def test_rows_of_one(self):
        both = pair_of("LN", batch=1)
        for cache in (both.ours, both.judge):
            assert cache.remove_batch_dim() is cache and not cache.has_batch_dim
            assert cache.remove_batch_dim() is cache
            with pytest.raises(AssertionError):
                cache.apply_slice_to_batch_dim(0)
        assert all(torch.equal(both.ours[key], both.judge[key]) for key in both.judge)
        assert both.ours.apply_slice_to_batch_dim(None)["embed"].shape == (5, D_MODEL)

    def test_experts(self):
        """What they see are tokens; the judge cuts those of an expert that happened to see as many as the batch has."""
        both = pair_of("experts", batch=3)
        seen = "blocks.0.mlp.experts.0.hook_post"
        for cache in (both.ours, both.judge):
            cache.cache_dict[seen] = torch.randn(3, D_MLP)
        assert both.judge.apply_slice_to_batch_dim(0)[seen].shape == (D_MLP,)
        names = [key for key in both.ours if "expert" in key]
        sliced = both.ours.apply_slice_to_batch_dim(0)
        assert names and all(sliced[key] is both.ours[key] for key in names)
        assert sliced["embed"].shape == (5, D_MODEL)
        one = pair_of("experts", batch=1, pos=1).ours
        kept = [one[key] for key in names if key in one]
        one.remove_batch_dim()
        assert kept and all(value is one[key] for value, key in zip(kept, [k for k in names if k in one], strict=True))

    def test_elsewhere(self):
        both = pair_of("LN")
        assert both.ours.to("cpu") is both.ours and both.ours["embed"] is both.judge["embed"]
        assert both.ours.to(torch.device("meta"), move_model=False)["embed"].is_meta
        moved = types.SimpleNamespace(to=lambda device: places.append(device))
        places = []
        ActivationCache({}, moved).to("cpu", move_model=True)
        assert places == ["cpu"]
        assert both.ours.ssm_layers() == both.judge.ssm_layers() == []

    def test_gradients_off_and_on(self):
        cache = pair_of("LN").ours
        for mode in [False, True]:
            cache.toggle_autodiff(mode)
            assert torch.is_grad_enabled() == mode
        cache.toggle_autodiff()
        assert not torch.is_grad_enabled()
        torch.set_grad_enabled(True)


@pytest.mark.parametrize("batch, batch_dim", [(2, True), (1, False)])
def test_hooks_on_the_last_norm(batch, batch_dim):
    """They see every stream as a call of the model shows it."""
    both = pair_of("LN", batch=batch, batch_dim=batch_dim)
    without = both.ours.accumulated_resid(apply_ln=True)

    def last_position(value, hook):
        assert value.ndim == 3
        value[:, -1:] *= 2

    for model in (both.own, both.model):
        model.ln_final.hook_scale.add_hook(last_position)
    assert alike(both, "accumulated_resid", apply_ln=[True], pos_slice=POSITIONS) == len(POSITIONS)
    assert not torch.allclose(both.ours.accumulated_resid(apply_ln=True), without)


def test_warnings(monkeypatch):
    said = []
    monkeypatch.setattr(logging, "warning", lambda message, *given: said.append(message % given))
    for cache in vars(pair_of("LN", batch=1)).values():
        if hasattr(cache, "cache_dict"):
            for call in [cache.compute_head_results, cache.compute_head_results, cache.stack_head_results]:
                call()
            cache.toggle_autodiff(True)
            cache.remove_batch_dim(), cache.remove_batch_dim()
    assert len(said) == 8 and said[:4] == said[4:]


def test_stacks_have_their_own_memory():
    for graph in [False, True]:
        cache = pair_of("LN", graph=graph).ours
        with torch.no_grad():
            before = {key: value.clone() for key, value in cache.items()}
            for stack in [
                cache.stack_head_results(1),
                cache.decompose_resid(0),
                cache.accumulated_resid(0),
                cache.stack_neuron_results(1),
                cache.get_full_resid_decomposition(),
                cache.stack_activation("z"),
            ]:
                stack.zero_()
        assert all(torch.equal(cache[key], value) for key, value in before.items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_other_dtypes(dtype):
    torch.set_default_dtype(torch.float32)
    both = pair_of("LN", dtype=dtype)
    tolerance = 2e-5 if dtype == torch.float32 else 0.05
    for call in [
        lambda cache: cache.decompose_resid(apply_ln=True),
        lambda cache: cache.stack_head_results(2, incl_remainder=True),
        lambda cache: cache.stack_head_results(2, apply_ln=True),
        lambda cache: cache.stack_neuron_results(2, apply_ln=True),
        lambda cache: cache.stack_neuron_results(2, project_output_onto=torch.ones(D_MODEL, dtype=dtype)),
        lambda cache: cache.logit_attrs(cache.decompose_resid(), both.tokens),
        lambda cache: cache.accumulated_resid(apply_ln=True),
    ]:
        compare(call(both.ours), call(both.judge), tolerance)


def test_biases_are_added_up_in_their_own_dtype():
    """The judge adds them up in torch's default dtype."""
    torch.set_default_dtype(torch.float32)
    both = pair_of("LN")
    bias = both.ours.get_full_resid_decomposition(expand_neurons=False)[-1, 0, 0]
    expected = sum(block.attn.b_O for block in both.model.blocks)
    assert bias.dtype == torch.float64 and (bias - expected).abs().max() < 1e-14
    assert (both.model.accumulated_bias(N_LAYERS, include_mlp_biases=False) - expected).abs().max() > 1e-14


def test_the_core_does_the_mathematics(monkeypatch):
    """Python's own products aren't called."""
    both, projection = pair_of("LN"), torch.randn(D_MODEL, 2)
    calls = [
        lambda cache: cache.stack_head_results(2, incl_remainder=True, apply_ln=True),
        lambda cache: cache.stack_neuron_results(2, incl_remainder=True, apply_ln=True),
        lambda cache: cache.get_neuron_results(0, project_output_onto=projection),
        lambda cache: cache.get_full_resid_decomposition(apply_ln=True, project_output_onto=projection),
        lambda cache: cache.accumulated_resid(1, apply_ln=True),
        lambda cache: cache.logit_attrs(cache.decompose_resid(), both.tokens, both.tokens.flip(0)),
    ]
    expected = [call(both.judge) for call in calls]

    def refuse(*arguments, **options):
        raise AssertionError("mathematics in Python")

    for place, names in {
        torch: ["matmul", "bmm", "mm", "einsum", "softmax", "mul", "sub", "add", "div", "mean", "sum"],
        torch.Tensor: ["__matmul__", "__mul__", "__sub__", "__add__", "__truediv__", "matmul", "sum", "mean", "pow"],
        torch.nn.functional: ["linear", "layer_norm"],
    }.items():
        for name in names:
            monkeypatch.setattr(place, name, refuse)
    found = [call(both.ours) for call in calls]
    monkeypatch.undo()
    for one, other in zip(found, expected, strict=True):
        compare(one, other)

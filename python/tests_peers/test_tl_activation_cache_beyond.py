"""Caches of activations where TransformerLens' numbers are wrong, and what is refused."""

import itertools
import logging

import pytest
import torch
from tl_caches import ALSO, CONFIGS, D_MODEL, D_VOCAB, N_LAYERS, REFUSED, compare, pair_of

import glassformer
from glassformer.transformer_lens.utilities import Slice


@pytest.fixture(autouse=True)
def double(monkeypatch):
    """The judge adds biases up in torch's default dtype."""
    monkeypatch.setattr(logging, "warning", lambda *arguments: None)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("pos_slice", [None, -1, (1, 4)], ids=str)
@pytest.mark.parametrize("name", [*CONFIGS, *ALSO])
def test_parts_sum_to_the_stream(name, pos_slice):
    """Of every kind of model, also where the judge's don't."""
    both = pair_of(name)
    cache, cfg = both.ours, both.model.cfg
    position, sums = Slice(pos_slice), 0
    for layer, mlp_input, expand_neurons in itertools.product(range(N_LAYERS + 1), [False, True], [False, True]):
        if mlp_input and (layer == N_LAYERS or cfg.attn_only):
            continue
        if expand_neurons and cfg.num_experts:
            continue
        whole = cache["resid_pre", layer] if layer < N_LAYERS else cache["resid_post", -1]
        if mlp_input and not cfg.parallel_attn_mlp:
            whole = cache["resid_mid", layer]
        whole = position.apply(whole, dim=-2)
        options = {"layer": layer, "mlp_input": mlp_input, "pos_slice": pos_slice}
        everything = dict(options, expand_neurons=expand_neurons)
        compare(cache.decompose_resid(**options).sum(0), whole)
        parts, labels = cache.get_full_resid_decomposition(**everything, return_labels=True)
        compare(parts.sum(0), whole)
        assert len(labels) == len(set(labels)) == len(parts)
        if cfg.normalization_type is None or (layer < N_LAYERS and cfg.original_architecture):
            normalized = whole
        else:
            place = (layer, "ln2" if mlp_input else "ln1") if layer < N_LAYERS else ()
            normalized = cache[("normalized", *place)]
            one = normalized if normalized.ndim == 3 else normalized[:, :, 0]  # One for each head.
            normalized = position.apply(one, dim=-2)
        projection = torch.randn(D_MODEL, 3)
        compare(cache.decompose_resid(**options, apply_ln=True).sum(0), normalized)
        compare(cache.get_full_resid_decomposition(**everything, apply_ln=True).sum(0), normalized)
        given = dict(everything, project_output_onto=projection)
        compare(cache.get_full_resid_decomposition(**given).sum(0), whole @ projection)
        compare(cache.get_full_resid_decomposition(**given, apply_ln=True).sum(0), normalized @ projection)
        sums += 1
    assert sums > 3
    tokens = both.tokens[:, 1]
    if pos_slice is None and cfg.normalization_type in (None, "LNPre", "RMSPre"):
        logits = both.model.unembed(cache["normalized"] if cfg.normalization_type else cache["resid_post", -1])
        parts = cache.get_full_resid_decomposition(expand_neurons=False)
        for batch_slice in [None, [1, 0]]:
            rows = Slice(batch_slice).slice
            found = cache.logit_attrs(parts, tokens[rows], batch_slice=batch_slice).sum(0)
            wanted = (logits - both.model.b_U)[rows]
            compare(found, torch.stack([row[:, token] for row, token in zip(wanted, tokens[rows], strict=True)]))


@pytest.mark.parametrize("name", [*CONFIGS, *ALSO])
def test_gradients_of_the_parts(name):
    """What is laid out in one piece without a graph is the same with one."""
    both = pair_of(name, graph=True)
    expand_neurons = not both.model.cfg.num_experts
    for apply_ln in [False, True]:
        with_graph = both.ours.get_full_resid_decomposition(expand_neurons=expand_neurons, apply_ln=apply_ln)
        with torch.no_grad():
            without = both.ours.get_full_resid_decomposition(expand_neurons=expand_neurons, apply_ln=apply_ln)
        assert with_graph.requires_grad and not without.requires_grad
        compare(without, with_graph)


def test_the_rest_before_the_first_layer():
    """The judge gives the stream after the last layer."""
    both = pair_of("LN")
    stream = both.ours["resid_pre", 0]
    for method in ["stack_head_results", "stack_neuron_results"]:
        for options in [{}, {"apply_ln": True}]:
            found, labels = getattr(both.ours, method)(0, incl_remainder=True, return_labels=True, **options)
            assert labels == ["remainder"]
            compare(found[0], both.judge.apply_ln_to_stack(stream[None], 0)[0] if options else stream)
            wrong = getattr(both.judge, method)(0, incl_remainder=True, **options)
            assert (wrong - found).abs().max() > 0.1


def test_neurons_before_an_mlp():
    """The judge scales projected neurons by the norm before attention."""
    both, projection = pair_of("LN"), torch.randn(D_MODEL, 2)
    given = {"layer": 1, "mlp_input": True, "apply_ln": True}
    whole = both.judge.get_full_resid_decomposition(**given) @ projection
    compare(both.ours.get_full_resid_decomposition(**given, project_output_onto=projection), whole)
    wrong = both.judge.get_full_resid_decomposition(**given, project_output_onto=projection)
    assert (wrong - whole).abs().max() > 0.01


def test_one_neuron():
    """Of a number the judge makes no stack, and multiplies a projection with the wrong axis."""
    both, projection = pair_of("LN", pos=2), torch.randn(D_MODEL, 2)
    whole = both.judge.get_neuron_results(1, 3)
    compare(both.ours.get_neuron_results(1, 3, project_output_onto=projection), whole @ projection)
    compare(both.ours.get_neuron_results(1, 3, project_output_onto=projection[:, 0]), whole @ projection[:, 0])
    wrong = both.judge.get_neuron_results(1, 3, project_output_onto=projection)
    assert wrong.shape == (2, 2)  # batch pos times out
    found, labels = both.ours.stack_neuron_results(2, neuron_slice=3, return_labels=True)
    assert labels == ["L0N3", "L1N3"]
    compare(found, torch.stack([both.judge.get_neuron_results(layer, 3) for layer in range(2)]))


def test_tokens_of_rows():
    """One token for each row of the batch: the judge takes four of them for four positions."""
    both = pair_of("LNPre", batch=4, pos=4)
    tokens, stack = both.tokens[:, 2], both.judge.decompose_resid()
    expected = torch.stack(
        [both.judge.logit_attrs(stack, int(token), batch_slice=row) for row, token in enumerate(tokens)], dim=1
    )
    compare(both.ours.logit_attrs(stack, tokens), expected)
    others = (tokens + 1) % D_VOCAB
    wrong = [both.judge.logit_attrs(stack, int(token), batch_slice=row) for row, token in enumerate(others)]
    compare(both.ours.logit_attrs(stack, tokens, others), expected - torch.stack(wrong, dim=1))
    assert (both.judge.logit_attrs(stack, tokens) - expected).abs().max() > 0.1
    short = pair_of("LNPre", batch=2, pos=5)
    stack = short.judge.decompose_resid()
    expected = [short.judge.logit_attrs(stack, token, batch_slice=row) for row, token in enumerate([3, 4])]
    compare(short.ours.logit_attrs(stack, torch.tensor([3, 4])), torch.stack(expected, dim=1))
    with pytest.raises(REFUSED):
        short.judge.logit_attrs(stack, torch.tensor([3, 4]))


def test_stacks_that_do_not_fit():
    """Where numbers of parts and rows happen to agree, the judge divides parts by the scales of rows."""
    both = pair_of("LN", batch=8, pos=5)
    last = both.judge.decompose_resid(pos_slice=-1)  # part batch d_model
    of_row = both.judge.decompose_resid()[:, 0]  # part pos d_model, eight parts
    assert both.judge.apply_ln_to_stack(of_row, has_batch_dim=False).shape == of_row.shape
    tokens = both.tokens
    for wrong in [
        lambda: both.ours.apply_ln_to_stack(of_row, has_batch_dim=False),
        lambda: both.ours.apply_ln_to_stack(last),
        lambda: both.ours.logit_attrs(of_row, 3, has_batch_dim=False),
        lambda: both.ours.logit_attrs(of_row, tokens, batch_slice=0, has_batch_dim=False),
        lambda: both.ours.logit_attrs(last, tokens, pos_slice=-1),
        lambda: both.ours.logit_attrs(last, tokens[:, :3], pos_slice=-1),
        lambda: both.ours.logit_attrs(last[..., 1:], 3, pos_slice=-1),
    ]:
        with pytest.raises(glassformer.ShapeError):
            wrong()
    compare(
        both.ours.apply_ln_to_stack(of_row, batch_slice=0, has_batch_dim=False),
        both.judge.apply_ln_to_stack(of_row, batch_slice=0, has_batch_dim=False),
    )


def test_rows_without_norms():
    """The judge slices the batch of a stack only where there is a norm."""
    both = pair_of("no norms")
    stack = both.judge.decompose_resid()
    compare(both.ours.apply_ln_to_stack(stack, batch_slice=1), stack[:, 1])
    compare(both.ours.logit_attrs(stack, 3, batch_slice=1), both.judge.logit_attrs(stack, 3)[:, 1])
    assert both.judge.apply_ln_to_stack(stack, batch_slice=1).shape == stack.shape


@pytest.mark.parametrize("layer", [-2, -N_LAYERS, N_LAYERS + 1, 99])
def test_layers_that_are_not_there(layer):
    """For the judge some of them are layer 0."""
    cache = pair_of("LN").ours
    for call in [
        cache.accumulated_resid,
        cache.decompose_resid,
        cache.stack_head_results,
        cache.stack_neuron_results,
        cache.get_full_resid_decomposition,
        lambda layer: cache.stack_activation("z", layer),
        lambda layer: cache.apply_ln_to_stack(torch.randn(1, 2, 5, D_MODEL), layer),
    ]:
        with pytest.raises(glassformer.InputError, match="expected 0 to 3"):
            call(layer)


def test_what_is_refused():
    both = pair_of("LN")
    for make in (both.ours, both.judge):
        for wrong in [
            lambda cache: cache.decompose_resid(0, incl_embeds=False),
            lambda cache: cache.decompose_resid(mlp_input=True),
            lambda cache: cache.get_full_resid_decomposition(mlp_input=True),
            lambda cache: cache.stack_activation("z", 0),
            lambda cache: cache.stack_activation("nothing"),
            lambda cache: cache["nothing"],
            lambda cache: cache["k", 3],
            lambda cache: cache["k", -4],
            lambda cache: cache.get_neuron_results(N_LAYERS),
            lambda cache: cache.get_neuron_results(0, project_output_onto=torch.randn(D_MODEL + 1)),
            lambda cache: cache.remove_batch_dim(),
            lambda cache: cache.logit_attrs(cache.decompose_resid(), 3, torch.tensor([3, 4])),
            lambda cache: cache.logit_attrs(cache.decompose_resid(), [3, 4]),
            lambda cache: cache.apply_ln_to_stack(torch.randn(3, 2, 4, D_MODEL)),
            lambda cache: cache.compute_ssm_state(),
            lambda cache: cache.compute_ssm_effective_attention(),
        ]:
            with pytest.raises(REFUSED):
                wrong(make)
    with pytest.raises(glassformer.InputError, match="mode is 'heads'; expected one of all, mlp, attn"):
        both.ours.decompose_resid(mode="heads")
    with pytest.raises(glassformer.NameError, match=r"'blocks.1.attn.hook_zz' .*nearest: blocks.1.attn.hook_z"):
        both.ours["blocks.1.attn.hook_zz"]
    with pytest.raises(glassformer.InputError, match=r"a token or more; found a tensor of shape \[0\]"):
        both.ours.logit_attrs(both.ours.decompose_resid(), torch.zeros(0, dtype=torch.int64))
    del both.ours.cache_dict["ln_final.hook_scale"]
    with pytest.raises(KeyError, match=r"ln_final\.hook_scale"):
        both.ours.decompose_resid(apply_ln=True)
    split = pair_of("split inputs").ours
    split.cache_dict["blocks.1.ln1.hook_scale"][:, :, 1] *= 2
    with pytest.raises(glassformer.InputError, match="differently for each head"):
        split.decompose_resid(1, apply_ln=True)


def test_head_results_are_filled_in():
    """The judge looks at the first layer only, and without a batch axis takes an edited result back."""
    both = pair_of("LN", batch_dim=False, batch=1)
    both.ours.compute_head_results()
    edited = torch.randn_like(both.ours["result0"])
    del both.ours.cache_dict["blocks.2.attn.hook_result"]
    both.ours.cache_dict["blocks.0.attn.hook_result"] = edited
    assert both.ours.stack_head_results(1).equal(edited.movedim(-2, 0))
    both.judge.compute_head_results()
    compare(both.ours["result2"], both.judge["result2"])


@pytest.mark.parametrize(
    "name, method, options",
    [
        ("shortformer", "decompose_resid", {}),
        ("shortformer", "get_full_resid_decomposition", {}),
        ("final RMS", "decompose_resid", {"apply_ln": True}),
        ("norms before and after", "get_full_resid_decomposition", {}),
        ("norms only after", "get_full_resid_decomposition", {}),
        ("norms only after", "decompose_resid", {"layer": 1, "apply_ln": True}),
        ("parallel", "decompose_resid", {"layer": 1, "mlp_input": True}),
        ("parallel", "get_full_resid_decomposition", {"layer": 1, "mlp_input": True}),
    ],
)
def test_where_the_judges_parts_have_another_sum(name, method, options):
    """Ours are right by `test_parts_sum_to_the_stream`."""
    both = pair_of(name)
    ours, theirs = (getattr(cache, method)(**options).sum(0) for cache in (both.ours, both.judge))
    assert ours.shape == theirs.shape and (ours - theirs).abs().max() > 0.01

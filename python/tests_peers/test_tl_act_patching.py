"""The dialect's activation patching beside the judge's: every function, setters and metrics of one's own, hooks."""

import einops
import pandas as pd
import pytest
import torch
from helpers import assert_close
from test_tl_hooked_transformer import KINDS, pair_of, tokens_of
from tl_words import word_tokenizer
from transformer_lens import patching as judges

from glassformer.transformer_lens import patching as ours
from glassformer.transformer_lens._patched_logits import PatchedLogits

EXACT = 1e-9
MODELS = {
    "gpt2_like": KINDS["gpt2_like"],
    "llama_like": {**KINDS["llama_like"], "positional_embedding_type": "standard"},  # Angles are of float32 somewhere.
    "attention_only": KINDS["attention_only"],
    "solu": KINDS["solu"],
    "parallel": {**KINDS["neox_like"], "positional_embedding_type": "standard"},
    "mixtral_like": {**KINDS["mixtral_like"], "positional_embedding_type": "standard"},
    "gpt_oss_like": {**KINDS["gpt_oss_like"], "positional_embedding_type": "standard"},
}
ABSENT = {"attention_only": ("resid_mid", "mlp_out", "block_every"), "parallel": ("resid_mid",)}
BY_POS = ("resid_pre", "resid_mid", "attn_out", "mlp_out")
BY_HEAD = tuple(
    f"attn_head_{part}_{where}" for part in ("out", "q", "k", "v", "pattern") for where in ("by_pos", "all_pos")
)
EVERY = ("attn_head_all_pos_every", "attn_head_by_pos_every", "block_every")
FUNCTIONS = [f"get_act_patch_{name}" for name in (*BY_POS, *BY_HEAD, "attn_head_pattern_dest_src_pos", *EVERY)]


@pytest.fixture(autouse=True)
def exact(monkeypatch):
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)  # What both write their results in.
    monkeypatch.setenv("TQDM_DISABLE", "1")
    yield
    torch.set_default_dtype(before)


def pair_and_caches(kind="gpt2_like", batch=2, length=5, **options):
    judge, model = pair_of({**MODELS[kind], **options})
    clean, corrupted = tokens_of(batch, length, seed=1), tokens_of(batch, length, seed=2)
    corrupted[:, 0] = clean[:, 0]
    with torch.no_grad():
        return judge, model, corrupted, judge.run_with_cache(clean)[1], model.run_with_cache(clean)[1]


def difference(logits):
    return (logits[:, -1, 3] - logits[:, -1, 7]).mean()


def both(name, setting, metric=difference, **arguments):
    """What the judge returns, and ours, checked to be equal and not trivial."""
    judge, model, corrupted, judges_cache, cache = setting
    expected = getattr(judges, name)(judge, corrupted, judges_cache, metric, **arguments)
    found = getattr(ours, name)(model, corrupted, cache, metric, **arguments)
    if isinstance(expected, tuple):
        pd.testing.assert_frame_equal(found[1], expected[1])
        expected, found = expected[0], found[0]
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    assert_close(found, expected, EXACT, name)
    assert expected.unique().numel() > 1
    return found


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("kind", MODELS)
def test_every_function(kind, name):
    setting = pair_and_caches(kind)
    if name.endswith(ABSENT.get(kind, "nowhere")):
        for module, model, cache in ((judges, *setting[0::3]), (ours, setting[1], setting[4])):
            with pytest.raises((AssertionError, KeyError, ValueError)):
                getattr(module, name)(model, setting[2], cache, difference)
        return
    if "n_key_value_heads" in MODELS[kind] and name.endswith(("all_pos_every", "by_pos_every")):
        assert (both(name, setting)[2, ..., 2:] == 0).all()
        return
    both(name, setting)


def test_rotary_positions():
    judge, model = pair_of(KINDS["llama_like"])
    clean, corrupted = tokens_of(2, 5, seed=1), tokens_of(2, 5, seed=2)
    _, judges_cache = judge.run_with_cache(clean)
    _, cache = model.run_with_cache(clean)
    for name in FUNCTIONS[-3:]:
        expected = getattr(judges, name)(judge, corrupted, judges_cache, difference)
        assert_close(getattr(ours, name)(model, corrupted, cache, difference), expected, 1e-6, name)


METRICS = {
    "einops": lambda logits: einops.reduce(logits, "batch pos vocab -> pos", "max")[2],
    "all_positions": lambda logits: logits.log_softmax(-1)[..., 3].mean(),
    "two_positions": lambda logits: logits[0, -1, 3] * logits[1, 2].max() + logits[:, 1:3].std(),
    "another_position_each": lambda logits: logits[torch.arange(2), torch.tensor([1, -1]), torch.tensor([3, 4])].sum(),
    "the_batch_of_a_position": lambda logits: logits[..., -2, :].logsumexp(-1).sum(),
    "functions": lambda logits: torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.arange(10)),
    "shape": lambda logits: logits[:, -1].sum() * logits.shape[1] + logits.size(-1) + logits.ndim + len(logits),
    "in_place": lambda logits: (logits.mul_(2), logits[:, -1, 3].sum())[1],
    "a_view_of_what_changes": lambda logits: (row := logits[:, -1], logits.mul_(2), row[:, 3].sum())[2],
    "a_view_that_changes_later": lambda logits: (row := logits[:, -1], logits.sum(), row.mul_(3), logits.sum())[3],
    "through_a_view": lambda logits: (logits[:, -1].mul_(3), logits[:, -1:, 3].sum() + logits.sum())[1],
    "another_each_time": lambda logits: logits[:, 2, 3].sum() if logits[0, -1, 0] > 0 else logits.sum(),
    "numpy": lambda logits: torch.tensor(logits.detach().numpy()[:, -1, 3].sum()),
    "iteration": lambda logits: sum(row[-1, 2] for row in logits),
    "a_mask": lambda logits: logits[logits > 0].sum(),
}


@pytest.mark.parametrize("metric", METRICS)
def test_metrics(metric):
    both("get_act_patch_resid_pre", pair_and_caches(), METRICS[metric])
    with torch.no_grad():
        both("get_act_patch_attn_head_out_all_pos", pair_and_caches(), METRICS[metric])


def test_a_metric_that_is_a_number():
    setting = pair_and_caches()
    expected = both("get_act_patch_mlp_out", setting)
    for metric in (lambda logits: float(difference(logits)), lambda logits: difference(logits).reshape(1, 1)):
        assert_close(ours.get_act_patch_mlp_out(setting[1], setting[2], setting[4], metric), expected, EXACT)
    for module, model, cache in ((judges, setting[0], setting[3]), (ours, setting[1], setting[4])):
        with pytest.raises(RuntimeError):
            module.get_act_patch_mlp_out(model, setting[2], cache, lambda logits: logits[:, -1, 3])


def test_a_metric_has_a_graph_only_where_hooks_stand():
    """It is never missed in silence."""
    judge, model, corrupted, judges_cache, cache = pair_and_caches()

    def steepness(weight):
        return lambda logits: torch.autograd.grad(difference(logits), weight)[0].norm()

    expected = judges.get_act_patch_resid_pre(judge, corrupted, judges_cache, steepness(judge.blocks[1].mlp.W_in))
    arguments = (model, corrupted, cache, steepness(model.blocks[1].mlp.W_in))
    with pytest.raises(RuntimeError, match="does not require grad"):
        ours.get_act_patch_resid_pre(*arguments)
    model.add_hook("hook_embed", lambda value, hook: None)
    assert_close(ours.get_act_patch_resid_pre(*arguments), expected, EXACT)


def test_logits_know_of_changes_to_themselves():
    def metric(logits):
        assert not logits.requires_grad and logits.grad is None
        logits.requires_grad_()
        logits[:, -1, 3].sum().backward()
        assert logits.requires_grad and logits.is_leaf
        return logits.grad.sum()

    _, model, corrupted, _, cache = pair_and_caches()
    assert (ours.get_act_patch_resid_pre(model, corrupted, cache, metric) == 2).all()


def test_logits_that_a_metric_keeps():
    _, model, corrupted, _, cache = pair_and_caches()
    kept = []
    ours.get_act_patch_resid_pre(model, corrupted, cache, lambda logits: (kept.append(logits), difference(logits))[1])
    before = [logits.clone() for logits in kept]
    with torch.no_grad():
        model.unembed.W_U.mul_(2)
    for logits, expected in zip(kept, before, strict=True):
        assert torch.equal(logits * 1, expected)
        assert type(logits * 1) is torch.Tensor
    assert len(kept) == 10


def adding(corrupted, index, clean):
    corrupted[:, index[1]] += 0.5 * clean[:, index[1]]
    return corrupted


def scaled_anew(corrupted, index, clean):
    return 0.5 * (corrupted + clean) * (1 + index[0])


@pytest.mark.parametrize("setter", [adding, scaled_anew])
@pytest.mark.parametrize("activation", ["resid_post", "z", "post", "attn_scores"])
def test_setters_of_ones_own(setter, activation):
    arguments = {"patch_setter": setter, "activation_name": activation, "index_axis_names": ("layer", "head")}
    both("generic_activation_patch", pair_and_caches(), **arguments)


@pytest.mark.parametrize("hooked", [False, True])
@pytest.mark.parametrize("graph", [False, True])
def test_setters_that_return_nothing(hooked, graph):
    """What they changed in place counts; with a graph the judge forgets it."""
    setting = pair_and_caches()
    for model in setting[:2] if hooked else ():
        model.add_hook("blocks.0.hook_attn_out", lambda value, hook: value * 0.5)
    arguments = {"activation_name": "resid_mid", "index_axis_names": ("layer", "pos")}
    expected = both("generic_activation_patch", setting, patch_setter=adding, **arguments)

    def setter(*given):
        adding(*given)

    with torch.set_grad_enabled(graph):
        found = ours.generic_activation_patch(
            setting[1], setting[2], setting[4], difference, patch_setter=setter, **arguments
        )
    assert_close(found, expected, EXACT)


def test_indices_that_are_lists():
    table = pd.DataFrame({"layer": [1, 0], "pos": [[2, 4], [1, 3]], "head": [[0, 1], [2, 2]]})
    arguments = {"patch_setter": ours.layer_pos_head_vector_patch_setter, "activation_name": "q", "index_df": table}
    both("generic_activation_patch", pair_and_caches(), **arguments)


def test_indices_that_count_from_the_end_and_none_at_all():
    setting = pair_and_caches()
    arguments = {"patch_setter": ours.layer_pos_head_vector_patch_setter, "activation_name": "z"}
    table = pd.DataFrame({"layer": [0, 1, 1], "pos": [-1, -2, 1], "head": [-1, 0, -2]})
    both("generic_activation_patch", setting, index_df=table, **arguments)
    for module, model, cache in ((judges, setting[0], setting[3]), (ours, setting[1], setting[4])):
        given = (model, setting[2], cache, difference)
        assert module.generic_activation_patch(*given, index_df=table[:0], **arguments).shape == (0,)
        for column, wrong in (("pos", 5), ("head", 3), ("pos", -6)):
            with pytest.raises(IndexError):
                module.generic_activation_patch(*given, index_df=table.assign(**{column: wrong}), **arguments)
        with pytest.raises(KeyError):
            module.generic_activation_patch(*given, index_df=table.assign(layer=-1), **arguments)
        with pytest.raises(KeyError, match="heads"):
            module.generic_activation_patch(*given, index_axis_names=("layer", "heads"), **arguments)


def test_caches_without_a_batch_or_of_another_length():
    """The judge's setters index what they get; so do ours, and both say no to the same."""
    judge, model, corrupted, _, _ = pair_and_caches(batch=1)
    longer = tokens_of(1, 7, seed=4)
    caches = [one.run_with_cache(longer)[1] for one in (judge, model)]
    both("get_act_patch_resid_pre", (judge, model, corrupted, *caches))
    both("get_act_patch_attn_head_q_by_pos", (judge, model, corrupted, *caches))
    flat = [one.run_with_cache(tokens_of(1, 5, seed=1), remove_batch_dim=True)[1] for one in (judge, model)]
    for name, given in (
        ("get_act_patch_attn_head_out_all_pos", caches),
        ("get_act_patch_attn_head_pattern_by_pos", caches),
        ("get_act_patch_resid_pre", flat),
        ("get_act_patch_attn_head_out_by_pos", flat),
    ):
        for module, one, cache in zip((judges, ours), (judge, model), given, strict=True):
            with pytest.raises((RuntimeError, ValueError, IndexError)):
                getattr(module, name)(one, corrupted, cache, difference)


def test_padding_on_the_left(tmp_path):
    judge, model, _, _, _ = pair_and_caches()
    for number, one in enumerate((judge, model)):
        one.set_tokenizer(word_tokenizer(f"{tmp_path}/{number}"), default_padding_side="left")
    texts = ["the cat sat on the mat", "a dog ran"]
    tokens = model.to_tokens(texts)
    assert (tokens[1] == model.tokenizer.pad_token_id).any()
    clean = tokens.flip(0)
    caches = [one.run_with_cache(clean)[1] for one in (judge, model)]
    setting = (judge, model, tokens, *caches)
    both("get_act_patch_resid_pre", setting)
    both("get_act_patch_attn_head_v_all_pos", setting, lambda logits: model.loss_fn(logits[:1], tokens[:1]))
    swept = ours.get_act_patch_mlp_out(model, tokens, caches[1], lambda logits: logits.square().sum())
    model.add_hook("hook_embed", lambda value, hook: None)  # Now each run is a pass of its own.
    each = ours.get_act_patch_mlp_out(model, tokens, caches[1], lambda logits: logits.square().sum())
    assert_close(swept, each, EXACT)


def test_metrics_of_the_model_itself():
    judge, model, corrupted, judges_cache, cache = pair_and_caches()
    expected = judges.get_act_patch_mlp_out(judge, corrupted, judges_cache, lambda x: judge.loss_fn(x, corrupted))
    found = ours.get_act_patch_mlp_out(model, corrupted, cache, lambda x: model.loss_fn(x, corrupted))
    assert_close(found, expected, EXACT)
    expected = judges.get_act_patch_mlp_out(
        judge, corrupted, judges_cache, lambda x: (x - judge(corrupted)).abs().max()
    )
    found = ours.get_act_patch_mlp_out(model, corrupted, cache, lambda x: (x - model(corrupted)).abs().max())
    assert_close(found, expected, EXACT)


def test_tables_of_indices():
    setting = pair_and_caches()
    table = pd.DataFrame({"layer": [1, 0, 1], "head": [2, 0, 2]}, index=[5, 6, 7])
    arguments = {"patch_setter": ours.layer_head_vector_patch_setter, "activation_name": "v"}
    assert both("generic_activation_patch", setting, index_df=table, **arguments).shape == (3,)
    for more in ({"index_df": table}, {"index_axis_names": ("layer", "head")}):
        both("generic_activation_patch", setting, **more, **arguments, return_index_df=True)
    pd.testing.assert_frame_equal(
        ours.make_df_from_ranges((2, 3), ("layer", "pos")), judges.make_df_from_ranges((2, 3), ("layer", "pos"))
    )
    for wrong in ({}, {"index_df": table, "index_axis_names": ("layer", "head")}):
        with pytest.raises(AssertionError):
            ours.generic_activation_patch(setting[1], setting[2], setting[4], difference, **arguments, **wrong)


SETTERS = {
    "layer_pos_patch_setter": [1, 2],
    "layer_pos_head_vector_patch_setter": [1, 2, 1],
    "layer_head_vector_patch_setter": [1, 2],
    "layer_head_pattern_patch_setter": [1, 2],
    "layer_head_pos_pattern_patch_setter": [1, 2, 1],
    "layer_head_dest_src_pos_pattern_patch_setter": [1, 2, 1, 0],
}


@pytest.mark.parametrize("name", SETTERS)
def test_setters_by_themselves(name):
    corrupted, clean = torch.randn(2, 4, 4, 4), torch.randn(2, 4, 4, 4)
    expected = getattr(judges, name)(corrupted.clone(), SETTERS[name], clean)
    given = corrupted.clone()
    found = getattr(ours, name)(given, SETTERS[name], clean)
    assert found is given
    assert torch.equal(found, expected)
    with pytest.raises(AssertionError):
        getattr(ours, name)(given, [*SETTERS[name], 0], clean)


def test_hooks_that_stand_are_called():
    setting = pair_and_caches()
    plain = both("get_act_patch_attn_head_out_all_pos", setting)
    calls = {id(model): 0 for model in setting[:2]}
    for model in setting[:2]:

        def halving(value, hook, model=model):
            calls[id(model)] += 1
            return value * 0.5

        model.add_perma_hook("blocks.0.attn.hook_v", halving)
        model.add_hook("blocks.1.hook_resid_mid", lambda value, hook: value + 1)
        model.add_hook("blocks.1.attn.hook_z", lambda value, hook: value * 2)
    hooked = both("get_act_patch_attn_head_out_all_pos", setting)
    assert not torch.allclose(hooked, plain)
    assert len(set(calls.values())) == 1
    assert calls[id(setting[1])] == plain.numel()
    for model in setting[:2]:
        model.reset_hooks(including_permanent=True)
    assert_close(both("get_act_patch_attn_head_out_all_pos", setting), plain, EXACT)


def test_flags():
    for flag, activation in (("use_attn_result", "result"), ("use_split_qkv_input", "q_input")):
        setting = pair_and_caches()
        arguments = {"patch_setter": ours.layer_head_vector_patch_setter, "index_axis_names": ("layer", "head")}
        with pytest.raises((AssertionError, KeyError)):
            ours.generic_activation_patch(
                setting[1], setting[2], setting[4], difference, activation_name=activation, **arguments
            )
        for model in setting[:2]:
            getattr(model, f"set_{flag}")(True)
        caches = [model.run_with_cache(tokens_of(2, 5, seed=1))[1] for model in setting[:2]]
        setting = (*setting[:3], *caches)
        both("generic_activation_patch", setting, activation_name=activation, **arguments)
        both("get_act_patch_attn_head_q_all_pos", setting)


def test_caches_that_are_dicts_of_other_tensors():
    judge, model, corrupted, judges_cache, _ = pair_and_caches()
    values = {name: value * 1.5 for name, value in judges_cache.items()}
    values_of_one = {name: value[:1].float() for name, value in values.items()}
    both("get_act_patch_attn_out", (judge, model, corrupted, values_of_one, values_of_one))
    wider = {name: value.new_zeros(3, *value.shape[1:]) for name, value in values.items()}
    for module, one in ((judges, judge), (ours, model)):
        with pytest.raises((ValueError, RuntimeError)):
            module.get_act_patch_attn_out(one, corrupted, wider, difference)
        with pytest.raises(KeyError):
            module.get_act_patch_attn_out(one, corrupted, {}, difference)


def test_tokens_without_a_batch_and_in_a_batch_of_one():
    judge, model, _, judges_cache, cache = pair_and_caches(batch=1)
    tokens = tokens_of(1, 5, seed=3)
    for corrupted in (tokens, tokens[0]):
        both("get_act_patch_mlp_out", (judge, model, corrupted, judges_cache, cache))


def test_changed_weights_count():
    setting = pair_and_caches()
    before = both("get_act_patch_attn_out", setting)
    with torch.no_grad():
        for model in setting[:2]:
            model.blocks[1].mlp.W_in.mul_(1.5)
    assert not torch.allclose(both("get_act_patch_attn_out", setting), before)


def test_only_positions_that_are_read_are_computed():
    reads = []

    def read(positions):
        reads.append(positions)
        return torch.arange(30.0).view(1, 5, 6)[:, positions if positions is not None else slice(None)].clone()

    logits = PatchedLogits((1, 5, 6), torch.zeros(()), read)
    assert isinstance(logits, torch.Tensor)
    assert logits.shape == (1, 5, 6)
    assert logits[0, -1, 2] == 26
    assert logits[:, 4].shape == (1, 6)
    assert reads == [[4]]
    assert logits[:, 1:4:2].tolist() == [[[6, 7, 8, 9, 10, 11], [18, 19, 20, 21, 22, 23]]]
    assert reads == [[4], None]
    with pytest.raises(IndexError):
        logits[:, 5]

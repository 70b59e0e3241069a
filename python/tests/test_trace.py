"""Reads, edits, forks and appends of traces, rule by rule of the design, against an oracle that computes all anew."""

import numpy as np
import pytest
import torch
from helpers import assert_close, everywhere, number_of, shape_of, subject
from tiny_models import make_model, random_tokens

import glassformer

KINDS = ["gpt2", "llama", "llama_grouped", "mistral_window"]
INPUTS = {"hook_tokens", "positions", "attention_mask"}
EXACT = 1e-10  # Of the largest value, in float64.


def names_of(model):
    return [node.name for node in model.nodes()]


@pytest.fixture(params=KINDS)
def tiny(request):
    return subject(request.param)


# Reading.


def test_every_node_is_readable_and_of_the_declared_shape(tiny):
    tokens = random_tokens(2, 7)
    expected = tiny.oracle.run(tokens)
    trace = tiny.model.trace(tokens)
    assert set(names_of(tiny.model)) == set(expected)
    for node in tiny.model.nodes():
        value = trace[node.name]
        assert list(value.shape) == shape_of(node, 2, 7), node.name
        assert value.dtype == expected[node.name].dtype
        assert_close(value, expected[node.name], EXACT, node.name)


def test_order_of_reading_does_not_matter(tiny):
    tokens = random_tokens(1, 6)
    forward, backward = tiny.model.trace(tokens), tiny.model.trace(tokens)
    names = names_of(tiny.model)
    found = {name: backward[name] for name in reversed(names)}
    for name in names:
        assert_close(found[name], forward[name], EXACT, name)


def test_what_is_read_is_the_users_own():
    trace = subject("gpt2").model.trace(random_tokens(1, 5))
    before = trace.logits
    for name in ("z1", "hook_embed", "resid_post2", "hook_tokens"):
        trace.read(name).zero_()
    assert torch.equal(trace.logits, before) and trace.edited == []


def test_positions_come_in_the_order_asked_for(tiny):
    trace = tiny.model.trace(random_tokens(2, 7))
    whole = trace["z", 1]
    assert torch.equal(trace.read("z1", [4, 0, -1]), whole[:, [4, 0, 6]])
    assert torch.equal(trace.read("pattern1", [5, 2]), trace["pattern1"][:, :, [5, 2]])
    assert_close(trace.logits_at(-2), trace.logits[:, -2], EXACT)


# Rule 1: edits cover a region and nothing else.


def test_region_edit_leaves_the_rest_live(tiny):
    tokens = random_tokens(2, 6)
    trace = tiny.model.trace(tokens)
    trace.set("blocks.1.attn.hook_z", 0.5, region=np.s_[:, :, 2])
    noise = torch.randn(trace["resid_pre", 0].shape, dtype=torch.float64)
    trace["resid_pre", 0] = trace["resid_pre", 0] + noise
    shape = list(trace["z", 1].shape)
    rest = everywhere(shape)
    rest[2] = [2]
    edits = {
        "blocks.0.hook_resid_pre": [(everywhere(noise.shape), trace["resid_pre", 0])],
        "blocks.1.attn.hook_z": [(rest, 0.5)],
    }
    expected = tiny.oracle.run(tokens, edits)
    for name in names_of(tiny.model):
        assert_close(trace[name], expected[name], EXACT, name)
    assert trace.edited == ["blocks.0.hook_resid_pre", "blocks.1.attn.hook_z"]


def test_later_edits_of_a_node_win_and_a_whole_one_drops_the_rest():
    trace = subject("gpt2").model.trace(random_tokens(1, 5))
    trace.set("z1", 1.0, np.s_[:, 2])
    trace.set("z1", 2.0, np.s_[:, :, 0])
    trace.set("z1", 3.0, np.s_[:, 2, 0, 1:3])
    value = trace["z1"][0]
    assert (value[2, 1:] == 1).all() and (value[[0, 1, 3, 4], 0] == 2).all()
    assert value[2, 0].tolist() == [2, 3, 3, 2, 2, 2]
    trace["z1"] = 4.0
    assert (trace["z1"] == 4).all()
    trace.unset("z1")
    assert trace.edited == []
    assert_close(trace["z1"], subject("gpt2").model.trace(random_tokens(1, 5))["z1"], EXACT)


def test_regions_are_read_as_torch_reads_them():
    tokens = random_tokens(2, 6)
    model = subject("gpt2").model
    value = model.trace(tokens)["z1"]
    mask = torch.rand(value.shape, generator=torch.Generator().manual_seed(1)) < 0.3
    regions = [
        np.s_[...],
        np.s_[:, 3],
        np.s_[:, -1],
        np.s_[..., 2],
        np.s_[0, ..., 1:4],
        np.s_[:, ::2, 1:, -3:],
        np.s_[:, [5, 1]],
        np.s_[1, :, [0, 3]],
        np.s_[:, torch.tensor([0, 2])],
        np.s_[:, np.array([True, False, False, True, False, True])],
        np.int64(1),
        (slice(None), torch.tensor(2), np.int32(1)),
        mask,
        mask.numpy(),
    ]
    for region in regions:
        trace, expected = model.trace(tokens), value.clone()
        expected[torch.from_numpy(region) if isinstance(region, np.ndarray) else region] = 7.0
        trace.set("z1", 7.0, region)
        assert_close(trace["z1"], expected, EXACT, region)


def test_lists_of_indices_mean_their_product():
    trace = subject("gpt2").model.trace(random_tokens(1, 5))
    expected = trace["z1"]
    numbers = torch.arange(6, dtype=torch.float64).view(1, 2, 3, 1)
    trace.set("z1", numbers, np.s_[:, [4, 1], [0, 3, 2]])
    for row, position in enumerate([4, 1]):
        for column, head in enumerate([0, 3, 2]):
            expected[0, position, head] = 3 * row + column
    assert torch.equal(trace["z1"], expected)


def test_negative_indices_become_absolute_when_the_edit_is_made():
    trace = subject("llama_grouped").model.trace(random_tokens(1, 5))
    trace.set("resid_mid1", 0.0, np.s_[:, -1])
    trace.append([3, 4])
    zero = (trace["resid_mid1"] == 0).all(-1)[0]
    assert zero.tolist() == [False] * 4 + [True] + [False] * 2


def test_values_may_be_numbers_lists_arrays_and_tensors():
    model, tokens = subject("gpt2").model, random_tokens(1, 3)
    expected = torch.full((1, 3, 4, 6), 0.1, dtype=torch.float64)
    for value in (0.1, expected, expected.numpy(), expected.tolist(), expected[0, 0, 0], [0.1] * 6, np.float64(0.1)):
        trace = model.trace(tokens)
        trace["z", 1] = value
        assert torch.equal(trace["z", 1], expected)
    trace["z", 1] = torch.tensor(3)
    assert (trace["z", 1] == 3).all()


def test_given_values_are_copied():
    trace = subject("gpt2").model.trace(random_tokens(1, 3))
    value = torch.ones(1, 3, 24, dtype=torch.float64)
    trace["resid_pre1"] = value
    value.zero_()
    assert (trace["resid_pre1"] == 1).all()


def test_noop_patch_has_no_effect_at_all(tiny):
    """Setting a node to its own value, whole or in part, changes no bit and computes nothing."""
    tokens = random_tokens(2, 6)
    trace = tiny.model.trace(tokens, keep="all")
    names = names_of(tiny.model)
    values = {name: trace[name] for name in names}
    trace.reset_work()
    for name in names:
        fork = trace.fork()
        fork[name] = values[name]
        part = trace.fork()
        part.set(name, values[name][:, 1:3], np.s_[:, 1:3])
        for other in (fork, part):
            assert torch.equal(other.logits, values["logits"]), name
            assert torch.equal(other["pattern2"], values["blocks.2.attn.hook_pattern"])
    assert trace.work() == {}


def test_own_value_from_another_trace_changes_nothing(tiny):
    """The same where nothing was computed before: then to rounding only, as a skipped node may now be computed."""
    tokens = random_tokens(1, 6)
    source = tiny.model.trace(tokens)
    for name in names_of(tiny.model):
        trace = tiny.model.trace(tokens)
        trace[name] = source[name]
        assert_close(trace.logits, source.logits, EXACT, name)


# Every node, edited.


def perturbed(value, seed=3):
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(value.shape, generator=generator, dtype=torch.float64)
    return torch.where(value.isfinite(), value + 0.3 * noise, value)


@pytest.mark.parametrize("part", ["whole", "position", "rows"])
def test_every_node_edited_matches_the_oracle(tiny, part):
    tokens = random_tokens(2, 6)
    clean = tiny.model.trace(tokens, keep="all")
    expected_clean = clean.logits
    for node in tiny.model.nodes():
        if node.name in INPUTS:
            continue
        value = perturbed(clean[node.name])
        region = everywhere(value.shape)
        row_axis = 2 if "key_pos" in node.axes else 1
        if part != "whole":
            region[row_axis] = [3] if part == "position" else [1, 4]
        if part == "rows":
            region[-1] = region[-1][: max(1, len(region[-1]) // 2)]
        picked = value[torch.meshgrid(*map(torch.tensor, region), indexing="ij")]
        fork = clean.fork()
        fork.set(node.name, picked, tuple(region))
        expected = tiny.oracle.run(tokens, {node.name: [(region, picked)]})
        assert_close(fork.logits, expected["logits"], EXACT, node.name)
        layer = number_of(node.name)
        for other in names_of(tiny.model):
            if layer is None or number_of(other) in (None, layer):
                assert_close(fork[other], expected[other], EXACT, f"{other} after {node.name}")
        fork.unset(node.name)
        assert torch.equal(fork.logits, expected_clean), node.name


def test_edits_in_any_order_of_layers(tiny):
    tokens = random_tokens(1, 6)
    changes = {
        "blocks.0.attn.hook_v": (np.s_[:, 1:4, 0], [[0], [1, 2, 3], [0]], 0.7),
        "blocks.1.attn.hook_pattern": (np.s_[:, 2, 4], [[0], [2], [4]], 0.2),
        "blocks.1.hook_mlp_out": (np.s_[:, 3], [[0], [3]], -0.4),
        "blocks.2.hook_resid_pre": (np.s_[..., 5], [[0], list(range(6)), [5]], 1.5),
    }
    sizes = {node.name: shape_of(node, 1, 6) for node in tiny.model.nodes()}
    edits = {}
    for name, (_, region, number) in changes.items():
        full = region + everywhere(sizes[name])[len(region) :]
        edits[name] = [(full, number)]
    expected = tiny.oracle.run(tokens, edits)["logits"]
    found = []
    for order in (list(changes), list(reversed(changes)), sorted(changes, key=len)):
        trace = tiny.model.trace(tokens)
        for name in order:
            trace.set(name, changes[name][2], changes[name][0])
            trace.logits_at(-1)  # Reading in between must not matter.
        found.append(trace.logits)
        assert_close(found[-1], expected, EXACT)


# Rule 2: causal suffixes, and patterns that look ahead.


def test_pattern_with_weight_on_later_keys(tiny):
    """Makes a layer non-causal: an edit at the last position then reaches the first."""
    tokens = random_tokens(1, 6)
    trace = tiny.model.trace(tokens)
    row = torch.full((6,), 1 / 6, dtype=torch.float64)
    trace.set("pattern1", row, np.s_[0, 1, 0])
    before = trace.logits
    trace.set("resid_pre0", 0.3, np.s_[:, 5])
    d_model = tiny.model.config.d_model
    edits = {
        "blocks.1.attn.hook_pattern": [([[0], [1], [0], list(range(6))], row)],
        "blocks.0.hook_resid_pre": [([[0], [5], list(range(d_model))], 0.3)],
    }
    expected = tiny.oracle.run(tokens, edits)
    assert not torch.equal(trace.logits[:, 0], before[:, 0])
    for name in names_of(tiny.model):
        assert_close(trace[name], expected[name], EXACT, name)


def test_scores_for_later_keys(tiny):
    tokens = random_tokens(2, 5)
    for positions in ([0], [1, 2]):
        trace = tiny.model.trace(tokens)
        trace.logits_at(-1)
        trace.set("attn_scores1", 0.8, (slice(None), [0, 2], positions, 4))
        trace.set("v1", 0.1, np.s_[:, 4])
        sizes = {node.name: shape_of(node, 2, 5) for node in tiny.model.nodes()}
        v = everywhere(sizes["blocks.1.attn.hook_v"])
        v[1] = [4]
        edits = {
            "blocks.1.attn.hook_attn_scores": [([[0, 1], [0, 2], positions, [4]], 0.8)],
            "blocks.1.attn.hook_v": [(v, 0.1)],
        }
        expected = tiny.oracle.run(tokens, edits)
        for name in names_of(tiny.model):
            assert_close(trace[name], expected[name], EXACT, name)


# Rule 8: the fused path equals the open one.


def test_fused_path_equals_open_path(tiny):
    tokens = random_tokens(2, 9)
    fused = tiny.model.trace(tokens)
    logits = fused.logits
    group = tiny.model.config.n_heads // tiny.model.config.n_kv_heads
    for layer in range(3):
        values = fused["v", layer].repeat_interleave(group, dim=2)
        mixed = torch.einsum("bhqk,bkhe->bqhe", fused["pattern", layer], values)
        assert_close(fused["z", layer], mixed, EXACT)
        assert_close(fused["result", layer].sum(2) + bias(tiny, layer), fused["attn_out", layer], EXACT)
    opened = tiny.model.trace(tokens)
    for layer in range(3):
        opened["pattern", layer] = fused["pattern", layer] * (1 + 1e-14)
        opened["result", layer] = opened["result", layer] * (1 + 1e-14)
        opened["v_input", layer] = opened["v_input", layer] * (1 + 1e-14)
        opened["scale", layer, "ln2"] = opened["scale", layer, "ln2"] * (1 + 1e-14)
    assert_close(opened.logits, logits, EXACT)


def bias(tiny, layer):
    return tiny.model.weights.get(f"blocks.{layer}.attn.o.bias", 0)


def test_float32_fused_and_open_agree(tiny):
    model = glassformer.load(tiny.reference, dtype="float32")
    trace = model.trace(random_tokens(1, 9))
    logits = trace.logits
    for layer in range(3):
        trace["pattern", layer] = trace["pattern", layer] * (1 + 3e-7)
    assert_close(trace.logits, logits, 1e-5)


# Rule 12: inputs are nodes.


def test_tokens_are_settable(tiny):
    tokens = random_tokens(2, 6)
    other = tokens.clone()
    other[1, 3] = (tokens[1, 3] + 5) % 61
    trace = tiny.model.trace(tokens)
    trace.logits_at(-1)
    trace.set("hook_tokens", other[1, 3], np.s_[1, 3])
    assert torch.equal(trace.tokens, other)
    assert_close(trace.logits, tiny.oracle.run(other)["logits"], EXACT)


def test_positions_are_settable(tiny):
    tokens = random_tokens(2, 6)
    positions = torch.tensor([[0, 1, 2, 7, 8, 9], [3, 4, 5, 6, 7, 8]])
    expected = tiny.oracle.run(tokens, positions=positions, length=6)["logits"]
    assert_close(tiny.model.trace(tokens, positions=positions).logits, expected, EXACT)
    trace = tiny.model.trace(tokens)
    trace.logits_at(-1)
    trace["positions"] = positions
    assert_close(trace.logits, expected, EXACT)


def test_attention_mask_is_settable(tiny):
    tokens = random_tokens(2, 6)
    mask = torch.tensor([[1, 0, 1, 1, 0, 1], [0, 0, 1, 1, 1, 1]])
    expected = tiny.oracle.run(tokens, mask=mask)
    for given in (mask, mask.bool(), mask.tolist(), mask.numpy()):
        assert_close(tiny.model.trace(tokens, attention_mask=given).logits, expected["logits"], EXACT)
    trace = tiny.model.trace(tokens)
    trace.logits_at(-1)
    trace["attention_mask"] = mask
    for name in names_of(tiny.model):
        assert_close(trace[name], expected[name], EXACT, name)
    single = tiny.model.trace(tokens)
    single.set("attention_mask", 0, np.s_[:, 2])
    mask = torch.ones_like(mask)
    mask[:, 2] = 0
    assert_close(single.logits, tiny.oracle.run(tokens, mask=mask)["logits"], EXACT)


# Errors.


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("blocks.1.attn.hook_zz", ["blocks.1.attn.hook_zz", "blocks.1.attn.hook_z"]),
        ("resid_pre9", ["resid_pre9"]),
        ("bloks.0.hook_resid_pre", ["blocks.0.hook_resid_pre"]),
    ],
)
def test_unknown_node(name, words):
    trace = subject("gpt2").model.trace([1, 2])
    for attempt in (lambda: trace[name], lambda: trace.set(name, 0), lambda: trace.explain(name)):
        with pytest.raises(glassformer.NameError) as caught:
            attempt()
        for word in words:
            assert word in str(caught.value)
        assert isinstance(caught.value, KeyError) and isinstance(caught.value, glassformer.Error)


@pytest.mark.parametrize("shape", [(1, 4, 24), (2, 3, 24), (1, 3, 23), (1, 1, 3, 24), (3, 3, 24)])
def test_wrong_shape(shape):
    trace = subject("gpt2").model.trace([1, 2, 3])
    with pytest.raises(glassformer.ShapeError, match=r"resid_pre.*\[1, 3, 24\]"):
        trace["resid_pre1"] = torch.zeros(shape)
    with pytest.raises(ValueError, match="fork"):
        trace["resid_pre1"] = torch.zeros(shape)
    assert trace.edited == []


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ([], "no tokens"),
        ([[], []], "no tokens"),
        ([1, 61], "61.*vocabulary"),
        ([-1, 3], "-1.*vocabulary"),
        ([1] * 49, "49 tokens.*48"),
        ([1.5, 2.0], "integers"),
    ],
)
def test_impossible_prompts(prompt, words):
    with pytest.raises(glassformer.InputError, match=words):
        subject("gpt2").model.trace(prompt)


def test_impossible_regions_positions_and_tokens():
    trace = subject("gpt2").model.trace(random_tokens(1, 5))
    with pytest.raises(glassformer.InputError, match="head"):
        trace.set("z1", 0, np.s_[:, :, 4])
    with pytest.raises(glassformer.InputError, match="axes"):
        trace.set("z1", 0, np.s_[:, :, 1, 1, 1])
    with pytest.raises(glassformer.ShapeError, match="mask"):
        trace.set("z1", 0, torch.ones(1, 5, 4, 5, dtype=torch.bool))
    with pytest.raises(glassformer.InputError, match="position 5"):
        trace.read("z1", [5])
    with pytest.raises(glassformer.InputError, match="position -6"):
        trace.at(-6)
    with pytest.raises(glassformer.InputError, match="vocabulary"):
        trace.append([70])
    with pytest.raises(glassformer.InputError, match="tokens"):
        trace["hook_tokens"] = 99
    with pytest.raises(glassformer.InputError, match="48"):
        trace.append([1] * 44)
    with pytest.raises(glassformer.InputError, match="keep"):
        subject("gpt2").model.trace([1], keep="some")
    assert trace.length == 5 and trace.edited == []
    assert_close(trace.logits, subject("gpt2").oracle.run(random_tokens(1, 5))["logits"], EXACT)


def test_load_of_what_is_not_there(tmp_path):
    with pytest.raises(glassformer.FileError, match="nowhere"):
        glassformer.load(tmp_path / "nowhere")
    with pytest.raises(OSError, match="nowhere"):
        glassformer.load(str(tmp_path / "nowhere"))
    with pytest.raises(TypeError):
        glassformer.load(3)
    with pytest.raises(glassformer.InputError, match="float33"):
        glassformer.load(make_model("gpt2"), dtype="float33")
    with pytest.raises(glassformer.UnsupportedError, match="not supported"):
        glassformer.load(make_model("gpt2"), dtype=torch.int32)


def not_plain():
    yield torch.ones(24).to_sparse(), "a sparse one"
    yield torch.ones(24, device="meta"), "without numbers"
    with torch._subclasses.FakeTensorMode():
        yield torch.ones(24), "as fake tensors do"


def test_values_without_numbers_of_their_own_are_refused():
    trace = subject("gpt2").model.trace(random_tokens(1, 4))
    for value, found in not_plain():
        with pytest.raises(glassformer.InputError, match=f"resid_pre: a value must be a dense tensor; found .*{found}"):
            trace.set("resid_pre1", value)

    def inside(x):
        trace.set("resid_pre1", x)
        return x.sum()

    for transform in (torch.func.grad(inside), torch.vmap(inside)):
        with pytest.raises(glassformer.InputError, match="functorch"):
            transform(torch.ones(2, 24))
    assert trace.edited == []
    with torch.inference_mode():
        numbers = torch.ones(24)
    trace.set("resid_pre1", numbers)
    assert torch.equal(trace.read("resid_pre1"), torch.ones(1, 4, 24, dtype=torch.float64))


def test_a_uniform_pattern_pinned_then_an_edit_at_position_5():
    tiny, tokens = subject("gpt2"), random_tokens(1, 9)
    trace = tiny.model.trace(tokens)
    uniform = torch.full((1, 4, 9, 9), 1 / 9, dtype=torch.float64)
    trace.set("pattern2", uniform)
    before = trace.logits
    trace.set("resid_pre1", 0.5, region=(0, 5))
    whole = [list(range(size)) for size in uniform.shape]
    row = torch.full((1, 1, 24), 0.5, dtype=torch.float64)
    edits = {
        "blocks.2.attn.hook_pattern": [(whole, uniform)],
        "blocks.1.hook_resid_pre": [([[0], [5], range(24)], row)],
    }
    after = trace.logits
    assert_close(after, tiny.oracle.run(tokens, edits)["logits"], 1e-10)
    assert (after[:, 0] - before[:, 0]).abs().max() > 1e-6  # Position 0 sees position 5 now.

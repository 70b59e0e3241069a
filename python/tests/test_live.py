"""Values that a trace handed out and their user changed: constant and derived edits, and what is refused."""

import copy
import pickle
import weakref

import numpy as np
import pytest
import torch
from helpers import assert_close, everywhere, subject
from tiny_models import D_VOCAB, random_tokens

import glassformer

MODELS = ["gpt2", "llama_grouped"]


@pytest.fixture(params=MODELS)
def tiny(request):
    return subject(request.param)


@pytest.fixture
def tokens():
    return random_tokens(1, 6)


def logits(tiny, tokens, **changes):
    """The oracle's, with functions at nodes."""
    return tiny.oracle.run(tokens, {name: [lambda value, _, f=f: f(value)] for name, f in changes.items()})["logits"]


def at(node, layer):
    return f"blocks.{layer}.{node}"


def changed(change):
    def apply(value):
        value = value.clone()
        change(value)
        return value

    return apply


def zero_head(value):
    value[:, :, 1] = 0


def double_last(value):
    value[:, -1] *= 2


def through_view(value):
    value[:, 2:4].transpose(0, 1)[0].mul_(-1)


def with_list(value):
    value[:, [0, 3]] = 1


def with_pairs(value):
    value[:, [0, 3], [1, 2]] = 1  # Torch's pairs: not the product.


def with_mask(value):
    value[value > 0.5] = 0.25


def with_tensor_index(value):
    value[0, torch.tensor([1, 4])] = 0.5


def by_data(value):
    value.data[..., 0] = 3


def by_numpy(value):
    value.detach().numpy()[..., 1] = 4


def whole(value):
    value.clamp_(min=0)


CHANGES = [
    zero_head,
    double_last,
    through_view,
    with_list,
    with_pairs,
    with_mask,
    with_tensor_index,
    by_data,
    by_numpy,
    whole,
]


@pytest.mark.parametrize("change", CHANGES)
def test_every_way_to_change_a_value_counts(tiny, tokens, change):
    trace = tiny.model.trace(tokens)
    value = trace["z1"]
    change(value)
    assert_close(trace.logits, logits(tiny, tokens, **{at("attn.hook_z", 1): changed(change)}), 1e-10)
    assert torch.equal(trace.read("z1"), value)
    assert trace.edited == ["blocks.1.attn.hook_z"]


def test_what_is_not_changed_edits_nothing(tiny, tokens):
    trace = tiny.model.trace(tokens)
    before = trace.logits.clone()
    value = trace["z1"]
    value.numpy(), value + 1, value.clone().zero_(), value.sum(), repr(value), value[0].tolist()
    value += 0.0 * value  # Adds nothing; -0.0 where it was 0 would be another bit.
    assert trace.edited == []
    assert torch.equal(trace.logits, before)


def test_augmented_assignment_on_the_trace(tiny, tokens):
    trace = tiny.model.trace(tokens)
    trace["resid_pre1"] += 1
    trace["resid_pre1"] *= 0.5
    trace.at([-1])["resid_post1"] -= 2
    expected = logits(
        tiny,
        tokens,
        **{
            at("hook_resid_pre", 1): lambda value: (value + 1) * 0.5,
            at("hook_resid_post", 1): changed(lambda value: value[:, -1].sub_(2)),
        },
    )
    assert_close(trace.logits, expected, 1e-10)


def test_several_changes_between_reads_of_one_value(tiny, tokens):
    trace = tiny.model.trace(tokens)
    value = trace["resid_pre1"]
    value += 1
    first = trace.logits
    value[:, 0] = 0
    value *= 2
    change = lambda v: changed(lambda x: x[:, 0].zero_())(v + 1) * 2  # noqa: E731
    assert_close(first, logits(tiny, tokens, **{at("hook_resid_pre", 1): lambda v: v + 1}), 1e-10)
    assert_close(trace.logits, logits(tiny, tokens, **{at("hook_resid_pre", 1): change}), 1e-10)


def test_assignments_are_constant(tiny, tokens):
    trace = tiny.model.trace(tokens)
    late = trace["resid_post1"]
    late[:, 2] = 0.5
    trace["resid_pre0"][:, 1] = 0  # Upstream, afterwards.
    late[:, 4] = 0.25  # By index again: says what is to stand there.
    expected = logits(
        tiny,
        tokens,
        **{
            at("hook_resid_pre", 0): changed(lambda v: v[:, 1].zero_()),
            at("hook_resid_post", 1): changed(lambda v: (v[:, 2].fill_(0.5), v[:, 4].fill_(0.25))),
        },
    )
    assert_close(trace.logits, expected, 1e-10)


def test_steer_layer_2_then_layer_1_in_place(tiny, tokens):
    """The later change was made from a value that the earlier layer's change then replaced."""
    trace = tiny.model.trace(tokens)
    trace["resid_post1"] += 1
    trace.logits  # noqa: B018
    trace["resid_post0"] += 1
    with pytest.raises(glassformer.OrderError, match=r"blocks.1.hook_resid_post.*blocks.0.hook_resid_post.*hook"):
        trace.logits  # noqa: B018
    trace.unset("resid_post1")
    trace["resid_post1"] += 1  # Upstream first: both count.
    both = {at("hook_resid_post", layer): lambda value: value + 1 for layer in (0, 1)}
    assert_close(trace.logits, logits(tiny, tokens, **both), 1e-10)
    hooked = tiny.model.trace(tokens)  # As hooks they have no order.
    hooked.hook("resid_post1", lambda value, call: value + 1)
    hooked.hook("resid_post0", lambda value, call: value + 1)
    assert_close(hooked.logits, logits(tiny, tokens, **both), 1e-10)


def test_ablate_a_head_in_layer_2_then_one_in_layer_1(tiny, tokens):
    trace = tiny.model.trace(tokens)
    trace["z2"][:, :, 0] = 0
    trace["z1"][:, :, 1] = 0
    expected = logits(
        tiny,
        tokens,
        **{
            at("attn.hook_z", 2): changed(lambda v: v[:, :, 0].zero_()),
            at("attn.hook_z", 1): changed(lambda v: v[:, :, 1].zero_()),
        },
    )
    assert_close(trace.logits, expected, 1e-10)


OUTDATED = {
    "an edit upstream": lambda trace: trace.set("resid_pre0", 1, region=(0, 0)),
    "an edit of it": lambda trace: trace.set("z1", 1),
    "another value of it": lambda trace: trace["z1"].mul_(2),
    "a hook upstream": lambda trace: trace.hook("resid_pre0", lambda value, call: value * 2),
    "an append": lambda trace: trace.append([3]),
    "a cut": lambda trace: trace.truncate(4),
    "edits dropped": lambda trace: trace.unset("resid_pre1"),
}


@pytest.mark.parametrize("outdating", OUTDATED)
def test_changing_a_value_that_is_no_longer_the_nodes(tiny, tokens, outdating):
    trace = tiny.model.trace(tokens)
    trace.set("resid_pre1", 0.5, region=(slice(None), 0))
    value = trace["z1"]
    OUTDATED[outdating](trace)
    plain = trace.read("logits")
    value += 1
    with pytest.raises(glassformer.StaleEditError, match=r"blocks.1.attn.hook_z.*read it again"):
        trace.logits  # noqa: B018
    assert torch.equal(trace.logits, plain)  # Said once; the change is dropped.
    again = trace["z1"]
    again += 1
    assert not torch.equal(trace.logits, plain)


def test_edits_downstream_leave_a_value_alone(tiny, tokens):
    trace = tiny.model.trace(tokens)
    value = trace["z1"]
    trace.set("resid_post1", 0.5, region=(slice(None), 0))
    value *= 2
    expected = logits(
        tiny,
        tokens,
        **{
            at("attn.hook_z", 1): lambda v: v * 2,
            at("hook_resid_post", 1): changed(lambda v: v[:, 0].fill_(0.5)),
        },
    )
    assert_close(trace.logits, expected, 1e-10)


def test_two_values_of_one_node_that_both_changed(tiny, tokens):
    trace = tiny.model.trace(tokens)
    one, two = trace["z1"], trace["z1"]
    one += 1
    two += 2
    with pytest.raises(glassformer.StaleEditError, match=r"blocks.1.attn.hook_z"):
        trace.logits  # noqa: B018


def test_forks_collect_first_and_go_their_own_way(tiny, tokens):
    trace = tiny.model.trace(tokens)
    value = trace["resid_pre1"]
    value += 1
    fork = trace.fork()
    value += 1  # After the fork: the trace's alone.
    assert_close(fork.logits, logits(tiny, tokens, **{at("hook_resid_pre", 1): lambda v: v + 1}), 1e-10)
    assert_close(trace.logits, logits(tiny, tokens, **{at("hook_resid_pre", 1): lambda v: v + 2}), 1e-10)


def test_leaving_a_with_block_collects_and_lets_go(tiny, tokens):
    with tiny.model.trace(tokens) as trace:
        value = trace["resid_pre1"]
        value += 1
    once = trace.logits
    assert_close(once, logits(tiny, tokens, **{at("hook_resid_pre", 1): lambda v: v + 1}), 1e-10)
    value += 1
    value[0, 0] = 0
    assert torch.equal(trace.logits, once)


def test_a_value_outlives_its_trace(tiny, tokens):
    trace = tiny.model.trace(tokens)
    value = trace["resid_pre1"]
    expected = value + 1
    del trace
    value += 1
    value[:, 0] = 0
    assert torch.equal(value[:, 1:], expected[:, 1:])


def test_windows(tiny, tokens):
    trace = tiny.model.trace(tokens)
    window = trace.at([1, -1])
    value = window["resid_pre1"]
    value[:, 0] = 0
    value[:, 1, ::2] = 1
    window["resid_post1"][0] *= 2
    window["z2"][:, [1]] = 3

    def first(v):
        v[:, 1] = 0
        v[:, -1, ::2] = 1

    expected = logits(
        tiny,
        tokens,
        **{
            at("hook_resid_pre", 1): changed(first),
            at("hook_resid_post", 1): changed(lambda v: (v[:, 1].mul_(2), v[:, -1].mul_(2))),
            at("attn.hook_z", 2): changed(lambda v: v[:, -1].fill_(3)),
        },
    )
    assert_close(trace.logits, expected, 1e-10)
    masked = tiny.model.trace(tokens).at([2, 4])
    part = masked["resid_pre1"]
    part[part > 0] = -1

    def cut(v):
        for position in (2, 4):
            v[:, position] = torch.where(v[:, position] > 0, -1.0, v[:, position])

    assert_close(masked.trace.logits, logits(tiny, tokens, **{at("hook_resid_pre", 1): changed(cut)}), 1e-10)


def test_inside_a_hook_values_are_copies(tiny, tokens):
    trace = tiny.model.trace(tokens)

    def hook(value, call):
        trace["resid_pre0"].zero_()
        return value

    trace.hook("resid_pre1", hook)
    assert_close(trace.logits, logits(tiny, tokens), 1e-12)


def test_tokens_changed_in_place(tiny, tokens):
    trace = tiny.model.trace(tokens)
    trace.logits  # noqa: B018
    trace["hook_tokens"][0, 2] = 9
    other = tokens.clone()
    other[0, 2] = 9
    assert_close(trace.logits, logits(tiny, other), 1e-10)
    value = trace["hook_tokens"]
    value += D_VOCAB
    with pytest.raises(glassformer.InputError, match=r"hook_tokens: expected numbers from 0"):
        trace.logits  # noqa: B018


def test_a_zeroed_neuron_that_was_0_stays_zeroed(tokens):
    """An assignment is constant although it changed nothing when it was made."""
    tiny = subject("gpt2_relu")
    trace = tiny.model.trace(tokens)
    post = trace["post1"]
    position, neuron = (post[0] == 0).nonzero()[0].tolist()
    post[0, position, neuron] = 0
    base = trace.read("resid_pre1")
    trace.set("resid_pre1", -3 * base)
    plain = tiny.model.trace(tokens)
    plain.set("resid_pre1", -3 * base)
    assert plain.read("post1")[0, position, neuron] != 0, "the test needs a neuron that wakes up"
    assert trace.read("post1")[0, position, neuron] == 0
    edits = {
        "blocks.1.hook_resid_pre": [(everywhere(base.shape), -3 * base)],
        "blocks.1.mlp.hook_post": [([[0], [position], [neuron]], torch.zeros(1, 1, 1, dtype=torch.float64))],
    }
    assert_close(trace.logits, tiny.oracle.run(tokens, edits)["logits"], 1e-10)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_a_no_op_has_effect_exactly_0(dtype, tokens):
    tiny = subject("llama_grouped", dtype)
    trace = tiny.model.trace(tokens)
    fork = trace.fork()
    before = trace.logits.clone()
    for name in ("resid_pre1", "z1", "pattern2", "post0", "resid_post2"):
        fork[name] = trace[name]
        value = fork[name]
        value[:] = value.clone()
    assert torch.equal(fork.logits, before)


def test_values_can_be_copied_and_pickled(tiny, tokens):
    value = tiny.model.trace(tokens)["z1"]
    for other in (copy.deepcopy(value), pickle.loads(pickle.dumps(value)), value.clone(), value[:, :]):
        assert type(other) is torch.Tensor
        assert torch.equal(other, value)
    assert isinstance(value, glassformer.LiveTensor)
    assert repr(value).startswith("tensor(")
    assert np.asarray(value).shape == tuple(value.shape)


def test_values_share_memory_until_they_are_changed(tiny, tokens):
    trace = tiny.model.trace(tokens)
    value = trace["resid_post1"]
    assert torch._C._is_cow_tensor(value)
    value += 1
    assert not torch.equal(trace.fork().read("resid_post0"), value)


def test_a_wrong_shape_is_refused_and_nothing_lost(tiny, tokens):
    trace = tiny.model.trace(tokens)
    value = trace["z1"]
    with pytest.raises(RuntimeError):
        value[:, 0] = torch.zeros(7)
    assert trace.edited == []
    assert_close(trace.logits, logits(tiny, tokens), 1e-12)


@pytest.mark.parametrize("with_graph", [False, True])
@pytest.mark.parametrize("cut", [False, True])
def test_a_change_made_under_an_edit_that_is_dropped(tiny, tokens, cut, with_graph):
    """Whether the trace was cut meanwhile, and whether the value carried a graph, so that no effects were found out."""
    trace = tiny.model.trace(tokens).requires_grad_(with_graph)
    trace.set("resid_pre0", 0.5, region=(slice(None), 0))
    trace["z1"] *= 2
    if cut:
        trace.truncate(4)
    trace.unset("resid_pre0")
    with pytest.raises(glassformer.OrderError, match=r"blocks.1.attn.hook_z.*an edit dropped since"):
        trace.logits  # noqa: B018
    trace.unset("z1")
    assert_close(trace.logits.detach(), logits(tiny, tokens[:, : trace.length]), 1e-10)


def test_assignments_from_the_values_own_numbers_and_with_repeated_indices(tiny, tokens):
    trace = tiny.model.trace(tokens)
    value = trace["resid_pre1"]
    value[:, 0] = value[:, 1]
    value[:, [2, 2]] = 0.5

    def change(v):
        v[:, 0] = v[:, 1]
        v[:, 2] = 0.5

    assert_close(trace.logits, logits(tiny, tokens, **{at("hook_resid_pre", 1): changed(change)}), 1e-10)


def test_assignments_into_a_pattern_that_has_grown_or_was_cut(tiny, tokens):
    trace = tiny.model.trace(tokens[:, :4])
    pattern = trace["pattern1"]
    trace.append(tokens[0, 4:].tolist())
    pattern[:, 0] = 0.25
    pattern[pattern > 0.9] = 0
    change = lambda v: v[:, :, :4, :4].copy_(pattern)  # noqa: E731
    assert_close(trace.logits, logits(tiny, tokens, **{at("attn.hook_pattern", 1): changed(change)}), 1e-10)
    trace.truncate(3)
    before = trace.logits
    for chosen in ((slice(None), 0), pattern > -1):
        with pytest.raises(glassformer.InputError, match=r"blocks.1.attn.hook_pattern"):
            pattern[chosen] = 1
    assert torch.equal(trace.logits, before)  # Said once, and nothing is half done.


def test_assigning_into_a_value_that_is_no_longer_the_nodes_brings_nothing_else_back(tiny, tokens):
    for with_graph in (False, True):
        trace = tiny.model.trace(tokens).requires_grad_(with_graph)
        value = trace["resid_pre1"]
        trace.set("resid_pre1", 0.5, region=(slice(None), 0))
        value[:, 4] = 0.25
        change = changed(lambda v: (v[:, 0].fill_(0.5), v[:, 4].fill_(0.25)))
        assert_close(trace.logits.detach(), logits(tiny, tokens, **{at("hook_resid_pre", 1): change}), 1e-10)


def test_numbers_assigned_into_a_value_with_a_graph_stay_when_it_is_changed_later(tiny, tokens):
    """Of a window, by an index that is no product; gradients go around them."""
    trace = tiny.model.trace(tokens).requires_grad_()
    with trace:
        held = trace.at([0, 2])["mlp_out1"]
        held[:, torch.tensor([1, 1])] = 0.5
    with torch.no_grad():
        held.zero_()
    found = trace.grad(trace.logits.sum(), "resid_pre1")
    fork = tiny.model.trace(tokens)
    fork.set("mlp_out1", 0.5, region=(slice(None), 2))
    assert_close(found, fork.grad(lambda trace: trace.logits.sum(), "resid_pre1"), 1e-10)


@pytest.mark.parametrize("index", [(0, 2), (slice(None), torch.tensor([2, 2]))], ids=["product", "pairs"])
def test_numbers_assigned_into_a_value_with_a_graph_stay_when_weights_change(tokens, index):
    tiny = subject.__wrapped__("llama")
    trace = tiny.model.trace(tokens[:1]).requires_grad_()
    trace["mlp_out1"][index] = 0.5
    with torch.no_grad():
        tiny.model.weights["blocks.1.mlp.out.weight"].mul_(0.5)
    found = trace.grad(trace.logits.sum(), "resid_pre1")
    fork = tiny.model.trace(tokens[:1])
    fork.set("mlp_out1", 0.5, region=(slice(None), 2))
    assert_close(found, fork.grad(lambda trace: trace.logits.sum(), "resid_pre1"), 1e-10)


def test_a_key_counted_from_the_end_is_the_values_own_after_an_append(tiny, tokens):
    trace, fork = tiny.model.trace(tokens[:, :4]), tiny.model.trace(tokens)
    held = trace["pattern1"]
    trace.append(tokens[:, 4:])
    held[:, 0, :, -3] = 0.5
    fork.set("pattern1", 0.5, region=(slice(None), 0, [0, 1, 2, 3], 1))
    assert_close(trace.logits, fork.logits, 1e-10)


def test_changes_that_wait_together_are_collected_in_computing_order(tiny, tokens):
    """Whichever was handed out or changed first: the upper one was made from what the lower one's change replaces."""
    for first, second in (("resid_pre1", "resid_post1"), ("resid_post1", "resid_pre1")):
        trace = tiny.model.trace(tokens)
        held = {name: trace[name] for name in (first, second)}
        for value in held.values():
            value *= 2
        with pytest.raises(glassformer.StaleEditError, match=r"blocks\.1\.hook_resid_post.*read it again"):
            trace.read("logits")
        expected = logits(tiny, tokens, **{at("hook_resid_pre", 1): changed(lambda v: v.mul_(2))})
        assert_close(trace.logits, expected, 1e-10)


@pytest.mark.parametrize("with_graph", [False, True])
def test_what_a_user_has_let_go_of_is_let_go_of(tiny, tokens, with_graph):
    """Its memory too; a change that was made before still counts."""
    trace = tiny.model.trace(tokens, keep="needed").requires_grad_(with_graph)
    value = trace["resid_post1"]
    value *= 2
    change = weakref.ref(value)
    del value
    expected = logits(tiny, tokens, **{at("hook_resid_post", 1): changed(lambda v: v.mul_(2))})
    assert_close(trace.logits.detach(), expected, 1e-10)
    value = trace.at([1, 2])["z1"]
    window = weakref.ref(value)
    del value
    trace.unset("resid_post1")
    assert window() is None
    assert with_graph or change() is None


def test_what_a_user_has_let_go_of_goes_while_others_are_held(tiny, tokens):
    trace = tiny.model.trace(tokens)
    held = [trace["resid_post1"] for _ in range(40)]
    released = [weakref.ref(trace["z1"]) for _ in range(400)]
    assert sum(each() is not None for each in released) < 100
    held[3][:, 0] = 2
    assert trace["resid_post1"][:, 0].eq(2).all()


def test_changes_that_do_not_count_leave_values_with_a_graph_alone(tiny, tokens):
    trace = tiny.model.trace(tokens).requires_grad_()
    with trace:
        held = trace["resid_pre1"]
    read, expected = trace.read("z1"), logits(tiny, tokens)
    stream, mixed = held.detach().clone(), read.detach().clone()
    with torch.no_grad():
        held.zero_(), read.zero_(), trace.logits.zero_()
    assert torch.equal(trace.read("resid_pre1").detach(), stream)
    assert torch.equal(trace.read("z1").detach(), mixed)
    assert_close(trace.logits.detach(), expected, 1e-10)


def test_a_hook_that_sees_less_makes_a_change_ambiguous(tiny):
    """A segment that is cut short gives its hook other input, also for the positions that stay."""
    trace = tiny.model.trace(random_tokens(1, 4))
    trace.append(random_tokens(1, 3, seed=1))
    trace.hook("hook_embed", lambda value, _: value + value.mean(dim=1, keepdim=True))
    trace.at([5])["resid_mid1"][:] *= 2
    trace.read("logits")
    trace.truncate(6)
    with pytest.raises(glassformer.OrderError, match="hook_embed"):
        trace.read("logits")

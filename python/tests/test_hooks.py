"""Hooks: when they are called, with what, and what they change; derived edits; the errors of both."""

import threading

import numpy as np
import pytest
import torch
from helpers import assert_close, subject
from tiny_models import make_model, random_tokens

import glassformer

KINDS = ["gpt2", "llama_grouped"]


@pytest.fixture(params=KINDS)
def tiny(request):
    return subject(request.param)


class Calls:
    """A hook that notes where it is called and passes on what `change` makes of the value."""

    def __init__(self, change=lambda value: None):
        self.change = change
        self.seen = []

    def __call__(self, value, call):
        self.seen.append((call.name, call.segment, call.begin, call.end))
        return self.change(value)


def test_a_hook_changes_what_follows(tiny):
    tokens = random_tokens(2, 6)
    trace = tiny.model.trace(tokens)
    trace.hook("resid_post0", lambda value, call: value * 1.5)
    trace.hook(("z", 1), lambda value, call: value[:, :, :1].mul_(0))
    expected = tiny.oracle.run(
        tokens,
        {
            "blocks.0.hook_resid_post": [lambda value, segment: value * 1.5],
            "blocks.1.attn.hook_z": [lambda value, segment: value[:, :, :1].mul_(0).expand_as(value)],
        },
    )
    for name in ("blocks.0.hook_resid_post", "blocks.1.attn.hook_z", "logits"):
        assert_close(trace[name], expected[name], 1e-10, name)


def test_changes_in_place_count(tiny):
    tokens = random_tokens(1, 5)
    trace = tiny.model.trace(tokens)

    def double(value, call):
        value[:, 2] *= 2

    trace.hook("resid_mid1", double)
    other = tiny.model.trace(tokens)
    value = other["resid_mid1"]
    value[:, 2] *= 2
    other["resid_mid1"] = value
    assert_close(trace.logits, other.logits, 1e-12)


def test_called_once_for_each_segment_and_input(tiny):
    trace = tiny.model.trace(random_tokens(1, 4))
    hook = Calls()
    trace.hook("resid_pre1", hook)
    assert hook.seen == []
    trace["resid_mid0"]
    assert hook.seen == []
    name = "blocks.1.hook_resid_pre"
    trace.logits_at(-1)
    assert hook.seen == [(name, 0, 0, 4)]
    fork = trace.fork()
    assert torch.equal(fork.logits, trace.logits)
    trace["resid_pre1"]
    assert len(hook.seen) == 1
    trace.append(random_tokens(1, 2, seed=5))
    trace.logits_at(-1)
    assert hook.seen[1:] == [(name, 1, 4, 6)]
    fork.set("hook_embed", 0.5, region=np.s_[:, 1])
    fork.logits_at(-1)
    assert hook.seen[2:] == [(name, 0, 0, 4)]
    fork.unset("hook_embed")
    fork.set("hook_embed", fork["hook_embed"][:, 3], region=np.s_[:, 3])  # No change.
    fork.logits_at(-1)
    assert len(hook.seen) == 3


def test_a_call_with_the_same_numbers_is_not_repeated(tiny):
    trace = tiny.model.trace(random_tokens(1, 4))
    hook = Calls(lambda value: value + 1)
    trace.hook("resid_post1", hook)
    trace["resid_mid1"] = 0.25
    trace["blocks.1.hook_mlp_out"] = 0.5
    first = trace.logits
    trace.set("z0", 3.0)  # Upstream, but what the hook gets is the same.
    assert torch.equal(trace.logits, first)
    assert len(hook.seen) == 1


def test_a_random_hook_is_read_twice_with_one_outcome(tiny):
    trace = tiny.model.trace(random_tokens(1, 6))
    trace.hook("mlp_out1", lambda value, call: torch.nn.functional.dropout(value, 0.5))
    first = trace.logits
    assert torch.equal(trace.fork().logits, first)
    assert torch.equal(trace.logits, first)
    assert (trace["mlp_out1"] == 0).any()


def test_a_hook_that_changes_nothing_has_no_effect(tiny):
    tokens = random_tokens(1, 6)
    trace = tiny.model.trace(tokens)
    plain = trace.fork().logits
    trace.hook("pattern1", lambda value, call: value.clone())
    trace.hook("resid_pre2", lambda value, call: None)
    trace.reset_work()
    assert torch.equal(trace.logits, plain)
    assert "blocks.2.hook_resid_post" not in trace.work()


def test_hooks_fire_in_computing_order_and_run_calls_them_all(tiny):
    trace = tiny.model.trace(random_tokens(1, 4))
    hook = Calls()
    for name in ("logits", "z1", "resid_pre0", "pattern1", "ln_final.hook_scale", "result0"):
        trace.hook(name, hook)
    trace.run("resid_post1")
    full = [trace.model.node_name(name) for name in ("resid_pre0", "result0", "pattern1", "z1")]
    assert [name for name, *_ in hook.seen] == full
    trace.run()
    assert [name for name, *_ in hook.seen[4:]] == ["ln_final.hook_scale", "logits"]
    trace.run()
    assert len(hook.seen) == 6


def test_hooks_at_chosen_segments(tiny):
    trace = tiny.model.trace(random_tokens(1, 3))
    hook = Calls(lambda value: value * 0)
    trace.hook("mlp_out0", hook, segments=[1])
    trace.append(random_tokens(1, 2, seed=1))
    trace.append(random_tokens(1, 1, seed=2))
    assert (trace["mlp_out0"][0].abs().sum(-1) == 0).tolist() == [False] * 3 + [True] * 2 + [False]
    assert hook.seen == [("blocks.0.hook_mlp_out", 1, 3, 5)]
    with pytest.raises(glassformer.InputError, match="segments"):
        trace.hook("mlp_out0", hook, segments=[])


def test_a_hook_reads_earlier_nodes_and_other_traces(tiny):
    clean, trace = tiny.model.trace(random_tokens(1, 5)), tiny.model.trace(random_tokens(1, 5, seed=1))
    seen = {}

    def patch(value, call):
        seen["earlier"] = trace["resid_pre1"]
        value[:, 2] = clean["z1"][:, 2]
        return value

    trace.hook("z1", patch)
    other = tiny.model.trace(random_tokens(1, 5, seed=1))
    other.set("z1", clean["z1"][:, 2], region=np.s_[:, 2])
    assert_close(trace.logits, other.logits, 1e-12)
    assert_close(seen["earlier"], other["resid_pre1"], 1e-12)


@pytest.mark.parametrize(
    "inside",
    [
        lambda trace: trace["z1"],
        lambda trace: trace.logits,
        lambda trace: trace.set("resid_pre0", 0),
        lambda trace: trace.unset("z1"),
        lambda trace: trace.hook("z1", lambda value, call: None),
        lambda trace: trace.append(torch.tensor([1])),
        lambda trace: trace.edit("resid_pre0", lambda value: value * 2),
    ],
)
def test_inside_a_hook_its_trace_stays_as_it_is(tiny, inside):
    trace = tiny.model.trace(random_tokens(1, 5))
    trace.hook("z1", lambda value, call: inside(trace))
    with pytest.raises(glassformer.OrderError, match=r"a hook on blocks\.1\.attn\.hook_z is running"):
        trace.logits  # noqa: B018
    trace.unset("z1")
    assert torch.equal(trace.logits, tiny.model.trace(random_tokens(1, 5)).logits)


def test_an_error_in_a_hook_leaves_the_trace_usable(tiny):
    trace = tiny.model.trace(random_tokens(1, 5))
    failing = [True]

    def hook(value, call):
        if failing[0]:
            raise RuntimeError("my own")
        return value * 2

    trace.hook("resid_pre1", hook)
    with pytest.raises(RuntimeError, match="my own"):
        trace.logits  # noqa: B018
    trace["resid_mid0"]
    failing[0] = False
    other = tiny.model.trace(random_tokens(1, 5))
    other["resid_pre1"] = other["resid_pre1"] * 2
    assert_close(trace.logits, other.logits, 1e-12)


def test_wrong_results_and_arguments(tiny):
    trace = tiny.model.trace(random_tokens(1, 5))
    trace.hook("resid_pre1", lambda value, call: value[:, :2])
    with pytest.raises(glassformer.ShapeError, match=r"blocks\.1\.hook_resid_pre.*expected.*\[1, 5, "):
        trace.logits  # noqa: B018
    trace.unset("resid_pre1")
    trace.hook("resid_pre1", lambda value, call: "no tensor")
    with pytest.raises(glassformer.InputError, match="returned str; expected a tensor, or None"):
        trace.logits  # noqa: B018
    with pytest.raises(glassformer.InputError, match="a hook is a function"):
        trace.hook("resid_pre1", 3)
    with pytest.raises(glassformer.NameError, match="nearest"):
        trace.hook("resid_prae1", Calls())


def test_hooks_die_on_any_thread(tiny):
    died = []

    class Noting:
        def __call__(self, value, call):
            return value * 2

        def __del__(self):
            died.append(threading.current_thread().name)

    trace = tiny.model.trace(random_tokens(1, 5))
    trace.hook("resid_pre1", Noting())
    held = [trace]
    del trace
    held[0].logits_at(-1)
    thread = threading.Thread(target=held.clear, name="other")
    thread.start()
    thread.join()
    assert died == ["other"]


@pytest.mark.parametrize("keep", ["budget", "all", "needed"])
def test_steering_an_earlier_layer_after_a_later_one(tiny, keep):
    tokens = random_tokens(1, 6)
    trace = tiny.model.trace(tokens, keep=keep)
    trace.hook("resid_post2", lambda value, call: value + 1)
    trace.logits  # noqa: B018
    trace.hook("resid_post1", lambda value, call: value - 0.5)
    expected = tiny.oracle.run(
        tokens,
        {
            "blocks.2.hook_resid_post": [lambda value, segment: value + 1],
            "blocks.1.hook_resid_post": [lambda value, segment: value - 0.5],
        },
    )
    assert_close(trace.logits, expected["logits"], 1e-10)


def test_derived_edits_have_an_order(tiny):
    tokens = random_tokens(1, 6)
    trace = tiny.model.trace(tokens)
    trace.edit("resid_post2", lambda value: value + 1)
    expected = tiny.oracle.run(tokens, {"blocks.2.hook_resid_post": [lambda value, segment: value + 1]})
    assert_close(trace.logits, expected["logits"], 1e-10)
    trace.edit("resid_post1", lambda value: value - 0.5)
    message = r"blocks\.2\.hook_resid_post\[.*changed in place.*blocks\.1\.hook_resid_post.*hook.*unset"
    with pytest.raises(glassformer.OrderError, match=message):
        trace.logits  # noqa: B018
    trace["resid_pre2"]
    trace.unset("resid_post1")
    assert_close(trace.logits, expected["logits"], 1e-10)


def test_a_derived_edit_stands_where_nothing_changed_before_it(tiny):
    trace = tiny.model.trace(random_tokens(1, 6))
    trace.edit("resid_post1", lambda value: value.mul_(2))
    first = trace.logits
    trace.set("resid_pre1", trace["resid_pre1"][:, 2], region=np.s_[:, 2])  # The same numbers.
    trace.append(random_tokens(1, 2, seed=3))
    assert_close(trace.logits[:, :6], first, 1e-12)


def test_a_batch_calls_a_hook_once_with_the_padded_tensor(tiny):
    prompts = [random_tokens(length, seed=length).tolist() for length in (3, 6, 4)]
    batch = tiny.model.trace(prompts)
    seen = []

    def centre(value, call):
        seen.append((tuple(value.shape[:2]), call.begin, call.end))
        return value - value.mean(0, keepdim=True) * batch.mask[:, -value.shape[1] :, None]

    plain = batch["resid_pre1"]
    batch.hook("resid_pre1", centre)
    with pytest.raises(glassformer.UnavailableError, match="a batch of 3 prompts: read the batch"):
        batch.traces[1].logits  # noqa: B018
    value = plain - plain.mean(0, keepdim=True)
    real = batch.mask
    assert_close(batch["resid_pre1"][real], value[real], 1e-12)
    logits = batch.logits
    assert seen == [((3, 6), 0, 6)]
    for index, prompt in enumerate(prompts):
        alone = tiny.model.trace(prompt)
        alone["resid_pre1"] = value[index : index + 1, -len(prompt) :]
        assert_close(logits[index, -len(prompt) :], alone.logits[0], 1e-10)
    assert torch.equal(batch.traces[1].logits[0], logits[1])
    batch.append([[1], [2, 3], [4]])
    batch.run()
    assert seen[1:] == [((3, 2), 6, 8)]
    batch.traces[1].set("hook_embed", 0.5, region=np.s_[:, 0])
    batch.logits_at(-1)
    assert [shape for shape, *_ in seen[2:]] == [(3, 6), (3, 2)]


def test_generation_with_hooks(tiny):
    prompts = [random_tokens(length, seed=length).tolist() for length in (3, 5)]
    direction = torch.linspace(-1, 1, tiny.model.config.d_model, dtype=torch.float64)
    hook = Calls(lambda value: value + 3 * direction)
    steered = glassformer.StepHook("resid_pre1", hook, steps=[1, 2])
    found = tiny.model.generate(prompts, max_new_tokens=4, stop_tokens=[], hooks=[steered])
    for prompt, generated in zip(prompts, found, strict=True):
        ids, begins = list(prompt), []
        for step in range(4):
            segments = [(0, len(prompt)), *((at, at + 1) for at in range(len(prompt), len(ids)))]
            change = [lambda value, segment: value + 3 * direction if segment in (1, 2) else value]
            logits = tiny.oracle.run(torch.tensor([ids]), {"blocks.1.hook_resid_pre": change}, segments=segments)[
                "logits"
            ]
            begins.append(step)
            ids.append(logits[0, -1].argmax().item())
        assert generated.ids == ids[len(prompt) :]
    assert sorted({segment for _, segment, *_ in hook.seen}) == [1, 2]
    assert len(hook.seen) == 4


def test_bfloat16_hooks_get_and_give_the_models_dtype():
    reference = make_model("llama", torch.bfloat16)
    trace = glassformer.load(reference).trace(random_tokens(1, 4))
    dtypes = []

    def hook(value, call):
        dtypes.append(value.dtype)
        return value.double() * 2

    trace.hook("resid_pre1", hook)
    assert trace["resid_pre1"].dtype == torch.bfloat16
    assert dtypes == [torch.bfloat16]


def test_a_batch_whose_traces_were_appended_to_unequally_is_refused(tiny):
    batch = tiny.model.trace([[1, 2, 3], [4, 5]])
    batch.hook("resid_pre1", lambda value, call: value * 2)
    batch.traces[1].append([6])
    with pytest.raises(glassformer.OrderError, match="different numbers of segments"):
        batch.logits  # noqa: B018


def test_names_without_a_layer(tiny):
    assert tiny.model.node_name("scale") == "ln_final.hook_scale"
    assert tiny.model.node_name(("normalized",)) == "ln_final.hook_normalized"
    with pytest.raises(glassformer.NameError):
        tiny.model.node_name("out")


def by_hand(trace, site, value):
    """The logits of a fork in which numbers stand at a node."""
    fork = trace.fork()
    fork.unset(site)
    fork[site] = value
    return fork.logits


@pytest.mark.parametrize("by_call", [True, False], ids=["call.read", "trace.read"])
@pytest.mark.parametrize("with_graph", [False, True], ids=["plain", "graph"])
def test_a_hook_is_called_again_when_what_it_read_changes(tiny, with_graph, by_call):
    """Its own input stays the same: a layer in between is set to fixed numbers."""
    trace = tiny.model.trace(random_tokens(2, 6)).requires_grad_(with_graph)
    calls = Calls()

    def twice(value, call):
        calls(value, call)
        return (call if by_call else trace).read("resid_post0") * 2

    trace.hook("resid_post2", twice)
    trace["resid_post1"] = 0.5
    for change in (None, 1.0, 1.0, 3.0):
        if change is not None:
            trace["resid_post0"] = change
        expected = trace.read("resid_post0").detach() * 2
        assert torch.equal(trace.read("resid_post2").detach(), expected)
        assert_close(trace.logits.detach(), by_hand(trace, "resid_post2", expected).detach(), 1e-12)
    assert len(calls.seen) == 4
    trace.logits_at(-1)
    trace.fork().logits_at(0)
    assert len(calls.seen) == 4 + with_graph  # A fork's graph is its own.


@pytest.mark.parametrize("with_graph", [False, True], ids=["plain", "graph"])
def test_a_hook_reads_a_node_that_nothing_of_its_own_depends_on(tiny, with_graph):
    trace = tiny.model.trace(random_tokens(2, 6)).requires_grad_(with_graph)
    trace.hook("attn_out1", lambda value, call: value + 1)
    trace.hook("v1", lambda value, call: call.read("k1") * 2)
    first = trace.logits.detach()
    trace["k1"] = 1.0
    assert trace.read("v1").unique().tolist() == [2]
    assert_close(trace.logits.detach(), by_hand(trace, "v1", 2.0).detach(), 1e-12)
    assert not torch.equal(trace.logits.detach(), first)
    trace.unset("k1")
    assert_close(trace.logits.detach(), first, 1e-12)


def test_a_hook_reads_what_a_weight_changes():
    model = glassformer.load(make_model("gpt2", torch.float64))
    trace = model.trace(random_tokens(1, 5))
    trace.hook("resid_post2", lambda value, call: call.read("resid_post0") * 2)
    trace["resid_post1"] = 0.5
    before = trace.read("resid_post2")
    model.weights["blocks.0.mlp.out.weight"] *= 2
    assert not torch.equal(trace.read("resid_post2"), before)
    assert torch.equal(trace.read("resid_post2"), trace.read("resid_post0") * 2)


def test_a_hook_that_reads_at_each_step():
    model = glassformer.load(make_model("gpt2", torch.float64))
    trace = model.trace(random_tokens(1, 5))
    calls = Calls()
    trace.hook("resid_post2", lambda value, call: calls(value, call) or call.read("resid_post0") * 2)
    trace.logits_at(-1)
    trace.append([3, 4])
    trace.logits_at(-1)
    assert calls.seen == [("blocks.2.hook_resid_post", 0, 0, 5), ("blocks.2.hook_resid_post", 1, 5, 7)]
    trace.at([6]).set("resid_post0", 1.0)
    assert torch.equal(trace.read("resid_post2"), trace.read("resid_post0") * 2)
    assert calls.seen[2:] == [("blocks.2.hook_resid_post", 1, 5, 7)]

"""Nodes of one's own: probes on a model, and models of nothing else, against plain torch."""

import gc
import types
import weakref

import numpy as np
import pytest
import torch
from autoencoder import Autoencoder
from helpers import assert_close, subject
from tiny_models import random_tokens

import glassformer


@pytest.fixture(params=["gpt2", "llama_grouped"])
def tiny(request):
    return subject(request.param)


# --- Nodes that feed nothing -----------------------------------------------------------------------------------------


def cumulative_mean(x, positions):
    sums = x.cumsum(1)[:, positions]
    return sums / (positions + 1)[:, None]


def test_probes(tiny):
    weight = torch.randn(tiny.model.config.d_model, 2, dtype=torch.float64)
    NewNode = glassformer.NewNode
    model = tiny.model.extend(
        [
            NewNode("probe1.hook_out", ["resid_post1"], "batch pos class=2", torch.matmul, weights=["probe1.weight"]),
            NewNode("mean1", glassformer.up_to(("resid_post", 1)), f"batch pos d_model={len(weight)}", cumulative_mean),
            NewNode(
                "probe1.margin", ["probe1.out", "mean1"], "batch pos", lambda out, mean: out[..., 0] - mean[..., 0]
            ),
        ],
        weights={"probe1.weight": weight},
    )
    assert "probe1.weight" in model.weights and torch.equal(model.weights["probe1.weight"], weight)
    assert "probe1.weight" not in tiny.model.weights
    assert model.n_parameters == tiny.model.n_parameters + weight.numel()
    names = [node.name for node in model.nodes()]
    start = names.index("blocks.1.hook_resid_post")
    assert names[start : start + 5] == [
        "blocks.1.hook_resid_post",
        "probe1.hook_out",
        "mean1",
        "probe1.margin",
        "blocks.2.hook_attn_in" if tiny.model.config.n_kv_heads == 4 else "blocks.2.hook_resid_pre",
    ][:5] or names[start + 4].startswith("blocks.2")
    tokens = random_tokens(2, 8)
    trace = model.trace(tokens[:, :5])
    assert torch.equal(trace.logits, tiny.model.trace(tokens[:, :5]).logits)
    assert not any("probe1" in name or "mean1" in name for name in trace.work())
    stream = trace["resid_post1"]
    assert_close(trace["probe1.out"], stream @ weight, 1e-12)
    means = stream.cumsum(1) / torch.arange(1, 6)[:, None]
    assert_close(trace.read("mean1", [3, 1]), means[:, [3, 1]], 1e-12)
    assert_close(trace["probe1.margin"], (stream @ weight)[..., 0] - means[..., 0], 1e-12)
    trace.append(tokens[:, 5:])
    trace.set("resid_post1", 0.5, np.s_[:, 2])
    stream = trace["resid_post1"]
    assert_close(trace["mean1"], stream.cumsum(1) / torch.arange(1, 9)[:, None], 1e-12)
    fork = tiny.model.trace(tokens)
    fork.read("logits")
    fork = fork.fork(model)
    fork.read("mean1")
    assert set(fork.work()) <= {"mean1"}


def test_one_input_in_any_spelling(tiny):
    for inputs in ("resid_post1", ("resid_post", 1), [("resid_post", 1)], ["blocks.1.hook_resid_post"]):
        model = tiny.model.extend([node(inputs=inputs)])
        trace = model.trace(random_tokens(1, 4))
        assert torch.equal(trace["mine"], trace["resid_post1"][..., :3])


def test_a_name_says_nothing_of_the_dtype():
    tiny = subject("gpt2", torch.bfloat16)
    trace = tiny.model.extend([node("mine.hook_scale")]).trace(random_tokens(1, 4))
    trace.set("mine.hook_scale", 1, np.s_[:, 2])
    assert torch.equal(trace["mine.hook_scale"][0, 2], torch.ones(3, dtype=torch.bfloat16))
    assert trace["mine.scale"].dtype == torch.bfloat16
    with pytest.raises(glassformer.InputError, match="nothing can be spliced onto"):
        tiny.model.splice("ln_final.hook_scale", "sae", lambda x: x, lambda x: x)


def test_nodes_are_found_and_explained(tiny):
    def nearest(x):
        return x[..., :1]

    model = tiny.model.extend([glassformer.NewNode("blocks.1.hook_first", ["resid_post1"], "batch pos 1", nearest)])
    model = model.splice("first1", "sae", lambda x: x, lambda x: x)
    trace = model.trace(random_tokens(1, 4))
    assert torch.equal(trace["first1"], trace["resid_post1"][..., :1])
    assert torch.equal(trace["first", 1], trace["blocks.1.first"])
    assert model.node_name("first-2") == "blocks.1.hook_first"
    assert "nearest(blocks.1.hook_resid_post)" in trace.explain("sae.in")
    assert "identity(sae.hook_in)" in trace.explain("first1")
    assert "passes over sae.hook_acts" in trace.explain("first1")
    assert "encode(sae.hook_in)" in trace.explain("sae.acts")
    assert model.trace([1, 2]).explain("logits") == tiny.model.trace([1, 2]).explain("logits")


# --- Models of nothing else ------------------------------------------------------------------------------------------


def toy(dtype=torch.float64, seed=0):
    """A one-layer transformer: attention of one head, written by hand."""
    generator = torch.Generator().manual_seed(seed)
    weights = {
        name: torch.randn(shape, generator=generator, dtype=torch.float64) * 0.5
        for name, shape in {"E": (11, 6), "P": (20, 6), "Q": (6, 3), "K": (6, 3), "V": (6, 6), "U": (6, 11)}.items()
    }

    def attend(q, k, v, positions):
        scores = q @ k.mT
        scores = scores.masked_fill(torch.arange(k.shape[1]) > positions[:, None], -torch.inf)
        return scores.softmax(-1) @ v

    def project(x, weight):
        return x @ weight

    up_to, NewNode = glassformer.up_to, glassformer.NewNode
    nodes = [
        NewNode("hook_embed", "hook_tokens", "batch pos d=6", lambda tokens, E: E[tokens], weights="E"),
        NewNode("hook_pos_embed", "positions", "batch pos d=6", lambda positions, P: P[positions], weights="P"),
        NewNode("blocks.0.hook_resid_pre", ["hook_embed", "hook_pos_embed"], "batch pos d=6", lambda x, y: x + y),
        NewNode("blocks.0.attn.hook_q", ["resid_pre0"], "batch pos d_head=3", project, ["Q"]),
        NewNode("blocks.0.attn.hook_k", ["resid_pre0"], "batch pos d_head=3", project, ["K"]),
        NewNode("blocks.0.attn.hook_v", ["resid_pre0"], "batch pos d=6", project, ["V"]),
        NewNode("blocks.0.hook_attn_out", ["q0", up_to("k0"), up_to(("v", 0))], "batch pos d=6", attend),
        NewNode("blocks.0.hook_resid_post", ["resid_pre0", "attn_out0"], "batch pos d=6", lambda x, y: x + y),
        NewNode("logits", ["resid_post0"], "batch pos d_vocab=11", project, ["U"]),
    ]
    model = glassformer.define(nodes, d_vocab=11, n_ctx=20, weights=weights, name="toy", dtype=dtype)

    def judge(tokens, change=lambda stream: stream):
        w = types.SimpleNamespace(**weights)
        x = change(w.E[tokens] + w.P[: tokens.shape[1]])
        scores = (x @ w.Q) @ (x @ w.K).mT
        scores = scores + torch.full(scores.shape[-2:], -torch.inf, dtype=scores.dtype).triu(1)
        return (x + scores.softmax(-1) @ (x @ w.V)) @ w.U

    return model, judge


def test_a_toy_is_traced_as_any_model():
    model, judge = toy()
    assert model.config.n_layers == 1 and model.n_parameters == 11 * 6 * 2 + 20 * 6 + 6 * 3 * 2 + 36
    assert list(model.weights) == ["E", "K", "P", "Q", "U", "V"] and "toy" in repr(model)
    assert model.nodes()[3].name == "hook_embed" and model.nodes()[-1].name == "logits"
    tokens = torch.randint(0, 11, (2, 9), generator=torch.Generator().manual_seed(2))
    trace = model.trace(tokens)
    assert_close(trace.logits, judge(tokens), 1e-12)
    assert_close(trace.fork().logits_at(3), judge(tokens)[:, 3], 1e-12)

    def change(stream):
        stream = stream.clone()
        stream[:, 4] = 0.5
        return stream

    fork = trace.fork()
    trace.reset_work()
    fork.set("resid_pre-1", 0.5, np.s_[:, 4])
    assert_close(fork.logits, judge(tokens, change), 1e-12)
    assert set(fork.work().values()) == {10}  # Positions 4 to 8 of two sequences.
    hooked = trace.fork()
    hooked.hook("resid_pre0", lambda value, call: change(value))
    assert_close(hooked.logits, judge(tokens, change), 1e-12)
    grown = model.trace(tokens[:, :4])
    grown.read("logits")
    grown.reset_work()
    grown.append(tokens[:, 4:])
    assert_close(grown.logits, judge(tokens), 1e-12)
    assert set(grown.work().values()) == {10}
    assert "attend(blocks.0.attn.hook_q, blocks.0.attn.hook_k, blocks.0.attn.hook_v)" in trace.explain("attn_out0")
    assert "hook_v (positions up to each)" in trace.explain("attn_out0")


def test_a_toy_in_batches_and_sweeps():
    model, judge = toy()
    prompts = [[1, 2, 3], [4, 5, 6, 7, 8], [9], [10, 0, 1]]
    batch = model.trace(prompts)
    for prompt, logits in zip(prompts, glassformer.read_all(batch.traces, "logits"), strict=True):
        assert_close(logits, judge(torch.tensor([prompt])), 1e-12)
    assert_close(batch.logits_at(-1)[1], judge(torch.tensor([prompts[1]]))[0, -1], 1e-12)
    trace = model.trace(prompts[1])
    sweep = [trace.fork() for _ in range(5)]
    for position, fork in enumerate(sweep):
        fork.set("resid_pre0", 0.25, np.s_[:, position])

    def change_at(position):
        def change(stream):
            stream = stream.clone()
            stream[:, position] = 0.25
            return stream

        return change

    for position, logits in enumerate(glassformer.read_all(sweep, "logits")):
        assert_close(logits, judge(trace.tokens, change_at(position)), 1e-12)


def test_a_toy_generates_and_is_extended():
    model, judge = toy()
    found = model.generate([3, 1], max_new_tokens=6)
    tokens = torch.tensor([[3, 1]])
    for _ in range(6):
        tokens = torch.cat([tokens, judge(tokens)[:, -1].argmax(-1, keepdim=True)], dim=1)
    assert found.ids == tokens[0, 2:].tolist()
    sae = Autoencoder(6)
    bigger = model.splice("resid_post0", "sae", sae.encode, sae.decode)
    trace = found.trace.fork(bigger)
    assert torch.equal(trace.logits, found.trace.logits)
    trace["sae.error"] = 0
    with torch.no_grad():
        stream = sae.decode(sae.encode(found.trace["resid_post0"]))
    assert_close(trace.logits, stream @ model.weights["U"], 1e-12)
    with pytest.raises(glassformer.InputError, match="outside the vocabulary of 11"):
        model.trace([11])
    with pytest.raises(glassformer.InputError, match="context is 20"):
        model.trace([1] * 21)


def test_a_toy_in_float32():
    model, judge = toy(torch.float32)
    tokens = torch.tensor([[1, 2, 3, 4]])
    assert model.trace(tokens).logits.dtype == torch.float32
    assert_close(model.trace(tokens).logits, judge(tokens), 1e-5)


# --- What goes wrong -------------------------------------------------------------------------------------------------


def node(name="mine", inputs=("resid_post1",), axes="batch pos d=3", run=lambda x: x[..., :3], **more):
    return glassformer.NewNode(name, inputs, axes, run, **more)


@pytest.mark.parametrize(
    ("nodes", "kind", "message"),
    [
        ([node("logits")], glassformer.InputError, "'logits' is logits already"),
        ([node("z1")], glassformer.InputError, "'z1' is blocks.1.attn.hook_z already"),
        ([node("blocks.1.z")], glassformer.InputError, "'z1' is blocks.1.attn.hook_z already"),
        ([node("blocks.1.hook_z")], glassformer.InputError, "'z1' is blocks.1.attn.hook_z already"),
        ([node("hook_scale")], glassformer.InputError, "'scale' is ln_final.hook_scale already"),
        ([node("a b")], glassformer.InputError, "is no name for a node"),
        ([node(""), node()], glassformer.InputError, "is no name for a node"),
        ([node(), node()], glassformer.InputError, "'mine' is mine already"),
        ([node(inputs=["resid_pots1"])], glassformer.NameError, "nearest: .*resid_post1"),
        ([node(inputs=["mine"])], glassformer.InputError, "node 'mine' reads 'mine', which is itself"),
        ([node(inputs=["later"]), node("later")], glassformer.InputError, "'later', which comes after it"),
        ([node(inputs=[])], glassformer.InputError, "has no inputs"),
        ([node(axes="pos d=3")], glassformer.InputError, "expected 'batch pos'"),
        ([node(axes="batch")], glassformer.InputError, "expected 'batch pos'"),
        ([node(axes="batch pos d")], glassformer.InputError, "axis 'd' has no size; write it as 'd=12'"),
        ([node(axes="batch pos d=0")], glassformer.InputError, "has no size"),
        ([node(axes="batch pos d=3 d=3")], glassformer.InputError, "two axes 'd'"),
        ([node(axes="batch pos head=2 key_pos=3")], glassformer.InputError, "only 'pos' can"),
        ([node(weights=["unembed.weihgt"])], glassformer.NameError, "nearest: unembed.weight"),
        ([node(run=3)], TypeError, "run is a function; found int"),
    ],
)
def test_nodes_that_can_not_be(tiny, nodes, kind, message):
    with pytest.raises(kind, match=message):
        tiny.model.extend(nodes)


def test_weights_and_models_that_can_not_be(tiny):
    with pytest.raises(glassformer.InputError, match=r"'unembed\.weight' already"):
        tiny.model.extend([], weights={"unembed.weight": torch.zeros(3)})
    with pytest.raises(glassformer.InputError, match="needs nodes"):
        glassformer.define([], d_vocab=3, n_ctx=3)
    with pytest.raises(glassformer.InputError, match="d_vocab and n_ctx"):
        glassformer.define([node(inputs="hook_tokens")], d_vocab=0, n_ctx=3)
    with pytest.raises(glassformer.NameError):
        glassformer.define([node(inputs="hook_embed")], d_vocab=3, n_ctx=3)
    toy = glassformer.define([node(inputs="hook_tokens", run=lambda t: torch.stack([t] * 3, -1))], d_vocab=3, n_ctx=3)
    assert torch.equal(toy.trace([1, 2])["mine"], torch.tensor([[[1.0] * 3, [2.0] * 3]]))
    with pytest.raises(glassformer.NameError, match="'logits'"):
        toy.trace([1]).read("logits")


def test_what_steps_do_wrong_leaves_the_trace_as_it_is(tiny):
    faults = iter(["error", "shape", "kind", "none"])
    fault = next(faults)

    def run(x):
        if fault == "error":
            raise ZeroDivisionError("mine")
        if fault == "shape":
            return x
        return {"kind": 3, "none": None, "good": x[..., :3]}[fault]

    model = tiny.model.extend([node(run=run)])
    trace = model.trace(random_tokens(1, 5))
    for kind, message in [
        (ZeroDivisionError, "mine"),
        (glassformer.ShapeError, r"mine: its step returned \[1, 5, \d+\]; expected \[1, 5, 3\] \(batch pos d\)"),
        (glassformer.InputError, "the step of node 'mine' returned int; expected a tensor"),
        (glassformer.InputError, "returned NoneType"),
    ]:
        with pytest.raises(kind, match=message):
            trace.read("mine")
        fault = next(faults, "good")
    assert torch.equal(trace["mine"], trace["resid_post1"][..., :3])
    assert torch.equal(trace.logits, tiny.model.trace(trace.tokens).logits)


def test_steps_can_not_read_their_own_trace(tiny):
    traces = []

    def run(x):
        return traces[0]["resid_post0"][..., :3] + x[..., :3]

    model = tiny.model.extend([node(run=run)])
    traces.append(model.trace(random_tokens(1, 5)))
    with pytest.raises(glassformer.OrderError, match="can't be read from inside"):
        traces[0].read("mine")
    trace = traces[0]
    traces[0] = tiny.model.trace(random_tokens(1, 5))  # Another family's may be.
    assert torch.equal(trace["mine"], (traces[0]["resid_post0"] + trace["resid_post1"])[..., :3])


def test_steps_hold_nothing_of_the_engine(tiny):
    """What a step changes in place or gives away and changes later changes no value."""
    given = []

    def run(x):
        x.mul_(0)
        out = torch.ones(*x.shape[:2], 3, dtype=x.dtype)
        given.append(out)
        return out

    model = tiny.model.extend(
        [node(run=run), node("same", axes=f"batch pos d={tiny.model.config.d_model}", run=run_same)]
    )
    trace = model.trace(random_tokens(1, 5))
    before = trace["resid_post1"]
    assert torch.equal(trace["mine"], torch.ones(1, 5, 3))
    given[0].zero_()
    assert torch.equal(trace["mine"], torch.ones(1, 5, 3))
    assert torch.equal(trace["same"], before)
    assert torch.equal(trace["resid_post1"], before)


def run_same(x):
    return x


def test_steps_may_use_autograd_and_inference_mode(tiny):
    weight = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))

    def slope(x):
        with torch.enable_grad():
            x = x.requires_grad_()
            (gradient,) = torch.autograd.grad((x**2).sum(), x)
        return gradient[..., :3] * weight

    @torch.inference_mode()
    def inferred(x):
        return x[..., :3] + 1

    def attached(x):
        with torch.enable_grad():
            return x[..., :3] * weight

    model = tiny.model.extend([node(run=slope), node("inferred", run=inferred), node("attached", run=attached)])
    trace = model.trace(random_tokens(1, 5))
    assert_close(trace["mine"], 2 * trace["resid_post1"][..., :3], 1e-12)
    assert not trace["mine"].requires_grad and not trace["attached"].requires_grad
    assert not trace["inferred"].is_inference()
    trace.set("inferred", 0, np.s_[:, 2])
    assert_close(trace["inferred"][:, 3], trace["resid_post1"][:, 3, :3] + 1, 1e-12)


def test_functions_go_with_the_model(tiny):
    class Function:
        def __call__(self, x):
            return x[..., :3]

    function = Function()
    gone = weakref.ref(function)
    model = tiny.model.extend([node(run=function)])
    trace = model.trace(random_tokens(1, 4))
    del function, model
    assert trace["mine"].shape == (1, 4, 3)
    del trace
    gc.collect()
    assert gone() is None

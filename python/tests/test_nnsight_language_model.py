"""Traces in nnsight's vocabulary: reads and changes of modules' values, against hooks on the `transformers` model."""

import pytest
import torch
from tiny_models import make_model

import glassformer
from glassformer.nnsight import LanguageModel

KINDS = ["gpt2", "llama_grouped"]
IDS, OTHER = [1, 5, 3, 7, 9], [4, 2, 8]


def blocks(model):
    return model.transformer.h if hasattr(model, "transformer") else model.model.layers


def both(kind, dtype=torch.float64):
    reference = make_model(kind, dtype)
    return reference, LanguageModel(reference)


def outputs_of(reference, ids, changes=()):
    """What each module of the reference returns, by its own path; `changes`: (path, "input" or "output", function)."""
    found, handles = {}, []

    def first(value):
        return value[0] if isinstance(value, tuple) else value

    def before(function):
        def run(module, args, kwargs):
            if args:
                return (function(args[0]), *args[1:]), kwargs
            name = next(iter(kwargs))
            return args, {**kwargs, name: function(kwargs[name])}

        return run

    def behind(function):
        def run(module, args, output):
            return (function(output[0]), *output[1:]) if isinstance(output, tuple) else function(output)

        return run

    for path, what, function in changes:
        module = reference.get_submodule(path)
        if what == "input":
            handles.append(module.register_forward_pre_hook(before(function), with_kwargs=True))
        else:
            handles.append(module.register_forward_hook(behind(function)))
    for path, module in reference.named_modules():
        handles.append(module.register_forward_hook(lambda m, a, o, path=path: found.__setitem__(path, first(o))))
    try:
        logits = reference(torch.tensor([ids] if isinstance(ids[0], int) else ids), use_cache=False).logits
    finally:
        for handle in handles:
            handle.remove()
    return {**found, "": logits}


def path_of(model, layer, rest=""):
    return f"{'transformer.h' if hasattr(model, 'transformer') else 'model.layers'}.{layer}{rest}"


def same(found, expected, kind="gpt2"):
    """Of Llama, transformers computes norms in float32 whatever the dtype; GPT-2's values agree exactly."""
    assert found.shape == expected.shape
    tolerance = 1e-10 if kind == "gpt2" else 2e-5
    torch.testing.assert_close(found.detach().as_subclass(torch.Tensor), expected.detach(), rtol=0, atol=tolerance)


def copy_and(change):
    def run(value):
        value = value.clone()
        change(value)
        return value

    return run


WAYS = {
    "assign": lambda block, numbers: setattr(block, "output", (block.output[0] + numbers,)),
    "assign a tensor": lambda block, numbers: setattr(block, "output", block.output[0] + numbers),
    "assign an entry": lambda block, numbers: block.output.__setitem__(0, block.output[0] + numbers),
    "a slice": lambda block, numbers: block.output[0].__setitem__(slice(None), block.output[0] + numbers),
    "augmented": lambda block, numbers: block.output[0].add_(numbers),
    "a view": lambda block, numbers: block.output[0][:, 0:][..., :].add_(numbers),
    "detached": lambda block, numbers: block.output[0].detach().add_(numbers),
}


@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", KINDS)
def test_ways_to_change(kind, way, gradients):
    reference, model = both(kind)
    numbers = torch.randn(1, 1, 24 if kind == "gpt2" else 32, dtype=torch.float64)
    expected = outputs_of(reference, IDS, [(path_of(model, 1), "output", lambda value: value + numbers)])
    with torch.set_grad_enabled(gradients), model.trace(IDS):
        before = blocks(model)[1].output[0]
        kept = before.detach().clone()
        WAYS[way](blocks(model)[1], numbers)
        changed, logits = blocks(model)[1].output[0], model.output.logits
        assert changed.requires_grad == gradients
    same(changed, expected[path_of(model, 1)], kind)
    same(logits, expected[""], kind)
    assert torch.equal(before, kept)  # What was read stays as it was read.


@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_several_prompts_and_changes_in_place(kind, gradients):
    reference, model = both(kind)

    def change(block):
        block.output[0][:, -1] = 2.0
        block.output[0][:, -1] *= block.output[0][:, -2:-1].sum(-1)

    def changed(value):
        value = value.clone()
        value[:, -1] = 2.0
        value[:, -1] = value[:, -1] * value[:, -2:-1].sum(-1)
        return value

    with torch.set_grad_enabled(gradients), model.trace() as tracer:
        with tracer.invoke([IDS, OTHER]):
            change(blocks(model)[0])
            pair = model.output.logits
        with tracer.invoke(OTHER):
            alone = model.output.logits
        with tracer.invoke():
            change(blocks(model)[2])
            whole = model.output.logits
    for rows, ids, edited in ((pair[0:1], IDS, [0]), (pair[1:2], OTHER, [0])):
        expected = outputs_of(reference, ids, [(path_of(model, layer), "output", changed) for layer in edited])[""]
        same(rows[:, -len(ids) :], expected, kind)
    same(alone, outputs_of(reference, OTHER)[""], kind)
    for row, ids, edited in ((0, IDS, [0, 2]), (1, OTHER, [0, 2]), (2, OTHER, [2])):
        expected = outputs_of(reference, ids, [(path_of(model, layer), "output", changed) for layer in edited])[""]
        same(whole[row : row + 1, -len(ids) :], expected, kind)


def test_shared_inputs_are_the_modules_own():
    """The input of the first norm is the residual stream; changing what the norm sees leaves the stream alone."""
    reference, model = both("gpt2")
    path = path_of(model, 1, ".ln_1")
    expected = outputs_of(reference, IDS, [(path, "input", lambda value: value * 3)])
    for way in ("assign", "in place", "index"):
        with model.trace(IDS):
            norm = model.transformer.h[1].ln_1
            if way == "assign":
                norm.input = norm.input * 3
            elif way == "in place":
                norm.input.mul_(3)
            else:
                value = norm.input * 3
                norm.input[:, 2:] = value[:, 2:]
                norm.input[:, :2] = value[:, :2]
            seen, logits = norm.input, model.output.logits
        same(logits, expected[""])
        same(seen, outputs_of(reference, IDS)[path_of(model, 0)] * 3)
    reference, model = both("llama_grouped")
    path = path_of(model, 1, ".self_attn.q_proj")
    expected = outputs_of(reference, IDS, [(path, "input", lambda value: value * 3)])
    with model.trace(IDS):
        model.model.layers[1].self_attn.q_proj.input *= 3
        logits = model.output.logits
    same(logits, expected[""], "llama")


@pytest.mark.parametrize("gradients", [True, False])
def test_only_changes_in_place_have_an_order(gradients):
    reference, model = both("gpt2")
    with torch.set_grad_enabled(gradients), model.trace(IDS):
        blocks(model)[2].output[0][:, 1] = 0.5
        blocks(model)[1].mlp.output = blocks(model)[1].mlp.output * 0
        blocks(model)[0].output[0][:, 2] = 0.25
        logits = model.output.logits
    changes = [
        (path_of(model, 2), "output", copy_and(lambda value: value[:, 1].fill_(0.5))),
        (path_of(model, 1, ".mlp"), "output", torch.zeros_like),
        (path_of(model, 0), "output", copy_and(lambda value: value[:, 2].fill_(0.25))),
    ]
    same(logits, outputs_of(reference, IDS, changes)[""])
    with (
        pytest.raises(glassformer.OrderError, match=r"blocks\.2\.hook_resid_post") as raised,
        torch.set_grad_enabled(gradients),
        model.trace(IDS),
    ):
        blocks(model)[2].output[0].mul_(2)
        blocks(model)[0].output[0][:, 2] = 0.25
        model.output.logits.sum()
    assert "hook" in str(raised.value) and "set" in str(raised.value)


@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("several", [True, False])
def test_what_was_overtaken_is_refused(gradients, several):
    _, model = both("gpt2")
    with (
        pytest.raises(glassformer.StaleEditError, match="read it again"),
        torch.set_grad_enabled(gradients),
        model.trace([IDS, OTHER] if several else IDS),
    ):
        first, second = blocks(model)[1].output[0], blocks(model)[1].output[0]
        first.add_(1)
        model.output.logits.sum()
        second.mul_(2)
        model.output.logits.sum()


@pytest.mark.parametrize("prompts", [[IDS], [IDS, OTHER], [IDS, IDS[::-1]]])
def test_tokens(prompts):
    """`.t` and `.token` count a sequence's own tokens, and writing through them counts."""
    reference, model = both("gpt2")
    plain = [outputs_of(reference, ids)[path_of(model, 1)] for ids in prompts]
    with model.trace(prompts):
        value = blocks(model)[1].output[0]
        first, last, two = value.t[0], value.token[-1], value.t[[0, 2]]
        sliced = value.t[:2]
        transposed = value[0].t()
    for row, own in enumerate(plain):
        same(first[row : row + 1], own[:, 0])
        same(last[row : row + 1], own[:, -1])
        same(two[row : row + 1], own[:, [0, 2]])
        same(sliced[row : row + 1], own[:, :2])
    assert transposed.shape == (24, max(map(len, prompts)))
    with model.trace(prompts):
        blocks(model)[1].output[0].t[0] = 1.0
        blocks(model)[1].output[0].t[[1, 2]] *= 2
        blocks(model)[1].output[0].token[-1].add_(3)
        blocks(model)[1].output[0].t[0:1][:] += 0.5
        with pytest.raises(glassformer.InputError, match="token 99"):
            blocks(model)[1].output[0].t[99]
        logits = model.output.logits

    def change(value):
        value[:, 0] = 1.0
        value[:, [1, 2]] *= 2
        value[:, -1] += 3
        value[:, 0] += 0.5

    for row, ids in enumerate(prompts):
        expected = outputs_of(reference, ids, [(path_of(model, 1), "output", copy_and(change))])[""]
        same(logits[row : row + 1, -len(ids) :], expected)


def test_the_old_way_to_write_inputs():
    """`.input[0][0]` is a row of a row, unless it is used as only the whole argument can be."""
    reference, model = both("gpt2")
    before = outputs_of(reference, IDS)[path_of(model, 0)].detach()
    with model.trace(IDS):
        block = blocks(model)[1]
        same(block.input[0][0], before[0, 0])
        same(block.input[0][0][:, 2], before[:, 2])
        same(block.input[0][0].t[-1], before[:, -1])
        same(block.input[0][:, 2], before[0][:, 2])
        block.input[0][0][:, 1] = 0
        block.input[0][2] = 1
        changed = block.input
        assert model.transformer.input[0][0][:, 3].tolist() == [IDS[3]]
    before[:, 1] = 0
    before[:, 2] = 1
    same(changed, before)


def test_gradients():
    reference, model = both("gpt2")
    ids = torch.tensor([IDS])
    hidden = {}
    handles = [
        reference.transformer.h[layer].register_forward_hook(
            lambda m, a, o, layer=layer: hidden.__setitem__(layer, o[0] if isinstance(o, tuple) else o)
        )
        for layer in (0, 1)
    ]
    logits = reference(ids, use_cache=False).logits
    for handle in handles:
        handle.remove()
    loss = logits[0, -1].logsumexp(0) + hidden[0].pow(2).sum()
    expected = torch.autograd.grad(loss, [hidden[0], hidden[1]], retain_graph=True)
    with model.trace(IDS):
        first, second = blocks(model)[0].output[0], blocks(model)[1].output[0]
        pattern = blocks(model)[1].attn.output[1]
        value = model.output.logits[0, -1].logsumexp(0) + first.pow(2).sum()
        again = torch.autograd.grad(value, [first, second, pattern], retain_graph=True)
        with value.backward():
            late = second.grad
            early = first.grad
            squared = value.grad
    same(early, expected[0])
    same(late, expected[1])
    same(again[0], expected[0])
    same(again[1], expected[1])
    assert again[2].shape == (1, 4, 5, 5) and again[2].abs().max() > 0
    assert squared == 1
    same(first.grad, expected[0])
    with model.trace(IDS):
        first, second = blocks(model)[0].output[0], blocks(model)[1].output[0]
        with model.output.logits[0, -1].logsumexp(0).backward():
            second.grad[:, -1] = 0
            second.grad *= 2
            early = first.grad
    gradient = torch.autograd.grad(logits[0, -1].logsumexp(0), hidden[1], retain_graph=True)[0].clone()
    gradient[:, -1] = 0
    same(early, torch.autograd.grad(hidden[1], hidden[0], 2 * gradient, retain_graph=True)[0])


def test_gradients_through_values_between_invokes():
    reference, model = both("gpt2")
    weight = torch.randn(24, dtype=torch.float64, requires_grad=True)
    with model.trace() as tracer:
        with tracer.invoke(IDS):
            source = blocks(model)[0].output[0]
        with tracer.invoke(OTHER):
            blocks(model)[1].output[0][:, 0] = source[:, 2] * weight
            loss = model.output.logits[0, -1].logsumexp(0)
        with loss.backward():
            found = source.grad
    given = outputs_of(reference, IDS)[path_of(model, 0)].detach().requires_grad_()
    own = weight.detach().clone().requires_grad_()

    def put(value):
        return torch.cat([given[:, 2:3] * own, value[:, 1:]], 1)

    expected = outputs_of(reference, OTHER, [(path_of(model, 1), "output", put)])[""][0, -1].logsumexp(0)
    expected.backward()
    same(found, given.grad)
    same(weight.grad, own.grad)


def test_early_reads_compute_nothing_later():
    _, model = both("gpt2")
    with model.trace(IDS) as tracer:
        blocks(model)[0].output[0].sum()
        assert "blocks.1.hook_resid_post" not in tracer.traces[0].work()
        tracer.stop()
        raise AssertionError("behind stop()")
    assert "blocks.1.hook_resid_post" not in tracer.traces[0].work()
    with model.generate(IDS, max_new_tokens=9, eos_token_id=None) as tracer:
        for step in tracer.iter[:]:
            blocks(model)[0].output[0].sum()
            if step == 2:
                tracer.stop()
    assert tracer.traces[0].length == len(IDS) + 2
    assert tracer.traces[0].work()["blocks.2.hook_resid_post"] == 2  # What drawing two tokens took.
    assert tracer.result.shape == (1, len(IDS) + 2)


def test_values_are_ordinary_tensors_afterwards():
    _, model = both("gpt2")
    with model.trace(IDS) as tracer:
        value = blocks(model)[1].output[0]
        pair = blocks(model)[1].attn.output
        kept = value.detach().clone()
        assert len(tracer.watch.values()) == 1
    value.detach()[:] = 0
    assert value.abs().max() == 0 and kept.abs().max() > 0
    assert pair[0].shape == (1, 5, 24) and pair[1].shape == (1, 4, 5, 5)
    with pytest.raises(glassformer.UnavailableError, match=r"inside `with model\.trace"):
        _ = blocks(model)[1].output
    with pytest.raises(glassformer.UnavailableError, match="closed"):
        pair[0] = kept
    assert tracer.watch.values() == []


@pytest.mark.parametrize("held", ["view", "array", "whole"])
@pytest.mark.parametrize("gradients", [True, False])
def test_values_that_nobody_has_are_let_go(gradients, held):
    """However many are read in one trace; one that somebody has, or a view or an array of, still counts."""
    _, model = both("gpt2")
    with torch.set_grad_enabled(gradients), model.trace(IDS) as tracer:
        attention = blocks(model)[1].attn.c_attn
        if held == "view":
            kept = attention.output[0, 2]
        elif held == "array":
            kept = attention.output.detach().numpy()[0, 2]
        else:
            whole = attention.output
        for _ in range(300):
            _ = attention.output.shape
        assert len(tracer.watch.values()) < 70
        if held == "whole":
            whole[0, 2].fill_(3)
        else:
            kept[:] = 3
        found = attention.output
    assert (found[0, 2] == 3).all() and found[0, 1].ne(3).any()


def test_errors():
    _, model = both("gpt2")
    with pytest.raises(glassformer.InputError, match="needs a tokenizer"):
        model.trace("text")
    with pytest.raises(glassformer.InputError, match="nothing_like_it"):
        model.trace(IDS, nothing_like_it=1)
    with pytest.raises(glassformer.UnsupportedError, match="remote"):
        model.trace(IDS, remote=True)
    with pytest.raises(glassformer.UnsupportedError, match="num_beams=4"):
        model.generate(IDS, num_beams=4)
    with pytest.raises(
        AttributeError, match="has no module or attribute 'nothing'; its modules: wte, wpe, drop, h, ln_f"
    ):
        _ = model.transformer.nothing
    with pytest.raises(TypeError, match="no keyword qaz"):
        LanguageModel(make_model("gpt2"), qaz=1)
    with model.trace(IDS) as tracer:
        with pytest.raises(glassformer.UnsupportedError, match=r"for step in tracer.iter\[0:2\]:"), tracer.iter[0:2]:
            pass
        with pytest.raises(glassformer.UnsupportedError, match=r"for step in tracer.all\(\):"), tracer.all():
            pass
        with pytest.raises(glassformer.ShapeError, match="pos"):
            blocks(model)[1].output = torch.zeros(1, 4, 24)
        with pytest.raises(IndexError, match="tuple of 1"):
            _ = blocks(model)[1].output[1]
        with pytest.raises(glassformer.UnavailableError, match="list of modules"):
            _ = model.transformer.h.output
        with pytest.raises(glassformer.InputError, match=r"set model\.transformer\.h\.1\.mlp\.output"):
            blocks(model)[1].mlp = torch.zeros(1)

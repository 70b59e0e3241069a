"""Edits of a model, against the same changes made by hand in a trace; what can't be recorded is refused by name."""

import copy
import gc
import weakref
from itertools import chain

import pytest
import torch
from nnsight_edits import TOKENS, assert_equal, stream
from tiny_models import make_model, random_tokens

import glassformer
from glassformer.nnsight import LanguageModel


@pytest.fixture
def model():
    return LanguageModel(make_model("gpt2", torch.float64))


def check(model, change, ids=TOKENS):
    """Records `change(h)` and compares with `change` made in a trace by hand."""
    with model.edit() as edited:
        change(edited.transformer.h)
    expected = stream(model, ids, lambda: change(model.transformer.h))
    plain = stream(model, ids)
    assert_equal(stream(edited, ids), expected)
    assert not torch.equal(expected[-1], plain[-1])
    return edited


def in_place(h):
    h[1].output[0][:, 1] = 0
    h[1].output[0][:, 2:] += 1
    hidden = h[1].output[0]
    hidden[:, 0, :4].mul_(3)
    hidden[hidden > 2] = 2


def of_sizes(h):
    hidden = h[1].output[0]
    batch, length, width = hidden.shape
    ramp = torch.arange(length)[None, :, None] / length
    noise = torch.zeros(batch, length, width, dtype=torch.float64) + ramp
    h[1].output = (hidden.view(batch * length, -1) * 2).reshape(batch, length, width) + noise
    h[2].output[0][:, length // 2] = hidden.sum(dim=(0, 1)) / (batch * length)


def of_other_layers(h):
    early = h[0].output[0].softmax(-1)
    h[1].attn.output = (h[1].attn.output[0] - early, None)
    h[2].mlp.output = h[2].mlp.output * early


def inputs(h):
    h[0].mlp.input = h[0].mlp.input * 2
    h[1].ln_1.input = h[1].ln_1.input + 1
    h[1].mlp.input[:, 1] += 1
    h[2].input[0][:] = 3
    h[2].ln_1.input[:, 0] *= 2
    h[2].attn.inputs = ((h[2].attn.inputs[0][0] * 2,), {})


def side_by_side(h):
    width = h[0].output[0].shape[-1]
    h[0].attn.c_attn.output[..., :width] *= 3
    q, k, v = h[1].attn.c_attn.output.split(width, dim=-1)
    h[1].attn.c_attn.output = torch.cat([k, q + v, v - q], dim=-1)


def by_head(h):
    pattern = h[0].attn.output[1]
    pattern[:, 0] = torch.tril(torch.ones_like(pattern[:, 0])) / 2
    h[1].attn.source.hook_z.output[:, :, 2] = 0
    h[2].attn.source.hook_pattern.output = h[2].attn.source.hook_pattern.output ** 2


def tokens(h):
    h[0].output[0].t[0] = 0
    h[0].output[0].token[[1, -1]] *= 2
    first = h[1].output[0].t[-1]
    first += 5
    first[:, :3] = 1
    h[2].output = h[2].output[0] + h[1].output[0].t[0][:, None]


def skipped(h):
    h[1].skip(h[0].output[0] * 1.5)


def called(h):
    root = h[0].root
    logits = root.lm_head(root.transformer.ln_f(h[0].output[0]))
    h[2].mlp.output = h[2].mlp(h[1].output[0]) * 2
    h[2].output[0][:, 0] = h[1](h[2].input)[0][:, 0]
    root.lm_head.output = root.lm_head.output + logits.tanh()


def read_again(h):
    before = h[0].output[0].clone()
    h[0].output = before * 2
    between = h[0].output[0] + 1
    h[0].output[0][:, 1] = 7
    h[1].output = before
    h[2].output = between + h[0].output[0]


def old_inputs(h):
    """`.input[0][0]` is the whole argument where an index can't be a row's."""
    h[1].mlp.c_proj.input[0][0][:, 1] = h[0].mlp.c_proj.input[0][0].t[0] * 2
    h[2].attn.c_proj.input[0][0].token[-1] = 1
    h[2].mlp.input[0][0][:, 1, :8] *= 3
    h[2].mlp.c_proj.input[0][1][:4] = 2  # A row as it is.


CHANGES = (in_place, of_sizes, of_other_layers, inputs, side_by_side, by_head, tokens, skipped, called, read_again)


@pytest.mark.parametrize("change", (*CHANGES, old_inputs), ids=lambda change: change.__name__)
@pytest.mark.parametrize("ids", [TOKENS, random_tokens(1, 9, seed=3)], ids=["two", "one"])
def test_as_by_hand(model, change, ids):
    check(model, change, ids)


@pytest.mark.parametrize("change", [in_place, of_other_layers, inputs, side_by_side, tokens, read_again, old_inputs])
def test_prompts_of_different_lengths(model, change):
    prompts = [random_tokens(1, length, seed=length) for length in (4, 7, 4)]
    with model.edit() as edited:
        change(edited.transformer.h)
    with edited.trace([row[0].tolist() for row in prompts]):
        found = edited.output.logits.clone()
    with edited.trace() as tracer:
        invokes = []
        for prompt in prompts:
            with tracer.invoke(prompt):
                invokes.append(edited.output.logits.clone())
    for row, prompt in enumerate(prompts):
        expected = stream(model, prompt, lambda: change(model.transformer.h))[-1]
        assert torch.equal(found[row : row + 1, -prompt.shape[1] :], expected)
        assert torch.equal(invokes[row], expected)


def test_padded_prompts(model):
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
    with model.edit() as edited:
        tokens(edited.transformer.h)
    expected = stream(model, TOKENS, lambda: tokens(model.transformer.h), attention_mask=mask)
    assert_equal(stream(edited, TOKENS, attention_mask=mask), expected)


@pytest.mark.parametrize("first", CHANGES, ids=lambda change: change.__name__)
@pytest.mark.parametrize("second", [in_place, of_other_layers, side_by_side, read_again], ids=lambda c: c.__name__)
def test_edits_on_top_of_each_other(model, first, second):
    with model.edit() as edited:
        first(edited.transformer.h)
    with edited.edit() as (_, twice):
        second(twice.transformer.h)

    with model.edit() as one:
        first(one.transformer.h)
        second(one.transformer.h)
    assert_equal(stream(edited), stream(model, TOKENS, lambda: first(model.transformer.h)))
    for found, wanted in zip(stream(twice), stream(one), strict=True):
        assert (found - wanted).abs().max() <= 1e-12 * wanted.abs().max()


def first_layer(h):
    h[0].attn.c_attn.output[..., 30:] += 1
    h[0].mlp.output *= 2
    h[0].output[0][:, 1:] *= 0.5


def last_layers(h):
    h[1].output = h[1].output[0] * h[0].output[0]
    h[2].mlp.output[:, -1] = h[0].mlp.output[:, -1]


@pytest.mark.parametrize("changes", [(first_layer, last_layers), (first_layer, of_sizes)], ids=["two", "sizes"])
def test_edits_on_top_of_each_other_by_hand(model, changes):
    edited = model
    for change in changes:
        with edited.edit() as edited:
            change(edited.transformer.h)
    expected = stream(model, TOKENS, lambda: [change(model.transformer.h) for change in changes])
    assert_equal(stream(edited), expected)


def test_an_earlier_edit_reads_what_a_later_one_changes(model):
    with model.edit() as edited:
        edited.transformer.h[2].output = edited.transformer.h[0].output[0] * 2
    with edited.edit() as twice:
        twice.transformer.h[0].output[0][:] = 1
        twice.transformer.h[2].output[0][:, 0] = twice.transformer.h[0].output[0][:, 0]
    plain, found = stream(model), stream(twice)
    assert torch.equal(found[2][:, 1:], plain[0][:, 1:] * 2) and found[2][:, 0].unique().tolist() == [1]
    assert found[0].unique().tolist() == [1]


def test_copies_stand_alone(model):
    with model.edit() as first:
        first.transformer.h[0].output[0][:] = 1
    with model.edit() as second:
        second.transformer.h[0].output[0][:] = 2
    assert [stream(each)[0].unique().tolist() for each in (first, second)] == [[1], [2]]
    assert len(stream(model)[0].unique()) > 100
    assert first.engine is second.engine is model.engine and first.transformer is not model.transformer
    assert first.tokenizer is model.tokenizer and first.root is first.transformer.h[0].root is first


def test_in_place_and_cleared(model):
    plain = stream(model)
    with model.edit(inplace=True) as tracer:
        assert tracer.model is model
        model.transformer.h[0].output[0][:] = 1
    with model.edit() as copied:
        copied.transformer.h[0].output[0][:, 0] = 2
    assert stream(model)[0].unique().tolist() == [1] and stream(copied)[0].unique().tolist() == [1, 2]
    assert torch.equal(model(TOKENS).logits, plain[-1])
    assert torch.equal(model.trace(TOKENS, trace=False).logits, stream(model)[-1])
    model.clear_edits()
    assert_equal(stream(model), plain)
    assert stream(copied)[0].unique().tolist() == [1, 2]


def test_modules_of_the_model_that_was_copied(model):
    with model.edit() as (tracer, edited):
        assert tracer.model is edited and edited is not model
        model.transformer.h[0].output[0][:, 0] = 1
        edited.transformer.h[0].output[0][:, 1] = model.transformer.h[0].output[0][:, 0] + 1
    found = stream(edited)[0]
    assert found[:, 0].unique().tolist() == [1] and found[:, 1].unique().tolist() == [2]
    assert [child.path for child in edited] == [child.path for child in model]


def test_an_error_in_the_body_leaves_nothing(model):
    with pytest.raises(ZeroDivisionError), model.edit(inplace=True):
        model.transformer.h[0].output = 0
        1 / 0  # noqa: B018
    assert not model.edits
    assert torch.zeros(2).sum() == 0  # Nothing is recorded any more.
    with pytest.raises(glassformer.UnavailableError):
        model.transformer.h[0].output  # noqa: B018


# --- steps


def generated(model, ids, steps, by_hand=lambda step: None):
    with model.generate(ids, max_new_tokens=steps) as tracer:
        rows = []
        for step in tracer.iter[:]:
            by_hand(step)
            rows.append([*(block.output[0].clone() for block in model.transformer.h), model.lm_head.output.clone()])
        return rows, tracer.result.clone()


def test_steps_of_a_generation(model):
    vector = torch.linspace(-1, 1, 24, dtype=torch.float64)
    with model.edit() as (tracer, edited):
        h = edited.transformer.h
        for step in tracer.iter[:]:
            h[1].output[0][:] += vector * (step + 1)
            edited.lm_head.output[:, -1, 5] += 3
        for step in tracer.iter[1:3]:
            h[2].mlp.output *= 3 if step == 1 else 5
        for _ in tracer.iter[2:]:
            h[0].mlp.input = h[0].mlp.input * 2
        for step in tracer.iter[[0, 3]]:
            h[2].output[0][:, -1] = step
        h[0].output = h[0].output[0] * 2
        for _ in tracer.all():
            h[0].output[0][:, -1] -= 1

    def by_hand(step):
        h = model.transformer.h
        if step >= 2:
            h[0].mlp.input = h[0].mlp.input * 2
        if step == 0:
            h[0].output = h[0].output[0] * 2
        h[0].output[0][:, -1] -= 1
        h[1].output[0][:] += vector * (step + 1)
        if step in (1, 2):
            h[2].mlp.output *= 3 if step == 1 else 5
        if step in (0, 3):
            h[2].output[0][:, -1] = step
        model.lm_head.output[:, -1, 5] += 3

    for ids in (random_tokens(1, 5), [[3, 1, 4], [1, 5, 9, 2, 6]]):
        (found, texts), (expected, wanted) = generated(edited, ids, 6), generated(model, ids, 6, by_hand)
        assert len(found) == len(expected) == 6 and texts.tolist() == wanted.tolist()
        for a, b in zip(chain(*found), chain(*expected), strict=True):
            assert (a - b).abs().max() <= 1e-13 * b.abs().max()


def test_an_edit_belongs_to_the_prompts_step(model):
    with model.edit() as edited:
        edited.transformer.h[1].mlp.output *= 2
    found, _ = generated(edited, random_tokens(1, 5), 4)
    expected, _ = generated(model, random_tokens(1, 5), 4, lambda step: scale(model) if step == 0 else None)
    for a, b in zip(found, expected, strict=True):
        assert_equal(a, b)


def scale(model):
    model.transformer.h[1].mlp.output *= 2


# --- changes that a trace makes itself


def test_changes_of_a_trace_in_any_order(model):
    with model.edit() as edited:
        edited.transformer.h[1].output = edited.transformer.h[1].output[0] * 2
        edited.transformer.h[2].mlp.output = edited.transformer.h[2].mlp.output + edited.transformer.h[0].output[0]
    with edited.trace(TOKENS):
        h = edited.transformer.h
        late = h[2].output[0].clone()
        h[1].output[0][:, 0] = 1  # On top of the edit,
        h[0].output = 0.5  # and before it, later.
        found = [block.output[0].clone() for block in h]
    assert_equal([late], [stream(edited)[2]])

    def by_hand():
        h = model.transformer.h
        h[0].output = 0.5
        h[1].output = h[1].output[0] * 2
        h[1].output[0][:, 0] = 1
        h[2].mlp.output = h[2].mlp.output + h[0].output[0]

    assert_equal(found, stream(model, TOKENS, by_hand)[:3])


def test_what_an_edit_reads_changes_afterwards(model):
    """The input of the edited node itself stays the same."""
    with model.edit() as edited:
        edited.transformer.h[2].output = edited.transformer.h[0].output[0] * 2
        edited.transformer.h[2].attn.source.hook_k.output = edited.transformer.h[2].attn.source.hook_q.output
    with edited.trace(TOKENS):
        h = edited.transformer.h
        h[1].output = 0.5
        before = h[2].output[0].clone()
        h[0].output = 3.0
        after = h[2].output[0].clone()
        keys = h[2].attn.source.hook_k.output.clone()
        h[2].attn.source.hook_q.output = 1.0
        other_keys = h[2].attn.source.hook_k.output.clone()
    assert torch.equal(before, stream(model)[0] * 2)
    assert after.unique().tolist() == [6] and other_keys.unique().tolist() == [1] and not torch.equal(keys, other_keys)


def test_nothing_more_is_computed(model):
    with model.edit() as edited:
        edited.transformer.h[2].output = edited.transformer.h[2].output[0] + edited.transformer.h[1].output[0]
        edited.transformer.h[0].mlp.output *= 2
    with edited.trace(TOKENS) as tracer:
        assert tracer.traces[0].work() == {}
        edited.transformer.h[1].output[0].sum()
        assert not [node for node in tracer.traces[0].work() if node.startswith(("blocks.2", "ln_final", "logits"))]


def test_gradients_of_values(model):
    with model.edit() as edited:
        in_place(edited.transformer.h)
        edited.transformer.h[2].output = edited.transformer.h[2].output[0] * edited.transformer.h[0].output[0].detach()

    def gradients(model, by_hand):
        with model.trace(TOKENS):
            by_hand()
            values = [block.output[0] for block in model.transformer.h]
            model.output.logits[:, -1, 3].sum().backward()
            return [value.grad for value in values]

    def by_hand():
        h = model.transformer.h
        in_place(h)
        h[2].output = h[2].output[0] * h[0].output[0].detach()

    assert_equal(gradients(edited, lambda: None), gradients(model, by_hand))


# --- numbers of the edit's own


def test_one_random_draw(model):
    with model.edit() as edited:
        noise = torch.randn_like(edited.transformer.h[0].output[0])
        edited.transformer.h[0].output = noise
        edited.transformer.h[2].output = noise
    torch.manual_seed(5)
    found = stream(edited)
    assert torch.equal(found[0], found[2])
    assert not torch.equal(stream(edited)[0], found[0])
    torch.manual_seed(5)
    assert torch.equal(stream(edited)[0], found[0])


def test_constants_are_made_once(model):
    with model.edit() as edited:
        edited.transformer.h[0].output = torch.randn(24, dtype=torch.float64)
    assert_equal(stream(edited), stream(edited))


# --- refusals

VALUES = {
    "bool(tensor)": lambda x: bool(x.sum() > 0),
    ".item()": lambda x: x.sum().item(),
    ".tolist()": lambda x: x.tolist(),
    ".numpy()": lambda x: x.numpy(),
    "len(tensor)": lambda x: len(x),
    "iterating": lambda x: list(x),
    "unbind": lambda x: x.unbind(1),
    "index of a size": lambda x: range(x.shape[1]),
    "bool of a size": lambda x: bool(x.shape[0]),
    "`>`": lambda x: x.shape[0] > 1,
    "`==`": lambda x: x.shape[0] == 1,
    "int of a size": lambda x: int(x.shape[0]),
    "float of a size": lambda x: float(x.numel()),
    "tensor[mask]": lambda x: x[x > 0],
    "torch.tensor": lambda x: torch.tensor([x.sum()]),
    ".backward": lambda x: x.sum().backward(),
    "add_": lambda x: torch.zeros(24, dtype=torch.float64).add_(x[0, 0]),
}


@pytest.mark.parametrize("asked", VALUES)
def test_values_are_refused_by_name(model, asked):
    with pytest.raises(glassformer.UnsupportedError, match="shapes") as refused, model.edit(inplace=True):
        VALUES[asked](model.transformer.h[1].output[0])
    assert asked in str(refused.value) and not model.edits


def later_layer(model, tracer):
    model.transformer.h[0].output = model.transformer.h[2].output


def own_consequence(model, tracer):
    model.transformer.h[1].attn.output = model.transformer.h[1].mlp.output


def other_steps(model, tracer):
    early = model.transformer.h[0].output[0]
    for _ in tracer.iter[:]:
        model.transformer.h[1].output = early


def after_the_loop(model, tracer):
    for _ in tracer.iter[:]:
        early = model.transformer.h[0].output[0]
    model.transformer.h[1].output = early


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (later_layer, r"transformer.h.0.output .* can't be made from .*transformer.h.2.output .*later"),
        (own_consequence, r"h.1.attn.* can't be made from .*h.1.mlp.*later"),
        (other_steps, "in the same loop over steps"),
        (after_the_loop, "in the same loop over steps"),
        (lambda model, tracer: tracer.invoke("x"), "tracer.invoke"),
        (lambda model, tracer: tracer.stop(), "tracer.stop"),
        (lambda model, tracer: tracer.cache(), "tracer.cache"),
        (lambda model, tracer: model.transformer.h[0].next(), "module.next"),
        (lambda model, tracer: tracer.iter[:].__enter__(), "write `for step"),
    ],
)
def test_what_no_edit_can_do(model, body, words):
    with pytest.raises(glassformer.UnsupportedError, match=words), model.edit(inplace=True) as tracer:
        body(model, tracer)
    assert not model.edits


def test_shapes_are_checked(model):
    with model.edit() as edited:
        block = edited.transformer.h[0]
        for wrong in (torch.zeros(25), torch.zeros(1, 1, 1, 24), block.output[0][:, :3], block.output[0][..., 1:]):
            with pytest.raises(glassformer.ShapeError, match=r"expected \[any, any, 24\]"):
                block.output = wrong
        with pytest.raises(glassformer.ShapeError, match="batch, pos, 24"):
            block.output[0] + torch.zeros(7)
        block.output = torch.zeros(1, 4, 24)
    assert stream(edited, random_tokens(2, 4))[0].unique().tolist() == [0]
    with pytest.raises(glassformer.ShapeError, match=r"expected \[2, 6, 24\]; found \[1, 4, 24\]"):
        stream(edited)


def test_two_values_of_one_place(model):
    with model.edit() as edited:
        first = edited.transformer.h[0].output[0]
        assert edited.transformer.h[0].output[0] is first
        first += 1
        second = edited.transformer.h[0].output[0]
        second *= 2
        first[:] = 0
        with pytest.raises(glassformer.StaleEditError, match="read it again"):
            edited.transformer.h[1].output[0]
        first = second = None
        edited.__dict__["_editing"]._held.clear()
    assert len(edited.edits) == 1


def test_a_value_that_is_put_back(model):
    with model.edit() as edited:
        hidden = edited.transformer.h[0].output[0]
        hidden += 1
        edited.transformer.h[0].output = hidden
        hidden *= 2
    assert torch.equal(stream(edited)[0], (stream(model)[0] + 1) * 2)


def test_tokens_that_were_taken_follow_their_value(model):
    with model.edit() as edited:
        hidden = edited.transformer.h[0].output[0]
        first = hidden.t[0]
        hidden[:, 0] = 3
        first += 1
        edited.transformer.h[1].output = first[:, None]
    found = stream(edited)
    assert found[0][:, 0].unique().tolist() == found[1].unique().tolist() == [4]


@pytest.mark.parametrize("with_graph", [False, True], ids=["plain", "graph"])
def test_values_that_went_there_and_back(model, with_graph):
    with torch.set_grad_enabled(with_graph):
        there_and_back(model)


def there_and_back(model):
    with model.edit() as edited:
        edited.transformer.h[2].output = edited.transformer.h[1].output[0]
        edited.transformer.h[1].output = edited.transformer.h[1].output[0] * 2
    with edited.trace(TOKENS):
        h = edited.transformer.h
        before, plain = h[2].output[0].clone(), h[0].output[0].clone()
        h[0].output = 1.0
        other = h[2].output[0].clone()
        h[0].output = plain
        again = h[2].output[0].clone()
    assert torch.equal(before, again) and torch.equal(before, stream(model)[1]) and not torch.equal(before, other)
    with edited.trace(TOKENS):
        h = edited.transformer.h
        h[1].output[0][:] = 0
        assert torch.equal(h[2].output[0], before)
        h[0].output = 1.0
        assert torch.equal(h[2].output[0], other)
        h[0].output = plain
        assert torch.equal(h[2].output[0], before)


# --- the copy


class Named(LanguageModel):
    def _build(self):
        super()._build()
        self.blocks = list(self.transformer.h)


def test_copies_of_subclasses_and_names():
    model = Named(make_model("gpt2", torch.float64), rename={"transformer.h": "layers", "mlp": "ffn"})
    model.transformer.h[0].probe = torch.nn.Linear(24, 24, dtype=torch.float64)
    with model.edit() as edited:
        edited.blocks[0].output = edited.blocks[0].probe(edited.blocks[0].output[0])
        edited.layers[1].ffn.output *= 2
    assert type(edited) is Named and edited.blocks[0].root is edited and model.blocks[0].root is model
    with edited.trace(TOKENS):
        found = edited.output.logits.clone()
    with model.trace(TOKENS):
        model.blocks[0].output = model.blocks[0].probe(model.blocks[0].output[0])
        model.layers[1].ffn.output *= 2
        assert (model.output.logits - found).abs().max() < 1e-12


def test_traces_of_edited_models_end(model):
    with model.edit() as edited:
        read_again(edited.transformer.h)
    with edited.trace(TOKENS) as tracer:
        edited.output.logits.sum()
    ended = weakref.ref(tracer.traces[0].core)
    del tracer
    gc.collect()
    assert ended() is None


def test_edited_models_are_scanned(model):
    with model.edit() as edited:
        in_place(edited.transformer.h)
    with edited.scan(TOKENS):
        assert edited.output.logits.shape == (2, 6, 61)


def test_copying_values(model):
    with model.edit() as edited:
        kept = copy.deepcopy(edited.transformer.h[0].output[0])
        edited.transformer.h[0].output[0][:] = 0
        edited.transformer.h[1].output = kept
    plain, found = stream(model), stream(edited)
    assert torch.equal(found[1], plain[0]) and not found[0].any()

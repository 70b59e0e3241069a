"""Modules of the user's own in edits: an autoencoder whose values are read, set and trained."""

import pytest
import torch
from nnsight_edits import TOKENS, assert_equal, stream
from tiny_models import make_model, random_tokens

import glassformer
from glassformer.nnsight import LanguageModel


@pytest.fixture
def model():
    return LanguageModel(make_model("gpt2", torch.float64))


class Autoencoder(torch.nn.Module):
    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.encoder = torch.nn.Linear(24, 40, dtype=torch.float64)
        self.decoder = torch.nn.Linear(40, 24, dtype=torch.float64)
        with torch.no_grad():
            for weight in self.parameters():
                weight.copy_(torch.randn(weight.shape, generator=generator, dtype=torch.float64) * 0.2)
        self.n_calls = 0

    def forward(self, x, factor=1.0):
        self.n_calls += not isinstance(x, torch._subclasses.fake_tensor.FakeTensor)
        return self.decoder(torch.relu(self.encoder(x)) * factor)


def splice(h):
    sae = h[1].sae
    x = h[1].output[0]
    recon = sae(x, factor=2.0, hook=True)
    h[1].output = recon + (x - recon).detach() * 0.5
    h[2].mlp.output = h[2].mlp.output + sae.encoder.output.mean(-1, keepdim=True)


@pytest.fixture
def with_sae(model):
    model.transformer.h[1].sae = Autoencoder()
    return model


@pytest.mark.parametrize("ids", [TOKENS, [[1, 2, 3], [4, 5]]], ids=["equal", "different"])
def test_autoencoder(with_sae, ids):
    model = with_sae
    with model.edit() as edited:
        splice(edited.transformer.h)
    values = {}

    def by_hand():
        splice(model.transformer.h)
        sae = model.transformer.h[1].sae
        values.update(inner=sae.encoder.output, output=sae.output, given=sae.input, seen=sae.encoder.inputs[0][0])

    expected = stream(model, TOKENS, by_hand)
    assert_equal(stream(edited), expected)
    if ids is not TOKENS:
        return
    with edited.trace(TOKENS) as tracer:
        sae = edited.transformer.h[1].sae
        inner = sae.encoder.output  # Before anything else is read.
        assert not [node for node in tracer.traces[0].work() if node.startswith("blocks.2")]
        assert_equal(
            [inner, sae.output, sae.input, sae.encoder.inputs[0][0]],
            [values[name] for name in ("inner", "output", "given", "seen")],
        )
        assert sae.inputs[1] == {"factor": 2.0}
    assert edited.transformer.h[1].sae._module is model.transformer.h[1].sae._module


def test_autoencoder_on_prompts_of_different_lengths(with_sae):
    model = with_sae
    with model.edit() as edited:
        splice(edited.transformer.h)
    rows = [random_tokens(1, length, seed=length) for length in (5, 3)]
    with edited.trace([row[0].tolist() for row in rows]):
        both = edited.transformer.h[1].sae.encoder.output
    assert both.shape == (2, 5, 40) and (both[1, :2] == 0).all()
    for place, row in enumerate(rows):
        with edited.trace(row):
            alone = edited.transformer.h[1].sae.encoder.output
        assert torch.equal(both[place, -row.shape[1] :], alone[0])


def test_inner_values_are_set(with_sae):
    model = with_sae
    with model.edit() as edited:
        splice(edited.transformer.h)

    def by_hand():
        model.transformer.h[1].sae.encoder.output = torch.full((2, 6, 40), 0.5, dtype=torch.float64)
        splice(model.transformer.h)

    expected = stream(model, TOKENS, by_hand)
    with edited.trace(TOKENS):
        edited.transformer.h[1].sae.encoder.output = torch.full((2, 6, 40), 0.5, dtype=torch.float64)
        assert torch.equal(edited.output.logits, expected[-1])
        with pytest.raises(glassformer.OrderError, match="was set after"):
            edited.transformer.h[1].sae.encoder.output = 0


def test_inner_values_are_not_changed_in_place(with_sae):
    with with_sae.edit() as edited:
        splice(edited.transformer.h)
    with pytest.raises(glassformer.UnsupportedError, match="was changed in place after an edit"), edited.trace(TOKENS):
        edited.transformer.h[1].sae.encoder.output[:, 0] = 0


def test_generations_carry_no_graph(with_sae):
    with with_sae.edit() as (tracer, edited):
        for _ in tracer.iter[:]:
            splice(edited.transformer.h)
    with edited.generate(random_tokens(1, 4), max_new_tokens=3) as tracer:
        for _ in tracer.iter[:]:
            assert not edited.lm_head.output.requires_grad
            assert not edited.transformer.h[1].sae.encoder.output.requires_grad
    with edited.trace(TOKENS):
        assert edited.lm_head.output.requires_grad


def test_tokens_are_changed(model):
    with model.edit() as edited:
        edited.transformer.wte.input[:, 1] = 7
    other = TOKENS.clone()
    other[:, 1] = 7
    assert_equal(stream(edited), stream(model, other))


def test_inner_values_after_changes_before(with_sae):
    model = with_sae
    with model.edit() as edited:
        splice(edited.transformer.h)
    with edited.trace(TOKENS):
        h = edited.transformer.h
        first = h[1].sae.output
        h[0].output[0][:] = 1
        second = h[1].sae.output
    assert torch.equal(second, model.transformer.h[1].sae(torch.zeros(()) + called_on(model, 1), factor=2.0))
    assert not torch.equal(first, second)


def called_on(model, value):
    with model.trace(TOKENS):
        model.transformer.h[0].output[0][:] = value
        return model.transformer.h[1].output[0].clone()


def test_trained_afterwards(with_sae):
    model = with_sae
    with model.edit() as edited:
        splice(edited.transformer.h)
    before = stream(edited)
    with edited.trace(TOKENS):
        loss = edited.output.logits[:, -1].square().sum()
    loss.backward()
    sae = model.transformer.h[1].sae._module
    gradients = [parameter.grad.clone() for parameter in sae.parameters()]
    sae.zero_grad()
    with model.trace(TOKENS):
        splice(model.transformer.h)
        expected = model.output.logits[:, -1].square().sum()
    expected.backward()
    assert torch.equal(loss, expected)
    for found, parameter in zip(gradients, sae.parameters(), strict=True):
        assert (found - parameter.grad).abs().max() <= 1e-12 * found.abs().max()
    assert all(gradient.abs().max() > 0 for gradient in gradients)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter -= 0.1 * parameter.grad
    after = stream(edited)
    assert not torch.equal(before[-1], after[-1])
    assert_equal(after, stream(model, TOKENS, lambda: splice(model.transformer.h)))


def test_a_probe_that_changes_nothing(with_sae):
    model = with_sae
    with model.edit() as edited:
        edited.transformer.h[0].output = edited.transformer.h[0].output[0] * 2
        edited.transformer.h[1].sae(edited.transformer.h[1].output[0] + 1, hook=True)
    with edited.trace(TOKENS):
        inner = edited.transformer.h[1].sae.encoder.output
        hidden = edited.transformer.h[1].output[0].clone()
    assert torch.equal(inner, model.transformer.h[1].sae.encoder(hidden + 1))


def test_a_module_that_replaces_another(with_sae):
    model = with_sae
    with model.edit() as edited:
        splice(edited.transformer.h)
    edited.transformer.h[1].sae = torch.nn.Sequential()
    with pytest.raises(Exception, match="factor"):
        stream(edited)


def test_without_hook_nothing_is_seen(with_sae):
    with with_sae.edit() as edited:
        edited.transformer.h[1].output = edited.transformer.h[1].sae(edited.transformer.h[1].output[0])
    with edited.trace(TOKENS), pytest.raises(glassformer.UnavailableError, match="hook=True"):
        edited.transformer.h[1].sae.output  # noqa: B018


# --- what is seldom written in an edit


def test_values_of_an_edit_that_has_ended(model):
    with model.edit() as edited:
        hidden = edited.transformer.h[1].output[0]
        length = hidden.shape[1]
    assert hidden.shape[2] == 24 and f"{length}" == repr(length) == "unknown"
    for use in (lambda: hidden + 1, lambda: length + 1, lambda: torch.zeros(length), lambda: torch.ones(2) * length):
        with pytest.raises(glassformer.UnavailableError, match="whose block has ended"):
            use()


def test_calls_on_ordinary_tensors(with_sae):
    x = torch.linspace(-1, 1, 24, dtype=torch.float64)
    expected = with_sae.transformer.h[1].sae(x), with_sae.lm_head(x)
    with with_sae.edit() as edited:
        found = edited.transformer.h[1].sae(x, hook=True), edited.lm_head(x)
        assert torch.equal(edited.transformer.h[1].sae.input, x)
        edited.transformer.h[1].output[0][:] = found[0]
    assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])
    assert torch.equal(stream(edited)[1], expected[0].expand(2, 6, 24))


def test_own_modules_named_on_the_model_that_was_copied(with_sae):
    def change(model, h):
        sae = model.transformer.h[1].sae
        sae.input = h[1].output[0] * 2
        h[1].output = sae(h[1].output[0], hook=True) + sae.input

    with with_sae.edit() as edited:
        change(with_sae, edited.transformer.h)
    found = stream(edited)
    assert_equal(found, stream(with_sae, TOKENS, lambda: change(with_sae, with_sae.transformer.h)))
    plain = stream(with_sae)[1]
    assert torch.allclose(found[1], with_sae.transformer.h[1].sae(plain * 2) + plain * 2, rtol=0, atol=1e-12)


def test_a_module_that_comes_during_the_edit(model):
    with model.edit() as edited:
        model.transformer.h[0].late = Autoencoder()
        edited.transformer.h[0].output = model.transformer.h[0].late(edited.transformer.h[0].output[0])
    expected = model.transformer.h[0].late(stream(model)[0])
    assert torch.equal(stream(edited)[0], expected)


def test_tokens_and_sizes_as_values(model):
    def change(h):
        hidden = h[1].output[0]
        hidden.t[torch.tensor([0, -1])] = 1
        h[2].mlp.output = hidden.shape[1]

    with model.edit() as edited:
        change(edited.transformer.h)
        assert edited.output.loss is None
    assert_equal(stream(edited), stream(model, TOKENS, lambda: change(model.transformer.h)))


@pytest.mark.parametrize("way", ["next", "loop", "all"])
def test_one_step(model, way):
    def change():
        model.transformer.h[1].output[0][:] = 0

    with model.edit(inplace=True) as tracer:
        if way == "next":
            tracer.next()
            change()
        elif way == "loop":
            for _ in tracer.iter[1]:
                change()
        else:
            for step in model.all():
                model.transformer.h[1].output[0][:] *= step - 1
    found = []
    with model.generate(TOKENS[:1], max_new_tokens=3) as tracer:
        for _ in tracer.iter[:]:
            found.append(model.transformer.h[1].output[0].clone())
    assert found[0].abs().min() > 0 and found[1].abs().max() == 0 and found[2].abs().min() > 0


def test_what_isnt_a_loop(model):
    with model.edit(inplace=True) as tracer:
        with pytest.raises(TypeError, match="indexed by the steps"):
            list(tracer.iter)
        with pytest.raises(glassformer.InputError, match=r"tracer.iter\[-1::1\]: steps count from 0 on, forward"):
            list(tracer.iter[-1:])


def with_two_lengths(model, read):
    with model.trace([[1, 2, 3], [4, 5]]):
        read()


class Halves(torch.nn.Module):
    """Takes two tensors and returns both, and their sum over everything."""

    def forward(self, x, y):
        return x / 2, y / 2, (x + y).sum()


def test_modules_of_several_arguments_and_results(model):
    model.transformer.h[1].halves = torch.nn.Sequential()
    model.transformer.h[1].halves.inner = Halves()
    halves = model.transformer.h[1].halves.inner
    with model.trace(TOKENS):
        hidden = model.transformer.h[1].output[0]
        halves.inputs = ((hidden * 4, hidden * 2), {})
        one, two, _ = halves(hidden, hidden, hook=True)
        assert torch.equal(one, hidden * 2) and torch.equal(two, hidden)
        assert torch.equal(halves.inputs[0][1], hidden * 2)
    with model.edit() as edited:
        hidden = edited.transformer.h[1].output[0]
        edited.transformer.h[1].output = edited.transformer.h[1].halves.inner(hidden, hidden, hook=True)[0]
    plain = stream(model, TOKENS)[1]
    assert torch.equal(stream(edited)[1], plain / 2)
    inner = edited.transformer.h[1].halves.inner
    with pytest.raises(glassformer.UnsupportedError, match="of prompts of different lengths: read it invoke by"):
        with_two_lengths(edited, lambda: inner.output)


def test_a_result_without_positions(model):
    class Mean(torch.nn.Module):
        def forward(self, x):
            return x.mean((0, 1))

    model.transformer.h[1].mean = Mean()
    with model.edit() as edited:
        hidden = edited.transformer.h[1].output[0]
        edited.transformer.h[1].output = hidden - edited.transformer.h[1].mean(hidden, hook=True)
    mean = edited.transformer.h[1].mean
    with pytest.raises(glassformer.UnsupportedError, match="has no axes batch pos: read it invoke by invoke"):
        with_two_lengths(edited, lambda: mean.output)
    with edited.trace([[1, 2, 3]]):
        found = mean.output.clone()
    assert torch.equal(found, stream(model, [[1, 2, 3]])[1].mean((0, 1)))


def test_tokens_are_put_in_the_place_of_others(model):
    """Of prompts of one length and of several, with the tokens still in somebody's hands or not."""
    with model.edit() as edited:
        hidden = edited.transformer.h[1].output[0]
        hidden.t[-1] = hidden.t[0]
        other = hidden.t[[0, 1]]
        hidden.t[[1, 2]] = other
        hidden.t[0] += hidden.t[1]
    with torch.no_grad():
        for prompts in ([[1, 2, 3, 4, 5]], [[1, 2, 3, 4], [5, 6, 7, 8, 9]]):
            with model.trace(prompts):
                before = model.transformer.h[1].output[0].clone()
            with edited.trace(prompts):
                found = edited.transformer.h[1].output[0]
            for row, prompt in enumerate(prompts):
                mine, clean = found[row, -len(prompt) :], before[row, -len(prompt) :]
                expected = clean.clone()
                expected[-1], expected[1], expected[2], expected[0] = clean[0], clean[0], clean[1], 2 * clean[0]
                torch.testing.assert_close(mine, expected)
            with model.trace(prompts):
                hidden = model.transformer.h[1].output[0]
                hidden.t[-1] = hidden.t[0]
                hidden.t[[1, 2]] = hidden.t[[0, 1]]
                hidden.t[0] += hidden.t[1]
                torch.testing.assert_close(model.transformer.h[1].output[0], found)

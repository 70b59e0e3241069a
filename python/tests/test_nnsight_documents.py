"""The snippets of nnsight's documentation run as they stand, on the demo's model and on a tiny GPT-2, and give what
`transformers` or our own traces give."""

import functools
import types

import pytest
import torch
from nnsight_documents import ACTIVATIONS, GENERATION, SETUP, TOKENS, TOKENS_SETUP, adapted
from small_models import published

import glassformer

PROMPT = "The Eiffel Tower is in the city of"
KINDS = ["gpt2", "smollm2"]


@functools.cache
def opened(kind, place):
    """(the names that the page's first snippet leaves, the engine's model)."""
    names = {}
    exec(adapted(SETUP, place, kind != "gpt2"), names)
    return names, glassformer.load(place)


@pytest.fixture(params=KINDS)
def page(request, demo_model):
    """A page whose first snippet was run."""
    place = published("gpt2")[1] if request.param == "gpt2" else demo_model
    names, engine = opened(request.param, str(place))
    return types.SimpleNamespace(kind=request.param, names=dict(names), engine=engine, place=place)


def run(page, text):
    """The names that a snippet leaves."""
    exec(adapted(text, page.place, page.kind != "gpt2"), page.names)
    return page.names


def close(found, expected):
    found, expected = torch.as_tensor(found), torch.as_tensor(expected)
    largest = expected.abs().max().clamp(min=1e-9)
    return found.shape == expected.shape and ((found - expected).abs().max() / largest) < 1e-5


def stream(page, layer):
    """What comes out of a layer, from the engine."""
    return page.engine.trace(PROMPT).read(("resid_post", layer))


def greedy(page, n, edit=None, steps=()):
    """(ids with `n` new tokens, the stream behind the last layer at each step), by one whole pass for each token."""
    ids = page.engine.to_ids(PROMPT)
    edited, last = [], []
    for step in range(n):
        begin = len(ids) if step == 0 else 1
        trace = page.engine.trace(ids)
        if step in steps:
            edited += list(range(len(ids) - begin, len(ids)))
        if edited:
            edit(trace, edited)
        last.append(trace.read(("resid_post", page.engine.config.n_layers - 1))[:, -begin:])
        ids = [*ids, int(trace.logits_at(-1).argmax())]
    return ids, last


def zero_first_block(trace, positions):
    value = trace.read(("resid_post", 0)).clone()
    value[:, positions] = 0
    trace.set(("resid_post", 0), value)


def text_of(page, ids):
    return page.engine.tokenizer.decode(ids)


# --- "Token Based Indexing"


def test_token_based_indexing(page, capsys):
    if torch.cuda.is_available():
        run(page, TOKENS_SETUP)
    else:
        with pytest.warns(UserWarning, match="no GPU"):
            run(page, TOKENS_SETUP)
    found = run(page, TOKENS["tokens"])
    expected = page.engine.trace(PROMPT)
    assert close(found["hidden_states"], stream(page, page.engine.config.n_layers - 1)[:, 0])
    assert close(found["output"].logits, expected.logits)
    printed = capsys.readouterr().out.splitlines()
    assert printed == [str(found["hidden_states"].shape), str(expected.logits.shape)]
    assert printed[0] == f"torch.Size([1, {page.engine.config.d_model}])"


def test_tokens_of_invokes(page, capsys):
    pytest.importorskip("rich")
    found = run(page, TOKENS["positions of invokes"] + TOKENS["tokens of invokes"])
    first = page.engine.to_ids("The")[0]
    for name in ("incorrect_a", "incorrect_b", "correct_a", "correct_b"):  # Nothing is padded, so none is incorrect.
        assert found[name].tolist() == [first], name
    printed = capsys.readouterr().out
    assert printed.count(f"Shorter input: tensor([{first}])") == 2
    assert printed.count(f"Longer input: tensor([{first}])") == 2


# --- "Multiple Token Generation"


def test_basic_generation(page, capsys):
    found = run(page, GENERATION["basic"])
    ids, _ = greedy(page, 5)
    assert found["output"].tolist() == [ids] and capsys.readouterr().out == text_of(page, ids) + "\n"


def test_every_step(page, capsys):
    found = run(page, GENERATION["every step"])
    new = greedy(page, 5)[0][-5:]
    assert [int(token) for token in found["tokens"]] == new
    assert capsys.readouterr().out == "".join(f"Step {i}: {text_of(page, [token])}\n" for i, token in enumerate(new))


def test_bounded_iteration(page, capsys):
    found = run(page, GENERATION["bounded"])
    ids, _ = greedy(page, 5)
    assert [int(token) for token in found["tokens"]] == ids[-4:-2]
    assert found["output"].tolist() == [ids]
    assert capsys.readouterr().out == (f"Full output: {text_of(page, ids)}\nCollected 2 tokens from steps 1-2\n")


def test_conditional_interventions(page, capsys):
    found = run(page, GENERATION["conditional"])
    ids, _ = greedy(page, 5, zero_first_block, [0])
    assert found["output"].tolist() == [ids] != [greedy(page, 5)[0]]
    assert capsys.readouterr().out == text_of(page, ids) + "\n"


def test_manual_stepping(page, capsys):
    found = run(page, GENERATION["next"])
    _, last = greedy(page, 3)
    for name, expected in zip(("hs0", "hs1", "hs2"), last, strict=True):
        assert close(found[name], expected), name
    assert capsys.readouterr().out == "".join(f"Step {i} shape: {value.shape}\n" for i, value in enumerate(last))


def test_all_steps(page, capsys):
    found = run(page, GENERATION["all steps"])
    ids, last = greedy(page, 5, zero_first_block, range(5))
    assert found["output"].tolist() == [ids]
    assert len(found["hidden_states"]) == 5
    assert all(map(close, found["hidden_states"], last))
    assert capsys.readouterr().out == f"Collected 5 hidden states\nOutput: {text_of(page, ids)}\n"


# --- "Getting Activations"


def test_layer_output_and_input(page, capsys):
    found = run(page, ACTIVATIONS["layer output"])
    last = stream(page, page.engine.config.n_layers - 1)
    assert close(found["hidden_states"], last)
    found = run(page, ACTIVATIONS["layer input"])
    assert close(found["layer_input"], page.engine.trace(PROMPT).read(("resid_pre", 0)))
    assert capsys.readouterr().out == f"{last.shape}\n" * 2


def test_all_inputs(page, capsys):
    found = run(page, ACTIVATIONS["all inputs"])
    assert close(found["args"][0], page.engine.trace(PROMPT).read(("resid_pre", 0)))
    assert isinstance(found["kwargs"], dict)
    printed = capsys.readouterr().out.splitlines()
    assert printed == [f"Positional args: {len(found['args'])}", f"Keyword args: {list(found['kwargs'])}"]


def test_nnsight_save(page):
    found = run(page, ACTIVATIONS["save"])
    assert close(found["hidden_states"], stream(page, page.engine.config.n_layers - 1))


def test_several_layers(page, capsys):
    found = run(page, ACTIVATIONS["several layers"])
    values = found["hidden_states_per_layer"]
    assert len(values) == page.engine.config.n_layers
    assert all(close(value, stream(page, layer)) for layer, value in enumerate(values))
    assert capsys.readouterr().out == "".join(f"Layer {i}: {value.shape}\n" for i, value in enumerate(values))


def test_used_afterwards(page, capsys):
    found = run(page, ACTIVATIONS["used afterwards"])
    expected = page.engine.trace(PROMPT).logits
    assert close(found["logits"], expected)
    best = int(expected[0, -1].argmax())
    assert int(found["predicted_token"]) == best
    assert capsys.readouterr().out == f"Predicted next token: {text_of(page, [best])}\n"


# --- what is computed for them


def test_early_reads_run_no_later_layer(page):
    model = page.names["model"]
    with model.trace(PROMPT) as tracer:
        (model.transformer.h if page.kind == "gpt2" else model.model.layers)[0].output[0].save()
    layers = {int(name.split(".")[1]) for name in tracer.traces[0].work() if name.startswith("blocks.")}
    assert layers == {0} and "logits" not in tracer.traces[0].work()

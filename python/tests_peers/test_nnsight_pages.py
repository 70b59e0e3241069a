"""What the snippets of nnsight's documentation save, here and in the judge, for which they are put into its present
form."""

import linecache

import pytest
import torch
from nnsight_documents import SNIPPETS, adapted
from nnsight_judge import PROMPT, assert_same, demo_pair, pair, quiet

# How version 0.8 with `transformers` 5 writes it: blocks give bare tensors, and loops that end.
PRESENT = [
    ("h[-1].output[0].t[0]", "h[-1].output[:, 0]"),
    ("h[-1].output[0]", "h[-1].output"),
    ("h[0].output[0]", "h[0].output"),
    ("layer.output[0]", "layer.output"),
    ("print(output.shape)", "print(output.logits.shape)"),
    ("tracer.iter[:]", "tracer.iter[:5]"),
    ("tracer.all()", "tracer.iter[:5]"),
    ("from rich import print\n", ""),
    (".input[0][0][:,0]", ".input[:, -1]"),
    (".input[0][0].t[0]", ".input[:, -1]"),
    (".value}", "}"),
]
NEXT = """
with model.generate("The Eiffel Tower is in the city of", max_new_tokens=3) as tracer:
    values = list().save()
    for step in tracer.iter[:3]:
        values.append(model.transformer.h[-1].output)
hs0, hs1, hs2 = values
"""
# What a snippet leaves that is worth comparing.
NAMES = {
    "tokens": ["hidden_states", "output"],
    "basic": ["output"],
    "every step": ["tokens"],
    "bounded": ["tokens", "output"],
    "conditional": ["output"],
    "next": ["hs0", "hs1", "hs2"],
    "all steps": ["hidden_states", "output"],
    "layer output": ["hidden_states"],
    "layer input": ["layer_input"],
    "save": ["hidden_states"],
    "several layers": ["hidden_states_per_layer"],
    "used afterwards": ["logits", "predicted_token"],
}
MODELS = {"gpt2": lambda: pair("gpt2"), "llama": lambda: pair("llama_grouped"), "smollm2": demo_pair}


def for_the_judge(name, is_llama):
    text = NEXT if name == "next" else SNIPPETS[name]
    for old, new in PRESENT:
        text = text.replace(old, new)
    return adapted(text, "", is_llama).replace("glassformer.nnsight", "nnsight")


def run(text, model, name):
    """The names that a snippet leaves; the judge reads its text from `linecache`, once for each name."""
    names = {"model": model}
    linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
    exec(compile(text, name, "exec"), names)
    return names


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("name", NAMES)
def test_snippet(name, kind):
    both = MODELS[kind]()
    is_llama = kind != "gpt2"
    found = run(adapted(SNIPPETS[name], "", is_llama), both.ours, f"<{kind} {name}>")
    expected = quiet(run, for_the_judge(name, is_llama), both.judge, f"<judge {kind} {name}>")
    for saved in NAMES[name]:
        mine, theirs = found[saved], expected[saved]
        if hasattr(theirs, "logits"):
            mine, theirs = mine.logits, theirs.logits
        assert_same(mine, theirs, both.tolerance, saved)


@pytest.mark.parametrize("kind", MODELS)
def test_first_tokens_of_invokes(kind):
    """The judge pads at the left: of its short prompt of one token the last one is the first."""
    both = MODELS[kind]()
    is_llama = kind != "gpt2"
    text = SNIPPETS["positions of invokes"] + SNIPPETS["tokens of invokes"]
    found = run(adapted(text.replace("from rich import print\n", ""), "", is_llama), both.ours, f"<{kind} first>")
    expected = quiet(run, for_the_judge("tokens of invokes", is_llama), both.judge, f"<judge {kind} first>")
    assert found["correct_a"].tolist() == found["incorrect_a"].tolist() == expected["correct_a"].tolist()
    longest = FIRST_OF_LONGEST.replace("transformer", "model") if is_llama else FIRST_OF_LONGEST
    first = quiet(run, longest, both.judge, f"<judge {kind} longest>")
    assert found["correct_b"].tolist() == found["incorrect_b"].tolist() == first["tokens"][-1:].tolist()
    assert isinstance(found["correct_b"], torch.Tensor)


FIRST_OF_LONGEST = f"""
with model.trace() as tracer:
    with tracer.invoke("The"):
        pass
    with tracer.invoke("{PROMPT}"):
        pass
    with tracer.invoke():
        tokens = model.transformer.input[:, 0].save()
"""


@pytest.mark.parametrize("kind", MODELS)
def test_all_inputs(kind):
    """The first argument; the rest of a block's arguments is each version's own."""
    both = MODELS[kind]()
    is_llama = kind != "gpt2"
    found = run(adapted(SNIPPETS["all inputs"], "", is_llama), both.ours, f"<{kind} inputs>")
    expected = quiet(run, for_the_judge("all inputs", is_llama), both.judge, f"<judge {kind} inputs>")
    assert_same(found["args"][0], expected["args"][0], both.tolerance)
    for name in ("position_ids",):
        assert_same(found["kwargs"][name], expected["kwargs"][name], both.tolerance, name)

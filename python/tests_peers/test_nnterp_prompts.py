"""Prompts, first tokens and target prompts: the same as nnterp's, on its tokenizers and on ours."""

import dataclasses

import nnterp.display
import nnterp.interventions
import nnterp.prompt_utils
import pytest
import torch
from small_models import TEXTS, byte_tokenizer

from glassformer import Tokenizer
from glassformer.nnterp import display, interventions, prompt_utils

TARGETS = {"correct_answer": "Paris", "traps": ["London", "Madrid"], "longstring": "the country of France"}
WORDS = ["Paris", "the", " the", "hello", "1135", "!", "?!", "über", "🍐", "a b", "\n", "日本", *TEXTS]


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    theirs = byte_tokenizer()
    theirs.save_pretrained(folder)
    return theirs, Tokenizer.from_pretrained(folder)


@pytest.mark.parametrize("hacky", [False, True])
@pytest.mark.parametrize("words", [*WORDS, WORDS, []])
def test_first_tokens(tokenizers, words, hacky):
    theirs, ours = tokenizers
    expected = nnterp.prompt_utils.get_first_tokens(words, theirs, use_hacky_implementation=hacky)
    assert prompt_utils.get_first_tokens(words, ours, use_hacky_implementation=hacky) == expected
    assert prompt_utils.get_first_tokens(words, theirs, use_hacky_implementation=hacky) == expected
    assert expected or not words


@pytest.mark.parametrize("targets", ["Paris", ["Paris", "London"], TARGETS])
def test_prompts_from_strings(tokenizers, targets):
    theirs, ours = tokenizers
    expected = nnterp.prompt_utils.Prompt.from_strings(TEXTS[0], targets, theirs)
    prompt = prompt_utils.Prompt.from_strings(TEXTS[0], targets, ours)
    assert dataclasses.asdict(prompt) == dataclasses.asdict(expected)


@pytest.mark.parametrize("ignored", [None, "a", "b", ["a"], ["a", "c"], [], ["a", "b", "c"]])
@pytest.mark.parametrize("tokens", [{"a": [1], "b": [1], "c": [2]}, {"a": [1, 1], "b": [2]}, {"a": [1], "c": [3]}, {}])
def test_collisions(tokens, ignored):
    expected = nnterp.prompt_utils.Prompt("", tokens).has_no_collisions(ignored)
    assert prompt_utils.Prompt("", tokens).has_no_collisions(ignored) is expected


@pytest.mark.parametrize("layer", [None, 0, 2, -1])
def test_target_probabilities(layer):
    probs = torch.rand(2, 3, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    tokens = {"a": [3, 30], "b": [7]}
    expected = nnterp.prompt_utils.Prompt("", tokens).get_target_probs(probs, layer)
    found = prompt_utils.Prompt("", tokens).get_target_probs(probs, layer)
    run = prompt_utils.Prompt("x", tokens).run("model", lambda model, text: probs + len(model + text))
    assert found.keys() == expected.keys() == run.keys()
    for name, values in expected.items():
        assert torch.equal(found[name], values)
        torch.testing.assert_close(run[name], probs[..., tokens[name]].sum(-1) + 6 * len(tokens[name]))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"words": ["cat", "dog"], "rel": "->", "sep": " | ", "placeholder": "X"},
        {"words": [], "sep": "+"},
        {"words": ["x"], "index_to_patch": 3},
    ],
)
def test_repeat_prompt(options):
    expected = nnterp.interventions.repeat_prompt(**options)
    assert dataclasses.asdict(interventions.repeat_prompt(**options)) == dataclasses.asdict(expected)


def roles(text):
    """The messages of a conversation: who says it, and where it has the repeated words."""
    turns = [turn.partition("\n")[::2] for turn in text.split("<s>")[1:]]
    return [(role, [said.count(word) for word in ("->", "|X")], said.endswith("</s>\n")) for role, said in turns]


@pytest.mark.parametrize("complete_prompt", [True, False])
@pytest.mark.parametrize("add_user_instr", [True, False])
@pytest.mark.parametrize("use_system_prompt", [True, False])
def test_repeat_prompt_as_a_conversation(tokenizers, complete_prompt, add_user_instr, use_system_prompt):
    """The instructions have our own words; who says what is the same."""
    theirs, ours = tokenizers
    options = {
        "complete_prompt": complete_prompt,
        "add_user_instr": add_user_instr,
        "use_system_prompt": use_system_prompt,
        "rel": "->",
        "sep": "|",
        "placeholder": "X",
    }
    expected = nnterp.interventions.it_repeat_prompt(theirs, **options)
    found = interventions.it_repeat_prompt(ours, **options)
    assert roles(found.prompt) == roles(expected.prompt)
    assert len(roles(found.prompt)) == 2 + use_system_prompt + 2 * add_user_instr
    last = "king->king|1135->1135|hello->hello|X" if complete_prompt else ""
    assert found.prompt.rpartition("<s>assistant\n")[2] == expected.prompt.rpartition("<s>assistant\n")[2] == last
    assert found.index_to_patch == expected.index_to_patch == -1
    assert interventions.it_repeat_prompt(theirs, **options) == found


def both_batches(make):
    return [make(module) for module in (nnterp.interventions, interventions)]


@pytest.mark.parametrize(
    "make",
    [
        lambda m: m.TargetPromptBatch.from_target_prompts([m.TargetPrompt("a", -1), m.TargetPrompt("b", 0)]),
        lambda m: m.TargetPromptBatch.from_target_prompt(m.TargetPrompt("a", 2), 3),
        lambda m: m.TargetPromptBatch.from_prompts("a", -1),
        lambda m: m.TargetPromptBatch.from_prompts(["a", "b"], 1),
        lambda m: m.TargetPromptBatch.from_prompts(["a", "b"], [1, -2]),
        lambda m: m.TargetPromptBatch.from_prompts(["a", "b"], torch.tensor([1, -2])),
        lambda m: m.TargetPromptBatch.auto(m.TargetPrompt("a", 2), 3),
        lambda m: m.TargetPromptBatch.auto([m.TargetPrompt("a", 2), m.TargetPrompt("b", 1)], 9),
        lambda m: m.TargetPromptBatch.auto(m.TargetPromptBatch.from_prompts("a", -1), 9),
    ],
)
def test_batches_of_target_prompts(make):
    expected, found = both_batches(make)
    assert found.prompts == expected.prompts
    assert torch.equal(found.index_to_patch, expected.index_to_patch)
    assert found.index_to_patch.dtype == expected.index_to_patch.dtype
    assert len(found) == len(expected)
    assert [(one.prompt, one.index_to_patch) for one in found] == [(one.prompt, one.index_to_patch) for one in expected]
    assert found[-1].prompt == expected[-1].prompt


def test_a_text_is_no_target_prompt():
    for module in (nnterp.interventions, interventions):
        with pytest.raises(ValueError, match="TargetPrompt"):
            module.TargetPromptBatch.auto("a", 2)


# Pictures and tables.


def traces(figure):
    """What a figure's heat maps show."""
    return [
        ([list(row) for row in trace.z], list(trace.x), list(trace.y), [list(row) for row in trace.text])
        for trace in figure.data
    ]


@pytest.mark.parametrize("shape", [(40,), (3, 40), (1, 3, 40), (4, 2, 40), (2, 1, 40)])
@pytest.mark.parametrize(
    "options", [{}, {"k": 2, "title": "T"}, {"use_token_ids": True}, {"height": 200, "width": 300}]
)
def test_plots(tokenizers, shape, options, monkeypatch):
    theirs, ours = tokenizers
    monkeypatch.setattr("plotly.graph_objects.Figure.show", lambda *_, **__: None)  # nnterp opens a window.
    probs = torch.rand(shape, generator=torch.Generator().manual_seed(1))
    expected = nnterp.display.plot_topk_tokens(probs, theirs, **options)
    found = display.plot_topk_tokens(probs, ours, **options)
    assert traces(found) == traces(expected)
    assert len(found.data) == (shape[0] if len(shape) == 3 else 1)
    for name in ("height", "width", "showlegend"):
        assert found.layout[name] == expected.layout[name]
    assert "title" not in options or found.layout.title.text == expected.layout.title.text == "T"
    for ours_one, their_one in zip(found.data, expected.data, strict=True):
        for name in ("zmin", "zmax", "xaxis", "yaxis", "texttemplate"):
            assert ours_one[name] == their_one[name]
        for row, their_row in zip(ours_one.customdata, their_one.hovertext, strict=True):
            assert [f"ID: {number}<br>Token: {spelled}" for number, spelled in row] == list(their_row)


@pytest.mark.parametrize("with_tokenizer", [False, True])
def test_tables_of_prompts(tokenizers, with_tokenizer):
    tables = []
    for module, tables_of, tokenizer in zip(
        (nnterp.prompt_utils, prompt_utils), (nnterp.display, display), tokenizers, strict=True
    ):
        prompts = [module.Prompt.from_strings(text, TARGETS, tokenizer) for text in TEXTS]
        tables.append(tables_of.prompts_to_df(prompts, tokenizer if with_tokenizer else None))
    expected, found = tables
    assert found.equals(expected)
    assert found.shape == (1 + (2 if with_tokenizer else 1) * len(TARGETS), len(TEXTS))

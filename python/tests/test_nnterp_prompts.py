"""Prompts with targets, target prompts, pictures and tables in nnterp's vocabulary: what nnterp's own results don't say
(python/tests_peers compares with those)."""

import sys
import types

import pytest
import tokenizers
import torch
from small_models import TEXTS, byte_tokenizer
from tokenizers import models, normalizers, trainers
from transformers import PreTrainedTokenizerFast

from glassformer import InputError, Tokenizer
from glassformer.nnterp import display, interventions, nnsight_utils, prompt_utils
from glassformer.nnterp._tokenizers import without_prefix_space

WORDS = ["Paris", "hello", "1135", "?", "über", "king", "dog"]


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """(with a space put before every text, without), ours."""
    made = []
    for prefix in (True, False):
        folder = tmp_path_factory.mktemp("tokenizer")
        byte_tokenizer(prefix).save_pretrained(folder)
        made.append(Tokenizer.from_pretrained(folder))
    return made


@pytest.mark.parametrize("word", WORDS)
def test_first_tokens_where_every_text_gets_a_space(both, word):
    """The token without space is found all the same; nnterp leaves it out."""
    spaced, plain = both
    assert spaced(word)["input_ids"] == spaced(f" {word}")["input_ids"] != plain(word)["input_ids"]
    first, behind_space = (byte_tokenizer(False).tokenize(text)[0] for text in (word, f" {word}"))
    pieces = [first] if behind_space == "Ġ" else [first, behind_space]
    assert prompt_utils.get_first_tokens(word, spaced) == spaced.convert_tokens_to_ids(pieces)
    assert prompt_utils.get_first_tokens(word, spaced, use_hacky_implementation=True) == [
        spaced.convert_tokens_to_ids(first)
    ]


def test_first_tokens_of_a_model(both):
    model = types.SimpleNamespace(tokenizer=both[1])
    assert prompt_utils.get_first_tokens(WORDS, model) == prompt_utils.get_first_tokens(WORDS, both[1])
    with pytest.raises(InputError, match="no tokenizer; pass a tokenizer"):
        prompt_utils.get_first_tokens("a", types.SimpleNamespace(tokenizer=None))


def marked_tokenizer(prefix):
    """As Llama 2's: a mark for each space, and one before every text."""
    made = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))
    made.normalizer = normalizers.Replace(" ", "▁")
    trainer = trainers.BpeTrainer(vocab_size=160, special_tokens=["<unk>", "<s>"], show_progress=False)
    made.train_from_iterator(TEXTS, trainer)
    if prefix:
        made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), made.normalizer])
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>")


@pytest.mark.parametrize("word", ["Paris", "hello", "the", "king", " cat", "of France"])
def test_first_tokens_where_every_text_gets_a_mark(word, tmp_path):
    marked_tokenizer(True).save_pretrained(tmp_path)
    marked, plain = Tokenizer.from_pretrained(tmp_path), marked_tokenizer(False)
    assert marked(word)["input_ids"] == plain(f" {word}").input_ids
    assert without_prefix_space(marked)(word)["input_ids"] == plain(word).input_ids
    firsts = [plain(text).input_ids[0] for text in (word, f" {word}")]
    expected = [one for one in dict.fromkeys(firsts) if one != plain(" ").input_ids[0] or one == firsts[0]]
    assert prompt_utils.get_first_tokens(word, marked) == expected
    assert prompt_utils.get_first_tokens(word, plain) == expected


def test_words_whose_first_token_cannot_be_told():
    def merged(text, add_special_tokens):
        return {"input_ids": [len(text.strip())] if text.strip() else []}

    with pytest.raises(prompt_utils.TokenizationError, match=r"'ab' can't be told: .* add_prefix_space=False"):
        prompt_utils.get_first_tokens("ab", merged)
    with pytest.raises(prompt_utils.TokenizationError, match="'' has no tokens"):
        prompt_utils.get_first_tokens("", merged)
    assert issubclass(prompt_utils.TokenizationError, InputError)


def test_words_of_a_tokenizer_that_drops_spaces():
    """Then the token is the same with a space and without."""

    def by_word(text, add_special_tokens):
        return {"input_ids": [{"a": 1, "b": 2}.get(word, 0) for word in text.split()]}

    assert prompt_utils.get_first_tokens(["a", "b"], by_word) == [1, 2]


PROBS = torch.rand(5, 3, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def prompts(*tokens):
    return [prompt_utils.Prompt(f"text {number}", each) for number, each in enumerate(tokens)]


@pytest.mark.parametrize("batch_size", [1, 2, 5, 7])
@pytest.mark.parametrize("with_layers", [False, True])
def test_run_prompts_by_a_function(batch_size, with_layers):
    asked, bars = [], []
    tokens = [{"a": [number, 3], "b": [9]} for number in range(5)]

    def get_probs(model, texts, remote, scale):
        asked.append((model, list(texts), remote))
        rows = [int(text.split()[1]) for text in texts]
        return scale * (PROBS if with_layers else PROBS[:, 1])[rows]

    def bar(numbers, **options):
        bars.append(len(numbers))
        return numbers

    results = prompt_utils.run_prompts(
        "model", prompts(*tokens), batch_size, get_probs_func=get_probs, func_kwargs={"scale": 2}, tqdm=bar
    )
    assert [text for _, texts, _ in asked for text in texts] == [f"text {number}" for number in range(5)]
    assert {(model, remote) for model, _, remote in asked} == {("model", False)}
    assert [len(texts) for _, texts, _ in asked][:1] == [min(batch_size, 5)]
    assert bars == [len(asked)]
    chosen = PROBS if with_layers else PROBS[:, 1]
    for name, values in results.items():
        expected = [2 * sum(row[..., token] for token in each[name]) for row, each in zip(chosen, tokens, strict=True)]
        torch.testing.assert_close(values, torch.stack(expected), rtol=0, atol=0)
        assert values.shape == ((5, 3) if with_layers else (5,))
    assert list(results) == ["a", "b"]


def test_run_prompts_without_prompts_or_with_different_targets():
    assert prompt_utils.run_prompts("model", []) == {}
    with pytest.raises(InputError, match="the first has a, and 'text 1' has b"):
        prompt_utils.run_prompts("model", prompts({"a": [1]}, {"b": [1]}))


def test_what_is_no_prompt_and_no_target():
    (one,) = prompts({"a": [1]})
    for wrong in (one, ["a text"], "a text"):
        with pytest.raises(InputError, match="run_prompts takes a list of Prompts"):
            prompt_utils.run_prompts("model", wrong)
    for wrong in (None, 3):
        with pytest.raises(InputError, match=f"by the target's name; found {wrong}"):
            prompt_utils.Prompt.from_strings("text", wrong, None)
    for size in (0, -2):
        with pytest.raises(InputError, match=f"batch_size is {size}; expected 1 or more"):
            prompt_utils.run_prompts("model", [one], size)
        with pytest.raises(InputError, match=f"batch_size is {size}; expected 1 or more"):
            nnsight_utils.collect_token_activations_batched("model", ["text"], size)


@pytest.mark.parametrize("indices", [[1], [1, 2, 3], torch.tensor([[1, 2]])])
def test_batches_with_another_number_of_indices(indices):
    make = interventions.TargetPromptBatch.from_prompts
    if indices == [1]:
        assert make(["a", "b"], indices).index_to_patch.tolist() == [1, 1]
        return
    with pytest.raises(InputError, match="one for each of the 2 prompts"):
        make(["a", "b"], indices)
    with pytest.raises(InputError, match="found str"):
        make("a", "1")


# Pictures and tables.


@pytest.mark.parametrize(("function", "package"), [("plot_topk_tokens", "plotly"), ("prompts_to_df", "pandas")])
def test_what_is_missing_is_named(function, package, monkeypatch):
    names = [name for name in sys.modules if name == package or name.startswith(f"{package}.")]
    for name in [*names, package, f"{package}.graph_objects"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=f"{function} needs {package}: pip install {package}"):
        getattr(display, function)(PROBS, None)


@pytest.mark.parametrize(("shape", "k"), [((1, 2, 3, 4), 2), ((), 1), ((4,), 5), ((4,), 0)])
def test_probabilities_of_another_shape(shape, k):
    with pytest.raises(InputError, match=r"expected batch layer d_vocab"):
        display.plot_topk_tokens(torch.zeros(shape), None, k)


def test_tokens_that_the_tokenizer_has_not(both):
    """Models have more rows than their tokenizer has tokens."""
    probs = torch.zeros(len(both[1]) + 9)
    probs[-1], probs[5] = 0.7, 0.3
    for tokenizer in (both[1], byte_tokenizer()):
        figure = display.plot_topk_tokens(probs, tokenizer, k=2)
        assert list(figure.data[0].text[0]) == [str(len(probs) - 1), f"'{tokenizer.convert_ids_to_tokens(5)}'"]


def test_plots_in_files(both, tmp_path, monkeypatch):
    import plotly.graph_objects

    images = []
    monkeypatch.setattr(plotly.graph_objects.Figure, "write_image", lambda self, file, scale: images.append(str(file)))
    for name, save_html, written in [
        ("a.html", False, ["a.html"]),
        ("b.png", False, []),
        ("c.png", True, ["c.html"]),
    ]:
        display.plot_topk_tokens(PROBS, both[1], title="Mine", file=str(tmp_path / name), save_html=save_html)
        assert [path.name for path in tmp_path.iterdir()] == written
        for path in tmp_path.iterdir():
            assert "Mine" in path.read_text()
            path.unlink()
    assert images == [str(tmp_path / "b.png"), str(tmp_path / "c.png")]


def test_tables_of_prompts_without_strings(both):
    table = display.prompts_to_df(prompts({"a": [5, 6]}, {"a": [7]}), both[1])
    assert table.loc["a_tokens"].tolist() == [both[1].convert_ids_to_tokens(ids) for ids in ([5, 6], [7])]
    assert list(table.index) == ["prompt", "a_tokens"]

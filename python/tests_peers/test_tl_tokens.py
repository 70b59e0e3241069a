"""Texts and tokens beside the judge's: every method, and texts as a model's input."""

import copy
import tempfile

import numpy as np
import pytest
import tokenizers
import torch
from helpers import assert_close
from test_tl_generation import ALL_WORDS, TEXTS, assert_refused_alike
from test_tl_hooked_transformer import EXACT, KINDS, assert_same_cache, pair_of
from test_tl_native import SMALL, judge_of
from tl_words import word_tokenizer
from transformer_lens import HookedTransformer as JudgeTransformer
from transformer_lens import HookedTransformerConfig as JudgeConfig
from transformers import PreTrainedTokenizerFast

from glassformer.transformer_lens import HookedTransformer, HookedTransformerConfig

LONG = " ".join(["the cat sat on the mat in the sun"] * 4)  # Longer than the context.


def with_own_bos(folder, closing=False):
    """A tokenizer that prepends its own BOS, and ends with an EOS if `closing`."""
    tokenizer = word_tokenizer(words=ALL_WORDS)
    special = [(token, tokenizer.convert_tokens_to_ids(token)) for token in ("<s>", "</s>")]
    single = "<s> $A </s>" if closing else "<s> $A"
    tokenizer.backend_tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single=single, special_tokens=special
    )
    tokenizer.save_pretrained(folder)
    return PreTrainedTokenizerFast.from_pretrained(folder)


def plain(folder, **options):
    return word_tokenizer(folder, words=ALL_WORDS, **options)


TOKENIZERS = {
    "plain": plain,
    "left": lambda folder: plain(folder, padding_side="left"),
    "own_bos": with_own_bos,
    "own_bos_and_eos": lambda folder: with_own_bos(folder, closing=True),
    "no_bos": lambda folder: plain(folder, bos=None),
    "no_pad": lambda folder: plain(folder, pad=None),
    "neither": lambda folder: plain(folder, bos=None, pad=None),
    "bos_is_pad": lambda folder: plain(folder, bos="</s>", pad="</s>"),
}


def made(name):
    with tempfile.TemporaryDirectory(prefix="words") as folder:
        return TOKENIZERS[name](folder)


def pair_with(name, kind="gpt2_like", side=None):
    models = pair_of(KINDS[kind])
    with tempfile.TemporaryDirectory(prefix="words") as folder:
        for number, model in enumerate(models):
            model.set_tokenizer(TOKENIZERS[name](f"{folder}/{number}"), default_padding_side=side)
    return models


@pytest.fixture(scope="module", params=TOKENIZERS)
def both(request):
    return pair_with(request.param)


@pytest.fixture(scope="module")
def plain_pair():
    return pair_with("plain")


@pytest.mark.parametrize("padding_side", [None, "left", "right"])
@pytest.mark.parametrize("prepend_bos", [None, True, False])
@pytest.mark.parametrize("default", [True, False])
def test_to_tokens(both, default, prepend_bos, padding_side):
    judge, ours = both
    options = {"prepend_bos": prepend_bos, "padding_side": padding_side}
    for model in both:
        model.cfg.default_prepend_bos = default
    try:
        for given in ("", "the", *TEXTS, TEXTS, ["the", ""], LONG, [LONG, "a dog"], "unknown words", "</s> the <unk>"):
            for truncate in (True, False):
                for move in (True, False):
                    each = options | {"truncate": truncate, "move_to_device": move}
                    expected, found = judge.to_tokens(given, **each), ours.to_tokens(given, **each)
                    assert found.dtype == expected.dtype
                    assert found.tolist() == expected.tolist(), (given, each)
            if given:
                found, expected = (model.to_str_tokens(given, **options) for model in (ours, judge))
                assert found == expected, (given, options)
    finally:
        for model in both:
            model.cfg.default_prepend_bos = True
    assert ours.tokenizer.padding_side == judge.tokenizer.padding_side


def test_what_set_tokenizer_leaves(both):
    judge, ours = both
    for name in ("eos_token", "pad_token", "bos_token", "eos_token_id", "pad_token_id", "bos_token_id", "padding_side"):
        assert getattr(ours.tokenizer, name) == getattr(judge.tokenizer, name), name
    assert ours.cfg.tokenizer_prepends_bos == judge.cfg.tokenizer_prepends_bos
    assert len(ours.tokenizer) == len(judge.tokenizer)


@pytest.mark.parametrize("side", [None, "left", "right"])
@pytest.mark.parametrize("own", ["left", "right"])
def test_padding_side_of_set_tokenizer(own, side):
    models = pair_of(KINDS["gpt2_like"])
    found = []
    for model in models:
        tokenizer = made("plain")
        tokenizer.padding_side = own
        tokenizer.init_kwargs["add_bos_token"] = True  # So that nothing is read again.
        model.set_tokenizer(tokenizer, default_padding_side=side)
        found.append((model.tokenizer.padding_side, model.to_tokens(TEXTS).tolist(), model.tokenizer is tokenizer))
    assert found[0] == found[1]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_config_without_a_vocabulary_takes_the_tokenizers():
    options = {name: value for name, value in SMALL.items() if name != "d_vocab"} | {"act_fn": "gelu", "device": "cpu"}
    found = []
    for model, config in ((JudgeTransformer, JudgeConfig), (HookedTransformer, HookedTransformerConfig)):
        with tempfile.TemporaryDirectory(prefix="words") as folder:
            one = model(config(**options), tokenizer=plain(folder), default_padding_side="left")
        found.append((one.cfg.d_vocab, one.cfg.d_vocab_out, one.W_E.shape, one.W_U.shape, one.tokenizer.padding_side))
    assert found[0] == found[1]
    for model, config in ((JudgeTransformer, JudgeConfig), (HookedTransformer, HookedTransformerConfig)):
        with pytest.raises(AssertionError):
            model(config(**options))


def test_to_string(both):
    judge, ours = both
    tokens = judge.to_tokens(TEXTS)
    row = tokens[0]
    for given in (
        tokens,
        row,
        row.tolist(),
        row.numpy(),
        tokens.numpy(),
        tokens.tolist(),
        row[0],
        5,
        row[:0],
        [[3], [4]],
    ):
        assert ours.to_string(given) == judge.to_string(given), given


def test_to_str_tokens_of_tokens(both):
    judge, ours = both
    tokens = judge.to_tokens(TEXTS)
    row = tokens[0]
    arrays = [row.numpy(), row[None].numpy(), row[:1].numpy(), np.array(4)]
    given = [row, row[None], row[:1], row[0], row[:0], *arrays, [row, row.numpy(), TEXTS[1]], list(tokens), TEXTS, []]
    for each in given:
        assert ours.to_str_tokens(each) == judge.to_str_tokens(each), each


def test_single_tokens(both):
    judge, ours = both
    for word in ("the", "cat", "<unk>", "</s>", "unheard"):
        found, expected = ours.to_single_token(word), judge.to_single_token(word)
        assert found == expected and type(found) is int
    for token in range(SMALL["d_vocab"]):
        assert ours.to_single_str_token(token) == judge.to_single_str_token(token)


@pytest.mark.parametrize("prepend_bos", [None, True, False])
def test_get_token_position(both, prepend_bos):
    judge, ours = both
    text = "the cat sat on the mat"
    tokens = judge.to_tokens(text)
    the = judge.to_single_token("the")
    for mode in ("first", "last"):
        for single in ("the", "sat", the, torch.tensor(the), torch.tensor([the])):
            for given in (text, tokens, tokens[0]):
                options = {"mode": mode, "prepend_bos": prepend_bos, "padding_side": "left"}
                found, expected = (model.get_token_position(single, given, **options) for model in (ours, judge))
                assert found == expected and type(found) is type(expected)


def test_residual_directions(plain_pair):
    judge, ours = plain_pair
    tokens = judge.to_tokens(TEXTS)
    for given in ("cat", 4, tokens, tokens[0], tokens[0, 1], tokens[:1, :1], tokens[0, :1], tokens[None]):
        found, expected = (model.tokens_to_residual_directions(given) for model in (ours, judge))
        assert_close(found, expected, EXACT, str(given))


SIDES = [None, "left", "right"]


@pytest.mark.parametrize("kind", ["gpt2_like", "llama_like", "attention_only_shortformer", "alibi"])
@pytest.mark.parametrize("name", ["plain", "left", "own_bos", "no_pad"])
def test_texts_as_input(kind, name):
    judge, ours = pair_with(name, kind)
    with torch.no_grad():
        for given in (TEXTS[0], TEXTS, TEXTS[:1], LONG):
            for side in SIDES:
                for prepend_bos in (None, False):
                    options = {"padding_side": side, "prepend_bos": prepend_bos}
                    expected, found = (model(given, **options) for model in (judge, ours))
                    assert_close(found, expected, EXACT, f"{given}, {options}")
                    for per_token in (False, True):
                        each = options | {"return_type": "loss", "loss_per_token": per_token}
                        expected, found = (model(given, **each) for model in (judge, ours))
                        assert_close(found, expected, EXACT, f"{given}, {each}")
                    for block in judge.blocks:
                        block.attn.alibi = None  # After a longer text the judge's scores are off by a number per row.
                    expected, found = (
                        model.run_with_cache(given, return_cache_object=False, **options) for model in (judge, ours)
                    )
                    assert_same_cache(found[1], expected[1])


@pytest.mark.parametrize("kind", ["gpt2_like", "llama_like", "attention_only_shortformer", "alibi"])
def test_values_at_padding(kind):
    """Wherever it stands, and by the modules themselves too."""
    judge, ours = pair_of(KINDS[kind])
    tokens = torch.arange(12).reshape(2, 6)
    mask = torch.ones_like(tokens)
    mask[0, -1] = mask[1, 2] = mask[1, 0] = 0
    options = {"attention_mask": mask, "return_cache_object": False}
    with torch.no_grad():
        expected = judge.run_with_cache(tokens, **options)[1]
        assert_same_cache(ours.run_with_cache(tokens, **options)[1], expected)
        ours.blocks[0].register_forward_hook(lambda *_: None)
        found = ours.run_with_cache(tokens, **options)[1]
    assert_same_cache(found, expected)


WRONG = {
    "to_tokens of a number": lambda model: model.to_tokens(5),
    "to_tokens of tokens": lambda model: model.to_tokens([1, 2]),
    "to_tokens, side": lambda model: model.to_tokens("the", padding_side="up"),
    "to_tokens, bos": lambda model: model.to_tokens("the", prepend_bos="yes"),
    "to_string, dimensions": lambda model: model.to_string(torch.zeros(1, 2, 3, dtype=torch.int64)),
    "to_str_tokens of a number": lambda model: model.to_str_tokens(5),
    "to_str_tokens, dimensions": lambda model: model.to_str_tokens(torch.zeros(2, 3, dtype=torch.int64)),
    "to_str_tokens, dimensions of an array": lambda model: model.to_str_tokens(np.zeros((2, 3), dtype=int)),
    "two tokens": lambda model: model.to_single_token("the cat"),
    "no token": lambda model: model.to_single_token(""),
    "a token as text": lambda model: model.to_single_str_token("3"),
    "a token as tensor": lambda model: model.to_single_str_token(torch.tensor(3)),
    "position of none": lambda model: model.get_token_position("dog", "the cat"),
    "position of two": lambda model: model.get_token_position("the cat", "the cat"),
    "position in two": lambda model: model.get_token_position("the", torch.ones(2, 3, dtype=torch.int64)),
    "position, mode": lambda model: model.get_token_position("the", "the cat", mode="middle"),
    "direction of a list": lambda model: model.tokens_to_residual_directions([1, 2]),
    "direction of two": lambda model: model.tokens_to_residual_directions("the cat"),
    "direction of none": lambda model: model.tokens_to_residual_directions(torch.zeros(0, dtype=torch.int64)),
    "direction of a float": lambda model: model.tokens_to_residual_directions(1.5),
    "direction outside": lambda model: model.tokens_to_residual_directions(SMALL["d_vocab"]),
    "tokenizer": lambda model: model.set_tokenizer("gpt2"),
    "tokenizer's side": lambda model: model.set_tokenizer(model.tokenizer, default_padding_side="up"),
    "forward of a list": lambda model: model([1, 2]),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_input(plain_pair, wrong):
    assert_refused_alike(WRONG[wrong], *(copy.deepcopy(model) for model in plain_pair))


METHODS = {
    "to_tokens": lambda model: model.to_tokens("the"),
    "to_string": lambda model: model.to_string([1]),
    "to_str_tokens": lambda model: model.to_str_tokens("the"),
    "to_str_tokens of tokens": lambda model: model.to_str_tokens(torch.tensor([1])),
    "to_single_token": lambda model: model.to_single_token("the"),
    "to_single_str_token": lambda model: model.to_single_str_token(1),
    "get_token_position": lambda model: model.get_token_position("the", "the"),
    "tokens_to_residual_directions": lambda model: model.tokens_to_residual_directions("the"),
    "forward": lambda model: model("the"),
    "loss": lambda model: model(["the"], return_type="loss"),
    "run_with_cache": lambda model: model.run_with_cache("the"),
    "prepend_bos": lambda model: model(torch.tensor([[1]]), padding_side="left"),
}


@pytest.mark.parametrize("method", METHODS)
def test_without_a_tokenizer(method):
    models = (judge_of(KINDS["gpt2_like"]), pair_of(KINDS["gpt2_like"])[1])
    try:
        expected = METHODS[method](models[0])
    except Exception:
        assert_refused_alike(METHODS[method], *models)
    else:
        assert_close(METHODS[method](models[1]), expected, EXACT)

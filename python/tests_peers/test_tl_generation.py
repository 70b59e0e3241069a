"""Generation, token by token, beside the judge's."""

import contextlib
import io
import warnings

import pytest
import torch
from helpers import assert_close
from test_tl_hooked_transformer import EXACT, KINDS, pair_of, tokens_of
from test_tl_native import ROTARY, SMALL, SWITCHES
from tl_words import WORDS, word_tokenizer
from transformer_lens import TransformerLensKeyValueCache

import glassformer.transformer_lens as tl
from glassformer import _core

ALL_WORDS = [*WORDS, "in", "of", "sun", "sky", "was"]  # As many as the models have tokens, with the special ones.
TEXTS = ["the cat sat on the", "a dog ran", "Why was the sun in the sky"]
CHOSEN = {
    **{name: KINDS[name] for name in ("gpt2_like", "llama_like", "attention_only_shortformer", "alibi")},
    "experts": SWITCHES["experts"],
}
CACHED = [True, False]
OLMO_2 = {"original_architecture": "Olmo2ForCausalLM", "normalization_type": "RMS", "act_fn": "silu", "gated_mlp": True}
CACHES = {**SWITCHES, "olmo_2": OLMO_2 | ROTARY}
CACHES |= {f"{kind}_clipped": {**KINDS[kind], "clip_qkv": 0.5} for kind in ("olmoe_like", "gpt2_like")}
CACHED_KINDS = ["query_key_norms", "query_key_norms_grouped", "clip", "olmo_2", "olmoe", "gpt_oss"]
CACHE_CLASSES = (TransformerLensKeyValueCache, tl.HookedTransformerKeyValueCache)  # The judge's and ours.


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("words")


def with_words(options, folder, **tokenizer_options):
    """The judge's model and ours with a tokenizer of words each."""
    models = pair_of(options)
    for number, model in enumerate(models):
        model.set_tokenizer(word_tokenizer(folder / f"{number}", words=ALL_WORDS, **tokenizer_options))
    return models


@pytest.fixture(scope="module", params=CHOSEN)
def bare(request):
    """Without a tokenizer."""
    return pair_of(CHOSEN[request.param])


@pytest.fixture(scope="module", params=CHOSEN)
def both(request, folder):
    return with_words(CHOSEN[request.param], folder)


@pytest.fixture(scope="module")
def gpt2(folder):
    return with_words(KINDS["gpt2_like"], folder)


def outcomes(models, call, seed=0):
    """What a call makes of each model, from the same seed."""
    made = []
    for model in models:
        torch.manual_seed(seed)
        with torch.no_grad():
            made.append(call(model))
    return made


def assert_same_generated(models, given, seed=0, **options):
    expected, found = outcomes(models, lambda model: model.generate(given, verbose=False, **options), seed)
    if isinstance(expected, torch.Tensor):
        assert expected.dtype == found.dtype
        assert_close(found, expected, EXACT)
    else:
        assert found == expected


def assert_same_stream(models, given, seed=0, **options):
    expected, found = outcomes(models, lambda model: list(model.generate_stream(given, verbose=False, **options)), seed)
    assert [each.tolist() for each in found] == [each.tolist() for each in expected]


SAMPLING = {
    "greedy": {"do_sample": False},
    "plain": {},
    "top_k": {"top_k": 3},
    "top_p": {"top_p": 0.6},
    "cold": {"temperature": 0.3},
    "zero": {"temperature": 0.0},
    "hot": {"temperature": 5.0, "top_k": 10, "top_p": 0.9},
    "penalty": {"freq_penalty": 2.0, "temperature": 0.8},
    "penalty_greedy": {"freq_penalty": 50.0, "temperature": 0.0},
}


@pytest.mark.parametrize("cached", CACHED)
@pytest.mark.parametrize("rule", SAMPLING)
def test_texts_and_tokens(both, rule, cached):
    options = {"use_past_kv_cache": cached, "max_new_tokens": 7, **SAMPLING[rule]}
    for given in (TEXTS[0], TEXTS, TEXTS[:1], tokens_of(2, 6)):
        for return_type in ("input", "str", "tokens", "embeds"):
            assert_same_generated(both, given, return_type=return_type, stop_at_eos=False, **options)


@pytest.mark.parametrize("rule", SAMPLING)
def test_tokens_without_a_tokenizer(bare, rule):
    options = {"max_new_tokens": 7, "stop_at_eos": False, "use_past_kv_cache": False, **SAMPLING[rule]}
    assert_same_generated(bare, tokens_of(3, 5), **options)
    assert_same_generated(bare, tokens_of(3, 5), return_type="embeds", **options)


@pytest.mark.parametrize("cached", CACHED)
def test_with_the_cache_is_as_without(bare, cached):
    """Also where the judge's positions of a position embedding are others with the cache: without a tokenizer."""
    judge, ours = bare
    options = {"max_new_tokens": 7, "stop_at_eos": False, "verbose": False, "output_logits": True}
    for given in (tokens_of(2, 5), torch.randn(2, 5, SMALL["d_model"], dtype=torch.float64)):
        torch.manual_seed(1)
        expected = judge.generate(given, use_past_kv_cache=False, **options)
        torch.manual_seed(1)
        found = ours.generate(given, use_past_kv_cache=cached, **options)
        assert found.sequences.tolist() == expected.sequences.tolist()
        for ours_step, step in zip(found.logits, expected.logits, strict=True):
            assert_close(ours_step, step, EXACT)


@pytest.mark.parametrize("gradients", [(False, False, False), (True, True, True), (False, True, False)])
@pytest.mark.parametrize("kind", [*CACHED_KINDS, "olmoe_like_clipped", "gpt2_like_clipped"])
def test_the_cache_holds_what_attention_takes(kind, gradients):
    """Keys out of their norm and within their bounds, whether the engine runs or, for gradients, the modules."""
    models, tokens = pair_of(CACHES[kind]), tokens_of(length=9)
    caches = [cls.init_cache(model.cfg, "cpu", 2) for cls, model in zip(CACHE_CLASSES, models, strict=True)]
    for (begin, end), gradient in zip(((0, 4), (4, 5), (5, 9)), gradients, strict=True):
        mask = torch.ones(2, end - begin, dtype=torch.int64)
        with torch.set_grad_enabled(gradient):
            expected, found = (
                model(tokens[:, begin:end], past_kv_cache=cache, attention_mask=mask)
                for model, cache in zip(models, caches, strict=True)
            )
        assert_close(found, expected, EXACT)
    for ours, theirs in zip(caches[1], caches[0].entries, strict=True):
        assert_close(ours.past_keys, theirs.past_keys, EXACT)
        assert_close(ours.past_values, theirs.past_values, EXACT)


@pytest.mark.parametrize("return_type", ["input", "tokens", "str", "embeds"])
def test_embeddings(both, return_type):
    given = torch.randn(2, 5, SMALL["d_model"], dtype=torch.float64)
    options = {"max_new_tokens": 6, "stop_at_eos": False, "use_past_kv_cache": False, "return_type": return_type}
    assert_same_generated(both, given, **options)
    assert_same_generated(both, given, **options, top_k=4, temperature=0.7)


@pytest.mark.parametrize("cached", CACHED)
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("eos", [None, 5, [3, 8], (2, 4, 6, 9, 12)])
def test_ends(gpt2, eos, seed, cached):
    options = {"eos_token_id": eos, "max_new_tokens": 8, "use_past_kv_cache": cached, "temperature": 2.0}
    for given in (TEXTS, TEXTS[1], tokens_of(4, 6)):
        assert_same_generated(gpt2, given, seed, return_type="tokens", **options)
    assert_same_stream(gpt2, TEXTS[0], seed, **options)
    assert_same_stream(gpt2, tokens_of(4, 6), seed, **options)


@pytest.mark.parametrize("eos", [5, [3, 8]])
def test_ends_without_a_tokenizer(bare, eos):
    for seed in range(4):
        options = {"eos_token_id": eos, "max_new_tokens": 8, "use_past_kv_cache": False, "temperature": 2.0}
        assert_same_generated(bare, tokens_of(3, 5), seed, **options)
        assert_same_stream(bare, tokens_of(3, 5), seed, **options)


@pytest.mark.parametrize("padding_side", [None, "left", "right"])
@pytest.mark.parametrize("prepend_bos", [None, True, False])
@pytest.mark.parametrize("cached", CACHED)
def test_bos_and_padding(gpt2, prepend_bos, padding_side, cached):
    sides = [model.tokenizer.padding_side for model in gpt2]
    options = {"prepend_bos": prepend_bos, "padding_side": padding_side, "use_past_kv_cache": cached}
    options |= {"max_new_tokens": 5, "stop_at_eos": False}
    padded = gpt2[0].to_tokens(TEXTS, padding_side=padding_side or "right")
    for given in (*TEXTS, TEXTS, padded):
        assert_same_generated(gpt2, given, **options)
    assert_same_stream(gpt2, TEXTS[1], **options)
    assert_same_stream(gpt2, padded, **options)
    assert [model.tokenizer.padding_side for model in gpt2] == sides


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("special", [{"pad": None}, {"bos": None}, {"bos": None, "pad": None}])
def test_tokenizers_that_lack_special_tokens(tmp_path, special, side):
    models = with_words(KINDS["gpt2_like"], tmp_path, **special)
    for model in models:
        model.tokenizer.padding_side = side
    for cached in CACHED:
        options = {"use_past_kv_cache": cached, "max_new_tokens": 6, "temperature": 3.0}
        for seed in range(3):
            for given in (TEXTS, TEXTS[0], TEXTS[:1]):
                assert_same_generated(models, given, seed, return_type="tokens", **options)
            assert_same_stream(models, TEXTS[0], seed, stop_at_eos=False, **options)


@pytest.mark.parametrize("cached", CACHED)
@pytest.mark.parametrize("per_yield", [1, 3, 9, 100])
@pytest.mark.parametrize("rule", SAMPLING)
def test_streams(both, rule, per_yield, cached):
    options = {"use_past_kv_cache": cached, "max_new_tokens": 7, "max_tokens_per_yield": per_yield, **SAMPLING[rule]}
    for given in (TEXTS[0], tokens_of(2, 6)):
        assert_same_stream(both, given, stop_at_eos=False, **options)
        assert_same_stream(both, given, **options)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("side", ["left", "right"])
def test_streams_where_padding_is_drawn(both, side, seed):
    """The judge hides a token of padding that is new from what comes after it."""
    hot = {"temperature": 50.0, "stop_at_eos": False, "max_new_tokens": 9, "padding_side": side}
    for cached in CACHED:
        assert_same_stream(both, tokens_of(6, 5, seed), seed, use_past_kv_cache=cached, **hot)


def test_logits_of_every_step(both):
    options = {"output_logits": True, "return_dict_in_generate": True, "max_new_tokens": 5, "verbose": False}
    for given in (TEXTS, TEXTS[0], tokens_of(2, 4)):
        for cached in CACHED:
            expected, found = outcomes(
                both,
                lambda model, given=given, cached=cached: model.generate(given, use_past_kv_cache=cached, **options),
            )
            assert type(found) is type(expected)
            assert list(found) == list(expected)
            assert found.sequences.tolist() == expected.sequences.tolist()
            for ours_step, step in zip(found.logits, expected.logits, strict=True):
                assert_close(ours_step, step, EXACT)


def steer(value, hook):
    return value + torch.linspace(-3, 3, value.shape[-1], dtype=value.dtype)


def test_hooks_that_stand_while_generating(both):
    """On what is new with the cache, on everything without: the same values in the same order."""
    names = [
        "blocks.0.hook_resid_pre",
        "blocks.0.attn.hook_v",
        "blocks.1.attn.hook_pattern",
        "blocks.1.hook_resid_post",
    ]
    for cached in CACHED:
        for name in names:
            seen = {model: [] for model in both}

            def call(model, name=name, cached=cached, seen=seen):
                def note(value, hook):
                    seen[model].append(value.clone())
                    if "pattern" not in hook.name:
                        return steer(value, hook)

                with model.hooks(fwd_hooks=[(name, note)]):
                    options = {"max_new_tokens": 4, "use_past_kv_cache": cached, "verbose": False}
                    return model.generate(tokens_of(2, 5), return_type="tokens", stop_at_eos=False, **options)

            expected, found = outcomes(both, call)
            assert found.tolist() == expected.tolist(), name
            judge, ours = (seen[model] for model in both)
            for ours_value, expected_value in zip(ours, judge, strict=True):
                assert_close(ours_value, expected_value, EXACT, name)
    assert not any(point.fwd_hooks for point in both[1].hook_dict.values())


def test_what_is_printed_and_warned_of(gpt2):
    for model in gpt2:
        with contextlib.redirect_stderr(io.StringIO()) as shown:
            model.generate(TEXTS[0], max_new_tokens=2, stop_at_eos=False)
        assert "2/2" in shown.getvalue()
        with contextlib.redirect_stderr(io.StringIO()) as shown, warnings.catch_warnings():
            warnings.simplefilter("error")
            model.generate(TEXTS[0], max_new_tokens=2, verbose=False, return_dict_in_generate=True)
        assert not shown.getvalue()
        with pytest.warns(UserWarning, match="num_beams"):
            model.generate(TEXTS[0], max_new_tokens=1, verbose=False, num_beams=3)


WRONG = {
    "a number": (5, {}),
    "a list of numbers": ([1, 2], {}),
    "a mixed list": (["the", 3], {}),
    "none": (None, {}),
    "return type": (TEXTS[0], {"return_type": "tensor"}),
    "padding side": (TEXTS[0], {"padding_side": "middle"}),
    "prepend": (TEXTS[0], {"prepend_bos": "yes"}),
    "top_k": (TEXTS[0], {"top_k": 0}),
    "top_p": (TEXTS[0], {"top_p": 1.5}),
    "top_p of 0": (TEXTS[0], {"top_p": 0.0}),
    "no steps, embeddings": (torch.zeros(1, 2, SMALL["d_model"], dtype=torch.float64), {"max_new_tokens": 0}),
    "one dimension": (torch.tensor([1, 2]), {}),
    "four dimensions": (torch.zeros(1, 2, 3, SMALL["d_model"], dtype=torch.float64), {}),
    "other width": (torch.zeros(1, 2, 3, dtype=torch.float64), {}),
    "token": (torch.tensor([[1, SMALL["d_vocab"]]]), {}),
    "too long": (tokens_of(1, SMALL["n_ctx"]), {"max_new_tokens": 3}),
    "no tokens": (torch.zeros(1, 0, dtype=torch.int64), {}),
}


def assert_refused_alike(call, judge, ours):
    errors = []
    for model in (judge, ours):
        torch.manual_seed(0)
        with pytest.raises(Exception) as caught:
            call(model)
        errors.append(caught.value)
    # What the judge does not check fails somewhere in torch, and is refused by the core here.
    is_checked = isinstance(errors[0], AssertionError | ValueError) and str(errors[0])
    expected = type(errors[0]) if is_checked else (type(errors[0]), _core.Error, AssertionError)
    assert isinstance(errors[1], expected), repr(errors)
    assert str(errors[1]).strip() and "\n" not in str(errors[1]), errors[1]


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_input(gpt2, wrong):
    given, options = WRONG[wrong]
    assert_refused_alike(lambda model: model.generate(given, verbose=False, **options), *gpt2)
    if wrong not in ("return type", "no steps, embeddings", "four dimensions"):
        assert_refused_alike(lambda model: list(model.generate_stream(given, verbose=False, **options)), *gpt2)


def test_what_needs_a_tokenizer(bare):
    for given, options in ((TEXTS[0], {}), (TEXTS, {}), (tokens_of(1, 3), {}), ("", {"stop_at_eos": False})):
        assert_refused_alike(lambda model: model.generate(given, verbose=False, **options), *bare)  # noqa: B023
    as_text = {"stop_at_eos": False, "use_past_kv_cache": False, "return_type": "str", "verbose": False}
    assert_refused_alike(lambda model: model.generate(tokens_of(1, 3), **as_text), *bare)

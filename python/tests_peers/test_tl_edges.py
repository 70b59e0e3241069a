"""What can go wrong at a notebook, beside the judge: an error of the same kind in one line, or the same result."""

import copy
import json
import shutil

import numpy as np
import pytest
import torch
from helpers import assert_close
from test_tl_config_live import assert_same_values
from test_tl_generation import with_words
from test_tl_hooked_transformer import EXACT, KINDS, pair_of, tokens_of
from test_tl_native import SMALL
from tiny_models import make_model
from tl_words import word_tokenizer
from transformer_lens import HookedTransformer as Judge

from glassformer import _core
from glassformer.transformer_lens import HookedTransformer, loading, utilities

KINDS = {name: KINDS[name] for name in ("gpt2_like", "llama_like", "attention_only_shortformer")}
TOKENS = tokens_of(2, 5)
LONG = " ".join(["the cat sat on the mat in the sun"] * 4)
N_CTX, D_MODEL, D_VOCAB = SMALL["n_ctx"], SMALL["d_model"], SMALL["d_vocab"]


def residual(*shape):
    return torch.zeros(shape, dtype=torch.float64)


def half(value, hook):
    return value * 0.5


def with_hooks(*hooks):
    return lambda model: model.run_with_hooks(TOKENS, fwd_hooks=[*hooks])


def cached(**options):
    return lambda model: model.run_with_cache(TOKENS, return_cache_object=False, **options)[1]


SAME = {
    "hook of a filter of none": lambda model: model.add_hook(lambda name: False, half),
    "filter of an unknown name": cached(names_filter="hook_emdeb"),
    "filter with an unknown name": cached(names_filter=["hook_embed", "nothing"]),
    "no batch axis of two": cached(remove_batch_dim=True),
    "last layer of a cache": lambda model: model.run_with_cache(TOKENS)[1]["resid_post", -1],
    "hook at a closed flag": with_hooks(("blocks.0.attn.hook_result", half)),
    "one dimension": lambda model: model(TOKENS[0]),
    "32 bits": lambda model: model(TOKENS.int()),
    "the whole context": lambda model: model(tokens_of(1, N_CTX)),
    "a text that is too long": lambda model: model(LONG),
    "its loss": lambda model: model(LONG, return_type="loss"),
    "no text": lambda model: model(""),
    "texts": lambda model: model(["the cat", "a"]),
    "texts with padding before": lambda model: model(["the cat sat", "a"], padding_side="left")[:, -1],
    "another return type": lambda model: model(TOKENS, return_type="loses"),
    "loss by token of logits": lambda model: model(TOKENS, loss_per_token=True),
    "loss of one token by token": lambda model: model(TOKENS[:, :1], return_type="loss", loss_per_token=True),
    "behind all layers": lambda model: model(residual(1, 3, D_MODEL) + 1, start_at_layer=2),
    "far behind": lambda model: model(residual(1, 3, D_MODEL) + 1, start_at_layer=9),
    "far before": lambda model: model(residual(1, 3, D_MODEL) + 1, start_at_layer=-9),
    "up to a far layer": lambda model: model(TOKENS, stop_at_layer=9),
    "up to none": lambda model: model(TOKENS, stop_at_layer=0),
    "up to before all": lambda model: model(TOKENS, stop_at_layer=-9),
    "up to before the start": lambda model: model(residual(1, 3, D_MODEL), start_at_layer=1, stop_at_layer=0),
    "loss from a layer on": lambda model: model(residual(2, 5, D_MODEL), "loss", start_at_layer=1, tokens=TOKENS),
    "mask of bools": lambda model: model(TOKENS, attention_mask=torch.ones(2, 5, dtype=torch.bool)),
    "generation from no text": lambda model: model.generate("", max_new_tokens=3, do_sample=False, verbose=False),
    "unknown argument of generate": lambda model: model.generate(TOKENS, 2, do_sample=False, verbose=False, beams=3),
}

REFUSED = {
    "misspelt hook": (lambda model: model.add_hook("blocks.0.hook_resid_psot", half), "blocks.0.hook_resid_post"),
    "hook of no layer": (lambda model: model.add_hook("blocks.9.hook_resid_post", half), "blocks.0.hook_resid_post"),
    "short name of a hook": (lambda model: model.add_hook("resid_post0", half), "no hook point 'resid_post0'"),
    "hook on a module": (lambda model: model.add_hook("blocks.0", half), "expected the name of a HookPoint"),
    "hook at a closed flag": (lambda model: model.add_hook("blocks.0.attn.hook_result", half), "use_attn_result"),
    "hook by a tuple": (lambda model: model.add_hook(("resid_post", 0), half), ""),
    "direction of a hook": (lambda model: model.add_hook("hook_embed", half, dir="both"), "'fwd' or 'bwd'"),
    "misspelt hook of a run": (with_hooks(("hook_emdeb", half)), "hook_embed"),
    "hook without an argument": (with_hooks(("hook_embed", lambda value: value)), "hook"),
    "hook that fails": (with_hooks(("hook_embed", lambda value, hook: 1 / 0)), "division by zero"),
    "filter by a number": (cached(names_filter=5), "names_filter"),
    "filter by a set": (cached(names_filter={"hook_embed"}), "names_filter"),
    "position by a text": (cached(pos_slice="first"), "slice"),
    "gradients of logits": (lambda model: model.run_with_cache(TOKENS, incl_bwd=True), ""),
    "misspelt activation": (lambda model: model.run_with_cache(TOKENS)[1]["resid_psot", 0], "blocks.0.hook_resid_post"),
    "activation of no layer": (lambda model: model.run_with_cache(TOKENS)[1]["resid_post", 9], "blocks.9.hook_resid"),
    "side of padding": (lambda model: model("the", padding_side="top"), "'left', 'right'"),
    "bos": (lambda model: model("the", prepend_bos=3), "prepend_bos"),
    "texts as a tuple": (lambda model: model(("the", "cat")), "a text, a list of texts or a tensor; found tuple"),
    "array": (lambda model: model(TOKENS.numpy()), "found ndarray"),
    "nothing": (lambda model: model(None), "found NoneType"),
    "numbers in a list": (lambda model: model([1, 2, 3]), ""),
    "no texts": (lambda model: model([]), ""),
    "token outside": (lambda model: model(torch.tensor([[0, D_VOCAB]])), f"token {D_VOCAB} is outside"),
    "floats as tokens": (lambda model: model(TOKENS.float()), "tokens must be integers; found Float"),
    "three dimensions": (lambda model: model(TOKENS[None]), r"expected tokens, batch pos; found shape \[1, 2, 5\]"),
    "too long": (lambda model: model(tokens_of(1, N_CTX + 1)), "17 tokens; the model's context is 16"),
    "too long at the end": (lambda model: model.generate(tokens_of(1, N_CTX - 1), 4, False, verbose=False), "context"),
    "layer of tokens": (lambda model: model(TOKENS, start_at_layer=1), "takes a residual stream, batch pos 24"),
    "layer of a text": (lambda model: model("the", start_at_layer=1), "takes a residual stream"),
    "other width": (lambda model: model(residual(1, 3, 25), start_at_layer=1), r"found \[1, 3, 25\]"),
    "loss without tokens": (lambda model: model(residual(1, 3, 24), "loss", start_at_layer=1), "need tokens"),
    "mask of another shape": (lambda model: model(TOKENS, attention_mask=torch.ones(2, 4)), "attention_mask has shape"),
    "unknown argument": (lambda model: model(TOKENS, foo=1), "foo"),
    "scores of another kind": (lambda model: model.all_composition_scores("X"), "'Q', 'K' or 'V'"),
    "biases of a far layer": (lambda model: model.accumulated_bias(9, include_mlp_biases=False), "layer is 9"),
    "biases of no MLP": (lambda model: model.accumulated_bias(2, True, False), "2"),
    "an empty state dict": (lambda model: model.load_and_process_state_dict({}), "lacks"),
    "another device": (lambda model: model.to("nowhere"), ""),
    "generation to no kind": (lambda model: model.generate(TOKENS, verbose=False, return_type="x"), "return_type"),
    "none of the most likely": (lambda model: model.generate(TOKENS, verbose=False, top_k=0), "top_k"),
    "twice the probability": (lambda model: model.generate(TOKENS, verbose=False, top_p=2.0), "top_p"),
    "fewer than no tokens": (lambda model: model.generate(TOKENS, -1, verbose=False), "max_new_tokens is -1"),
}

STRICTER = {
    "token below 0": (lambda model: model(torch.tensor([[0, -1]])), "token -1 is outside the vocabulary"),
    "no tokens": (lambda model: model(torch.zeros(1, 0, dtype=torch.int64)), "no tokens"),
    "no text": (lambda model: model("", prepend_bos=False), "no tokens"),
    "shape from a hook": (with_hooks(("blocks.1.hook_resid_pre", lambda v, hook: v[:1])), "a value keeps its shape"),
    "biases before all": (lambda model: model.accumulated_bias(-1, include_mlp_biases=False), "layer is -1"),
    "below zero degrees": (lambda model: model.generate(TOKENS, verbose=False, temperature=-1.0), "temperature is -1"),
}
"""Where the judge says nothing, and makes numbers of no meaning, or of another shape."""


@pytest.fixture(scope="module", params=KINDS)
def models(request, tmp_path_factory):
    return with_words(KINDS[request.param], tmp_path_factory.mktemp("words"))


def outcomes(call, models):
    made = []
    for model in models:
        torch.manual_seed(0)
        try:
            made.append(call(copy.deepcopy(model)))
        except Exception as error:
            made.append(error)
    return made


def assert_one_line(error, says):
    assert "\n" not in str(error), error
    with pytest.raises(type(error), match=says or None):
        raise error


@pytest.mark.filterwarnings("ignore:generate")
@pytest.mark.parametrize("name", SAME)
def test_the_same(name, models):
    expected, found = outcomes(SAME[name], models)
    assert not isinstance(expected, Exception), expected
    if isinstance(expected, dict):
        assert_same_values(found, expected)
    elif isinstance(expected, torch.Tensor):
        assert_close(found.double(), expected.double(), EXACT)
    else:
        assert found == expected


@pytest.mark.parametrize("name", REFUSED)
def test_refused_alike(name, models):
    call, says = REFUSED[name]
    theirs, error = outcomes(call, models)
    assert isinstance(theirs, Exception), theirs
    checked = isinstance(theirs, AssertionError | KeyError | ValueError) and "torch.cat" not in str(theirs)
    assert isinstance(error, type(theirs) if checked else (type(theirs), _core.Error, AssertionError)), (theirs, error)
    if name != "gradients of logits":  # torch's own.
        assert_one_line(error, says)


@pytest.mark.parametrize("name", STRICTER)
def test_refused_where_the_judge_is_silent(name, models):
    call, says = STRICTER[name]
    theirs, error = outcomes(call, models)
    assert not isinstance(theirs, Exception) or isinstance(theirs, IndexError | RuntimeError)
    assert isinstance(error, _core.Error)
    assert_one_line(error, says)


def test_masks_of_floats_and_of_other_numbers(models):
    _, ours = models
    mask = torch.ones(2, 5)
    mask[0, :2] = 0
    assert torch.equal(ours(TOKENS, attention_mask=mask), ours(TOKENS, attention_mask=mask.long()))
    with pytest.raises(_core.InputError, match="1 at tokens and 0 at padding"):
        ours(TOKENS, attention_mask=(1 - mask) * -1e9)


def test_no_new_tokens(models):
    _, ours = models
    options = {"max_new_tokens": 0, "verbose": False}
    assert torch.equal(ours.generate(TOKENS, **options), TOKENS)
    assert ours.generate("the cat", **options) == "the cat"
    assert list(ours.generate_stream(TOKENS, **options)) == []


def test_tokenizers_that_come_from_nowhere():
    judge, ours = pair_of(KINDS["gpt2_like"])
    tokenizer = word_tokenizer()
    assert "name_or_path" not in tokenizer.init_kwargs
    with pytest.raises(KeyError):
        judge.set_tokenizer(tokenizer)
    assert utilities.get_tokenizer_with_bos(tokenizer) is tokenizer
    ours.set_tokenizer(tokenizer)
    assert ours.to_str_tokens("the cat") == ["<s>", "the", "cat"]
    assert ours.to_str_tokens("the cat", prepend_bos=False) == ["the", "cat"]


SIZES = {**SMALL, "act_fn": "gelu", "device": "cpu"}
CONFIGS = {
    "unknown field": ({"nonsense": 3}, "nonsense"),
    "activation": ({"act_fn": "tanh"}, "act_fn is 'tanh'; expected one of"),
    "no activation": ({"act_fn": None}, "act_fn"),
    "norm": ({"normalization_type": "x"}, "normalization_type is 'x'"),
    "no vocabulary": ({"d_vocab": -1}, "d_vocab"),
    "devices": ({"n_devices": 2}, "n_devices is 2"),
    "types of attention": ({"use_local_attn": True, "window_size": 2, "attn_types": ["x", "y"]}, "found 'x'"),
    "window": ({"use_local_attn": True, "window_size": "2", "attn_types": ["local"] * 2}, "found '2'"),
    "more experts than there are": ({"num_experts": 2, "experts_per_token": 3}, "is more than num_experts"),
    "no expert": ({"num_experts": 2, "experts_per_token": 0}, "experts_per_token"),
    "positions": ({"positional_embedding_type": "x"}, "positional_embedding_type is 'x'"),
    "positions of T5": ({"positional_embedding_type": "relative_positional_bias"}, "relative_positional_bias"),
    "heads that don't share evenly": ({"n_key_value_heads": 2}, "3 heads can't share 2 key-value heads evenly"),
    "no context": ({"n_ctx": 0}, "context"),
    "width of the MLP": ({"d_mlp": 0}, "the width of the MLP is 0"),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", CONFIGS)
def test_configs_that_can_not_be(name):
    fields, says = CONFIGS[name]
    theirs, error = outcomes(lambda cls: cls({**SIZES, **fields})(TOKENS), (Judge, HookedTransformer))
    assert isinstance(theirs, Exception)
    assert isinstance(error, type(theirs)) or isinstance(theirs, RuntimeError)
    assert_one_line(error, says)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"init_mode": "x"}, "init_mode is 'x'"),
        ({"attention_dir": "x"}, "attention_dir x is not supported"),
        ({"attn_scale": 0.0}, "attn_scale 0 is not supported"),
        ({"attn_scale": -2.0}, "attn_scale -2 is not supported"),
        ({"load_in_4bit": True}, "4-bit weights are not supported"),
        ({"n_layers": -1}, "n_layers is -1"),
        ({"n_heads": 0}, "number of heads is 0"),
    ],
)
def test_configs_that_are_refused_here_alone(fields, says):
    with pytest.raises((_core.Error, ValueError), match=says):
        HookedTransformer({**SIZES, **fields})(TOKENS)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("places")
    make_model("gpt2").save_pretrained(folder / "good")
    for name in ("cut", "bad_json", "no_weights"):
        shutil.copytree(folder / "good", folder / name)
    weights = folder / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:2000])
    (folder / "bad_json" / "config.json").write_text("{")
    (folder / "no_weights" / "model.safetensors").unlink()
    (folder / "empty").mkdir()
    (folder / "unknown").mkdir()
    (folder / "unknown" / "config.json").write_text(json.dumps({"model_type": "nonsense"}))
    (folder / "x.gguf").write_bytes(b"nonsense")
    return folder


@pytest.mark.parametrize(
    ("name", "options", "error", "says"),
    [
        ("nope", {}, ValueError, "nope not found"),
        ("owner/nope", {}, _core.FileError, "owner/nope: not in the local cache"),
        ("t5-small", {}, RuntimeError, "is an encoder and decoder"),
        ("bert-base-cased", {}, RuntimeError, "is an encoder"),
        ("empty", {}, _core.FileError, "neither config.json nor a GGUF file"),
        ("bad_json", {}, _core.FileError, r"bad_json.config\.json: is no JSON"),
        ("unknown", {}, _core.FileError, "no weights"),
        ("cut", {}, _core.FileError, r"cut.model\.safetensors: .*incomplete download"),
        ("no_weights", {}, _core.FileError, "no weights"),
        ("x.gguf", {}, _core.FileError, "is not a GGUF file"),
        ("good", {"dtype": "float7"}, KeyError, "dtype is 'float7'; expected one of float32"),
        ("good", {"first_n_layers": 99}, ValueError, "first_n_layers is 99; .*good has 3 layers"),
        ("good", {"n_ctx": 0}, ValueError, "n_ctx is 0; expected 1 to"),
        ("good", {"checkpoint_index": 3}, ValueError, "good has no checkpoints"),
        ("good", {"default_prepend_bos": "x"}, AssertionError, "default_prepend_bos is 'x'"),
        ("good", {"device": "nowhere"}, ValueError, "'nowhere' is no device"),
        ("good", {"nonsense": 3}, TypeError, "unexpected keyword argument 'nonsense'"),
        ("good", {"subfolder": "x"}, _core.UnsupportedError, "subfolder='x' is not supported"),
        ("good", {"device_map": "auto"}, _core.UnsupportedError, "device_map='auto' is not supported"),
    ],
)
def test_models_that_can_not_be_loaded(name, options, error, says, place):
    there = place / name
    with pytest.raises(error, match=says) as raised:
        HookedTransformer.from_pretrained(str(there) if there.exists() else name, **options)
    assert "\n" not in str(raised.value)


def test_what_makes_no_difference_to_loading(place):
    options = {"low_cpu_mem_usage": True, "attn_implementation": "eager", "device_map": None}
    model = HookedTransformer.from_pretrained(str(place / "good"), first_n_layers=2, n_ctx=5, **options)
    assert (model.cfg.n_layers, model.cfg.n_ctx, len(model.W_pos)) == (2, 5, 5)
    with pytest.raises(ValueError, match="not checkpointed"):
        loading.get_checkpoint_labels("gpt2")


def test_numbers_of_numpy_in_places_of_ones_own(models):
    for model in models:
        assert model.to_string(np.array([4, 5])) == model.to_string([4, 5])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(
    "move", [lambda m: m.cuda(), lambda m: m.to("cuda:1"), lambda m: m.mps(), lambda m: m.to("mps")]
)
def test_devices_that_are_not_there(move):
    _, ours = pair_of({"act_fn": "gelu"})
    before = ours(tokens_of())
    with pytest.raises(_core.UnsupportedError, match=r"device (cuda|mps)(:1)? is not"):
        move(ours)
    assert ours.cfg.device == "cpu" and torch.equal(ours(tokens_of()), before)
    with pytest.raises(_core.UnsupportedError, match="device cuda is not there"):
        HookedTransformer({**ours.cfg.to_dict(), "device": "cuda"})

"""HookedTransformer.from_pretrained beside the judge's: every kind of place, every argument, what is refused."""

import copy
import json
import sys
import types
import unittest.mock
import warnings

import pytest
import tiny_models
import torch
from helpers import assert_close, error
from test_gguf_llama import write as write_gguf
from tiny_models import make_model, random_tokens
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformer_lens import HookedTransformer as Judge
from transformer_lens import HookedTransformerConfig as JudgeConfig
from transformer_lens import loading
from transformers import PreTrainedTokenizerFast

from glassformer.transformer_lens import HookedTransformer

ARCHITECTURES = {"gpt2": "GPT2LMHeadModel", "llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM"}
PROCESSING = ("fold_ln", "center_writing_weights", "center_unembed", "fold_value_biases")
EXACT = 1e-6  # The judge processes in float32, and its rotary angles are of float32.
KINDS = ("gpt2", "gpt2_untied", "llama", "llama_grouped", "mistral_window")


def letter_tokenizer(folder, bos="<s>"):
    """Letters and some pairs of them as tokens; written to `folder` and read from there."""
    pairs = [("a", "t"), ("t", "h"), ("th", "e"), ("o", "n")]
    names = [bos, "</s>", "<pad>", *"\u0120abcdefghijklmnopqrstuvwxyzW", *map("".join, pairs)]
    made = Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, pairs))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token=bos, eos_token="</s>", pad_token="<pad>", model_max_length=40
    )
    tokenizer.save_pretrained(folder)
    return PreTrainedTokenizerFast.from_pretrained(folder)


def save(reference, folder):
    """A model as published folders have it, with a tokenizer."""
    saved = copy.deepcopy(reference)
    saved.config.architectures = [ARCHITECTURES[saved.config.model_type]]
    if saved.config.model_type == "gpt2":
        saved.config.n_ctx = saved.config.n_positions
    saved.save_pretrained(folder)
    letter_tokenizer(folder)


@pytest.fixture
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("model")  # The judge looks for "llama" in names, and pytest's have the test's.


def both(folder, reference, no_processing=False, **options):
    """The judge's model, made of `reference`, and ours, made of the folder."""
    options = {"dtype": torch.float64, "device": "cpu"} | options
    if reference.config.model_type == "mistral":
        options |= {"n_ctx": tiny_models.N_CTX}  # The judge's is 2048 otherwise.
    name = "from_pretrained_no_processing" if no_processing else "from_pretrained"
    with warnings.catch_warnings(), unittest.mock.patch.object(loading, "get_official_model_name", lambda name: name):
        warnings.simplefilter("ignore")  # Its names are those of its list; folders it only reads as configs.
        judge = getattr(Judge, name)(str(folder), hf_model=copy.deepcopy(reference), **options)
    return judge, getattr(HookedTransformer, name)(str(folder), **options)


def assert_same_model(ours, judge, tolerance=EXACT, states=True):
    """Fields, keys, weights, logits; `states` False where weights are only equal up to a basis."""
    for name in ("normalization_type", "n_layers", "n_ctx", "default_prepend_bos", "dtype", "model_name", "n_params"):
        assert getattr(ours.cfg, name) == getattr(judge.cfg, name), name
    expected, found = judge.state_dict(), ours.state_dict()
    assert list(found) == list(expected)
    for name in expected if states else ():
        assert found[name].dtype == expected[name].dtype or name.endswith(("mask", "IGNORE")), name
        assert_close(found[name].double(), expected[name].double(), tolerance, name)
    tokens = random_tokens(2, min(11, judge.cfg.n_ctx))
    with torch.no_grad():
        assert_close(ours(tokens), judge(tokens), 2 * tolerance)


@pytest.mark.parametrize("kind", KINDS)
def test_safetensors(kind, place):
    reference = make_model(kind, torch.float64)
    save(reference, place)
    judge, ours = both(place, reference)
    assert_same_model(ours, judge)
    assert ours.tokenizer.get_vocab() == judge.tokenizer.get_vocab()
    assert torch.equal(ours.to_tokens("the cat"), judge.to_tokens("the cat"))
    assert_same_model(*reversed(both(place, reference, no_processing=True)))


@pytest.mark.parametrize("kind", KINDS)
def test_one_step_of_processing_at_a_time(kind, place):
    reference = make_model(kind, torch.float64)
    save(reference, place)
    for step in PROCESSING:
        assert_same_model(*reversed(both(place, reference, **{name: name == step for name in PROCESSING})))
        assert_same_model(*reversed(both(place, reference, no_processing=True, **{step: True})))


def test_refactored_attention(place):
    reference = make_model("gpt2", torch.float64)
    save(reference, place)
    judge, ours = both(place, reference, refactor_factored_attn_matrices=True)
    plain, ours_plain = both(place, reference)
    assert_same_model(ours, judge, states=False)
    for name in ("QK", "OV"):
        found, decomposed, expected = (getattr(model, name).AB for model in (ours, judge, plain))
        assert_close(found, expected, EXACT, name)
        assert_close(found, getattr(ours_plain, name).AB, 1e-12, name)
        # The judge decomposes in float32: how far that is from its own weights is the processor's.
        assert_close(found, decomposed, EXACT + error(decomposed, expected), name)


@pytest.mark.parametrize("kind", ["gpt2", "llama_grouped"])
def test_files_of_torch(kind, place):
    reference = make_model(kind, torch.float64)
    save(reference, place)
    for file in place.glob("*.safetensors"):
        file.unlink()
    names = list(reference.state_dict())
    torch.save({name: reference.state_dict()[name] for name in names[:9]}, place / "pytorch_model-00001-of-00002.bin")
    torch.save({name: reference.state_dict()[name] for name in names[9:]}, place / "pytorch_model-00002-of-00002.bin")
    assert_same_model(*reversed(both(place, reference)))


@pytest.mark.parametrize("no_processing", [False, True])
def test_models_of_transformers(place, no_processing):
    reference = make_model("gpt2", torch.float64)
    save(reference, place)
    options = {"dtype": torch.float64, "device": "cpu", "hf_model": reference, "tokenizer": letter_tokenizer(place)}
    judge, _ = both(place, reference, no_processing)
    name = "from_pretrained_no_processing" if no_processing else "from_pretrained"
    ours = getattr(HookedTransformer, name)(str(place), **options)
    assert_same_model(ours, judge)
    with torch.no_grad():
        before = reference(random_tokens(1, 5)).logits
        ours.embed.W_E.zero_()
        assert torch.equal(reference(random_tokens(1, 5)).logits, before)


@pytest.mark.parametrize("final", [False, True])
def test_their_own_folders(final, place):
    """config.json and *final.pth as TransformerLens' own models have them."""
    said = {"n_layers": 2, "d_model": 16, "n_ctx": 12, "d_head": 8, "n_heads": 2, "d_mlp": 20, "d_vocab": 30}
    said |= {"act_fn": "solu_ln", "attn_only": False, "normalization_type": "LNPre" if final else "LN"}
    cfg = {name: value for name, value in said.items() if name != "attn_only"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        judge = Judge(JudgeConfig(**cfg, device="cpu", seed=1, dtype=torch.float64))
    (place / "config.json").write_text(json.dumps(said))
    torch.save(judge.state_dict(), place / "model_final.pth")
    ours = HookedTransformer.from_pretrained_no_processing(str(place), dtype=torch.float64, device="cpu")
    tokens = torch.randint(30, (2, 9), generator=torch.Generator().manual_seed(0))
    assert_close(ours(tokens), judge(tokens), EXACT)
    assert list(ours.state_dict()) == list(judge.state_dict()) and ours.cfg.act_fn == "solu_ln"
    processed = HookedTransformer.from_pretrained(str(place), dtype=torch.float64, device="cpu")
    judge.load_and_process_state_dict(judge.state_dict())
    assert processed.cfg.normalization_type == judge.cfg.normalization_type == "LNPre"
    for name, expected in judge.state_dict().items():
        assert_close(processed.state_dict()[name].double(), expected.double(), EXACT, name)


def test_a_gguf_file(place):
    reference = make_model("llama_grouped")
    write_gguf(place / "small.gguf", reference)
    save(reference, place / "folder")
    for no_processing in (True, False):
        name = "from_pretrained_no_processing" if no_processing else "from_pretrained"
        judge, _ = both(place / "folder", reference, no_processing, dtype=torch.float32)
        ours = getattr(HookedTransformer, name)(str(place / "small.gguf"), device="cpu")
        judge.cfg.model_name = ours.cfg.model_name
        assert_same_model(ours, judge, 2e-4)


@pytest.mark.parametrize(
    "options",
    [
        {"first_n_layers": 1},
        {"n_ctx": 9},
        {"dtype": torch.float32},
        {"dtype": "float32"},
        {"dtype": "float32", "torch_dtype": torch.float64},
        {"default_prepend_bos": False},
        {"default_padding_side": "left"},
        {"default_padding_side": "right"},
        {"first_n_layers": 2, "n_ctx": 7, "default_prepend_bos": True, "default_padding_side": "left"},
    ],
)
@pytest.mark.parametrize("kind", ["gpt2", "llama_grouped"])
@pytest.mark.parametrize("no_processing", [False, True])
def test_arguments(options, kind, no_processing, place):
    reference = make_model(kind, torch.float64)
    save(reference, place)
    judge, ours = both(place, reference, no_processing, **options)
    exact = judge.cfg.dtype == torch.float64
    assert_same_model(ours, judge, EXACT if exact else 1e-4)
    assert ours.tokenizer.padding_side == judge.tokenizer.padding_side
    texts = ["the cat sat", "a dog ran on the road" * 3]
    assert torch.equal(ours.to_tokens(texts), judge.to_tokens(texts))


def test_longer_contexts(place, tmp_path_factory, caplog):
    reference = make_model("llama_grouped", torch.float64)
    save(reference, place)
    judge, ours = both(place, reference, n_ctx=70)
    assert [record.message.startswith("n_ctx=70") for record in caplog.records].count(True) == 1
    tokens = random_tokens(1, 70)
    with torch.no_grad():
        assert_close(ours(tokens), judge(tokens), EXACT)
    reference = make_model("gpt2", torch.float64)
    save(reference, other := tmp_path_factory.mktemp("model"))
    for make in (lambda: both(other, reference, n_ctx=70), lambda: HookedTransformer.from_pretrained(other, n_ctx=70)):
        with pytest.raises((ValueError, RuntimeError), match="48"):
            make()


def test_another_tokenizer(place, tmp_path):
    reference = make_model("gpt2", torch.float64)
    save(reference, place)
    _, ours = both(place, reference, tokenizer=letter_tokenizer(tmp_path, bos="<b>"))
    assert ours.to_str_tokens("the on") == ["<b>", "the", " ", "on"]


def test_a_tokenizer_of_a_kind_that_the_core_has_not(place):
    reference = make_model("gpt2", torch.float64)
    save(reference, place)
    words = Tokenizer(models.WordLevel({"the": 0, "cat": 1, "<s>": 2, "[UNK]": 3}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>", pad_token="[UNK]").save_pretrained(place)
    judge, ours = both(place, reference)
    assert ours.to_tokens("the cat sat").tolist() == judge.to_tokens("the cat sat").tolist() == [[2, 0, 1, 3]]
    with torch.no_grad():
        assert_close(ours("the cat sat"), judge("the cat sat"), EXACT)


def test_bfloat16(place):
    reference = make_model("llama_grouped")
    save(reference, place)
    judge, ours = both(place, reference, True, dtype="bfloat16")
    assert_same_model(ours, judge, 0.2)


@pytest.mark.parametrize(
    ("name", "options", "error", "says"),
    [
        ("gpt5-nano", {}, ValueError, "gpt5-nano not found"),
        ("nobody/nothing", {}, Exception, "nobody/nothing: not in the local cache"),
        ("t5-small", {}, RuntimeError, "encoder and decoder"),
        ("google-t5/t5-base", {}, RuntimeError, "encoder and decoder"),
        ("bert-base-cased", {}, RuntimeError, "an encoder"),
        ("gpt2", {"load_in_8bit": True}, AssertionError, "load_in_8bit"),
        ("gpt2", {"load_in_4bit": True}, AssertionError, "load_in_4bit"),
        ("gpt2", {"n_devices": 2}, RuntimeError, "several devices"),
        ("gpt2", {"checkpoint_index": 0}, ValueError, "not checkpointed"),
        ("pythia-70m", {"checkpoint_value": 17}, AssertionError, "no checkpoint 17"),
        ("pythia-70m", {"checkpoint_value": 1, "checkpoint_label": 1}, ValueError, "two names"),
        ("pythia-70m", {"checkpoint_index": 999}, (IndexError, ValueError, AssertionError), "checkpoint"),
        ("gpt2", {"hf_model": object()}, AssertionError, "no config"),
        ("gpt2", {"dtype": "float99"}, (KeyError, ValueError), "float99"),
    ],
)
def test_what_is_refused(name, options, error, says):
    with pytest.raises(error, match=says) as caught:
        HookedTransformer.from_pretrained(name, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("config", [{"load_in_8bit": True}, {"load_in_4bit": True}, {"quant_method": "gptq"}])
def test_quantised_models(config):
    hf = types.SimpleNamespace(config=types.SimpleNamespace(to_dict=lambda: {"quantization_config": config}))
    with pytest.raises((AssertionError, RuntimeError, NotImplementedError), match="quantised"):
        HookedTransformer.from_pretrained("gpt2", hf_model=hf)


@pytest.mark.parametrize(
    ("name", "options", "place", "revision"),
    [
        ("pythia-70m", {"checkpoint_value": 1000}, "EleutherAI/pythia-70m", "step1000"),
        ("pythia-70m", {"checkpoint_label": 1000}, "EleutherAI/pythia-70m", "step1000"),
        ("pythia-70m", {"checkpoint_index": -1}, "EleutherAI/pythia-70m", "step143000"),
        ("stanford-gpt2-small-a", {"checkpoint_index": 1}, "stanford-crfm/alias-gpt2-small-x21", "checkpoint-10"),
        ("gpt2-small", {}, "gpt2", None),
        ("gpt2-small", {"revision": "main"}, "gpt2", "main"),
    ],
)
def test_what_is_fetched(name, options, place, revision, monkeypatch):
    asked = []

    def snapshot_download(name, revision, **options):
        asked.append((name, revision, options["local_files_only"]))
        raise OSError("there is no network")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    with pytest.raises(Exception, match=r"not in the local cache, .* \(there is no network\): give a folder"):
        HookedTransformer.from_pretrained(name, **options)
    assert asked == [(place, revision, True), (place, revision, False), (place, revision, False)]


def test_without_a_network(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(Exception, match="huggingface_hub, which could fetch it, is not installed"):
        HookedTransformer.from_pretrained("gpt2")


def test_places_without_a_model(place):
    with pytest.raises((OSError, ValueError, RuntimeError), match=str(place)):
        HookedTransformer.from_pretrained(str(place))
    tiny_models.make_config("gpt2").save_pretrained(place)
    with pytest.raises((OSError, ValueError, RuntimeError), match="safetensors"):
        HookedTransformer.from_pretrained(str(place))
    (place / "config.json").unlink()
    torch.save({}, place / "pytorch_model.bin")
    with pytest.raises((OSError, ValueError, RuntimeError), match=r"config\.json beside"):
        HookedTransformer.from_pretrained(str(place))

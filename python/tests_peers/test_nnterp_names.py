"""Standard names of modules, and numbers in configs: the same as nnterp's."""

import importlib
import inspect
import pkgutil
import types

import nnterp
import nnterp.rename_utils
import pytest
import torch
import transformers
from tiny_models import make_model

import glassformer.nnterp
from glassformer import InputError
from glassformer.nnterp import ModuleAccessor, get_rename_dict, rename_utils

SMALL = {"vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
# Architectures with other module trees, also ones that Glassformer can't run: a ModuleAccessor computes nothing.
OTHERS = {
    "gpt_neox": lambda: transformers.GPTNeoXConfig(**SMALL, intermediate_size=20),
    "bloom": lambda: transformers.BloomConfig(vocab_size=30, hidden_size=16, n_layer=2, n_head=2),
    "gptj": lambda: transformers.GPTJConfig(vocab_size=30, n_embd=16, n_layer=2, n_head=2, rotary_dim=4),
    "opt": lambda: transformers.OPTConfig(**SMALL, ffn_dim=20, word_embed_proj_dim=16),
    "mixtral": lambda: transformers.MixtralConfig(**SMALL, intermediate_size=20, num_key_value_heads=2),
    "qwen3": lambda: transformers.Qwen3Config(**SMALL, intermediate_size=20, num_key_value_heads=2),
    "gemma2": lambda: transformers.Gemma2Config(**SMALL, intermediate_size=20, num_key_value_heads=2),
}
NAMES = ["embed_tokens", "layers", "ln_final", "lm_head", "model"]


def any_model(kind):
    if kind in OTHERS:
        return transformers.AutoModelForCausalLM.from_config(OTHERS[kind]())
    return make_model(kind)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "mistral", *OTHERS])
def test_modules(kind):
    model = any_model(kind)
    judge, ours = nnterp.ModuleAccessor(model), ModuleAccessor(model)
    found = 0
    for name in [*NAMES, "transformer", "gpt_neox", "self_attn", "no_such"]:
        expected = getattr(judge, name, None)
        assert getattr(ours, name, None) is expected, name
        found += expected is not None
    assert found >= len(NAMES)
    assert ours.get_embed_tokens() is judge.get_embed_tokens()
    assert ours.get_layers() is judge.get_layers()
    assert ours.get_unembed_norm() is judge.get_unembed_norm()
    assert ours.get_unembed() is judge.get_unembed()
    for layer in (0, 1, -1):
        assert ours.get_attention(layer) is judge.get_attention(layer)
        if kind != "opt":
            assert ours.get_mlp(layer) is judge.get_mlp(layer)
    assert isinstance(ours.layers, torch.nn.ModuleList)
    assert ours.nn_model.layers._module is judge.nn_model.layers._module
    if kind == "opt":
        with pytest.raises(AttributeError, match="OPTDecoderLayer has no module 'mlp'; it has self_attn"):
            ours.get_mlp(0)


def custom_model():
    """Modules with names that nobody else has."""
    block = torch.nn.Module()
    block.watch, block.think = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    model = torch.nn.Module()
    model.body = torch.nn.Module()
    model.body.stack, model.body.last = torch.nn.ModuleList([block]), torch.nn.LayerNorm(2)
    model.words = torch.nn.Linear(2, 5)
    return model


NAMED = {
    "attn_name": "watch",
    "mlp_name": ["feed", "think"],
    "ln_final_name": "last",
    "lm_head_name": "words",
    "model_name": "body",
    "layers_name": ["stack", "model.stack"],
}


def test_names_of_ones_own():
    model = custom_model()
    judge = nnterp.ModuleAccessor(model, nnterp.rename_utils.RenameConfig(**NAMED), rename={"body.last": "end"})
    ours = ModuleAccessor(model, rename_utils.RenameConfig(**NAMED), rename={"body.last": "end"})
    for name in ("layers", "lm_head", "model", "ln_final", "end"):
        assert getattr(ours, name) is getattr(judge, name)
    assert ours.layers is model.body.stack
    assert ours.end is model.body.last
    assert ours.get_attention(0) is judge.get_attention(0) is model.body.stack[0].watch
    assert ours.get_mlp(0) is judge.get_mlp(0) is model.body.stack[0].think


@pytest.mark.parametrize("fields", [{}, NAMED, {"attn_name": "watch"}, {"lm_head_name": ["a", "b"]}])
def test_rename_dicts(fields):
    expected = nnterp.get_rename_dict(nnterp.rename_utils.RenameConfig(**fields))
    assert get_rename_dict(rename_utils.RenameConfig(**fields)) == expected
    assert get_rename_dict() == nnterp.get_rename_dict()


def test_a_name_of_ones_own_comes_first():
    """Also where the architecture has a module of a usual name, which nnterp takes then."""
    model = torch.nn.Module()
    model.stack, model.h = torch.nn.ModuleList(), torch.nn.ModuleList()
    assert ModuleAccessor(model, rename_utils.RenameConfig(layers_name="stack")).layers is model.stack
    assert get_rename_dict(rename_utils.RenameConfig(mlp_name="attention"))["attention"] == "mlp"


@pytest.mark.parametrize("kind", ["gpt2", "llama", *OTHERS])
def test_numbers(kind):
    model = any_model(kind)
    for name in ("get_num_attention_heads", "get_hidden_size", "get_vocab_size"):
        expected = getattr(nnterp.rename_utils, name)(model)
        assert getattr(rename_utils, name)(model) == expected > 0


class Config(types.SimpleNamespace):
    name_or_path = "x"

    def __contains__(self, name):
        return hasattr(self, name)


KEYS = {
    "get_num_attention_heads": ("attn_head_config_key", ["n_heads", "num_attention_heads", "n_head", "num_heads"]),
    "get_hidden_size": ("hidden_size_config_key", ["hidden_size", "d_model", "n_embd"]),
    "get_vocab_size": ("vocab_size_config_key", ["vocab_size", "n_vocab"]),
}


@pytest.mark.parametrize("name", KEYS)
@pytest.mark.parametrize("inside", [False, True])
def test_entries_of_configs(name, inside):
    """Usual entries, one's own, the number itself, and what stands in a `text_config`."""
    field, usual = KEYS[name]
    for key in [*usual, "mine", "other"]:
        config = Config(**{key: 7})
        model = types.SimpleNamespace(config=Config(text_config=config) if inside else config, name_or_path="x")
        for own in (None, "mine", ["nothing", "other"], 9):
            results = []
            for module in (nnterp.rename_utils, rename_utils):
                renamed = module.RenameConfig(**{field: own})
                results.append(getattr(module, name)(model, raise_error=False, rename_config=renamed))
            expected = 9 if own == 9 else 7 if key in usual or own == key or key in (own or []) else None
            assert results == [expected, expected], (key, own)
    with pytest.raises(InputError, match=r"the config of SimpleNamespace has no .* in a RenameConfig"):
        getattr(rename_utils, name)(types.SimpleNamespace(config=Config(zero=1)))
    model = types.SimpleNamespace(config=Config(**{usual[0]: 3, "mine": 4}))
    assert getattr(rename_utils, name)(model, True, rename_utils.RenameConfig(**{field: "mine"})) == 4


def test_functions_for_attention_probabilities():
    with pytest.raises(TypeError):
        rename_utils.AttnProbFunction()

    class Own(rename_utils.AttnProbFunction):
        def get_attention_prob_source(self, attention_module, return_module_source=False):
            return attention_module, return_module_source

    assert Own()(3) == (3, False)
    assert Own()(3, True) == (3, True)


# Names of the package.

NOT_HERE = {
    "nnterp.__main__": "it runs nnterp's own tests",
    "nnterp.logging": "nothing is logged",
    "nnterp.tests": "nnterp's own tests",
    "nnterp.utils": "what bridges versions of nnsight and transformers",
    "nnterp.rename_utils.check_io": "a part of check_model_renaming: values have their shapes here",
    "nnterp.rename_utils.text_config": "a part of get_num_attention_heads",
    "nnterp.rename_utils.expand_path_with_model": "a part of get_rename_dict",
    "nnterp.rename_utils.default_attn_head_config_keys": "a part of get_num_attention_heads",
    "nnterp.rename_utils.default_hidden_size_config_keys": "a part of get_hidden_size",
    "nnterp.rename_utils.default_vocab_size_config_keys": "a part of get_vocab_size",
    "nnterp.rename_utils.AttentionProbabilitiesAccessor.disable": "they are always there",
    "nnterp.rename_utils.bloom_attention_prob_source": "attention probabilities are a node",
    "nnterp.rename_utils.default_attention_prob_source": "attention probabilities are a node",
    "nnterp.rename_utils.gpt2_attention_prob_source": "attention probabilities are a node",
    "nnterp.rename_utils.gptj_attention_prob_source": "attention probabilities are a node",
}
MORE_ARGUMENTS = {"patch_object_attn_lens": ["layers"]}
ARGUMENTS_WITHOUT_NAMES = {"next_token_probs_unsqueeze": ["_kwargs"]}


def own_names(module):
    """What a module of nnterp's defines: its classes and functions."""
    return {
        name: value
        for name, value in vars(module).items()
        if not name.startswith("_") and callable(value) and getattr(value, "__module__", "") == module.__name__
    }


def arguments(function):
    return list(inspect.signature(function).parameters)


def test_every_name():
    """Each module, class, method, attribute of a class and argument of nnterp is here, or in `NOT_HERE`."""
    missing = {f"nnterp.{found.name}" for found in pkgutil.iter_modules(nnterp.__path__)}
    walked = 0
    for path in sorted(missing):
        if path in NOT_HERE:
            continue
        missing.remove(path)
        theirs, ours = importlib.import_module(path), importlib.import_module(f"glassformer.{path}")
        for name, value in own_names(theirs).items():
            here = getattr(ours, name, None)
            if here is None:
                missing.add(f"{path}.{name}")
                continue
            walked += 1
            if not inspect.isclass(value):
                expected = [each for each in arguments(value) if each not in ARGUMENTS_WITHOUT_NAMES.get(name, [])]
                found = [each for each in arguments(here) if each != "_"]
                assert found == expected + MORE_ARGUMENTS.get(name, []), name
                continue
            for method, their_method in vars(value).items():
                if method.startswith("_") and method not in ("__init__", "__getitem__", "__setitem__", "__call__"):
                    continue
                if not hasattr(here, method):
                    missing.add(f"{path}.{name}.{method}")
                elif inspect.isfunction(their_method):
                    assert arguments(getattr(here, method)) == arguments(their_method), f"{name}.{method}"
    assert missing == set(NOT_HERE)
    assert walked > 45
    for name in nnterp.__all__:
        assert hasattr(glassformer.nnterp, name)

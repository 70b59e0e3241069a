"""The config beside TransformerLens': every field, what is derived, what is refused, what is printed."""

import copy
import dataclasses
import inspect
import json
import pickle
import random

import numpy as np
import pytest
import torch
from helpers import assert_close
from transformer_lens import HookedTransformer
from transformer_lens.config import HookedTransformerConfig as JudgeConfig

import glassformer
from glassformer import _core
from glassformer import transformer_lens as front
from glassformer.transformer_lens import HookedTransformerConfig
from glassformer.transformer_lens.config.core_config import core_config

SIZES = {"d_model": 24, "d_head": 8, "n_layers": 2, "n_ctx": 16}
CHOICES = {
    "n_heads": [-1, 3, 5],
    "d_mlp": [None, 40],
    "d_vocab": [-1, 19],
    "d_vocab_out": [-1, 7],
    "positional_embedding_type": ["standard", "rotary", "shortformer", "alibi"],
    "rotary_dim": [None, 4],
    "attn_only": [False, True],
    "gated_mlp": [False, True],
    "act_fn": ["relu", "solu_ln", "xielu", "gelu_pytorch_tanh", "relu2"],
    "num_experts": [None, 4],
    "use_attn_scale": [True, False],
    "attn_scale": [-1.0, 3.5],
    "init_mode": ["gpt2", "xavier_normal", "muP"],
    "initializer_range": [-1.0, 0.3],
    "dtype": [torch.float32, torch.float64],
    "seed": [None, 5],
    "device": [None, "cpu"],
    "default_prepend_bos": [True, False],
}


def random_fields(seed):
    pick = random.Random(seed)
    made = SIZES | {name: pick.choice(values) for name, values in CHOICES.items() if pick.random() < 0.6}
    if made.get("num_experts"):
        made["experts_per_token"] = 2
    return made


def test_the_same_parameters_in_the_same_order():
    def parameters(config):
        return [(p.name, p.kind, p.default) for p in inspect.signature(config).parameters.values()]

    assert parameters(HookedTransformerConfig) == parameters(JudgeConfig)
    assert dataclasses.is_dataclass(HookedTransformerConfig)


@pytest.mark.parametrize("seed", range(60))
def test_the_same_fields(seed):
    made = random_fields(seed)
    judge = JudgeConfig(**made)
    drawn = torch.rand(3), random.random(), np.random.rand()
    ours = HookedTransformerConfig(**made)
    assert list(ours.to_dict().items()) == list(judge.to_dict().items())
    assert ours.is_layer_norm_activation() == judge.is_layer_norm_activation()
    if made.get("seed") is not None:
        assert torch.equal(drawn[0], torch.rand(3)) and drawn[1:] == (random.random(), np.random.rand())


@pytest.mark.parametrize(
    "wrong",
    [
        {"d_head": 7},
        {"act_fn": "tanh"},
        {"act_fn": None},
        {"use_local_attn": True},
        {"use_local_attn": True, "window_size": 3},
        {"num_experts": 2},
        {"experts_per_token": 2},
        {"default_prepend_bos": None},
        {"n_devices": 99},
        {"no_such_field": 1},
        {"d_head": "many"},
    ],
)
def test_the_same_errors(wrong):
    with pytest.raises(Exception) as raised:
        JudgeConfig(**SIZES | wrong)
    with pytest.raises(type(raised.value)):
        HookedTransformerConfig(**SIZES | wrong)


def test_what_is_printed():
    whole = {"attn_scale": 2.0, "initializer_range": 0.5}  # The judge's own numbers are numpy's, whose text varies.
    made = SIZES | whole | {"attn_types": ["global", "local"]}
    assert repr(HookedTransformerConfig(**made)) == repr(JudgeConfig(**made))


def test_unwrap_and_dictionaries():
    config = HookedTransformerConfig.unwrap(SIZES)
    assert isinstance(config, HookedTransformerConfig) and HookedTransformerConfig.unwrap(config) is config
    assert HookedTransformerConfig.unwrap(JudgeConfig(**SIZES)) == config
    assert HookedTransformerConfig.from_dict(config.to_dict()) == config
    config.to_dict()["n_ctx"] = 5
    assert config.n_ctx == 5


def test_the_version_grows_with_every_change():
    config = HookedTransformerConfig(**SIZES, attn_types=["global"])
    seen = [config.version]
    assert config.version == seen[0]
    for change in [
        lambda: setattr(config, "n_ctx", 99),
        lambda: config.to_dict().update(eps=0.5),
        lambda: config.attn_types.append("local"),
        lambda: setattr(config, "something", 1),
    ]:
        change()
        seen.append(config.version)
    config.n_ctx = 99
    assert config.version == seen[-1] and len(set(seen)) == 5 and seen == sorted(seen)
    assert "version" not in config.to_dict() and not [name for name in config.to_dict() if name.startswith("_")]
    for other in [copy.copy(config), copy.deepcopy(config), pickle.loads(pickle.dumps(config))]:
        assert other == config and other.version == config.version


def test_all_the_ways_to_it():
    import glassformer.transformer_lens.HookedTransformerConfig as module

    assert front.HookedTransformerConfig is HookedTransformerConfig
    assert module is HookedTransformerConfig or module.HookedTransformerConfig is HookedTransformerConfig


@pytest.mark.parametrize("seed", range(20))
def test_the_core_builds_the_judge_by_it(seed):
    options = {"d_vocab": 19, "num_experts": None, "experts_per_token": None, "dtype": torch.float64, "device": "cpu"}
    made = random_fields(seed) | options
    made |= {"act_fn": "solu_ln", "gated_mlp": False} if seed % 2 else {"act_fn": "relu"}
    judge = HookedTransformer(JudgeConfig(**made))
    tensors = {name: weight.detach() for name, weight in judge.named_parameters()}
    config = json.dumps(core_config(HookedTransformerConfig(**made)))
    core = _core.Model.from_tensors(config, tensors, None, torch.float64, torch.device("cpu"))
    tokens = torch.randint(19, (2, 9), generator=torch.Generator().manual_seed(seed))
    assert_close(glassformer.Model(core).trace(tokens).logits, judge(tokens).detach(), 1e-6, "logits")

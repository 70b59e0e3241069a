"""New models' weights beside TransformerLens': the same seed draws the same numbers, bit for bit."""

import random
import types
import warnings

import pytest
import torch
from torch import nn
from transformer_lens import HookedTransformer
from transformer_lens.config import HookedTransformerConfig as JudgeConfig
from transformer_lens.utilities import initialization_utils as judge_init

from glassformer.transformer_lens import utils
from glassformer.transformer_lens.utilities import initialization_utils
from glassformer.transformer_lens.utilities.initialization_utils import init_weights

MODES = ["gpt2", "xavier_uniform", "xavier_normal", "kaiming_uniform", "kaiming_normal", "muP"]
SIZES = {"n_layers": 2, "d_model": 24, "d_head": 6, "n_heads": 4, "n_ctx": 10, "d_vocab": 19, "device": "cpu"}
SHAPES = {
    "plain": {"act_fn": "relu"},
    "grouped": {"act_fn": "silu", "n_key_value_heads": 2, "positional_embedding_type": "rotary"},
    "attention_only": {"attn_only": True, "positional_embedding_type": "shortformer", "normalization_type": "LNPre"},
    "gated": {"act_fn": "silu", "gated_mlp": True, "normalization_type": "RMS"},
    "experts": {"act_fn": "silu", "gated_mlp": True, "num_experts": 3, "experts_per_token": 2},
    "gpt_oss": {
        "act_fn": "silu",
        "num_experts": 3,
        "experts_per_token": 2,
        "original_architecture": "GptOssForCausalLM",
    },
    "sinks": {"act_fn": "silu", "gated_mlp": True, "use_attention_sinks": True, "normalization_type": None},
    "query_key_norm": {"act_fn": "gelu", "use_qk_norm": True, "normalization_type": "RMS", "d_vocab_out": 5},
    "solu": {"act_fn": "solu_ln", "parallel_attn_mlp": True},
    "sandwich": {"act_fn": "gelu", "use_normalization_before_and_after": True, "normalization_type": "RMS"},
}


def judge_of(options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return HookedTransformer(JudgeConfig(**SIZES | options))


def scattered(model):
    """The same parameters as views of memory that lies otherwise, full of ones."""
    for module in list(model.modules()):
        for name, param in list(module.named_parameters(recurse=False)):
            memory = torch.ones(param.shape[::-1], dtype=param.dtype)
            module._parameters[name] = nn.Parameter(memory.permute(*reversed(range(param.dim()))))
    return model


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("mode", MODES)
def test_the_same_seed_draws_the_same_weights(mode, shape):
    pick = random.Random(mode + shape)
    options = SHAPES[shape] | {"init_mode": mode, "seed": pick.randrange(1000)}
    options |= {"initializer_range": pick.choice([-1.0, 0.3]), "dtype": pick.choice([torch.float32, torch.float64])}
    judge = judge_of(options)
    ours = scattered(judge_of(options))
    assert shape == "attention_only" or any(not param.is_contiguous() for param in ours.parameters())
    torch.rand(7)
    init_weights(ours)
    after = torch.rand(1)
    drawn = [name for name, _ in judge.named_parameters() if "W_" in name]
    judge.init_weights()
    assert torch.equal(torch.rand(1), after)
    found = dict(ours.named_parameters())
    for name in drawn:
        assert torch.equal(found[name], judge.get_parameter(name)), name
    assert all((found[name] == 1).all() for name in found if name not in drawn)


def test_without_a_seed_the_generator_goes_on():
    model = judge_of({"act_fn": "relu"})
    torch.manual_seed(3)
    torch.rand(2)
    init_weights(model)
    ours = {name: param.clone() for name, param in model.named_parameters()}
    torch.manual_seed(3)
    torch.rand(2)
    model.init_weights()
    assert all(torch.equal(ours[name], param) for name, param in model.named_parameters())


def test_an_unknown_mode_is_refused():
    cfg = types.SimpleNamespace(init_mode="zeros", initializer_range=1.0, seed=None)
    with pytest.raises(ValueError, match="'zeros'; expected one of"):
        init_weights(types.SimpleNamespace(cfg=cfg, named_parameters=list))


@pytest.mark.parametrize("shape", [(5,), (3, 4), (2, 3, 4)])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("init_xavier_uniform_", {"gain": 0.3}),
        ("init_xavier_normal_", {}),
        ("init_kaiming_uniform_", {"a": 0.5, "nonlinearity": "leaky_relu", "mode": "fan_out"}),
        ("init_kaiming_normal_", {"gain": 2.0, "nonlinearity": "tanh"}),
    ],
)
def test_single_tensors(name, options, shape):
    ours, theirs = nn.Parameter(torch.zeros(shape)), nn.Parameter(torch.zeros(shape))
    torch.manual_seed(1)
    assert getattr(utils, name)(ours, **options) is ours
    torch.manual_seed(1)
    getattr(judge_init, name)(theirs, **options)
    assert torch.equal(ours, theirs) and ours.abs().sum() > 0
    assert utils.calc_fan_in_and_fan_out(ours) == judge_init.calc_fan_in_and_fan_out(theirs)


def test_wrong_shapes_and_names():
    for shape in [(), (1, 2, 3, 4)]:
        for module in (judge_init, initialization_utils):
            with pytest.raises(ValueError):
                module.calc_fan_in_and_fan_out(torch.zeros(shape))
    with pytest.raises(ValueError):
        initialization_utils.init_kaiming_normal_(torch.zeros(2, 2), nonlinearity="softsign")

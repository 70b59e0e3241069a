"""TransformerLens' config without TransformerLens beside it: from files, and by the core."""

import copy
import json

import numpy as np
import pytest
import torch
from test_gguf_llama import write
from tiny_models import make_config, make_model

import glassformer
from glassformer import _core
from glassformer.transformer_lens import HookedTransformerConfig, loading
from glassformer.transformer_lens.config.core_config import config_of, core_config

SIZES = {"d_model": 24, "d_head": 8, "n_layers": 2, "n_ctx": 16}


def test_what_is_derived_and_refused():
    cfg = HookedTransformerConfig(**SIZES, d_vocab=7, seed=3, positional_embedding_type="rotary")
    assert (cfg.n_heads, cfg.d_mlp, cfg.d_vocab_out, cfg.rotary_dim) == (3, 96, 7, 8)
    assert cfg.n_params == 2 * (4 * 24 * 24 + 2 * 24 * 96)
    for wrong in [{"act_fn": "tanh"}, {"num_experts": 2}, {"use_local_attn": True}]:
        with pytest.raises(AssertionError):
            HookedTransformerConfig(**SIZES, **wrong)
    with pytest.raises(ValueError, match="no multiple of d_head"):
        HookedTransformerConfig(**SIZES | {"d_head": 7})


def test_the_version_grows_with_changes():
    cfg = HookedTransformerConfig(**SIZES)
    first = cfg.version
    assert cfg.version == first
    cfg.n_ctx = 5
    second = cfg.version
    assert second > first and copy.deepcopy(cfg).version == second
    cfg.n_ctx = 5
    assert cfg.version == second and "version" not in cfg.to_dict()


@pytest.mark.parametrize("kind", ["llama", "llama_grouped", "llama_linear", "llama_yarn", "llama_theta"])
def test_a_gguf_file_gives_what_its_folder_gives(kind, tmp_path):
    write(tmp_path / "model.gguf", make_model(kind))
    make_config(kind).save_pretrained(tmp_path)
    found = loading.get_pretrained_model_config(str(tmp_path / "model.gguf"))
    expected = loading.get_pretrained_model_config(str(tmp_path))
    found.model_name, found.tokenizer_name = expected.model_name, expected.tokenizer_name
    found.eps = round(found.eps, 9)  # GGUF has it in float32.
    assert found == expected
    core = glassformer.load(tmp_path / "model.gguf").core
    assert config_of(core, None, "a/b").model_name == "b" and config_of(core).act_fn == "silu"


def test_a_folder_in_this_vocabulary(tmp_path):
    cfg = HookedTransformerConfig(**SIZES, d_vocab=7, act_fn="solu_ln", device="cpu", init_weights=False)
    (tmp_path / "config.json").write_text(json.dumps(core_config(cfg)))
    found = loading.get_pretrained_model_config(str(tmp_path), device="cpu")
    found.model_name = cfg.model_name
    assert found == cfg


def test_fields_that_are_not_json_stay_behind():
    cfg = HookedTransformerConfig(**SIZES, d_vocab=np.int64(7), dtype=torch.float64, device=torch.device("cpu"))
    cfg.something = torch.ones(2)
    described = _core.describe(json.dumps(core_config(cfg)), "here")
    assert (described.n_heads, described.d_vocab_out, described.attention_scales) == (3, 7, [1 / 8**0.5] * 2)
    with pytest.raises(glassformer.FileError, match=r"here.*n_layers"):
        _core.describe('{"model_type": "transformer_lens"}', "here")

"""Names, checkpoints and configs of pretrained models beside TransformerLens', on config files made here."""

import json
import logging
import types

import pytest
import tiny_models
import tl_judge
import torch
from helpers import assert_close
from transformer_lens import loading_from_pretrained as judge
from transformer_lens import supported_models as judge_models
from transformer_lens.config import HookedTransformerConfig as JudgeConfig

import glassformer
from glassformer import _core
from glassformer import transformer_lens as front
from glassformer.transformer_lens import loading, supported_models
from glassformer.transformer_lens import loading_from_pretrained as ours
from glassformer.transformer_lens.config.core_config import config_of, core_config

HEADS = {"d_head", "rotary_dim", "attn_scale", "n_params"}
YARN = {f"yarn_{name}" for name in ("factor", "attention_factor", "original_max_position_embeddings")} | {
    "use_yarn_rope"
}
# What TransformerLens leaves out or holds short, by the table's rows.
DIFFERENT = {
    "gpt2_inner": {"d_mlp", "n_params"},
    "llama_head_dim": HEADS,
    "llama_linear": {"rotary_scaling_factor"},
    "llama_dynamic": {"n_ctx"},
    "llama_yarn": YARN,
    "llama_yarn_options": YARN | {"yarn_beta_fast", "yarn_beta_slow", "yarn_truncate"},
    "mistral": {"n_ctx"},
    "mistral_window": {"n_ctx"},
}


def write_config(folder, kind, **changes):
    """The row's config.json as published files have it."""
    written = tiny_models.make_config(kind, **changes)
    names = {"gpt2": "GPT2LMHeadModel", "llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM"}
    written.architectures = [names[written.model_type]]
    if written.model_type == "gpt2":
        written.n_ctx = written.n_positions
    written.save_pretrained(folder)
    return json.loads((folder / "config.json").read_text())


@pytest.fixture
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("model")  # The judge looks for "llama" in names, and pytest's have the test's.


def different(found, expected):
    found, expected = found.to_dict(), expected.to_dict()
    assert found.keys() == expected.keys()
    return {name for name in found if found[name] != expected[name]}


def test_names():
    for name in ("OFFICIAL_MODEL_NAMES", "MODEL_ALIASES", "DEFAULT_MODEL_ALIASES"):
        assert getattr(supported_models, name) == getattr(judge_models, name), name
    for name in ("NON_HF_HOSTED_MODEL_NAMES", "NEED_REMOTE_CODE_MODELS", "STANFORD_CRFM_CHECKPOINTS"):
        assert getattr(ours, name) == getattr(judge, name), name
    assert (ours.PYTHIA_CHECKPOINTS, ours.PYTHIA_V0_CHECKPOINTS) == (
        judge.PYTHIA_CHECKPOINTS,
        judge.PYTHIA_V0_CHECKPOINTS,
    )
    assert ours.make_model_alias_map() == judge.make_model_alias_map()
    assert ours.get_official_model_name("GPT2-small") == "gpt2" and front.loading is loading is ours
    for module in (judge, ours):
        with pytest.raises(ValueError, match="gpt5 not found"):
            module.get_official_model_name("gpt5")


@pytest.mark.parametrize("name", ["pythia", "pythia-70m-v0", "stanford-gpt2-small-a"])
def test_checkpoints(name):
    assert ours.get_checkpoint_labels(name) == judge.get_checkpoint_labels(name)


def test_checkpoints_from_the_hub(monkeypatch):
    files = ["README.md", "checkpoints/SoLU_1L_000128.pth", "checkpoints/SoLU_1L_2000.pth", "model_final.pth"]
    for values in (files, [*files, "checkpoints/SoLU_1L_21000000000.pth"]):
        hub = types.SimpleNamespace(list_repo_files=lambda repo_id, revision=None, values=values: values)
        monkeypatch.setattr("huggingface_hub.HfApi", lambda hub=hub: hub)
        monkeypatch.setattr(judge, "HfApi", lambda hub=hub: hub)
        assert ours.get_checkpoint_labels("solu-1l", revision="main") == judge.get_checkpoint_labels("solu-1l")
    for module in (judge, ours):
        with pytest.raises(ValueError, match="not checkpointed"):
            module.get_checkpoint_labels("gpt2")


@pytest.mark.parametrize("fold_ln", [False, True])
@pytest.mark.parametrize("kind", tiny_models.CONFIGS)
def test_a_config_from_its_file(kind, fold_ln, folder):
    write_config(folder, kind)
    options = {"fold_ln": fold_ln, "dtype": torch.float64, "device": "cpu"}
    expected = judge.get_pretrained_model_config(str(folder), **options)
    found = ours.get_pretrained_model_config(str(folder), **options)
    assert different(found, expected) == DIFFERENT.get(kind, set())


@pytest.mark.parametrize("kind", ["llama", "mistral"])
def test_heads_that_share_nothing(kind, folder):
    write_config(folder, kind, num_key_value_heads=4)
    expected = judge.get_pretrained_model_config(str(folder))
    assert different(ours.get_pretrained_model_config(str(folder)), expected) == DIFFERENT.get(kind, set())


@pytest.mark.parametrize("kind", tiny_models.CONFIGS)
def test_a_config_from_a_loaded_model(kind, folder):
    written = write_config(folder, kind)
    core = glassformer.load(tiny_models.make_model(kind)).core
    expected = judge.get_pretrained_model_config(str(folder), device="cpu")
    for said in (written, None):
        found = config_of(core, said, str(folder))
        unknown = set() if said or expected.act_fn == core.config.activation else {"act_fn"}
        assert different(found, expected) == DIFFERENT.get(kind, set()) | unknown
    assert found.n_ctx == core.config.n_ctx and config_of(core, written, "a/b", eps=0.5).eps == 0.5


REBUILT = ["gpt2", "gpt2_inverse_layer", "gpt2_unscaled", "gpt2_relu", "llama", "llama_grouped"]


@pytest.mark.parametrize("kind", [*REBUILT, "llama_theta", "llama_yarn_options", "llama_llama3", "mistral_window"])
def test_the_core_builds_the_same_model_by_a_config(kind):
    """The judge's weights, which have its names and shapes, under the config of the loaded model."""
    pair = tl_judge.pair(kind)
    cfg = config_of(pair.model.core, pair.reference.config.to_dict(), "a/b")
    tensors = {name: weight.detach() for name, weight in pair.judge.named_parameters()}
    built = _core.Model.from_tensors(json.dumps(core_config(cfg)), tensors, None, torch.float64, torch.device("cpu"))
    tokens = torch.randint(tiny_models.D_VOCAB, (2, 17), generator=torch.Generator().manual_seed(1))
    assert_close(glassformer.Model(built).trace(tokens).logits, pair.model.trace(tokens).logits, 1e-9, kind)


def test_what_is_read_for_scalings(folder):
    write_config(folder, "llama_yarn_options")
    cfg = ours.get_pretrained_model_config(str(folder))
    assert (cfg.yarn_factor, cfg.yarn_beta_fast, cfg.yarn_beta_slow) == (4.0, 8.0, 0.5)
    assert (cfg.yarn_truncate, cfg.yarn_original_max_position_embeddings) == (False, 12)
    write_config(folder, "llama_linear")
    assert ours.get_pretrained_model_config(str(folder)).rotary_scaling_factor == 3.0


def test_arguments(folder, caplog):
    write_config(folder, "gpt2")
    for options in [
        {"first_n_layers": 1, "default_prepend_bos": False},
        {"n_ctx": 7},
        {"n_ctx": 999, "trust_remote_code": True},
        {"hf_cfg": {"vocab_size": 99, "quantization_config": {"quant_method": "gptq", "load_in_4bit": True}}},
        {"hf_cfg": {}},
    ]:
        expected = judge.get_pretrained_model_config(str(folder), **options)
        assert not different(ours.get_pretrained_model_config(str(folder), **options), expected)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        ours.get_pretrained_model_config(str(folder), n_ctx=49)
    assert "n_ctx=49 is longer" in caplog.text
    assert ours.get_num_params_of_pretrained(str(folder)) == judge.get_num_params_of_pretrained(str(folder))
    assert vars(ours.get_basic_config(str(folder))) == vars(judge.get_basic_config(str(folder)))


def test_a_checkpoint_in_the_config(folder, monkeypatch):
    said = write_config(folder, "gpt2")
    monkeypatch.setattr(ours, "download_file_from_hf", lambda *_, **__: said)
    read = judge.AutoConfig.from_pretrained(folder)
    monkeypatch.setattr(judge.AutoConfig, "from_pretrained", lambda *_, **__: read)
    for options in [{"checkpoint_index": 3}, {"checkpoint_value": 400000}, {"checkpoint_index": -1}]:
        expected = judge.get_pretrained_model_config("stanford-gpt2-small-a", **options)
        assert not different(ours.get_pretrained_model_config("stanford-gpt2-small-a", **options), expected)
    for module in (judge, ours):
        with pytest.raises(AssertionError):
            module.get_pretrained_model_config("stanford-gpt2-small-a", checkpoint_value=1)
        with pytest.raises(ValueError):
            module.get_pretrained_model_config("gpt2", checkpoint_index=1)


@pytest.mark.parametrize("changes", [{}, {"shortformer_pos": True}, {"normalization": "LNPre", "final_rms": True}])
def test_their_own_models(changes, monkeypatch):
    said = {"d_model": 16, "n_layers": 1, "d_mlp": 64, "d_head": 8, "n_heads": 2, "n_ctx": 32, "d_vocab": 50}
    said |= {"act_fn": "solu_ln", "attn_only": False, "normalization_type": "LN", "tokenizer_name": "x/y"} | changes
    monkeypatch.setattr(ours, "download_file_from_hf", lambda *_, **__: said)
    monkeypatch.setattr(judge.utils, "download_file_from_hf", lambda *_, **__: said)
    for name, fold_ln in [("solu-1l", True), ("solu-1l-old", False)]:
        expected = judge.get_pretrained_model_config(name, fold_ln=fold_ln)
        assert not different(ours.get_pretrained_model_config(name, fold_ln=fold_ln), expected)


def test_what_is_refused(folder, monkeypatch):
    (folder / "config.json").write_text(json.dumps({"model_type": "nothing", "architectures": ["Nothing"]}))
    with pytest.raises(NotImplementedError, match="'nothing' is not supported"):
        ours.get_pretrained_model_config(str(folder))
    with pytest.raises(NotImplementedError, match="not on the hub"):
        ours.get_pretrained_model_config("llama-7b")
    with pytest.raises(ValueError, match="not found"):
        ours.get_pretrained_model_config("nobody/nothing")


def test_a_model_of_this_vocabulary_keeps_its_config():
    sizes = {"n_layers": 1, "d_model": 8, "d_head": 4, "n_ctx": 6, "d_vocab": 5, "act_fn": "solu_ln", "eps": 0.1}
    cfg = front.HookedTransformerConfig(**sizes, positional_embedding_type="shortformer", device="cpu")
    said = core_config(cfg)
    core = types.SimpleNamespace(
        config=_core.describe(json.dumps(said), "here"), path="", name="custom", dtype=torch.float32, device="cpu"
    )
    assert different(config_of(core, said), cfg) == {"init_weights"}


def test_llama3_in_a_gguf_file_is_known_by_its_divisors():
    from glassformer.transformer_lens.config.core_config import _positions

    length, factor, base, dims = 8192, 32.0, 500000.0, 64
    divisors = []
    for pair in range(dims // 2):
        wavelength = 2 * torch.pi * base ** (2 * pair / dims)
        smooth = (length / wavelength - 1) / 3
        between = 1 / ((1 - smooth) / factor + smooth)
        divisors.append(factor if wavelength > length else 1.0 if wavelength < length / 4 else between)
    rope = types.SimpleNamespace(
        dims=dims, base=base, adjacent_pairs=False, scaling="default", factor=1.0, divisors=divisors
    )
    rope.low_freq_factor, rope.high_freq_factor, rope.original_n_ctx = 1.0, 4.0, 131072
    found = _positions(types.SimpleNamespace(positions="rotary", rope=rope))
    assert found["use_NTK_by_parts_rope"] and found["NTK_by_parts_factor"] == 32.0
    assert found["NTK_original_ctx_len"] == 8192
    rope.divisors = [1.0, *([2.0] * 31)]
    assert "use_NTK_by_parts_rope" not in _positions(types.SimpleNamespace(positions="rotary", rope=rope))


class Small(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.ln1 = torch.nn.Module()
        self.ln1.w = torch.nn.Parameter(torch.ones(2))
        self.attn = torch.nn.Module()
        self.attn.W_Q = torch.nn.Parameter(torch.ones(2, 2))
        self.W_E = torch.nn.Parameter(torch.ones(2))


@pytest.mark.parametrize("there", [{"attn.W_Q": 1}, {"attn.W_Q": 1, "W_E": 2}, {"attn.W_Q": 1, "ln1.w": 2}])
def test_missing_keys(there, caplog):
    results = []
    for module in (judge, ours):
        caplog.clear()
        filled = module.fill_missing_keys(Small(), dict(there))
        named = sorted(record.message.split(": ")[-1] for record in caplog.records)
        results.append(({name: torch.as_tensor(value).tolist() for name, value in filled.items()}, named))
    assert results[0] == results[1] and len(results[1][1]) == 3 - len(there)


def test_a_missing_matrix_is_refused():
    for module in (judge, ours):
        with pytest.raises(ValueError, match="W_Q"):
            module.fill_missing_keys(Small(), {"W_E": 2})


def test_the_judge_takes_our_config():
    cfg = front.HookedTransformerConfig(n_layers=1, d_model=8, d_head=4, n_ctx=6, d_vocab=5)
    assert JudgeConfig.unwrap(cfg).to_dict() == cfg.to_dict()

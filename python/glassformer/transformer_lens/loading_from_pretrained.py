"""Which models there are by name, what their configs are, and which checkpoints they have."""

from __future__ import annotations

import dataclasses
import difflib
import json
import logging
import re
from pathlib import Path
from typing import Any

import torch

from glassformer import _core
from glassformer.transformer_lens.config import HookedTransformerConfig
from glassformer.transformer_lens.config.core_config import fields_of
from glassformer.transformer_lens.supported_models import DEFAULT_MODEL_ALIASES, MODEL_ALIASES, OFFICIAL_MODEL_NAMES
from glassformer.transformer_lens.utilities.hf_utils import (
    download_file_from_hf,
    needed,
    select_compatible_kwargs,
)
from glassformer.transformer_lens.utilities.quantization import quantization_method

__all__ = [
    "DEFAULT_MODEL_ALIASES",
    "MODEL_ALIASES",
    "NEED_REMOTE_CODE_MODELS",
    "NON_HF_HOSTED_MODEL_NAMES",
    "OFFICIAL_MODEL_NAMES",
    "PYTHIA_CHECKPOINTS",
    "PYTHIA_V0_CHECKPOINTS",
    "STANFORD_CRFM_CHECKPOINTS",
    "Config",
    "convert_hf_model_config",
    "convert_neel_model_config",
    "fill_missing_keys",
    "get_basic_config",
    "get_checkpoint_labels",
    "get_num_params_of_pretrained",
    "get_official_model_name",
    "get_pretrained_model_config",
    "get_pretrained_state_dict",
    "make_model_alias_map",
]

NON_HF_HOSTED_MODEL_NAMES = ["llama-7b-hf", "llama-13b-hf", "llama-30b-hf", "llama-65b-hf"]
NEED_REMOTE_CODE_MODELS = (
    "bigcode/santacoder",
    "Qwen/Qwen-",
    "Qwen/Qwen3-",
    "microsoft/phi-2",
    "microsoft/phi-4",
    "apple/OpenELM",
    "openai/gpt-oss-",
    "swiss-ai/Apertus-",
)
STANFORD_CRFM_CHECKPOINTS = [
    *range(0, 100, 10),
    *range(100, 2000, 50),
    *range(2000, 20000, 100),
    *range(20000, 400001, 1000),
]
PYTHIA_V0_CHECKPOINTS = [*range(1000, 143001, 1000)]
PYTHIA_CHECKPOINTS = [0, *(2**power for power in range(10)), *PYTHIA_V0_CHECKPOINTS]

_OWN_FORMAT = ("NeelNanda", "ArthurConmy", "Baidicoot")  # Whose models have TransformerLens' own files.
_POST_NORM = ("Olmo2ForCausalLM", "Olmo3ForCausalLM")  # Their norms stand after what they could be folded into.


def make_model_alias_map() -> dict[str, str]:
    """Every alias and every official name, in small letters, with its official name."""
    found = {}
    for name in OFFICIAL_MODEL_NAMES:
        for alias in [*MODEL_ALIASES.get(name, []), name]:
            found[alias.lower()] = name
    return found


def get_official_model_name(model_name: str) -> str:
    """The official name for a name or alias, in whatever letters; ValueError if there is none."""
    names = make_model_alias_map()
    found = names.get(model_name.lower())
    if found is None:
        near = ", ".join(difflib.get_close_matches(model_name.lower(), names)) or "none"
        raise ValueError(
            f"{model_name} not found: no folder, no file, no known name; near it: {near}; OFFICIAL_MODEL_NAMES has all"
        )
    return found


def hub_name(model_name: str) -> str:
    """The name on the hub that a name, an alias or "owner/model" stands for; ValueError where it is none of these."""
    is_another = "/" in model_name and model_name.lower() not in make_model_alias_map()
    return model_name if is_another else get_official_model_name(model_name)


def convert_hf_model_config(model_name: str, **kwargs: Any) -> dict[str, Any]:
    """The fields of a config for a model folder, a GGUF file, or the name or alias of a model on the hub.

    `kwargs` may have those of `huggingface_hub.hf_hub_download`, and `trust_remote_code`. Raises `FileError`, and
    `UnsupportedError` for an architecture that the core doesn't know.
    """
    path = Path(model_name)
    if path.is_file():
        fields = fields_of(_core.Model.load(str(path), torch.float32, torch.device("cpu")).config, {}, model_name)
    else:
        if (path / "config.json").is_file():
            said, place = json.loads((path / "config.json").read_text()), str(path / "config.json")
        else:
            model_name = get_official_model_name(model_name)
            if model_name in NON_HF_HOSTED_MODEL_NAMES:
                raise NotImplementedError(f"{model_name} is not on the hub: load it from a folder")
            said, place = download_file_from_hf(model_name, "config.json", **kwargs), model_name
        fields = fields_of(_core.describe(json.dumps(said), place), said, model_name)
    return fields | ({"trust_remote_code": True} if kwargs.get("trust_remote_code") else {})


def convert_neel_model_config(official_model_name: str, **kwargs: Any) -> dict[str, Any]:
    """The fields of a config for a model on the hub that TransformerLens trained itself."""
    name = get_official_model_name(official_model_name)
    return neel_fields(download_file_from_hf(name, "config.json", **kwargs), name)


def neel_fields(said: dict[str, Any], name: str) -> dict[str, Any]:
    """The fields of a config for what config.json says of a model in TransformerLens' own format."""
    same = ("d_model", "n_layers", "d_mlp", "d_head", "n_heads", "n_ctx", "d_vocab", "act_fn", "attn_only")
    return {
        **{field: said[field] for field in same},
        "tokenizer_name": said.get("tokenizer_name"),
        "final_rms": said.get("final_rms", False),
        "original_architecture": said.get("architecture", "neel-solu-old" if "_old" in name else "neel"),
        "normalization_type": said["normalization" if "normalization" in said else "normalization_type"],
        "positional_embedding_type": "shortformer" if said.get("shortformer_pos") else "standard",
    }


def _folded(fields: dict[str, Any]) -> str | None:
    """The kind of norm when its weights are folded into what follows; as it is where they can't be."""
    kind = fields["normalization_type"]
    if fields.get("positional_embedding_type") == "shortformer":
        logging.warning("fold_ln=True can't be done for a shortformer model; norms stay as they are")
    elif fields.get("original_architecture") in _POST_NORM:
        logging.warning(f"fold_ln=True can't be done for {fields['original_architecture']}; norms stay as they are")
    elif kind in ("LN", "RMS"):
        return f"{kind}Pre"
    elif kind not in ("LNPre", "RMSPre"):
        logging.warning("fold_ln=True: there are no norms to fold")
    return kind


def checkpoint_of(name: str, index: int | None, value: int | None, **kwargs: Any) -> dict[str, Any]:
    """Internal: the fields of a config that say which checkpoint a model is, chosen by its index or by its label."""
    if index is None and value is None:
        return {"from_checkpoint": False}
    labels, kind = get_checkpoint_labels(name, **kwargs)
    there = f"there are {len(labels)} from {labels[0]} on"
    if index is None:
        assert value in labels, f"{name} has no checkpoint {value}; {there}"
        index = labels.index(value)
    elif not -len(labels) <= index < len(labels):
        raise IndexError(f"{name} has no checkpoint at index {index}; {there}")
    found = {"checkpoint_index": index, "checkpoint_value": labels[index], "checkpoint_label_type": kind}
    return {"from_checkpoint": True, **found}


def get_pretrained_model_config(
    model_name: str,
    hf_cfg: dict[str, Any] | None = None,
    checkpoint_index: int | None = None,
    checkpoint_value: int | None = None,
    fold_ln: bool = False,
    device: str | torch.device | None = None,
    n_devices: int = 1,
    default_prepend_bos: bool | None = None,
    dtype: torch.dtype = torch.float32,
    first_n_layers: int | None = None,
    n_ctx: int | None = None,
    **kwargs: Any,
) -> HookedTransformerConfig:
    """The config of a model by its official name or alias, of a model folder, or of a GGUF file.

    hf_cfg: what the config of a model in hand says of its vocabulary and quantisation. checkpoint_index or _value: one
    of `get_checkpoint_labels`. fold_ln: norms without weights. default_prepend_bos: None for the model's own.
    first_n_layers: only so many of them. n_ctx: another length; warns if it is longer than the model's. `kwargs`: as
    for `convert_hf_model_config`. Raises ValueError for an unknown name, AssertionError for an unknown checkpoint, and
    what `convert_hf_model_config` raises.
    """
    name = model_name if Path(model_name).exists() else get_official_model_name(model_name)
    if name.startswith(_OWN_FORMAT):
        fields = convert_neel_model_config(name, **kwargs)
    else:
        if name.startswith(NEED_REMOTE_CODE_MODELS) and not kwargs.get("trust_remote_code", False):
            logging.warning(f"Loading model {name} requires setting trust_remote_code=True")
            kwargs["trust_remote_code"] = True
        fields = convert_hf_model_config(name, **kwargs)
    fields |= {"model_name": name.split("/")[-1], "init_weights": False}
    fields |= {"device": device, "dtype": dtype, "n_devices": n_devices}
    if fold_ln:
        fields["normalization_type"] = _folded(fields)
    fields |= checkpoint_of(name, checkpoint_index, checkpoint_value, **kwargs)
    if default_prepend_bos is not None:
        fields["default_prepend_bos"] = default_prepend_bos
    if hf_cfg is not None:
        fields["load_in_4bit"] = (hf_cfg.get("quantization_config") or {}).get("load_in_4bit", False)
        fields["quantization_method"] = quantization_method(hf_cfg) or fields.get("quantization_method")
        fields["d_vocab"] = hf_cfg.get("vocab_size", fields["d_vocab"])
        fields["d_vocab_out"] = -1
    if first_n_layers is not None:
        fields["n_layers"] = first_n_layers
    if n_ctx is not None:
        if n_ctx > fields["n_ctx"]:
            logging.warning(f"n_ctx={n_ctx} is longer than the {fields['n_ctx']} tokens that the model was made for")
        fields["n_ctx"] = n_ctx
    return HookedTransformerConfig.from_dict(fields)


def get_pretrained_state_dict(
    official_model_name: str,
    cfg: HookedTransformerConfig,
    hf_model: Any = None,
    dtype: torch.dtype = torch.float32,
    **kwargs: Any,
) -> dict[str, torch.Tensor]:
    """The parameters of a HookedTransformer with the weights of a model by its name, of a folder or a GGUF file, or of
    `hf_model`, as they are: unprocessed. `kwargs` as for `HookedTransformer.from_pretrained`, which raises the same.
    """
    from glassformer.transformer_lens.HookedTransformer import HookedTransformer

    index = cfg.checkpoint_index if cfg.from_checkpoint else None
    loaded = HookedTransformer.from_pretrained_no_processing(
        official_model_name,
        hf_model=hf_model,
        dtype=dtype,
        checkpoint_index=index,
        first_n_layers=cfg.n_layers,
        n_ctx=cfg.n_ctx,
        device=cfg.device,
        **kwargs,
    )
    return {name: parameter.detach() for name, parameter in loaded.named_parameters()}


def get_num_params_of_pretrained(model_name: str) -> int:
    """How many parameters a model has in attention and MLPs, without biases, norms and embeddings."""
    return get_pretrained_model_config(model_name).n_params


def get_checkpoint_labels(model_name: str, **kwargs: Any) -> tuple[list[int], str]:
    """The checkpoints of a model and what they count: "step" or "token". ValueError for a model that has none.

    `kwargs` may have those of `huggingface_hub.HfApi.list_repo_files`, which is asked for NeelNanda's models.
    """
    name = get_official_model_name(model_name)
    if name.startswith("stanford-crfm/"):
        return STANFORD_CRFM_CHECKPOINTS, "step"
    if name.startswith("EleutherAI/pythia"):
        if "v0" in name:
            return PYTHIA_V0_CHECKPOINTS, "step"
        logging.warning("Pythia models changed on the hub on 3 April 2023: the former ones have -v0 in their names")
        return PYTHIA_CHECKPOINTS, "step"
    if not name.startswith("NeelNanda/"):
        raise ValueError(f"Model {name} is not checkpointed.")
    listed = needed("huggingface_hub", "get_checkpoint_labels()").HfApi().list_repo_files
    matches = (
        re.match(r"checkpoints/.*_(\d*)\.pth", file)
        for file in listed(name, **select_compatible_kwargs(kwargs, listed))
    )
    labels = [int(match.group(1)) for match in matches if match]
    return labels, "token" if labels[-1] > 1e9 else "step"


def fill_missing_keys(model: torch.nn.Module, state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """`state_dict` with what it lacks taken from the model as it is; warns of missing norms and other "W_".

    ValueError if a matrix of attention or of an MLP is missing.
    """
    own = model.state_dict()
    missing = [key for key in own if key not in state_dict and "hf_model" not in key]
    matrices = {"W_Q", "W_K", "W_V", "W_O", "_W_K", "_W_V", "W_in", "W_gate", "W_out"}
    lost = sorted(key for key in missing if key.split(".")[-1] in matrices)
    if lost:
        raise ValueError(f"the state dict lacks {lost}, which the model needs; are they there by other names?")
    for key in missing:
        if "W_" in key:
            logging.warning(f"Missing key for a weight matrix in pretrained, taken from the model as it is: {key}")
        elif key.split(".")[-1] in ("w", "b") and ("ln" in key or "norm" in key):
            logging.warning(f"Missing normalization key in pretrained, filled with its default: {key}")
        state_dict[key] = own[key]
    return state_dict


@dataclasses.dataclass
class Config:
    """A few sizes, as small hand-written models have them."""

    d_model: int = 768
    debug: bool = True
    layer_norm_eps: float = 1e-5
    d_vocab: int = 50257
    init_range: float = 0.02
    n_ctx: int = 1024
    d_head: int = 64
    d_mlp: int = 3072
    n_heads: int = 12
    n_layers: int = 12


def get_basic_config(model_name: str, **kwargs: Any) -> Config:
    """The sizes of a pretrained model; arguments as for `get_pretrained_model_config`."""
    known = {field.name for field in dataclasses.fields(Config)}
    fields = get_pretrained_model_config(model_name, **kwargs).to_dict()
    return Config(**{name: value for name, value in fields.items() if name in known})

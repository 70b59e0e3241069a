"""Pretrained models as HookedTransformers."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import torch

from glassformer import _core
from glassformer._arguments import device_of
from glassformer._hub import fetched
from glassformer.live import open_live
from glassformer.model import own_tokenizer
from glassformer.transformer_lens import loading_from_pretrained as loading
from glassformer.transformer_lens.components.transformer_block import has_norms_only_behind
from glassformer.transformer_lens.config import HookedTransformerConfig
from glassformer.transformer_lens.config.core_config import config_of
from glassformer.transformer_lens.weight_processing import processed

DTYPE_FROM_STRING = {
    "float32": torch.float32,
    "fp32": torch.float32,
    "float16": torch.float16,
    "fp16": torch.float16,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
}


_TAKEN = {"cache_dir", "local_files_only", "revision", "token", "torch_dtype", "load_in_4bit", "load_in_8bit"}
_OF_TRANSFORMERS = {
    "attn_implementation",
    "force_download",
    "low_cpu_mem_usage",
    "proxies",
    "trust_remote_code",
    "use_auth_token",
    "use_safetensors",
}
"""How `transformers` loads a model; it makes no difference here."""


class LoadingMethods:
    """`from_pretrained` and `from_pretrained_no_processing`."""

    @classmethod
    def from_pretrained(
        cls,
        model_name: str,
        fold_ln: bool = True,
        center_writing_weights: bool = True,
        center_unembed: bool = True,
        refactor_factored_attn_matrices: bool = False,
        checkpoint_index: int | None = None,
        checkpoint_value: int | None = None,
        checkpoint_label: int | None = None,
        hf_model: Any = None,
        device: str | torch.device | None = None,
        n_devices: int = 1,
        tokenizer: Any = None,
        move_to_device: bool = True,
        fold_value_biases: bool = True,
        default_prepend_bos: bool | None = None,
        default_padding_side: str | None = None,
        dtype: torch.dtype | str = "float32",
        first_n_layers: int | None = None,
        n_ctx: int | None = None,
        **from_pretrained_kwargs: Any,
    ) -> Any:
        """Load a model and process its weights, which leaves the predictions as they are.

        `model_name` is a folder, a GGUF file, or a name on the Hugging Face hub (also one of TransformerLens' short
        names): it is looked for in the local cache and fetched where `huggingface_hub` is installed and online.
        `hf_model` is a model of `transformers` in the place of files. `fold_ln`, `center_writing_weights`,
        `center_unembed`, `fold_value_biases` and `refactor_factored_attn_matrices` say what is processed: see
        `load_and_process_state_dict`; what can't be done for a model is left out with a warning. `checkpoint_index` or
        `checkpoint_value` choose a checkpoint of training where the hub has them. `first_n_layers` leaves the later
        ones out; `n_ctx` is another length of context. `tokenizer`, `default_prepend_bos` and `default_padding_side`
        replace the model's own.

        Raises what `glassformer.load` raises, ValueError for unknown names, and UnsupportedError for several devices or
        quantised `transformers` models.
        """
        steps = {
            "fold_norms": fold_ln,
            "center_writing_weights": center_writing_weights,
            "center_unembed": center_unembed,
            "fold_value_biases": fold_value_biases,
            "refactor_attention": refactor_factored_attn_matrices,
        }
        if checkpoint_label is not None:
            if checkpoint_value is not None:
                raise ValueError("checkpoint_label and checkpoint_value are two names of one thing; give one of them")
            checkpoint_value = checkpoint_label
        model_name = str(model_name)
        _refuse(model_name, hf_model, n_devices, from_pretrained_kwargs)
        dtype = from_pretrained_kwargs.pop("torch_dtype", dtype)
        if isinstance(dtype, str) and dtype not in DTYPE_FROM_STRING:
            raise _core.NameError(f"dtype is {dtype!r}; expected one of {', '.join(DTYPE_FROM_STRING)}")
        dtype = DTYPE_FROM_STRING[dtype] if isinstance(dtype, str) else dtype
        if dtype == torch.float16 and device in ("cpu", None):
            logging.warning("float16 may not work on the CPU; bfloat16 does")
        changes = {"dtype": dtype, "n_devices": n_devices}
        changes |= {"device": str(device)} if device is not None else {}
        changes |= {"n_layers": first_n_layers} if first_n_layers is not None else {}
        changes |= {"n_ctx": n_ctx} if n_ctx is not None else {}
        changes |= {"default_prepend_bos": default_prepend_bos} if default_prepend_bos is not None else {}
        if hf_model is not None:
            opened = Opened.live(hf_model, dtype, device)
        else:
            place = _place_of(model_name, checkpoint_index, checkpoint_value, **from_pretrained_kwargs)
            opened = Opened.at(place, dtype, device)
        cfg = opened.config(model_name, changes)
        _check_sizes(model_name, cfg, opened)
        _leave_out(cfg, steps)
        if tokenizer is None:
            tokenizer = opened.tokenizer
        named, cfg.tokenizer_name = cfg.tokenizer_name, None
        if tokenizer is None and hf_model is not None and named is not None:
            tokenizer = _tokenizer_named(named)
        if steps["fold_norms"] and cfg.normalization_type in ("LN", "RMS"):
            cfg.normalization_type += "Pre"
        model = cls(cfg, tokenizer, move_to_device=False, default_padding_side=default_padding_side)
        cfg.tokenizer_name = named
        opened.give(model, steps)
        if move_to_device:
            model.move_model_modules_to_device()
        print(f"Loaded pretrained model {model_name} into HookedTransformer")
        return model

    @classmethod
    def from_pretrained_no_processing(
        cls,
        model_name: str,
        fold_ln: bool = False,
        center_writing_weights: bool = False,
        center_unembed: bool = False,
        refactor_factored_attn_matrices: bool = False,
        fold_value_biases: bool = False,
        dtype: torch.dtype | str = torch.float32,
        default_prepend_bos: bool | None = None,
        default_padding_side: str | None = None,
        **from_pretrained_kwargs: Any,
    ) -> Any:
        """`from_pretrained` without any processing: the weights of a file stay where they are mapped."""
        return cls.from_pretrained(
            model_name,
            fold_ln=fold_ln,
            center_writing_weights=center_writing_weights,
            center_unembed=center_unembed,
            fold_value_biases=fold_value_biases,
            refactor_factored_attn_matrices=refactor_factored_attn_matrices,
            dtype=dtype,
            default_prepend_bos=default_prepend_bos,
            default_padding_side=default_padding_side,
            **from_pretrained_kwargs,
        )


def _refuse(model_name: str, hf_model: Any, n_devices: int, options: dict[str, Any]) -> None:
    for start, instead in (("t5", "an encoder and decoder"), ("bert", "an encoder")):
        if not Path(model_name).exists() and model_name.lower().split("/")[-1].startswith(start):
            raise RuntimeError(
                f"{model_name} is {instead}: it is no HookedTransformer, and Glassformer has no such model"
            )
    assert not (options.get("load_in_8bit", False) or options.get("load_in_4bit", False)), (
        "load_in_8bit and load_in_4bit are not supported"
    )
    for name, value in options.items():
        if name not in _TAKEN | _OF_TRANSFORMERS:
            known = name in ("device_map", "max_memory", "offload_folder", "quantization_config", "subfolder")
            if known and value is not None:
                raise _core.UnsupportedError(f"{name}={value!r} is not supported: load the model by transformers")
            if not known:
                raise TypeError(f"from_pretrained() got an unexpected keyword argument {name!r}")
    if n_devices > 1:
        raise _core.UnsupportedError(f"n_devices is {n_devices}: models on several devices are not supported")
    if hf_model is None:
        return
    assert hasattr(hf_model, "config"), "hf_model has no config: expected a model of transformers"
    quantised = hf_model.config.to_dict().get("quantization_config") or {}
    assert not quantised.get("load_in_8bit", False), "hf_model is quantised to 8 bits, which is not supported"
    if quantised.get("load_in_4bit", False) or quantised.get("quant_method"):
        raise _core.UnsupportedError("hf_model is quantised: load it dequantised")


def _check_sizes(name: str, cfg: Any, opened: Opened) -> None:
    n_layers = opened.said["n_layers"] if opened.core is None else opened.core.config.n_layers
    if not 0 <= cfg.n_layers <= n_layers:
        raise _core.InputError(f"first_n_layers is {cfg.n_layers}; {name} has {n_layers} layers")
    own = opened.said["n_ctx"] if opened.core is None else opened.core.config.n_ctx
    if cfg.n_ctx < 1:
        raise _core.InputError(f"n_ctx is {cfg.n_ctx}; expected 1 to {own}, {name}'s own context")
    if cfg.n_ctx <= own:
        return
    if cfg.positional_embedding_type in ("standard", "shortformer"):
        raise _core.InputError(f"n_ctx is {cfg.n_ctx}; {name} has embeddings of {own} positions: take at most these")
    logging.warning(f"n_ctx={cfg.n_ctx} is longer than {name}'s own context of {own}, on which it was trained")


def _leave_out(cfg: Any, steps: dict[str, bool]) -> None:
    """Take out, with a warning, the steps that change what a model of this kind predicts."""
    shortformer = "shortformer models" if cfg.positional_embedding_type == "shortformer" else None
    post_norm = "norms behind attention and MLP" if has_norms_only_behind(cfg) else None
    capped = "a soft cap on logits" if cfg.output_logits_soft_cap > 0 else None
    reasons = {
        "fold_norms": shortformer or post_norm,
        "center_unembed": shortformer or capped,
        "center_writing_weights": shortformer or post_norm,
    }
    names = {"fold_norms": "fold_ln"}
    for step, reason in reasons.items():
        if steps[step] and reason is not None:
            logging.warning(f"{names.get(step, step)}=True can't be done with {reason}; it is left out")
            steps[step] = False


def _place_of(model_name: str, checkpoint_index: int | None, checkpoint_value: int | None, **options: Any) -> str:
    """The folder or file of a model: `model_name` itself if it is one, else where the hub's model of that name is."""
    has_checkpoint = checkpoint_index is not None or checkpoint_value is not None
    if Path(model_name).exists():
        if has_checkpoint:
            raise _core.InputError(f"{model_name} has no checkpoints: these are of models by their names on the hub")
        return model_name
    name = loading.hub_name(model_name)
    if has_checkpoint:
        chosen = loading.checkpoint_of(name, checkpoint_index, checkpoint_value)
        value, kind = chosen["checkpoint_value"], chosen["checkpoint_label_type"]
        if not name.startswith(("stanford-crfm/", "EleutherAI/pythia")):
            raise _core.UnsupportedError(f"checkpoints of {name} are not supported")
        options["revision"] = f"checkpoint-{value}" if name.startswith("stanford-crfm/") else f"{kind}{value}"
    return fetched(name, **options)


class Opened:
    """A model that is to become a HookedTransformer: the core's, or TransformerLens' own state dict."""

    def __init__(self, said: dict[str, Any] | None, core: _core.Model | None, tokenizer: Any = None) -> None:
        self.said, self.core, self.tokenizer = said, core, tokenizer
        self.state: dict[str, torch.Tensor] = {}

    @classmethod
    def live(cls, hf_model: Any, dtype: torch.dtype, device: Any) -> Opened:
        """Of a model of `transformers`."""
        return cls(hf_model.config.to_dict(), open_live(hf_model, None, dtype, device))

    @classmethod
    def at(cls, place: str, dtype: torch.dtype, device: Any) -> Opened:
        """Of a folder or a GGUF file."""
        path, to = Path(place), device_of("cpu" if device is None else device)
        config = path / "config.json"
        said = _read_json(config) if config.is_file() else None
        torch_files = sorted(path.glob("pytorch_model*.bin")) + sorted(path.glob("*final.pth")) if path.is_dir() else []
        if torch_files and not any(path.glob("*.safetensors")):
            state = {}
            for file in torch_files:
                state |= torch.load(file, map_location="cpu", weights_only=True, mmap=True)
            if said is None:
                raise _core.FileError(f"{place}: {torch_files[0].name} is there, but no config.json beside it")
            if "model_type" not in said:
                opened = cls(said, None)
                opened.state = state
                return opened
            return cls(said, _core.Model.from_tensors(json.dumps(said), state, None, dtype, to), _tokenizer_at(path))
        core = _core.Model.load(place, dtype, to)
        return cls(said, core, _tokenizer_at(path, core))

    def config(self, name: str, changes: dict[str, Any]) -> HookedTransformerConfig:
        """The config, with these fields changed. UnsupportedError for rotary scalings that it has no field for."""
        if self.core is None:
            fields = loading.neel_fields(self.said, name) | {"model_name": name.split("/")[-1], "init_weights": False}
            return HookedTransformerConfig.from_dict(fields | changes)
        scaling = self.core.config.rope.scaling
        if self.core.config.positions == "rotary" and scaling in ("dynamic", "longrope"):
            raise _core.UnsupportedError(
                f"{name}: rotary scaling '{scaling}' has no field in a HookedTransformerConfig; use glassformer.load"
            )
        return config_of(self.core, self.said, name, **changes)

    def give(self, model: Any, steps: dict[str, bool]) -> None:
        """Process the weights and make the model's parameters of them."""
        if self.core is not None:
            model._take(_core.process_weights(self.core, **steps))
            return
        state = {name: tensor.to(model.cfg.dtype) for name, tensor in self.state.items()}
        model._take(processed(model.cfg, model.fill_missing_keys(state), **steps), state)


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise _core.FileError(f"{path}: is no JSON ({error})") from None


def _tokenizer_at(path: Path, core: _core.Model | None = None) -> Any:
    """The tokenizer that lies with a model: one of `transformers` where that is installed, else our own."""
    if path.is_dir() and any((path / name).is_file() for name in _TOKENIZER_FILES):
        try:
            from transformers import AutoTokenizer
        except ImportError:
            pass
        else:
            return AutoTokenizer.from_pretrained(str(path))
    return None if core is None else own_tokenizer(core)


def _tokenizer_named(name: str) -> Any:
    try:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(name)
    except Exception as error:  # Whatever the hub's library raises.
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        logging.warning(f"no tokenizer for {name} ({reason}); give one by tokenizer= or set_tokenizer()")
        return None


_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")

"""One set of names for the modules of every architecture: `embed_tokens`, `layers`, `self_attn`, `mlp`, `ln_final`,
`lm_head`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from glassformer import _core


class RenamingError(_core.Error):
    """A module or value is not what its standard name promises."""


class AttnProbFunction(ABC):
    """Where the attention probabilities of an attention module are, for `RenameConfig.attn_prob_source`."""

    @abstractmethod
    def get_attention_prob_source(self, attention_module: Any, return_module_source: bool = False) -> Any:
        """What has the probabilities as its `output`; with `return_module_source`, the source that it stands in."""

    def __call__(self, attention_module: Any, return_module_source: bool = False) -> Any:
        return self.get_attention_prob_source(attention_module, return_module_source)


@dataclass
class RenameConfig:
    """Names that an architecture of one's own has for what the standard names mean.

    `attn_name`, `mlp_name`, `ln_final_name`, `lm_head_name`, `model_name` and `layers_name`: a module's name or path,
    or several. `attn_prob_source`: where attention probabilities are read. `ignore_mlp`, `ignore_attn`: the blocks have
    no such module. `attn_head_config_key`, `hidden_size_config_key` and `vocab_size_config_key`: the number itself, or
    the entry of the config that has it (or several); these come before the usual ones.
    """

    attn_name: str | list[str] | None = None
    mlp_name: str | list[str] | None = None
    ln_final_name: str | list[str] | None = None
    lm_head_name: str | list[str] | None = None
    model_name: str | list[str] | None = None
    layers_name: str | list[str] | None = None
    attn_prob_source: AttnProbFunction | None = None
    ignore_mlp: bool | None = None
    ignore_attn: bool | None = None
    attn_head_config_key: str | list[str] | int | None = None
    hidden_size_config_key: str | list[str] | int | None = None
    vocab_size_config_key: str | list[str] | int | None = None


_WRAPPERS = ("transformer", "gpt_neox", "decoder", "language_model")
_USUAL = {
    "model": _WRAPPERS,
    "layers": ("h", "blocks", "model.layers"),
    "self_attn": ("attn", "self_attention", "attention", "norm_attn_norm"),
    "mlp": ("block_sparse_moe", "ffn"),
    "ln_final": ("final_layer_norm", "ln_f", "norm_f", "norm", "embedding_norm", "model.ln_final"),
    "lm_head": ("embed_out",),
    "embed_tokens": ("wte", "embed_in", "word_embeddings", "model.embed_tokens"),
}
"""What architectures call the modules; a path that begins with `model` may have another wrapper below it."""


def get_rename_dict(rename_config: RenameConfig | None = None) -> dict[str, str]:
    """The standard name of every module name or path that is known: the `rename` of `LanguageModel` and `NNsight`.

    Those of `rename_config` come first, and count where both say something."""
    own = rename_config or RenameConfig()
    fields = {
        "model": own.model_name,
        "layers": own.layers_name,
        "self_attn": own.attn_name,
        "mlp": own.mlp_name,
        "ln_final": own.ln_final_name,
        "lm_head": own.lm_head_name,
    }
    names = {name: standard for standard, given in fields.items() for name in _listed(given)}
    for standard, usual in _USUAL.items():
        below = [
            path.replace("model.", f"model.{wrapper}.")
            for wrapper in _WRAPPERS
            for path in usual
            if path.startswith("model.")
        ]
        for path in (*usual, *below):
            names.setdefault(path, standard)
    return names


def _listed(given: str | int | Sequence[str] | None) -> list[Any]:
    return [] if given is None else [given] if isinstance(given, str | int) else list(given)


def find_module(root: Any, name: str, rename: Mapping[str, str | Sequence[str]]) -> Any:
    """The module below `root` that is called so, or that `rename` calls so, its first entry first; None where there is
    none.

    `root` is a torch module, or a model of `glassformer.nnsight`.
    """
    return _child(root, name, rename, ())


def _child(module: Any, name: str, rename: Mapping[str, Any], asked: tuple[tuple[Any, str], ...]) -> Any:
    if isinstance(module, torch.nn.Module):
        found = dict(module.named_children()).get(name)
    else:
        found = (module._aliases | module._children).get(name)
    if found is not None or (module, name) in asked:
        return found
    for path, alias in rename.items():
        if name not in [one.removeprefix(".") for one in _listed(alias)]:
            continue
        found = module
        for part in path.removeprefix(".").split("."):
            found = _child(found, part, rename, (*asked, (module, name)))
            if found is None:
                break
        if found is not None:
            return found
    return None


def get_num_attention_heads(
    model: Any, raise_error: bool = True, rename_config: RenameConfig | None = None
) -> int | None:
    """The number of heads in a model's config (live, or one of Glassformer's).

    Where it isn't there: `InputError`, or None without `raise_error`.
    """
    own = None if rename_config is None else rename_config.attn_head_config_key
    return _number(model, own, ("n_heads", "num_attention_heads", "n_head", "num_heads"), "heads", raise_error)


def get_hidden_size(model: Any, raise_error: bool = True, rename_config: RenameConfig | None = None) -> int | None:
    """The width of the residual stream in a model's config; where it isn't there, as `get_num_attention_heads`."""
    own = None if rename_config is None else rename_config.hidden_size_config_key
    return _number(model, own, ("hidden_size", "d_model", "n_embd"), "hidden size", raise_error)


def get_vocab_size(model: Any, raise_error: bool = True, rename_config: RenameConfig | None = None) -> int | None:
    """The number of tokens in a model's config; where it isn't there, as `get_num_attention_heads`."""
    own = None if rename_config is None else rename_config.vocab_size_config_key
    return _number(model, own, ("vocab_size", "n_vocab", "d_vocab"), "vocabulary size", raise_error)


def _number(
    model: Any, own: str | list[str] | int | None, usual: tuple[str, ...], what: str, needed: bool
) -> int | None:
    if isinstance(own, int):
        return own
    config = _entry(model.config, "text_config") or model.config
    keys = [*_listed(own), *usual]
    for key in keys:
        value: Any = config
        for part in key.split("."):
            value = _entry(value, part)
        if value is not None:
            return int(value)
    if needed:
        raise _core.InputError(
            f"the config of {type(model).__name__} has no {what} (looked for {', '.join(keys)}); name the entry, or "
            "give the number, in a RenameConfig"
        )
    return None


def _entry(config: Any, key: str) -> Any:
    return config.get(key) if isinstance(config, Mapping) else getattr(config, key, None)


def get_ignores(model: Any, rename_config: RenameConfig | None = None) -> list[str]:
    """Which modules a model's blocks don't have: "mlp" (OPT has `fc1` and `fc2` in the block itself), "attention"."""
    own = rename_config or RenameConfig()
    no_mlp = own.ignore_mlp or _entry(getattr(model, "config", None), "model_type") == "opt"
    return [name for name, ignored in (("mlp", no_mlp), ("attention", own.ignore_attn)) if ignored]


def check_model_renaming(
    std_model: Any,
    model_name: str,
    ignores: Sequence[str],
    allow_dispatch: bool = True,
    allow_multimodal: bool = False,
) -> None:
    """Raises `RenamingError` where a module has no standard name; "mlp" and "attention" may be ignored. The last two
    arguments make no difference."""
    in_block = [name for kind, name in (("attention", "self_attn"), ("mlp", "mlp")) if kind not in ignores]
    for name in ("embed_tokens", "layers", "ln_final", "lm_head"):
        if find_module(std_model, name, {}) is None:
            raise RenamingError(f"{model_name} has no module that is known as '{name}': name it in a RenameConfig")
    for name in in_block:
        if find_module(std_model.layers[0], name, {}) is None:
            raise RenamingError(
                f"{model_name}'s blocks have no module that is known as '{name}': name it in a RenameConfig"
            )

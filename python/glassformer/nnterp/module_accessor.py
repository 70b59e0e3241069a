"""The torch modules of a live model by standard names."""

from __future__ import annotations

import torch

from glassformer import _core
from glassformer.nnsight.envoy import Envoy
from glassformer.nnsight.nnsight_module import NNsight
from glassformer.nnterp.names import RenameConfig, find_module, get_rename_dict


class ModuleAccessor:
    """The torch modules of a model by their standard names as by their own: `accessor.layers`,
    `accessor.get_attention(3)`. The model is a live one (of `transformers`, or any torch module) or one of
    `glassformer.nnsight`. `InputError` for others.

    `rename_config` says what an architecture of one's own calls them; `rename` has further names, `{old: new}`.
    """

    def __init__(
        self,
        model: torch.nn.Module | Envoy,
        rename_config: RenameConfig | None = None,
        rename: dict[str, str] | None = None,
    ):
        if isinstance(model, Envoy):
            model = model._module
        if not isinstance(model, torch.nn.Module):
            raise _core.InputError(
                f"ModuleAccessor takes a torch module, or a model of glassformer.nnsight; found {type(model).__name__}"
            )
        self._model = model
        self._rename = {**(rename or {}), **get_rename_dict(rename_config), **(rename or {})}

    def __getattr__(self, name: str) -> torch.nn.Module:
        if name.startswith("__") or name in ("_model", "_rename"):
            raise AttributeError(name)
        return self._found(self._model, name)

    def _found(self, parent: torch.nn.Module, name: str) -> torch.nn.Module:
        module = find_module(parent, name, self._rename)
        if module is None:
            there = ", ".join(dict(parent.named_children())) or "none"
            raise AttributeError(f"{type(parent).__name__} has no module '{name}'; it has {there}")
        return module

    @property
    def nn_model(self) -> NNsight:
        """The model in nnsight's vocabulary, by the same names."""
        return NNsight(self._model, rename=self._rename)

    def get_embed_tokens(self) -> torch.nn.Module:
        """The embedding of tokens."""
        return self.embed_tokens

    def get_layers(self) -> torch.nn.ModuleList:
        """The blocks."""
        return self.layers

    def get_mlp(self, layer: int) -> torch.nn.Module:
        """The MLP of a block."""
        return self._found(self.layers[layer], "mlp")

    def get_attention(self, layer: int) -> torch.nn.Module:
        """The attention of a block."""
        return self._found(self.layers[layer], "self_attn")

    def get_unembed_norm(self) -> torch.nn.Module:
        """The norm before the unembedding."""
        return self.ln_final

    def get_unembed(self) -> torch.nn.Module:
        """The unembedding."""
        return self.lm_head

"""`model.layers_output[3]` and the like; `rename_utils` has them by the same names."""

from __future__ import annotations

import operator
from enum import Enum
from typing import Any

import torch

from glassformer import _core
from glassformer.nnterp.names import RenameConfig, RenamingError


class IOType(Enum):
    """What of a module an accessor gives."""

    INPUT = "input"
    OUTPUT = "output"


def layer_number(n_layers: int, layer: Any) -> int:
    """The number of a layer, counted from 0; a negative one counts from the end. IndexError where there is none such,
    `InputError` for what is no number."""
    try:
        number = operator.index(layer)
    except TypeError:
        raise _core.InputError(f"expected the number of a layer, 0 to {n_layers - 1}; found {layer!r}") from None
    if not -n_layers <= number < n_layers:
        raise IndexError(f"layer {number}: the model has {n_layers} layers")
    return number % n_layers


class LayerAccessor:
    """What blocks, or a module of each (`attr_name`), take or give: `accessor[3]` is the tensor `batch pos d_model` of
    block 3 in the open trace, to read, change in place and set. Without `io_type` it is the module itself."""

    def __init__(self, model: Any, attr_name: str | None, io_type: IOType | None):
        self.model = model
        self.attr_name = attr_name
        self.io_type = io_type

    def get_module(self, layer: int) -> Any:
        """The module of a block."""
        block = _block(self.model, layer)
        return block if self.attr_name is None else getattr(block, self.attr_name)

    def __getitem__(self, layer: int) -> Any:
        module = self.get_module(layer)
        if self.io_type is None:
            return module
        value = getattr(module, self.io_type.value)
        return value[0] if isinstance(value, tuple) else value

    def __setitem__(self, layer: int, value: torch.Tensor) -> None:
        if self.io_type is None:
            name = {None: "layers", "self_attn": "attentions"}.get(self.attr_name, f"{self.attr_name}s")
            raise _core.InputError(f"a module can't be set; to set its values use {name}_input or {name}_output")
        setattr(self.get_module(layer), self.io_type.value, value)

    def __call__(self, layer: int) -> Any:
        return self[layer]

    @property
    def returns_tuple(self) -> bool | None:
        """Whether `module.output` is a tuple whose first entry this is; None for modules themselves."""
        if self.io_type is None:
            return None
        return self.io_type is IOType.OUTPUT and self.get_module(0).place.returns == "tuple"


def _block(model: Any, layer: int) -> Any:
    return model.layers[layer_number(len(model.layers), layer)]


class AttentionProbabilitiesAccessor:
    """The attention probabilities of a block in the open trace, to read, change in place and set: `batch head query_pos
    key_pos`, the node `hook_pattern`. They are always there, and cost nothing until they are read or changed.

    With `rename_config.attn_prob_source` they are the `output` of what that gives for the block's attention.
    """

    enabled = True

    def __init__(self, model: Any, rename_config: RenameConfig | None = None, initialized_with_enable: bool = False):
        self.model = model
        self._own_source = None if rename_config is None else rename_config.attn_prob_source

    def source_attr(self, attention_module: Any, return_module_source: bool = False) -> Any:
        """What has the probabilities of an attention module as its `output`, or the source that it stands in."""
        if self._own_source is not None:
            return self._own_source(attention_module, return_module_source)
        source = attention_module.source
        return source if return_module_source else source.hook_pattern

    def __getitem__(self, layer: int) -> torch.Tensor:
        return self.source_attr(_block(self.model, layer).self_attn).output

    def __setitem__(self, layer: int, value: torch.Tensor) -> None:
        self.source_attr(_block(self.model, layer).self_attn).output = value

    @torch.no_grad()
    def check_source(self, layer: int = 0, allow_dispatch: bool = True, use_trace: bool = True) -> None:
        """Checks that what is read at a layer has the shape of attention probabilities, sums to 1 over the keys, and
        changes the logits when it is changed; `RenamingError` otherwise. The other arguments make no difference."""
        with self.model.trace([[0, 1, 1]]):
            probs = self[layer].clone()
            clean = self.model.logits.clone()
            expected = (1, self.model.num_heads, 3, 3)
            if tuple(probs.shape) != expected:
                raise RenamingError(
                    f"attention probabilities of layer {layer}: shape {tuple(probs.shape)}; expected {expected} (batch "
                    "head query_pos key_pos)"
                )
            if not torch.allclose(probs.sum(-1), torch.ones_like(probs[..., 0])):
                raise RenamingError(f"attention probabilities of layer {layer} don't sum to 1 over the keys")
            self[layer] = probs.flip(-1)
            if torch.allclose(self.model.logits, clean):
                raise RenamingError(
                    f"attention probabilities of layer {layer}: changing them doesn't change the logits"
                )

    def print_source(self, layer: int = 0, allow_dispatch: bool = True) -> None:
        """Prints how the probabilities of a layer come about, and the whole of its attention."""
        attention = _block(self.model, layer).self_attn
        print(f"Attention probabilities of layer {layer}:\n{self.source_attr(attention)}")
        print(f"\nAll of its attention:\n{self.source_attr(attention, return_module_source=True)}")

"""Singular vectors of a model's weights, read on its vocabulary."""

from __future__ import annotations

from typing import Any

import torch

from glassformer import _core
from glassformer.transformer_lens.components.transformer_block import has_norms_only_behind

VECTOR_TYPES = ["OV", "w_in", "w_out"]


class SVDInterpreter:
    """Reads the singular vectors of the weights of `model`, which has them under TransformerLens' names."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.cfg = model.cfg

    def get_singular_vectors(
        self, vector_type: str, layer_index: int, num_vectors: int = 10, head_index: int | None = None
    ) -> torch.Tensor:
        """What the first right singular vectors of a weight write to the logits: `d_vocab 1 num_vectors`.

        `vector_type` is "OV" (of the head `head_index`), "w_in" (what the MLP's neurons read, with the weight of the
        norm before it where it isn't folded in; TransformerLens also takes that of a norm behind the MLP) or "w_out"
        (what they write). Each vector's sign is arbitrary. Raises `InputError` for an unknown type, a layer or head
        that isn't there, and more vectors than there are.
        """
        if vector_type not in VECTOR_TYPES:
            raise _core.InputError(f"vector_type is {vector_type!r}; expected one of {', '.join(VECTOR_TYPES)}")
        block = self.model.blocks[_within("layer_index", layer_index, self.cfg.n_layers)]
        W_U = self.model.W_U
        if vector_type == "OV":
            head = _within("head_index", head_index, self.cfg.n_heads)
            OV = _core.FactoredMatrix(block.attn.W_V[head], block.attn.W_O[head])
            return _core.singular_vectors(OV, W_U, num_vectors)
        if not hasattr(block, "mlp"):
            raise _core.InputError(f"vector_type is {vector_type!r}; this model has no MLPs, only OV")
        if vector_type == "w_out":
            return _core.singular_vectors(block.mlp.W_out, W_U, num_vectors, None)
        norm_weight = None if has_norms_only_behind(self.cfg) else getattr(getattr(block, "ln2", None), "w", None)
        return _core.singular_vectors(block.mlp.W_in.mT, W_U, num_vectors, norm_weight)


def _within(name: str, index: int | None, size: int) -> int:
    if index is None or not 0 <= index < size:
        raise _core.InputError(f"{name} is {index}; expected 0 to {size - 1}")
    return index

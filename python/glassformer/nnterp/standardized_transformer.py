"""A language model with the same names for every architecture."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import torch

from glassformer import _core
from glassformer._arguments import tensor_of
from glassformer.nnsight import LanguageModel, _open
from glassformer.nnterp import nnsight_utils
from glassformer.nnterp._tokenizers import configured, without_prefix_space
from glassformer.nnterp._traces import Tokens, is_mask, is_recorded, prompt_numbers, token_places
from glassformer.nnterp.accessors import AttentionProbabilitiesAccessor, IOType, LayerAccessor, layer_number
from glassformer.nnterp.names import (
    RenameConfig,
    check_model_renaming,
    get_hidden_size,
    get_ignores,
    get_num_attention_heads,
    get_rename_dict,
    get_vocab_size,
)


class StandardizedTransformer(LanguageModel):
    """A `LanguageModel` whose modules also have standard names: `embed_tokens`, `layers` with `self_attn` and `mlp`,
    `ln_final`, `lm_head`.

    In a trace, `layers_input[i]`, `layers_output[i]`, `attentions_input[i]`, `attentions_output[i]`, `mlps_input[i]`
    and `mlps_output[i]` are tensors `batch pos d_model`, to read, change in place and set; `attention_probabilities[i]`
    is `batch head query_pos key_pos`. `attentions[i]` and `mlps[i]` are modules.

    `model` and further keywords are those of `LanguageModel`; `rename_config` and `rename` give modules further names.
    With `check_renaming`, a module that no name is known for raises `RenamingError`. `tokenizer_kwargs` may have
    `add_prefix_space=False`. The other arguments are nnterp's, and make no difference: attention probabilities are
    always there.
    """

    def __init__(
        self,
        model: Any,
        trust_remote_code: bool = False,
        check_renaming: bool = True,
        remote: bool = False,
        allow_dispatch: bool = True,
        enable_attention_probs: bool = False,
        check_attn_probs_with_trace: bool = True,
        allow_multimodal: bool = False,
        rename_config: RenameConfig | None = None,
        **kwargs: Any,
    ):
        if remote:
            raise _core.UnsupportedError("remote=True: everything runs on this machine")
        rename = get_rename_dict(rename_config) | (kwargs.pop("rename", None) or {})
        tokenizer_options = kwargs.pop("tokenizer_kwargs", None) or {}
        super().__init__(model, rename=rename, **kwargs)
        self.tokenizer = configured(self.tokenizer, **tokenizer_options)
        ignores = get_ignores(self, rename_config)
        if check_renaming:
            check_model_renaming(self, self.repo_id, ignores, allow_dispatch, allow_multimodal)
        self._rename_config = rename_config
        self.num_layers = len(self.layers)
        self.num_heads = get_num_attention_heads(self, False, rename_config)
        self.hidden_size = get_hidden_size(self, False, rename_config)
        self.vocab_size = get_vocab_size(self, False, rename_config)
        self._add_prefix_false_tokenizer: Any = None

    def detect_layer_output_type(self) -> None:
        """Does nothing: how blocks return the residual stream is known."""

    @property
    def add_prefix_false_tokenizer(self) -> Any:
        """The model's tokenizer, or where that puts a space before every text one that doesn't.

        `UnsupportedError` where no such can be made of it.
        """
        if self._add_prefix_false_tokenizer is None:
            self._add_prefix_false_tokenizer = without_prefix_space(self.tokenizer)
        return self._add_prefix_false_tokenizer

    # --- accessors: each belongs to the model that it is asked of, copies by `edit()` too

    @property
    def layers_input(self) -> LayerAccessor:
        """The residual stream before each block."""
        return LayerAccessor(self, None, IOType.INPUT)

    @property
    def layers_output(self) -> LayerAccessor:
        """The residual stream after each block."""
        return LayerAccessor(self, None, IOType.OUTPUT)

    @property
    def attentions(self) -> LayerAccessor:
        """The attention of each block, as a module."""
        return LayerAccessor(self, "self_attn", None)

    @property
    def attentions_input(self) -> LayerAccessor:
        """What each block's attention takes."""
        return LayerAccessor(self, "self_attn", IOType.INPUT)

    @property
    def attentions_output(self) -> LayerAccessor:
        """What each block's attention gives."""
        return LayerAccessor(self, "self_attn", IOType.OUTPUT)

    @property
    def mlps(self) -> LayerAccessor:
        """The MLP of each block, as a module."""
        return LayerAccessor(self, "mlp", None)

    @property
    def mlps_input(self) -> LayerAccessor:
        """What each block's MLP takes."""
        return LayerAccessor(self, "mlp", IOType.INPUT)

    @property
    def mlps_output(self) -> LayerAccessor:
        """What each block's MLP gives."""
        return LayerAccessor(self, "mlp", IOType.OUTPUT)

    @property
    def attention_probabilities(self) -> AttentionProbabilitiesAccessor:
        """The attention probabilities of each block."""
        return AttentionProbabilitiesAccessor(self, self._rename_config)

    @property
    def attn_probs_available(self) -> bool:
        """Whether attention probabilities are there: always."""
        return self.attention_probabilities.enabled

    # --- values of the open trace

    @property
    def input_ids(self) -> torch.Tensor:
        """The token ids, `batch pos`."""
        return self.input

    @property
    def attention_mask(self) -> torch.Tensor:
        """1 at real tokens and 0 at padding, `batch pos`; a copy."""
        return self.inputs[1]["attention_mask"].long()

    @property
    def input_size(self) -> torch.Size:
        """How many prompts there are, and how many positions."""
        return self.input_ids.shape

    @property
    def token_embeddings(self) -> torch.Tensor:
        """What `embed_tokens` gives, `batch pos d_model`."""
        return self.embed_tokens.output

    @token_embeddings.setter
    def token_embeddings(self, value: torch.Tensor) -> None:
        self.embed_tokens.output = value

    @property
    def logits(self) -> torch.Tensor:
        """The logits, `batch pos d_vocab`."""
        return nnsight_utils.get_logits(self)

    @property
    def next_token_probs(self) -> torch.Tensor:
        """The probabilities of the token after each prompt, `batch d_vocab`."""
        return nnsight_utils.get_next_token_probs(self)

    # --- changes of the open trace

    def skip_layer(self, layer: int, skip_with: torch.Tensor | None = None) -> None:
        """Leaves a block out: see `skip_layers`."""
        self.skip_layers(layer, layer, skip_with)

    def skip_layers(
        self,
        start_layer: int,
        end_layer: int,
        skip_with: torch.Tensor | None = None,
        layer_returns_tuple: bool | None = None,
    ) -> None:
        """Leaves blocks out, the last one included: each gives `skip_with`, or without it the input of the first as it
        is now; so what lies before is changed first. `layer_returns_tuple` makes no difference.

        Raises `InputError` for layers in the wrong order, IndexError for one that isn't there.
        """
        first, last = (layer_number(self.num_layers, each) for each in (start_layer, end_layer))
        if first > last:
            raise _core.InputError(f"skip_layers({start_layer}, {end_layer}): the last comes before the first")
        value = self.layers_input[first] if skip_with is None else skip_with
        for layer in range(first, last + 1):
            self.layers[layer].skip(value)

    def steer(
        self,
        layers: int | Sequence[int],
        steering_vector: torch.Tensor,
        factor: float = 1,
        positions: Tokens | None = None,
        token_positions: Tokens | None = None,
        batch_index: int | Sequence[int] | torch.Tensor | None = None,
    ) -> None:
        """Adds `factor * steering_vector` to the residual stream after blocks.

        `token_positions` (numbers, a mask or a slice) count each prompt's own tokens, from the end where they are
        negative; without them all are meant, as are all prompts without `batch_index`. Numbers of both are paired.
        `positions` is the old name. What is steered belongs to the stream as it is now: what lies before is changed
        first (else `OrderError`).

        Raises `InputError` for tokens and prompts that aren't there, IndexError for layers.
        """
        if positions is not None:
            if token_positions is not None:
                raise _core.InputError("positions is the old name of token_positions; give one of them")
            warnings.warn("positions is deprecated: use token_positions", DeprecationWarning, stacklevel=2)
            token_positions = positions
        listed = [layers] if isinstance(layers, int) or not isinstance(layers, Iterable) else layers
        vector = tensor_of(steering_vector)
        for layer in sorted(layer_number(self.num_layers, each) for each in listed):
            stream = self.layers_output[layer]
            added = factor * vector.to(stream.device)
            if token_positions is not None and batch_index is None and is_recorded(_open.needed(self, "a token")):
                if is_mask(token_positions):
                    raise _core.UnsupportedError("an edit for later traces takes no mask of tokens; give their numbers")
                stream.token[token_positions] = stream.token[token_positions] + added
            elif token_positions is not None:
                places = token_places(self, token_positions, batch_index)
                stream.index_put_(places, stream[places] + added)
            elif batch_index is not None:
                places = (prompt_numbers(batch_index, len(stream)),)
                stream.index_put_(places, stream[places] + added)
            else:
                stream += added

    # --- the vocabulary

    def project_on_vocab(self, hidden_state: torch.Tensor) -> torch.Tensor:
        """The logits of a residual stream, `… d_model`, as if it were the last: `… d_vocab`."""
        return nnsight_utils.project_on_vocab(self, hidden_state)

    def probs_to_dict(self, tokens: torch.Tensor, probs: torch.Tensor) -> dict[str, float]:
        """The probability of each token by its spelling; both are tensors of one axis."""
        return dict(zip(self.tokenizer.convert_ids_to_tokens(tokens.tolist()), probs.tolist(), strict=True))

    def get_topk_closest_tokens(
        self, hidden_state: torch.Tensor, k: int = 5
    ) -> dict[str, float] | list[dict[str, float]]:
        """The probabilities of the `k` most likely tokens of a residual stream, `d_model`, as if it were the last; of
        several, `batch d_model`, a list. `InputError` for other shapes."""
        if hidden_state.ndim not in (1, 2) or hidden_state.shape[-1] != self.hidden_size:
            raise _core.InputError(
                f"hidden_state has shape {list(hidden_state.shape)}; expected d_model={self.hidden_size}, or batch "
                f"d_model={self.hidden_size}"
            )
        top = self.project_on_vocab(hidden_state).softmax(-1).topk(k)
        if hidden_state.ndim == 1:
            return self.probs_to_dict(top.indices, top.values)
        return [self.probs_to_dict(ids, probs) for ids, probs in zip(top.indices, top.values, strict=True)]

"""Activation patching: which activations of a clean run bring a corrupted run back to the clean run's answer.

Each function runs the model on corrupted tokens again and again, every time with another part of one activation as the
clean run had it, and gives a metric of the logits for each. All runs are forks of one trace and are computed together;
where hooks stand on the model they are called, and then every run is a pass of its own.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from glassformer import _core
from glassformer.transformer_lens._engine import Pass
from glassformer.transformer_lens._patched_logits import PatchedLogits
from glassformer.transformer_lens.hook_points import HookPoint
from glassformer.transformer_lens.HookedTransformer import HookedTransformer
from glassformer.transformer_lens.utilities.components_utils import get_act_name
from glassformer.transformer_lens.utilities.defaults_utils import USE_DEFAULT_VALUE, LocallyOverridenDefaults
from glassformer.transformer_lens.utilities.library_utils import needed, with_progress

if TYPE_CHECKING:
    import pandas as pd

Index = list[Any]
PatchSetter = Callable[[torch.Tensor, Index, torch.Tensor], torch.Tensor]
Metric = Callable[[torch.Tensor], torch.Tensor]


def make_df_from_ranges(column_max_ranges: Sequence[int], column_names: Sequence[str]) -> pd.DataFrame:
    """All tuples of indices below `column_max_ranges`, one a row, the last column changing fastest.

    ImportError without pandas.
    """
    frame = needed("pandas", "make_df_from_ranges()").DataFrame
    return frame(list(itertools.product(*map(range, column_max_ranges))), columns=column_names)


# How one places a clean value: each returns the corrupted activation, changed in place. `_KEYS` says the same as an
# index into the activation.


def _setter(words: str, key_of: Callable[..., tuple], n_entries: int) -> PatchSetter:
    def patch_setter(corrupted_activation: torch.Tensor, index: Index, clean_activation: torch.Tensor) -> torch.Tensor:
        key = patch_setter.key(index)
        corrupted_activation[key] = clean_activation[key]
        return corrupted_activation

    def key(index: Index) -> tuple:
        assert len(index) == n_entries, f"an index has {n_entries} entries here, {words}; found {index}"
        return key_of(*index)

    patch_setter.key = key
    patch_setter.__doc__ = f"Puts the clean activation into the corrupted one, in place, at an index [{words}]."
    return patch_setter


_ALL = slice(None)
layer_pos_patch_setter = _setter("layer, pos", lambda _, pos: (_ALL, pos), 2)
layer_pos_head_vector_patch_setter = _setter("layer, pos, head_index", lambda _, pos, head: (_ALL, pos, head), 3)
layer_head_vector_patch_setter = _setter("layer, head_index", lambda _, head: (_ALL, _ALL, head), 2)
layer_head_pattern_patch_setter = _setter("layer, head_index", lambda _, head: (_ALL, head), 2)
layer_head_pos_pattern_patch_setter = _setter(
    "layer, head_index, dest_pos", lambda _, head, dest: (_ALL, head, dest), 3
)
layer_head_dest_src_pos_pattern_patch_setter = _setter(
    "layer, head_index, dest_pos, src_pos", lambda _, head, dest, src: (_ALL, head, dest, src), 4
)


def generic_activation_patch(
    model: HookedTransformer,
    corrupted_tokens: torch.Tensor,
    clean_cache: Mapping[str, torch.Tensor],
    patching_metric: Metric,
    patch_setter: PatchSetter,
    activation_name: str,
    index_axis_names: Sequence[str] | None = None,
    index_df: pd.DataFrame | None = None,
    return_index_df: bool = False,
) -> Any:
    """The metric of the corrupted run with a part of one activation from the clean run, for each of many parts.

    `corrupted_tokens` is batch pos, `clean_cache` has the clean run's values by hook name, and
    `patching_metric(logits)` makes a tensor of one number of logits, batch pos d_vocab. `activation_name` is a short
    name ("z", "resid_pre"). A part is an index whose first entry is the layer:
    `patch_setter(corrupted_activation, index, clean_activation)` returns the activation that is to stand there.

    The indices are all those of `index_axis_names` ("layer", "pos", "head_index", "head", "src_pos", "dest_pos"), or
    the rows of `index_df`; giving both or neither raises AssertionError. Returns the metric with one axis for each
    name (with `index_df`: one number for each row), on the model's device; and the table of indices if
    `return_index_df`.
    """
    if index_df is None:
        assert index_axis_names is not None, "give index_axis_names or index_df"
        sizes = _sizes_of(index_axis_names, model, corrupted_tokens, activation_name)
        rows: list[Index] = [list(index) for index in itertools.product(*map(range, sizes))]
    else:
        assert index_axis_names is None, "give index_axis_names or index_df, not both"
        sizes = [len(index_df)]
        rows = [row.to_list() for _, row in index_df.iterrows()]
    names = [get_act_name(activation_name, layer=index[0]) for index in rows]
    numbers: list[float] = []
    bar = iter(with_progress(rows))

    def take(logits: torch.Tensor) -> None:
        next(bar, None)
        number = patching_metric(logits)
        numbers.append(number if isinstance(number, int | float) else number.item())

    if _can_fork(model, names):
        _sweep(model, corrupted_tokens, clean_cache, patch_setter, rows, names, take)
    else:
        _run_each(model, corrupted_tokens, clean_cache, patch_setter, rows, names, take)
    next(bar, None)  # The bar ends.
    result = torch.tensor(numbers, dtype=torch.get_default_dtype(), device=model.cfg.device).reshape(sizes)
    if not return_index_df:
        return result
    return result, make_df_from_ranges(sizes, index_axis_names) if index_df is None else index_df


def _sizes_of(axes: Sequence[str], model: HookedTransformer, tokens: torch.Tensor, activation_name: str) -> list[int]:
    cfg, n_pos = model.cfg, tokens.shape[-1]
    by_group = activation_name in ("k", "v") and cfg.n_key_value_heads is not None
    n_heads = cfg.n_key_value_heads if by_group else cfg.n_heads
    sizes = {"layer": cfg.n_layers, "head_index": n_heads, "head": n_heads}
    sizes |= {"pos": n_pos, "src_pos": n_pos, "dest_pos": n_pos}
    if unknown := [name for name in axes if name not in sizes]:
        raise _core.NameError(f"no axis is called '{unknown[0]}'; the axes are {', '.join(sizes)}")
    return [sizes[name] for name in axes]


def _can_fork(model: HookedTransformer, names: Sequence[str]) -> bool:
    """Whether the runs differ in nothing but values that a trace can be given."""
    if not isinstance(model, HookedTransformer) or not model._has_usual_forward():
        return False
    points = [point for point in model.modules() if isinstance(point, HookPoint)]
    if any(point.fwd_hooks or point.bwd_hooks for point in points) or not model._engine.is_own():
        return False
    model._engine.model()

    def is_plain(name: str) -> bool:
        shown = model._engine.shown.get(name)
        is_there = shown is not None and not shown.is_other and name in model._engine.points()
        return is_there and model._is_open(name) and not model._engine.is_norm_by_head(name)

    return all(map(is_plain, set(names)))


def _sweep(
    model: HookedTransformer,
    tokens: torch.Tensor,
    clean_cache: Mapping[str, torch.Tensor],
    patch_setter: PatchSetter,
    rows: list[Index],
    names: list[str],
    take: Callable[[torch.Tensor], None],
) -> None:
    with LocallyOverridenDefaults(model, prepend_bos=USE_DEFAULT_VALUE, padding_side=USE_DEFAULT_VALUE):
        tokens = model._tokens_of(tokens, USE_DEFAULT_VALUE, USE_DEFAULT_VALUE)
        mask = model._mask_for(tokens, USE_DEFAULT_VALUE, None, None)
    one = Pass(model._engine, tokens, mask)
    one.add_hooks(lambda name: True)  # Of users' there are none; padding has no position.
    trace = one.trace
    key_of = getattr(patch_setter, "key", None)
    shape, like = (*tokens.shape, model.cfg.d_vocab_out), model.unembed.W_U

    def patch(i: int) -> tuple[str, torch.Tensor, Any]:
        clean = clean_cache[names[i]]
        if key_of is not None and all(type(entry) is int for entry in rows[i]):
            key = key_of(rows[i])
            return names[i], clean[key], key
        with torch.no_grad():
            corrupted = trace.read(names[i])
        made = patch_setter(corrupted, rows[i], clean)
        return names[i], corrupted if made is None else made, None

    def hand_over(_: int, run: _core.PatchedRun) -> None:
        logits = PatchedLogits(shape, like, run.logits)
        kept = weakref.ref(logits)
        take(logits)
        del logits
        if (still := kept()) is not None:  # By the metric: its numbers are those of now.
            still.whole()

    _core.sweep_patches(trace, len(rows), patch, hand_over)


def _run_each(
    model: HookedTransformer,
    tokens: torch.Tensor,
    clean_cache: Mapping[str, torch.Tensor],
    patch_setter: PatchSetter,
    rows: list[Index],
    names: list[str],
    take: Callable[[torch.Tensor], None],
) -> None:
    for index, name in zip(rows, names, strict=True):

        def hook(value: torch.Tensor, hook: Any, index: Index, clean: torch.Tensor) -> torch.Tensor:
            corrupted = value.clone() if value.requires_grad else value
            made = patch_setter(corrupted, index, clean)
            return corrupted if made is None else made

        placed = partial(hook, index=index, clean=clean_cache[name])
        take(model.run_with_hooks(tokens, fwd_hooks=[(name, placed)]))


def _patches(activation_name: str, patch_setter: PatchSetter, axes: tuple[str, ...]) -> Callable[..., Any]:
    made = partial(
        generic_activation_patch,
        patch_setter=patch_setter,
        activation_name=activation_name,
        index_axis_names=axes,
    )
    made.__doc__ = f"`generic_activation_patch` of {activation_name}: a result for each {' '.join(axes)}."
    return made


_BY_POS, _BY_HEAD, _BY_BOTH = ("layer", "pos"), ("layer", "head"), ("layer", "pos", "head")
get_act_patch_resid_pre = _patches("resid_pre", layer_pos_patch_setter, _BY_POS)
get_act_patch_resid_mid = _patches("resid_mid", layer_pos_patch_setter, _BY_POS)
get_act_patch_attn_out = _patches("attn_out", layer_pos_patch_setter, _BY_POS)
get_act_patch_mlp_out = _patches("mlp_out", layer_pos_patch_setter, _BY_POS)
get_act_patch_attn_head_out_by_pos = _patches("z", layer_pos_head_vector_patch_setter, _BY_BOTH)
get_act_patch_attn_head_q_by_pos = _patches("q", layer_pos_head_vector_patch_setter, _BY_BOTH)
get_act_patch_attn_head_k_by_pos = _patches("k", layer_pos_head_vector_patch_setter, _BY_BOTH)
get_act_patch_attn_head_v_by_pos = _patches("v", layer_pos_head_vector_patch_setter, _BY_BOTH)
get_act_patch_attn_head_pattern_by_pos = _patches(
    "pattern", layer_head_pos_pattern_patch_setter, ("layer", "head_index", "dest_pos")
)
get_act_patch_attn_head_pattern_dest_src_pos = _patches(
    "pattern", layer_head_dest_src_pos_pattern_patch_setter, ("layer", "head_index", "dest_pos", "src_pos")
)
get_act_patch_attn_head_out_all_pos = _patches("z", layer_head_vector_patch_setter, _BY_HEAD)
get_act_patch_attn_head_q_all_pos = _patches("q", layer_head_vector_patch_setter, _BY_HEAD)
get_act_patch_attn_head_k_all_pos = _patches("k", layer_head_vector_patch_setter, _BY_HEAD)
get_act_patch_attn_head_v_all_pos = _patches("v", layer_head_vector_patch_setter, _BY_HEAD)
get_act_patch_attn_head_pattern_all_pos = _patches("pattern", layer_head_pattern_patch_setter, ("layer", "head_index"))


def _filled_up(result: torch.Tensor, n_heads: int) -> torch.Tensor:
    """With zeros for the heads that share keys and values with others."""
    filled = result.new_zeros((*result.shape[:-1], n_heads))
    filled[..., : result.shape[-1]] = result
    return filled


def _every(functions: Sequence[Callable[..., Any]], arguments: tuple) -> list[torch.Tensor]:
    return [function(*arguments) for function in functions]


def get_act_patch_attn_head_all_pos_every(
    model: HookedTransformer, corrupted_tokens: torch.Tensor, clean_cache: Mapping[str, torch.Tensor], metric: Metric
) -> torch.Tensor:
    """Output, query, key, value and pattern of every head at all positions: 5 layer head.

    With fewer heads for keys and values the others' results are 0.
    """
    functions = [
        get_act_patch_attn_head_out_all_pos,
        get_act_patch_attn_head_q_all_pos,
        get_act_patch_attn_head_k_all_pos,
        get_act_patch_attn_head_v_all_pos,
        get_act_patch_attn_head_pattern_all_pos,
    ]
    results = _every(functions, (model, corrupted_tokens, clean_cache, metric))
    return torch.stack([_filled_up(result, model.cfg.n_heads) for result in results])


def get_act_patch_attn_head_by_pos_every(
    model: HookedTransformer, corrupted_tokens: torch.Tensor, clean_cache: Mapping[str, torch.Tensor], metric: Metric
) -> torch.Tensor:
    """Output, query, key, value and pattern (by destination) of every head at every position: 5 layer pos head.

    With fewer heads for keys and values the others' results are 0.
    """
    functions = [
        get_act_patch_attn_head_out_by_pos,
        get_act_patch_attn_head_q_by_pos,
        get_act_patch_attn_head_k_by_pos,
        get_act_patch_attn_head_v_by_pos,
        get_act_patch_attn_head_pattern_by_pos,
    ]
    *vectors, pattern = _every(functions, (model, corrupted_tokens, clean_cache, metric))
    results = [*vectors, pattern.transpose(1, 2)]
    return torch.stack([_filled_up(result, model.cfg.n_heads) for result in results])


def get_act_patch_block_every(
    model: HookedTransformer, corrupted_tokens: torch.Tensor, clean_cache: Mapping[str, torch.Tensor], metric: Metric
) -> torch.Tensor:
    """The residual stream before each layer, and what its attention and its MLP add, at every position: 3 layer pos."""
    functions = [get_act_patch_resid_pre, get_act_patch_attn_out, get_act_patch_mlp_out]
    return torch.stack(_every(functions, (model, corrupted_tokens, clean_cache, metric)))

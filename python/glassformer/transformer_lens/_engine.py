"""The core's model behind a HookedTransformer's parameters, and its forward pass as a trace."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from glassformer import _core
from glassformer.model import Model
from glassformer.transformer_lens.cache import TransformerLensKeyValueCache
from glassformer.transformer_lens.components.norms import last_norm_class
from glassformer.transformer_lens.components.transformer_block import has_norms_only_behind
from glassformer.transformer_lens.config import HookedTransformerConfig
from glassformer.transformer_lens.config.core_config import core_config, is_unscaled
from glassformer.transformer_lens.hook_points import DeviceType, HookPoint, gradient_through
from glassformer.transformer_lens.HookedRootModule import kept_of
from glassformer.transformer_lens.presentation import Presentation, presentations
from glassformer.transformer_lens.utilities.slice import Slice
from glassformer.transformer_lens.utilities.tensors import get_offset_position_ids

if TYPE_CHECKING:
    from glassformer.transformer_lens.HookedTransformer import HookedTransformer

_BY_HEAD = ("attn.W_Q", "attn.W_K", "attn.W_V", "attn._W_K", "attn._W_V")
_WITH_PAST = ("hook_rot_k", "hook_attn_scores", "hook_pattern")
_PARTS = ("embed", "hook_embed", "pos_embed", "hook_pos_embed", "hook_tokens", "blocks", "ln_final", "unembed")
_OWN_MODULES = ("glassformer.transformer_lens.", "torch.nn.modules.container", "torch.nn.modules.linear")
_LIVE = {
    "attention_dir",
    "attn_scores_soft_cap",
    "clip_qkv",
    "default_prepend_bos",
    "n_ctx",
    "n_layers",
    "norm_topk_prob",
    "output_logits_soft_cap",
    "tokenizer_prepends_bos",
    "train_seq_length",
    "ungroup_grouped_query_attention",
    "use_attn_in",
    "use_attn_result",
    "use_dynamic_ntk_rope",
    "use_hook_mlp_in",
    "use_logn_attn",
    "use_split_qkv_input",
    "window_size",
}
"""Fields of a config that count in the next call, whenever they are changed."""

_BESIDE = {
    "checkpoint_index",
    "checkpoint_label_type",
    "checkpoint_value",
    "decoder_start_token_id",
    "device",
    "from_checkpoint",
    "init_mode",
    "init_weights",
    "initializer_range",
    "layer_norm_folding",
    "model_name",
    "n_params",
    "quantization_method",
    "relative_attention_max_distance",
    "relative_attention_num_buckets",
    "seed",
    "tie_word_embeddings",
    "tokenizer_name",
    "trust_remote_code",
    "uses_rms_norm",
}
"""Fields that say nothing about what a model computes."""

_POSITIONS = ("standard", "rotary", "shortformer", "alibi")
_MADE_WITH = [field.name for field in fields(HookedTransformerConfig) if field.name not in _LIVE | _BESIDE]


def made_with(cfg: HookedTransformerConfig) -> dict[str, Any]:
    """The fields that a model is made with, and that can't be changed afterwards."""
    values = {name: getattr(cfg, name) for name in _MADE_WITH}
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


def _fits(name: str, weight: torch.Tensor) -> bool:
    """Whether the core can see the parameter as it needs it: the heads side by side as rows or columns."""
    if weight.ndim != 3:
        return True
    laid_out = weight.transpose(1, 2) if name.endswith(_BY_HEAD) else weight
    return laid_out.stride(0) == laid_out.shape[1] * laid_out.stride(1)


def _fitting(name: str, weight: torch.Tensor) -> torch.Tensor:
    return weight.transpose(1, 2).contiguous().transpose(1, 2) if name.endswith(_BY_HEAD) else weight.contiguous()


class Engine:
    """The core's model of a HookedTransformer, made again when its config, its modules or its parameters are others.

    The core computes with the very memory of the parameters, so that changes in place count by themselves.
    """

    def __init__(self, root: HookedTransformer) -> None:
        self.root = root
        self._core: _core.Model | None = None
        self._version: tuple[int, bool] | None = None
        self._modules: list[tuple[dict[str, Any], str, nn.Module | None]] = []
        self._parameters: list[tuple[dict[str, Any], str, nn.Parameter, int]] = []
        self._points: dict[str, HookPoint] = {}
        self._watched: list[tuple[dict[str, Any], int]] = []
        self._hooked: list[tuple[Any, ...]] = []
        self._configured: list[dict[str, Any]] = []
        self._checks: list[Callable[[], bool]] = []
        self._only_own = True
        self.shown: dict[str, Presentation] = {}  # What of the core's nodes a name stands for.

    def model(self) -> _core.Model:
        """The core's model as the parameters are now."""
        self._refresh()
        if self._core is None:
            self._core = self._made()
        return self._core

    def points(self) -> dict[str, HookPoint]:
        """The hook points that have a value, in computing order, as of the last `model()`."""
        return self._points

    def _refresh(self) -> None:
        version = (self.root.cfg.version, is_unscaled(self.root.cfg, self.root.training))
        if version == self._version and self._is_current():
            return
        self._check_config()
        self._core, self._version = None, version
        self._modules, self._parameters, self._watched = [], [], []
        self._hooked, self._configured, self._checks = [], [], []
        blocks = list(self.root.blocks)
        self._only_own = self.root.cfg.n_layers > 0 and len(set(blocks)) == len(blocks) and self._has_usual_last_norm()
        for path, module in self.root.named_modules():
            if path and path.split(".")[0] not in _PARTS:
                continue  # Of a subclass.
            self._modules += [(module._modules, name, child) for name, child in module._modules.items()]
            self._parameters += [
                (module._parameters, name, weight, weight.data_ptr())
                for name, weight in module._parameters.items()
                if weight is not None
            ]
            if path:
                self._watch(module)
                self._only_own = self._only_own and self._is_ours(path, module)

    def _watch(self, module: nn.Module) -> None:
        own = vars(module)
        self._watched.append((own, len(own)))
        kinds = ("_forward_pre_hooks", "_backward_pre_hooks", "_forward_hooks", "_backward_hooks")
        self._hooked.append((module, *(own[kind] for kind in kinds)))
        if "cfg" in own:
            self._configured.append(own)
        if hasattr(module, "follows_config"):
            self._checks.append(module.follows_config)

    def _check_config(self) -> None:
        cfg, made, layers = self.root.cfg, self.root.__dict__["_made_with"], len(self.root.blocks)
        if not 0 <= cfg.n_layers <= layers:
            raise _core.InputError(f"cfg.n_layers is {cfg.n_layers}, but there are {layers} blocks; set it to that")
        if cfg.positional_embedding_type not in _POSITIONS:
            raise _core.InputError(
                f"cfg.positional_embedding_type is {cfg.positional_embedding_type!r}; expected one of {_POSITIONS}"
            )
        for name, value in made_with(cfg).items():
            if value != made[name] and not self._takes(name, value):
                raise _core.InputError(
                    f"cfg.{name} was {made[name]!r} when the model was made, and is {value!r} now: put it back, or "
                    "make another model with the config"
                )

    def _takes(self, name: str, value: Any) -> bool:
        if name == "dtype":
            return value == self.root.unembed.W_U.dtype
        # Norms may have been replaced; without a type, the last one is left out.
        return name == "normalization_type" and (value is None or self._has_usual_last_norm())

    def _has_usual_last_norm(self) -> bool:
        cfg = self.root.cfg
        return cfg.normalization_type is None or type(self.root.ln_final) is last_norm_class(cfg)

    def _is_current(self) -> bool:
        return (
            all(owner.get(name) is module for owner, name, module in self._modules)
            and all(
                owner.get(name) is weight and weight.data_ptr() == place
                for owner, name, weight, place in self._parameters
            )
            and all(len(own) == count for own, count in self._watched)
        )

    def _made(self) -> _core.Model:
        weights = {
            name: weight
            for name, weight in self.root.named_parameters(remove_duplicate=False)
            if name.split(".")[0] in _PARTS
        }
        for name, weight in weights.items():
            if not _fits(name, weight):
                weight.data = _fitting(name, weight.data)
        self._parameters = [(owner, name, weight, weight.data_ptr()) for owner, name, weight, _ in self._parameters]
        dtypes = {weight.dtype for weight in weights.values()}
        devices = {weight.device for weight in weights.values()}
        if len(dtypes) > 1 or len(devices) > 1:
            found = ", ".join(sorted(map(str, dtypes if len(dtypes) > 1 else devices)))
            raise _core.UnsupportedError(f"the model's parameters are of different kinds: {found}; use one for all")
        config = core_config(self.root.cfg, is_unscaled(self.root.cfg, self.root.training))
        if config["positional_embedding_type"] in ("standard", "shortformer"):
            config["n_ctx"] = len(weights["pos_embed.W_pos"])  # A shorter context only cuts texts.
        core = _core.Model.from_tensors(
            json.dumps(config), weights, None, dtypes.pop(), devices.pop(), differentiable=True
        )
        self.shown = presentations(Model(core))
        points = self.root.hook_dict
        self._points = {name: points[name] for name in self.shown if name in points}
        return core

    def is_norm_by_head(self, name: str) -> bool:
        """Whether a hook point is in a norm that normalises each head's own input."""
        cfg = self.root.cfg
        by_head = cfg.use_split_qkv_input or cfg.use_attn_in
        return by_head and ".ln1." in name and not has_norms_only_behind(cfg)

    def _is_ours(self, path: str, module: nn.Module) -> bool:
        if isinstance(module, HookPoint) and self.root.hook_dict.get(path) is not module:
            return False  # Modules were exchanged without setup(): hooks stand at other places than their names say.
        place = path.split(".")[1] if path.startswith("blocks.") else ""
        return (
            type(module).__module__.startswith(_OWN_MODULES)
            and getattr(module, "has_usual_parts", _always)()
            and str(getattr(module, "layer_id", place)) == place
            and not any(callable(getattr(type(module), name, None)) for name in vars(module))  # A method of its own.
        )

    def is_own(self) -> bool:
        """Whether the core can stand for the modules: all are of this package and as the config says, and nobody has
        put torch's own hooks on them, for which the modules themselves must run."""
        self._refresh()
        if not self._only_own or any(
            pre
            or backward_pre
            or (forward and forward.keys() - _handled(module, "fwd_hooks"))
            or (backward and backward.keys() - _handled(module, "bwd_hooks"))
            for module, pre, backward_pre, forward, backward in self._hooked
        ):
            return False
        cfg = self.root.cfg
        return all(own.get("cfg") is cfg for own in self._configured) and all(check() for check in self._checks)


def _always() -> bool:
    return True


def _handled(module: nn.Module, kind: str) -> set[int]:
    return {handle.hook.id for handle in getattr(module, kind, ())}


@dataclass
class CacheRequest:
    """What a run is to keep: the values of these hook points, as `get_caching_hooks` keeps them."""

    matches: Callable[[str], bool]
    device: DeviceType
    remove_batch_dim: bool
    positions: Slice
    values: dict[str, torch.Tensor]
    hooks: list[Any]  # The same as hooks, where the modules run.

    def take(self, name: str, value: torch.Tensor) -> None:
        """Keep a value, if it is among those."""
        if self.matches(name):
            self.values.pop(name, None)  # What hooks have put there in the order of their calls.
            self.values[name] = kept_of(value, name, self.device, self.remove_batch_dim, self.positions)


class Pass:
    """One forward pass: what goes in (tokens, batch pos, or embeddings, batch pos d_model), which hooks are called, and
    what comes out."""

    def __init__(
        self,
        engine: Engine,
        tokens: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        past_kv_cache: TransformerLensKeyValueCache | None = None,
    ) -> None:
        self.engine = engine
        self.core = engine.model()
        self.layers = range(engine.root.cfg.n_layers)
        self.past = past_kv_cache
        past = self._past()
        mask = attention_mask
        positions = None
        self.hidden: torch.Tensor | None = None
        if mask is not None:
            mask = mask.bool()
            self.hidden = None if bool(mask.all()) else ~mask.to(tokens.device)
            positions = get_offset_position_ids(0, mask.long())
        if tokens.ndim == 3:
            self.trace = _core.Trace.from_node(self.core, "hook_embed", tokens, mask, positions)
        else:
            self.trace = _core.Trace(self.core, tokens, mask, positions, "budget", 0, past)
        self.n_past = self.trace.begin

    def _past(self) -> list[tuple[torch.Tensor, torch.Tensor]] | None:
        if self.past is None:
            return None
        n_past = max(entry.past_keys.size(1) for entry in self.past.entries)
        if n_past == 0:
            return None
        return [(_of_length(entry.past_keys, n_past), _of_length(entry.past_values, n_past)) for entry in self.past]

    def start_at(self, layer: int, residual: torch.Tensor, pos_embed: torch.Tensor | None) -> None:
        """Begin with this residual stream before a layer, batch pos d_model, in the place of tokens."""
        cfg = self.engine.root.cfg
        behind = layer == cfg.n_layers
        self.trace.set(f"blocks.{layer - 1}.hook_resid_post" if behind else f"blocks.{layer}.hook_resid_pre", residual)
        if cfg.positional_embedding_type == "shortformer":
            self.trace.set("hook_pos_embed", torch.zeros_like(residual) if pos_embed is None else pos_embed)

    def add_hooks(self, is_in_pass: Callable[[str], bool]) -> None:
        """Call the hooks that stand at the hook points of this pass."""
        if self.hidden is not None and "hook_pos_embed" in self.engine.points() and is_in_pass("hook_pos_embed"):
            self.trace.hook("hook_pos_embed", self._without_padding, [])
        for name, point in self.engine.points().items():
            if not (point.fwd_hooks or point.bwd_hooks) or not is_in_pass(name):
                continue
            if point.fwd_hooks:
                self._check(name)
                shown, function = self.engine.shown[name], _forward(name, point)
                self.trace.hook(shown.node, shown.hook(function) if shown.is_other else function, [])
            if point.bwd_hooks:
                self._hook_gradient(self.engine.shown[name], point)

    def _without_padding(self, value: torch.Tensor, call: _core.HookCall) -> torch.Tensor | None:
        # TransformerLens gives padding no position; its values can be read, and a loss over all tokens has them.
        assert self.hidden is not None
        hidden = self.hidden[:, call.begin : call.end]
        return value.masked_fill(hidden.unsqueeze(-1), 0) if hidden.shape[1] else None

    def _hook_gradient(self, shown: Presentation, point: HookPoint) -> None:
        run = _backward(point)
        if not shown.is_other:
            self.trace.hook_gradient(shown.node, run)
            return

        def present(gradient: torch.Tensor, call: _core.HookCall) -> Any:
            indices = self.trace.read(shown.indices) if shown.indices else None
            of_this = shown.show(gradient, indices)
            return None if shown.is_absent(of_this) else shown.put(gradient, run(of_this, call), indices)

        self.trace.hook_gradient(shown.node, present)

    def _check(self, name: str) -> None:
        if self.engine.is_norm_by_head(name):
            raise _core.UnsupportedError(
                f"'{name}' takes no hooks while each head's input is normalised by itself (cfg.use_split_qkv_input or "
                "use_attn_in): put them on hook_q_input, hook_k_input and hook_v_input, or turn the flag off"
            )

    def run(self, until: str) -> None:
        """Compute everything up to a node, calling each hook once."""
        self.trace.run(until)

    def read(self, name: str) -> torch.Tensor:
        """The value of a node, as the hooks left it."""
        return self.trace.read(name)

    def fill(self, request: CacheRequest, is_in_pass: Callable[[str], bool]) -> None:
        """Keep the values that are asked for, in computing order."""
        for name in self.engine.points():
            if request.matches(name) and is_in_pass(name):
                value = self._value(name)
                if not self.engine.shown[name].is_absent(value):
                    request.take(name, value)

    def _value(self, name: str) -> torch.Tensor:
        if not self.engine.is_norm_by_head(name):
            return self._shown(name)
        # Each head's own input is normalised; what stands last here is that of the values.
        block, _, part = name.rpartition(".ln1.")
        root = self.engine.root
        norm = root.get_submodule(f"{block}.ln1")
        x = self.trace.read(f"{block}.hook_{'v_input' if root.cfg.use_split_qkv_input else 'attn_in'}")
        scale = _core.steps.norm_scale(x, norm.kind, norm.eps)
        return scale if part == "hook_scale" else _core.steps.norm_divide(x, scale, norm.kind)

    def _shown(self, name: str) -> torch.Tensor:
        shown = self.engine.shown[name]
        # Of keys and values, and of what is given, there is the past too.
        places = None if self.n_past == 0 or name.endswith(_WITH_PAST) else list(range(self.n_past, self.trace.length))
        value = self.trace.read(shown.node, places)
        return shown.show(value, self.trace.read(shown.indices, places) if shown.indices else None)

    def keep_past(self, layers: range) -> None:
        """Put the new keys and values of these layers into the cache."""
        places = list(range(self.n_past, self.trace.length))
        for layer in layers:
            k, v = (self.trace.read(name, places) for name in self.core.keys_and_values(layer))
            self.past.entries[layer].append(k, v)


def _of_length(past: torch.Tensor, n_past: int) -> torch.Tensor:
    # Layers that no pass has come to yet have nothing in the cache, and nothing reads it.
    return past if past.size(1) == n_past else past.new_zeros((past.size(0), n_past, *past.shape[2:]))


def _forward(name: str, point: HookPoint) -> Callable[..., Any]:
    def run(value: torch.Tensor, _call: _core.HookCall) -> Any:
        made, shape = point.run_hooks(value, "fwd"), value.shape
        if isinstance(made, torch.Tensor) and made.shape != shape:
            raise _core.ShapeError(f"hooks on {name} made {list(made.shape)} of {list(shape)}; a value keeps its shape")
        return made

    return run


def _backward(point: HookPoint) -> Callable[..., Any]:
    # The hooks that stand here now, whatever is removed until the backward pass.
    handles = tuple(point.bwd_hooks)
    return lambda gradient, _call: gradient_through(handles, gradient)

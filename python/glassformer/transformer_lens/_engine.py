"""The core's model behind a HookedTransformer's parameters, and its forward pass as a trace."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from glassformer import _core
from glassformer.model import Model
from glassformer.transformer_lens.cache import TransformerLensKeyValueCache
from glassformer.transformer_lens.config.core_config import core_config
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
        self._version = -1
        self._modules: list[tuple[dict[str, Any], str, nn.Module | None]] = []
        self._parameters: list[tuple[dict[str, Any], str, nn.Parameter, int]] = []
        self._points: dict[str, HookPoint] = {}
        self._watched: list[nn.Module] = []
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
        version = self.root.cfg.version
        if version == self._version and self._is_current():
            return
        self._core, self._version = None, version
        self._modules, self._parameters, self._watched, self._only_own = [], [], [], True
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
                self._watched.append(module)
                self._only_own = self._only_own and type(module).__module__.startswith(_OWN_MODULES)

    def _is_current(self) -> bool:
        return all(owner.get(name) is module for owner, name, module in self._modules) and all(
            owner.get(name) is weight and weight.data_ptr() == place for owner, name, weight, place in self._parameters
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
        config = json.dumps(core_config(self.root.cfg))
        core = _core.Model.from_tensors(config, weights, None, dtypes.pop(), devices.pop(), differentiable=True)
        self.shown = presentations(Model(core))
        points = self.root.hook_dict
        self._points = {name: points[name] for name in self.shown if name in points}
        return core

    def is_own(self) -> bool:
        """Whether the core can stand for the modules: all are of this package, and nobody has put torch's own hooks on
        them, for which the modules themselves must run."""
        self._refresh()
        return self._only_own and not any(
            module._forward_pre_hooks
            or module._backward_hooks.keys() - _handled(module, "bwd_hooks")
            or module._forward_hooks.keys() - _handled(module, "fwd_hooks")
            for module in self._watched
        )


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

    def take(self, name: str, value: torch.Tensor) -> None:
        """Keep a value, if it is among those."""
        if self.matches(name):
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
        self.trace.set(f"blocks.{layer}.hook_resid_pre", residual)
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
                shown = self.engine.shown[name]
                self.trace.hook(shown.node, shown.hook(_forward(point)) if shown.is_other else _forward(point), [])
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
            return shown.put(gradient, run(shown.show(gradient, indices), call), indices)

        self.trace.hook_gradient(shown.node, present)

    def _check(self, name: str) -> None:
        cfg = self.engine.root.cfg
        if ".ln1." in name and (cfg.use_split_qkv_input or cfg.use_attn_in):
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
                request.take(name, self._value(name))

    def _value(self, name: str) -> torch.Tensor:
        cfg = self.engine.root.cfg
        if not (cfg.use_split_qkv_input or cfg.use_attn_in) or not name.endswith(
            (".ln1.hook_scale", ".ln1.hook_normalized")
        ):
            return self._shown(name)
        # Each head's own input is normalised; what stands last here is that of the values.
        block, _, part = name.rpartition(".ln1.")
        norm = self.engine.root.get_submodule(f"{block}.ln1")
        x = self.trace.read(f"{block}.hook_{'v_input' if cfg.use_split_qkv_input else 'attn_in'}")
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
            k, v = (self.trace.read(f"blocks.{layer}.attn.hook_{part}", places) for part in "kv")
            self.past.entries[layer].append(k, v)


def _of_length(past: torch.Tensor, n_past: int) -> torch.Tensor:
    # Layers that no pass has come to yet have nothing in the cache, and nothing reads it.
    return past if past.size(1) == n_past else past.new_zeros((past.size(0), n_past, *past.shape[2:]))


def _forward(point: HookPoint) -> Callable[..., Any]:
    return lambda value, _call: point.run_hooks(value, "fwd")


def _backward(point: HookPoint) -> Callable[..., Any]:
    # The hooks that stand here now, whatever is removed until the backward pass.
    handles = tuple(point.bwd_hooks)
    return lambda gradient, _call: gradient_through(handles, gradient)

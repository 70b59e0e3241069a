"""The modules of a language model: what of the engine's graph each one is, and running one by itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from glassformer import _core
from glassformer.nnsight import _open
from glassformer.nnsight.envoy import Envoy
from glassformer.nnsight.outputs import ModuleOutput, Output
from glassformer.nnsight.source import Source, trace_for
from glassformer.nnsight.tensors import InputValue, NodeValue

_RETURNS = {"block": "tuple", "attention": "tuple", "rotary": "tuple", "decoder": "decoder", "model": "model"}
_MIXING = ("block", "attention")
HANDS_THROUGH = ("embed_dropout", "attn_dropout", "attn_out_dropout", "mlp_dropout")
"""Parts that return their argument as it is."""
FIRST_ARGUMENT = ("hidden_states", "input", "input_ids")
"""The names under which transformers passes a first argument."""


@dataclass(frozen=True)
class Place:
    """Where a module stands in the graph: `inputs` and each of `outputs` are nodes, side by side along the last axis;
    `returns` is "tensor", "tuple", "decoder" or "model"."""

    part: str
    layer: int
    inputs: tuple[str, ...]
    outputs: tuple[tuple[str, ...], ...]
    returns: str
    input_is_private: bool
    begin: str
    parameters: list[Any]
    title: str
    settings: str
    input_node: str | None  # The one node whose value the input is, as it is,
    output_node: str | None  # and the output's, for modules that return a tensor.

    @classmethod
    def of(cls, info: Any) -> Place:
        """From the core's description."""
        outputs = (tuple(info.output), *((node,) for node in info.more_outputs)) if info.output else ()
        returns = _RETURNS.get(info.part, "tensor")
        return cls(
            info.part,
            info.layer,
            tuple(info.input),
            outputs,
            returns,
            info.input_is_private,
            info.call_begin,
            list(info.parameters),
            info.class_name,
            info.description,
            info.input[0] if info.input_is_private and len(info.input) == 1 else None,
            outputs[0][0] if returns == "tensor" and outputs and len(outputs[0]) == 1 else None,
        )


class EngineEnvoy(Envoy):
    """A module of a language model; its values are nodes of the engine's traces."""

    place: Place

    # What is read most often, in as few steps as Python can take; everything else goes the way of every envoy.

    @Envoy.output.getter
    def output(self) -> Any:
        """What the module returns."""
        scopes = _open.scopes.get()
        if scopes and (scope := scopes[-1]).root is self.root and scope.reader is not None:
            place = self.place
            if place.output_node is not None:
                return scope.reader.read(place.output_node, NodeValue)
            if place.returns == "tuple":
                return ModuleOutput(scope, place.outputs, 0)
        return self._scope("output").read(self, "output")

    @Envoy.input.getter
    def input(self) -> Any:
        """The module's first argument."""
        scopes, node = _open.scopes.get(), self.place.input_node
        if node is not None and scopes and (scope := scopes[-1]).root is self.root and scope.reader is not None:
            return scope.reader.read(node, InputValue)
        return self._scope("input").read(self, "input")

    @property
    def _module(self) -> torch.nn.Module:
        return self.root.torch_module(self)

    def _set_other(self, name: str, value: Any) -> None:
        raise _core.InputError(
            f"{self.path} has no {name!r} that can be set; its values are output, input and inputs, torch modules can "
            "be put into it, and weights can be changed in place"
        )

    def _adopt(self, name: str, module: torch.nn.Module) -> Envoy:
        from glassformer.nnsight.own_modules import OwnEnvoy

        return OwnEnvoy(f"{self.path}.{name}", self, module)

    def __repr__(self) -> str:
        tree = super().__repr__()
        return tree if self.parent is None or not self.place.outputs else f"{tree}\n{self._explained()}"

    def _explained(self) -> str:
        """Its nodes, and how those come about that it returns."""
        trace = trace_for(self)
        given = [f"input: {', '.join(self.place.inputs)}"] if self.place.inputs else []
        return "\n".join(
            [*given, *(f"output: {trace.explain(node)}" for nodes in self.place.outputs for node in nodes)]
        )

    def _title(self) -> tuple[str, str]:
        return self.place.title, self.place.settings

    @property
    def source(self) -> Source:
        """The nodes that the module's work consists of: print it, or take one (`source.hook_pattern.output`)."""
        return Source(self)

    def run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What the module returns on its own argument: a tensor of its input's kind, with any axes before the last
        for modules that look at each position by itself.

        Raises `ShapeError` for another last axis, `InputError` for arguments that it doesn't take.
        """
        kwargs = {name: value for name, value in kwargs.items() if value is not None and name not in _IGNORED}
        mask, positions = kwargs.pop("attention_mask", None), kwargs.pop("position_ids", None)
        given = args[0] if args else kwargs.pop("hidden_states", kwargs.pop("input", None))
        if given is None or len(args) > 1 or kwargs:
            raise _core.InputError(
                f"{self.path}(…) takes one tensor; found {len(args)} arguments and keywords {sorted(kwargs)}"
            )
        part, engine = self.place.part, self.root.engine
        given = torch.as_tensor(given)
        if part in HANDS_THROUGH:
            return given
        if part == "rotary":
            length = given.shape[-2]
            trace = engine.trace([[0] * length] * given.shape[0], positions=positions)
            return tuple(trace.read(nodes[0]) for nodes in self.place.outputs)
        if part == "pos_embed":
            return torch.nn.functional.embedding(given, engine.weights["pos_embed.weight"])
        if part == "embed":
            return engine.trace(given.reshape(-1, 1)).read("hook_embed").reshape(*given.shape, -1)
        if part == "decoder":
            trace = engine.trace(given, attention_mask=mask, positions=positions)
            name = "last_hidden_state"
            return Output("BaseModelOutputWithPast", {name: lambda: trace.read(self.place.outputs[0][0])}, name)
        if not self.place.begin:
            raise _core.UnsupportedError(f"{self.path} can't be run by itself")
        if part in _MIXING:
            if given.ndim != 3:
                raise _core.ShapeError(f"{self.path}(…): expected batch pos d_model; found {list(given.shape)}")
            trace = engine.trace_from(self.place.begin, given, attention_mask=mask, positions=positions)
            return tuple(self._side_by_side(trace, nodes) for nodes in self.place.outputs)
        node = self.root.node_axes[self.place.begin]
        sizes = list(node.sizes[2:])
        width = torch.Size(sizes).numel()
        if given.ndim == 0 or given.shape[-1] != width:
            raise _core.ShapeError(f"{self.path}(…): expected a last axis of {width}; found {list(given.shape)}")
        trace = engine.trace_from(self.place.begin, given.reshape(-1, 1, *sizes))
        return self._side_by_side(trace, self.place.outputs[0]).reshape(*given.shape[:-1], -1)

    @staticmethod
    def _side_by_side(trace: Any, nodes: Sequence[str]) -> torch.Tensor:
        found = [trace.read(node) for node in nodes]
        if not trace.model.node_name(nodes[0]).endswith("hook_pattern"):
            found = [value.flatten(2) for value in found]
        return found[0] if len(found) == 1 else torch.cat(found, dim=-1)

    def other_arguments(self, scope: Any) -> dict[str, Any]:
        """The keywords with which transformers calls the module, as far as they say something of the input."""
        if self.place.part not in ("block", "attention", "decoder", "model"):
            return {}
        step = scope.step_of(self)
        return {
            "attention_mask": scope.read_nodes(("attention_mask",), step),
            "position_ids": scope.read_nodes(("positions",), step),
        }


_IGNORED = {
    "use_cache",
    "output_attentions",
    "output_hidden_states",
    "return_dict",
    "past_key_values",
    "past_key_value",
    "layer_past",
    "cache_position",
    "position_embeddings",
    "encoder_hidden_states",
    "encoder_attention_mask",
    "head_mask",
}
"""Arguments that transformers' own modules pass to each other, and which change nothing here."""


class EngineModule(torch.nn.Module):
    """A module of a language model as a torch module: over the engine's own weights, computed by the engine. Hooks on
    it are called when it is called, not when a module around it is."""

    def __init__(self, envoy: EngineEnvoy, known: dict[Any, torch.nn.Parameter]) -> None:
        super().__init__()
        self.__dict__["_envoy"] = envoy
        for parameter in envoy.place.parameters:
            weights = [envoy.root.engine.weights[name] for name in parameter.weights]
            key = (*(weight.data_ptr() for weight in weights), parameter.transposed)
            if key not in known:  # Tied weights are one parameter.
                joined = _joined(weights)
                weight = joined.t() if parameter.transposed else joined
                known[key] = torch.nn.Parameter(weight, requires_grad=False)
            self.register_parameter(parameter.name, known[key])

    def _get_name(self) -> str:
        return self._envoy.place.title

    def extra_repr(self) -> str:
        return self._envoy.place.settings

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._envoy.run(args, kwargs)


def _joined(weights: list[torch.Tensor]) -> torch.Tensor:
    """Weights below each other, in their own memory where they lie end to end there."""
    if len(weights) == 1:
        return weights[0]
    first = weights[0]
    place = first.data_ptr()
    for weight in weights:
        if weight.data_ptr() != place or weight.stride() != first.stride():
            return torch.cat(weights)
        place += weight.stride(0) * weight.shape[0] * weight.element_size()
    rows = sum(weight.shape[0] for weight in weights)
    return first.as_strided((rows, *first.shape[1:]), first.stride())


def torch_modules(root: EngineEnvoy) -> dict[str, torch.nn.Module]:
    """A torch module for each module of the tree, by path."""
    found: dict[str, torch.nn.Module] = {}
    known: dict[Any, torch.nn.Parameter] = {}

    def build(envoy: Any) -> torch.nn.Module:
        if not isinstance(envoy, EngineEnvoy):
            return envoy._module
        children = {name: build(child) for name, child in envoy._children.items()}
        if envoy._is_container():
            module: torch.nn.Module = torch.nn.ModuleList(children.values())
        else:
            module = _torch_kind(envoy, known) or EngineModule(envoy, known)
            for name, child in children.items():
                module.add_module(name, child)
        found[envoy.path] = module
        return module

    build(root)
    return found


def _torch_kind(envoy: EngineEnvoy, known: dict[Any, torch.nn.Parameter]) -> torch.nn.Module | None:
    """torch's own class where the module is one, over the engine's weights."""
    place = envoy.place
    if place.title not in ("Linear", "Embedding", "LayerNorm") or not place.parameters:
        return None
    own = EngineModule(envoy, known)._parameters
    rows, *columns = own["weight"].shape  # type: ignore[union-attr]
    with torch.device("meta"):
        if place.title == "Linear":
            module: torch.nn.Module = torch.nn.Linear(columns[0], rows, bias="bias" in own)
        elif place.title == "Embedding":
            module = torch.nn.Embedding(rows, columns[0])
        else:
            module = torch.nn.LayerNorm(rows, eps=envoy.root.engine.config.norm_eps)
    for name, parameter in own.items():
        module.register_parameter(name, parameter)
    return module

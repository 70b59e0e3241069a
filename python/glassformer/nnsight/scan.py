"""`with model.scan(…):` the body of a trace on shapes alone: nothing is computed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor

from glassformer import _core
from glassformer.nnsight.modules import FIRST_ARGUMENT, HANDS_THROUGH, EngineEnvoy
from glassformer.nnsight.outputs import Output
from glassformer.nnsight.own_modules import OwnCalls, OwnEnvoy, is_below
from glassformer.nnsight.shapes import ShapeInput, Shapes, ShapeTensor, UnknownNumber, given, leaves
from glassformer.nnsight.tensors import InputValue
from glassformer.nnsight.tracing import EngineScope, Invoke, Tracer
from glassformer.nnsight.values import width_of


class ShapeScope(EngineScope):
    """A scope whose values are shapes. Its tracer says which: `shapes`, `read_place`, `write_place`."""

    def read_nodes(self, nodes: tuple[str, ...], step: int, kind: Any = None, by_head: bool = False) -> Any:
        """The value of nodes as the module shows them."""
        found = self.tracer.read_place(self, nodes, step, by_head)
        if kind is InputValue:
            found.__class__ = ShapeInput
        return found

    def write_nodes(
        self, nodes: tuple[str, ...], step: int, value: Any, derived: bool = False, by_head: bool = False
    ) -> None:
        """Checks what is put there. `ShapeError` for what doesn't fit."""
        if not self.tracer.is_open:
            raise _core.UnavailableError("the block is closed: values can be set inside it only")
        self.tracer.write_place(self, nodes, step, given(value), by_head)

    def _open_reader(self) -> None:
        pass  # There are no values to be read.

    def call(self, envoy: EngineEnvoy, args: tuple[Any, ...], kwargs: dict[str, Any], watched: bool) -> Any:
        """What a module returns on shapes."""
        return self.tracer.call_module(envoy, args, kwargs, watched)

    def _input(self, envoy: EngineEnvoy) -> Any:
        if not envoy.place.inputs or envoy.place.input_is_private:
            return super()._input(envoy)
        found = self.tracer.read_place(self, envoy.place.inputs, self.step_of(envoy), False, envoy)
        found.__class__ = ShapeInput
        return found

    def _put_input(self, envoy: EngineEnvoy, value: Any, derived: bool = False) -> None:
        if envoy.place.input_is_private:
            super()._put_input(envoy, value, derived)
        else:
            self.tracer.write_place(self, envoy.place.inputs, self.step_of(envoy), given(value), False, envoy)


class ScanInvoke(ShapeScope, Invoke):
    """`with tracer.invoke(…):` in a scan."""


class ScanTracer(ShapeScope, Tracer):
    """A scan; made by `LanguageModel.scan`."""

    invoke_kind = ScanInvoke

    def __init__(self, model: Any, inputs: tuple[Any, ...], given: dict[str, Any]) -> None:
        self.shapes = Shapes(1)
        super().__init__(model, inputs, given, edited=False)

    def read_place(
        self, scope: EngineScope, nodes: tuple[str, ...], step: int, by_head: bool, envoy: Any = None
    ) -> ShapeTensor:
        """The shape of nodes at a step; with `envoy` of the argument that this module has of them with others."""
        layout = scope.layout(nodes, step, by_head)
        found = self.shapes.empty([layout.shape], dtype_of(self.model, nodes[0]), self.model.device)
        found.padding, found.is_whole = layout.padding, True
        return found

    def write_place(
        self, scope: EngineScope, nodes: tuple[str, ...], step: int, value: Any, by_head: bool, envoy: Any = None
    ) -> None:
        """Whether a value fits there."""
        check_fits(nodes, [scope.layout(nodes, step, by_head).shape], value)

    def call_module(self, envoy: Any, args: tuple[Any, ...], kwargs: dict[str, Any], watched: bool) -> Any:
        """What a module returns on shapes."""
        return called_on_shapes(self.shapes, envoy, args, kwargs, self.own_calls if watched else None)


def called_on_shapes(
    shapes: Shapes, envoy: Any, args: tuple[Any, ...], kwargs: dict[str, Any], calls: OwnCalls | None
) -> Any:
    """What a module returns on shapes; what a call of the user's own module is to be known for goes into `calls`."""
    if isinstance(envoy, OwnEnvoy):
        put: dict[tuple[str, str], Any] = {}
        if calls is not None:
            put, calls.put = calls.put, put
        output, seen = shapes.run(OwnCall(envoy, calls is not None), (put, args, kwargs), {})
        if calls is not None:
            calls.seen |= seen
        return output
    found = shapes.run(EngineCall(envoy), (args, kwargs), {})
    name = "last_hidden_state"
    return Output("ModelOutput", {name: lambda: found}, name) if envoy.place.part == "decoder" else found


class EngineCall:
    """A module of the model, called: on fake tensors it gives shapes alone."""

    def __init__(self, envoy: EngineEnvoy) -> None:
        self.envoy = envoy
        self.__name__ = f"{envoy.path}(…)"

    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if any(isinstance(each, FakeTensor) for each in leaves((args, kwargs))):
            return shape_of_call(self.envoy, args, kwargs)
        found = self.envoy.run(args, kwargs)
        return found[0] if isinstance(found, Output) else found


def shape_of_call(envoy: EngineEnvoy, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What `envoy.run` returns, of fake tensors; of a decoder its main field."""
    tensor = args[0] if args else next((kwargs[name] for name in FIRST_ARGUMENT if kwargs.get(name) is not None), None)
    if not isinstance(tensor, torch.Tensor):
        raise _core.InputError(f"{envoy.path}(…) takes one tensor; found {type(tensor).__name__}")
    place, axes, dtype = envoy.place, envoy.root.node_axes, envoy.root.dtype
    if place.part in HANDS_THROUGH:
        return tensor
    if place.part in ("embed", "pos_embed", "decoder"):
        return tensor.new_empty((*tensor.shape, axes[place.outputs[0][0]].sizes[-1]), dtype=dtype)
    if not place.begin:
        raise _core.UnsupportedError(f"{envoy.path} can't be run on shapes")
    n_features = width_of(axes[place.begin])
    if tensor.ndim == 0 or tensor.shape[-1] != n_features:
        raise _core.ShapeError(f"{envoy.path}(…): expected a last axis of {n_features}; found {list(tensor.shape)}")
    if place.part not in ("block", "attention"):
        width = sum(width_of(axes[node]) for node in place.outputs[0])
        return tensor.new_empty((*tensor.shape[:-1], width), dtype=dtype)
    if tensor.ndim != 3:
        raise _core.ShapeError(f"{envoy.path}(…): expected batch pos d_model; found {list(tensor.shape)}")
    found = [tensor.new_empty((*tensor.shape[:2], n_features), dtype=dtype)]
    for nodes in place.outputs[1:]:
        n_heads, length = axes[nodes[0]].sizes[1], tensor.shape[1]
        found.append(tensor.new_empty((tensor.shape[0], n_heads, length, length), dtype=dtype))
    return tuple(found)


class OwnCall:
    """A module of the user's own, called; gives what it returns, and what it and the modules in it were given and
    returned, if it is watched."""

    def __init__(self, envoy: OwnEnvoy, watched: bool) -> None:
        self.envoy, self.watched = envoy, watched
        self.__name__ = f"{envoy.path}(…)"

    def __call__(
        self, put: dict[tuple[str, str], Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any, dict[tuple[str, str], Any]]:
        calls = OwnCalls(put)
        return calls.call(self.envoy, args, kwargs, self.watched), calls.seen

    def replay(self, context: Any, put: dict[tuple[str, str], Any], args: Any, kwargs: Any) -> Any:
        """The same for the module that stands there now, on values; what it gave is noted in `context`."""
        theirs = {key: each for key, each in context.place.put().items() if is_below(key[0], self.envoy.path)}
        calls = OwnCalls(put | theirs)
        found = calls.call(context.module(self.envoy), args, kwargs, self.watched)
        context.seen |= calls.seen
        return found, calls.seen


def dtype_of(model: Any, node: str) -> torch.dtype:
    """The type of a node's values."""
    if node in ("hook_tokens", "positions") or node.endswith("expert_indices"):
        return torch.int64
    if node == "attention_mask":
        return torch.bool
    if node.endswith("expert_weights"):
        return torch.float32
    wide = node.endswith("hook_scale")
    return torch.promote_types(model.dtype, torch.float32) if wide else model.dtype


def check_fits(nodes: Sequence[str], there: Sequence[Sequence[int]], value: Any) -> None:
    """`ShapeError` for what can't stand in the place of a value, whose shape is `there` in each world."""
    if isinstance(value, UnknownNumber):
        return
    known = [sizes[0] if len(set(sizes)) == 1 else None for sizes in zip(*there, strict=True)]
    if isinstance(value, ShapeTensor):
        shape = list(value.shape)
        fits = all(_fits(each.shape, target) for each, target in zip(value.worlds, there, strict=True))
    else:  # What stands in the place of sizes that aren't known is checked when it is put there.
        shape = list(torch.as_tensor(value).shape)
        fits = _fits(shape, known)
    if not fits:
        expected = ", ".join("any" if size is None else str(size) for size in known)
        raise _core.ShapeError(f"{' + '.join(nodes)}: expected [{expected}]; found {shape}")


def _fits(shape: Sequence[int], target: Sequence[int | None]) -> bool:
    pairs = zip(reversed(shape), reversed(target), strict=False)
    return len(shape) <= len(target) and all(wanted is None or size in (1, wanted) for size, wanted in pairs)

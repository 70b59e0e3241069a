"""`with model.scan(…):` the body of a trace on shapes alone: nothing is computed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor

from glassformer import _core
from glassformer.nnsight.modules import FIRST_ARGUMENT, HANDS_THROUGH, EngineEnvoy
from glassformer.nnsight.outputs import Output
from glassformer.nnsight.own_modules import OwnCalls, OwnEnvoy
from glassformer.nnsight.shapes import Shapes, ShapeTensor, given, leaves
from glassformer.nnsight.tensors import places_of_tokens
from glassformer.nnsight.tracing import EngineScope, Invoke, Tracer
from glassformer.nnsight.values import width_of


class ShapeScope(EngineScope):
    """A scope whose values are shapes. Its tracer says which: `shapes`, `read_place`, `write_place`."""

    def read_nodes(self, nodes: tuple[str, ...], step: int, kind: Any = None, by_head: bool = False) -> Any:
        """The value of nodes as the module shows them."""
        return self.tracer.read_place(self, nodes, step, by_head)

    def write_nodes(
        self, nodes: tuple[str, ...], step: int, value: Any, derived: bool = False, by_head: bool = False
    ) -> None:
        """Checks what is put there. `ShapeError` for what doesn't fit."""
        if not self.tracer.is_open:
            raise _core.UnavailableError("the block is closed: values can be set inside it only")
        self.tracer.write_place(self, nodes, step, given(value), by_head)

    def _open_reader(self) -> None:
        pass  # There are no values to be read.

    def read(self, envoy: EngineEnvoy, what: str) -> Any:
        """A module's input, inputs or output."""
        if isinstance(envoy, OwnEnvoy):
            return self.tracer.seen(envoy, what)
        return super().read(envoy, what)

    def call(self, envoy: EngineEnvoy, args: tuple[Any, ...], kwargs: dict[str, Any], watched: bool) -> Any:
        """What a module returns on shapes."""
        return self.tracer.call_module(envoy, args, kwargs, watched)

    def _input(self, envoy: EngineEnvoy) -> Any:
        if not envoy.place.inputs or envoy.place.input_is_private:
            return super()._input(envoy)
        return self.tracer.read_shared_input(self, envoy)

    def _put_input(self, envoy: EngineEnvoy, value: Any, derived: bool = False) -> None:
        if envoy.place.input_is_private:
            super()._put_input(envoy, value, derived)
        else:
            self.tracer.write_shared_input(self, envoy, given(value))


class ScanInvoke(ShapeScope, Invoke):
    """`with tracer.invoke(…):` in a scan."""


class ScanTracer(ShapeScope, Tracer):
    """A scan; made by `LanguageModel.scan`."""

    invoke_kind = ScanInvoke

    def __init__(self, model: Any, inputs: tuple[Any, ...], given: dict[str, Any]) -> None:
        self.shapes = ScanShapes(1)
        self._calls = OwnCalls()
        super().__init__(model, inputs, given, edited=False)

    def read_place(self, scope: EngineScope, nodes: tuple[str, ...], step: int, by_head: bool) -> ShapeTensor:
        """The shape of nodes at a step."""
        return self._made(scope, nodes, step, by_head)

    def _made(self, scope: EngineScope, nodes: tuple[str, ...], step: int, by_head: bool = False) -> ShapeTensor:
        layout = scope.layout(nodes, step, by_head)
        found = self.shapes.empty([layout.shape], dtype_of(self.model, nodes[0]), self.model.device)
        found.padding, found.is_whole = layout.padding, True
        return found

    def write_place(self, scope: EngineScope, nodes: tuple[str, ...], step: int, value: Any, by_head: bool) -> None:
        """Whether it fits."""
        check_fits(nodes, self._made(scope, nodes, step, by_head), value)

    def read_shared_input(self, scope: EngineScope, envoy: EngineEnvoy) -> ShapeTensor:
        """The argument of a module that others have too."""
        return self._made(scope, envoy.place.inputs, scope.step_of(envoy))

    def write_shared_input(self, scope: EngineScope, envoy: EngineEnvoy, value: Any) -> None:
        """Whether it fits."""
        check_fits(envoy.place.inputs, self._made(scope, envoy.place.inputs, scope.step_of(envoy)), value)

    def call_module(self, envoy: Any, args: tuple[Any, ...], kwargs: dict[str, Any], watched: bool) -> Any:
        """What a module returns on shapes."""
        return called_on_shapes(self.shapes, envoy, args, kwargs, self._calls if watched else None)

    def seen(self, envoy: OwnEnvoy, what: str) -> Any:
        """What a module of the user's own was given or returned."""
        return self._calls.read(envoy, what)

    def write(self, envoy: EngineEnvoy, what: str, value: Any) -> None:
        """Puts a value there."""
        if isinstance(envoy, OwnEnvoy):
            self._calls.write(envoy, what, value)
        else:
            super().write(envoy, what, value)


class ScanShapes(Shapes):
    """The shapes of a scan."""

    what = "a scan"
    instead = "use a trace"

    def tokens(self, tensor: ShapeTensor, index: Any) -> Any:
        """`x.token[index]`."""
        return self.run(_TakeTokens(tensor.padding), (tensor, index), {})

    def put_tokens(self, tensor: ShapeTensor, index: Any, value: Any) -> None:
        """`x.token[index] = value`."""
        self.run(_PutTokens(tensor.padding), (tensor, index, value), {})


class _TakeTokens:
    """Tokens of each sequence, counted without padding."""

    def __init__(self, padding: Sequence[int]) -> None:
        self._padding = padding

    def __call__(self, tensor: torch.Tensor, index: Any) -> torch.Tensor:
        return tensor[places_of_tokens(tensor.shape[1], self._padding, index)[0]]


class _PutTokens(_TakeTokens):
    def __call__(self, tensor: torch.Tensor, index: Any, value: Any) -> None:  # type: ignore[override]
        tensor[places_of_tokens(tensor.shape[1], self._padding, index)[0]] = value


def called_on_shapes(
    shapes: Shapes, envoy: Any, args: tuple[Any, ...], kwargs: dict[str, Any], calls: OwnCalls | None
) -> Any:
    """What a module returns on shapes; what a call of the user's own module is to be known for goes into `calls`."""
    if isinstance(envoy, OwnEnvoy):
        put = {} if calls is None else calls.take_put()
        output, seen = shapes.run(OwnCall(envoy, calls is not None), (put, args, kwargs), {})
        if calls is not None:
            calls.see(seen)
        return output
    found = shapes.run(EngineCall(envoy), (args, kwargs), {})
    if envoy.place.part not in _WHOLE:
        return found
    return Output("ModelOutput", {_WHOLE[envoy.place.part]: lambda: found}, _WHOLE[envoy.place.part])


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


_WHOLE = {"decoder": "last_hidden_state", "model": "logits"}


def shape_of_call(envoy: EngineEnvoy, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What `envoy.run` returns, of fake tensors; of a whole model its main field."""
    tensor = args[0] if args else next((kwargs[name] for name in FIRST_ARGUMENT if kwargs.get(name) is not None), None)
    if not isinstance(tensor, torch.Tensor):
        raise _core.InputError(f"{envoy.path}(…) takes one tensor; found {type(tensor).__name__}")
    place, axes, dtype = envoy.place, envoy.root.node_axes, envoy.root.dtype
    if place.part in HANDS_THROUGH:
        return tensor
    if place.part in ("embed", "pos_embed", *_WHOLE):
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
        calls = OwnCalls()
        calls.put_all(put)
        return calls.call(self.envoy, args, kwargs, self.watched), calls.seen()

    def replay(self, context: Any, put: dict[tuple[str, str], Any], args: Any, kwargs: Any) -> Any:
        """The same for the module that stands there now, on values; what it gave is noted in `context`."""
        calls, path = OwnCalls(), self.envoy.path
        calls.put_all(put)
        calls.put_all({key: each for key, each in context.place.put().items() if f"{key[0]}.".startswith(f"{path}.")})
        found = calls.call(context.module(self.envoy), args, kwargs, self.watched)
        context.seen |= calls.seen()
        return found, calls.seen()


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


def check_fits(nodes: Sequence[str], there: ShapeTensor, value: Any) -> None:
    """`ShapeError` for what can't stand in the place of a value."""
    if not isinstance(value, torch.Tensor):
        value = torch.as_tensor(value)
    for world, target in enumerate(there.worlds):
        shape = value.worlds[world].shape if isinstance(value, ShapeTensor) else value.shape
        try:
            if torch.broadcast_shapes(shape, target.shape) != target.shape:
                raise RuntimeError
        except RuntimeError:
            raise _core.ShapeError(
                f"{' + '.join(nodes)}: expected {list(there.shape)}; found {list(value.shape)}"
            ) from None

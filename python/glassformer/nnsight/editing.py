"""`with model.edit() as edited:` changes that every later trace of the edited model makes."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from glassformer import _core
from glassformer.nnsight import _open, _save
from glassformer.nnsight.modules import EngineEnvoy
from glassformer.nnsight.own_modules import OwnCalls, OwnEnvoy
from glassformer.nnsight.program import Program, PutPiece, ReadArgument, ReadNode, ReadStep, Steps, Write
from glassformer.nnsight.replay import Edit, described
from glassformer.nnsight.scan import EngineCall, OwnCall, ShapeScope, called_on_shapes, dtype_of
from glassformer.nnsight.shapes import (
    EndedNumber,
    Shapes,
    ShapeTensor,
    UnknownNumber,
    given,
    is_shapes,
    leaves,
    name_of,
)
from glassformer.nnsight.steps import step_numbers
from glassformer.nnsight.tensors import places_of_tokens
from glassformer.nnsight.tracing import EngineScope, Tracer
from glassformer.nnsight.values import width_of

_BATCH, _POS, _KEYS, _STEP = (10007, 10009), (20011, 20021), (30011, 30013), (40009, 40013)
"""Sizes that aren't known, in two worlds: primes that no other size is."""


_OF_SHAPES = ("shape", "size", "dim", "ndim", "numel", "dtype", "device", "is_floating_point")


class EditShapes(Shapes):
    """Shapes whose operations are noted in a program."""

    what = "an edit"
    instead = "use a trace, or torch.where"

    def __init__(self) -> None:
        super().__init__(2)
        self.program = Program()
        self.changes: dict[int, int] = {}  # How often memory was changed in place.
        self._taken: list[tuple[ShapeTensor, Any, ShapeTensor]] = []
        self._in_step = False
        self._numbers: list[UnknownNumber] = []
        self.is_closed = False

    def refusal(self, asked: str) -> Exception:
        return _core.UnsupportedError(
            f"an edit is recorded on shapes, once for all later traces: {asked} needs values; {self.instead}"
        )

    def unknown(self, asked: str) -> Exception:
        return _core.UnsupportedError(
            f"an edit is recorded on shapes, once for all later traces: {asked} is not known, since it depends on the "
            "batch or the positions; use a trace, or let torch compute with it"
        )

    def shape_error(self, name: str, error: Exception) -> Exception:
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        for sizes, word in ((_BATCH, "batch"), (_POS, "pos"), (_KEYS, "key_pos")):
            for size in sizes:
                text = text.replace(str(size), word)
        return _core.ShapeError(
            f"an edit is recorded for any batch and any positions, and there {name} does not work: {text}"
        )

    def run(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self.is_closed and name_of(function) not in _OF_SHAPES:
            raise _core.UnavailableError(
                f"{name_of(function)}: a value of an edit whose block has ended stood for what later traces have; read "
                "it in a trace of the edited model"
            )
        return super().run(function, args, kwargs)

    def note(self, function: Any, args: Any, kwargs: Any, found: Any, changed: list[ShapeTensor]) -> None:
        if isinstance(function, EngineCall | OwnCall) or changed or leaves_to_note(found):
            self.add(function, args, kwargs, found, changed)

    def add(self, function: Any, args: Any, kwargs: Any, found: Any, changed: Sequence[ShapeTensor] = ()) -> None:
        """Notes an operation."""
        self.program.add(function, args, kwargs, found, changed)
        groups = {each.group for each in changed}
        for group in groups:
            self.changes[group] = self.changes.get(group, 0) + 1
        if groups and not self._in_step:
            self._in_step = True
            try:
                self._keep_tokens(groups)
            finally:
                self._in_step = False

    def _keep_tokens(self, groups: set[int]) -> None:
        """Tokens that were taken out are copies: keeps them and what they were taken from the same."""
        for tensor, index, taken in self._taken:
            if taken.group in groups:
                self.run(PutTokens(), (tensor, index, taken), {})
                groups.add(tensor.group)
        for tensor, index, taken in self._taken:
            if tensor.group in groups and taken.group not in groups:
                taken.copy_(self.run(TakeTokens(), (tensor, index), {}))

    def number(self, worlds: list[Any]) -> UnknownNumber:
        self._numbers.append(super().number(worlds))
        return self._numbers[-1]

    def close(self) -> None:
        """The block has ended: nothing is noted any more."""
        self.is_closed = True
        for number in self._numbers:
            number.__class__ = EndedNumber

    def tokens(self, tensor: ShapeTensor, index: Any) -> Any:
        """`x.token[index]`."""
        taken = self.run(TakeTokens(), (tensor, index), {})
        self._taken.append((tensor, index, taken))
        return taken

    def put_tokens(self, tensor: ShapeTensor, index: Any, value: Any) -> None:
        """`x.token[index] = value`."""
        if isinstance(value, ShapeTensor) and any(value is taken for _, _, taken in self._taken):
            return  # It was changed in place, which counts already, and is put back: `x.t[0] += 1`.
        self.run(PutTokens(), (tensor, index, value), {})


def _fits(shape: Sequence[int], target: Sequence[int]) -> bool:
    pairs = zip(reversed(shape), reversed(target), strict=False)
    return len(shape) <= len(target) and all(size in (1, wanted) for size, wanted in pairs)


def leaves_to_note(found: Any) -> bool:
    """Whether an operation gave anything that later ones may need."""
    return any(isinstance(each, ShapeTensor | UnknownNumber) for each in leaves(found))


class TakeTokens:
    """Tokens of each sequence, counted without padding."""

    def __call__(self, tensor: torch.Tensor, index: Any) -> torch.Tensor:
        return tensor[_places(index)].clone()

    def replay(self, context: Any, tensor: torch.Tensor, index: Any) -> torch.Tensor:
        """The same on values."""
        return tensor[places_of_tokens(tensor.shape[1], context.padding, index)[0]].clone()


class PutTokens:
    """Puts them back."""

    def __call__(self, tensor: torch.Tensor, index: Any, value: Any) -> None:
        tensor[_places(index)] = value

    def replay(self, context: Any, tensor: torch.Tensor, index: Any, value: Any) -> None:
        """The same on values."""
        tensor[places_of_tokens(tensor.shape[1], context.padding, index)[0]] = value


def _places(index: Any) -> Any:
    if isinstance(index, torch.Tensor):
        index = index.tolist()
    return (slice(None), index if isinstance(index, int | slice) else list(index))


class _Recording(TorchFunctionMode):
    """Notes operations that have no tensor of the edit among their arguments, but a number of it
    (`torch.zeros(h.shape[1])`)."""

    def __init__(self, shapes: EditShapes) -> None:
        super().__init__()
        self._shapes = shapes

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if is_shapes((given(args), given(kwargs))):
            return self._shapes.run(function, args, kwargs)
        return function(*args, **kwargs)


class _Held:
    """A value that was read, whose changes in place count."""

    def __init__(self, tensor: ShapeTensor, changes: int, n_writes: dict[str, int]) -> None:
        self.tensor, self.changes, self.n_writes = tensor, changes, n_writes


class _Place:
    """What is read and written as one: nodes side by side, or the argument of a module that others have too."""

    def __init__(self, nodes: tuple[str, ...], by_head: bool, envoy: Any = None) -> None:
        self.nodes, self.by_head, self.envoy = nodes, by_head, envoy
        self.key = (nodes, by_head, None if envoy is None else envoy.path)
        self.targets = nodes if envoy is None else envoy.place.outputs[0]


class EditTracer(ShapeScope, Tracer):
    """An edit while it is recorded; made by `LanguageModel.edit`."""

    def __init__(self, model: Any, original: Any, in_place: bool) -> None:
        self.shapes = EditShapes()
        self._original, self._in_place = original, in_place
        self._chosen = Steps()
        self._now: dict[Any, _Held] = {}
        self._held: list[tuple[_Place, _Held]] = []
        self._put_arguments: dict[tuple[str, Steps], ShapeTensor] = {}
        self._own = OwnCalls()
        super().__init__(model, (), {}, edited=False)
        self._alias = _OriginalScope(self, original)
        self._mode = _Recording(self.shapes)

    # --- the block

    def __enter__(self) -> Any:
        self.is_open = True
        _save.mount()
        _open.enter(self._alias)
        _open.enter(self)
        self._mode.__enter__()
        if self._in_place:
            return self
        self.model.__dict__["_editing"] = self
        return self.model

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> bool:
        self._mode.__exit__(kind, error, traceback)
        _open.leave(self)
        _open.leave(self._alias)
        _save.unmount()
        self.model.__dict__["_editing"] = None
        try:
            if error is None:
                self.collect()
                self._finish()
        finally:
            self.is_open = False
            self.shapes.close()
        return False

    def _finish(self) -> None:
        self.model.add_edit(Edit(self.shapes.program, self.model))

    # --- values

    def read_place(self, scope: EngineScope, nodes: tuple[str, ...], step: int, by_head: bool) -> ShapeTensor:
        """The value of nodes, side by side."""
        return self._read(_Place(nodes, by_head))

    def _read(self, place: _Place) -> ShapeTensor:
        self.collect()
        held = self._now.get((place.key, self._chosen))
        if held is not None:
            return held.tensor
        put = None if place.envoy is None else self._put_arguments.get((place.envoy.path, self._chosen))
        if put is not None:
            tensor: Any = put.clone()
        else:
            tensor = self._assembled(place) if place.envoy is None else self._argument(place)
        tensor.is_whole = self.model.node_axes[place.nodes[0]].axes[1] == "pos"
        held = _Held(tensor, self.shapes.changes.get(tensor.group, 0), self._n_writes(place))
        self._now[(place.key, self._chosen)] = held
        self._held.append((place, held))
        return tensor

    def _assembled(self, place: _Place) -> ShapeTensor:
        raws = [self._raw(node) for node in place.nodes]
        axes = self.model.node_axes[place.nodes[0]]
        if place.by_head or "key_pos" in axes.axes or len(axes.axes) == 2:
            return raws[0]
        flat = [raw.flatten(2) if raw.ndim > 3 else raw for raw in raws]
        return flat[0] if len(flat) == 1 else torch.cat(flat, -1)  # type: ignore[return-value]

    def _argument(self, place: _Place) -> ShapeTensor:
        shared = self._assembled(place)
        found = self.shapes.empty(self._world_shapes(place), dtype_of(self.model, place.nodes[0]), self.model.device)
        self.shapes.add(ReadArgument(place.envoy.path), (shared,), {}, found)
        return found

    def _raw(self, node: str) -> ShapeTensor:
        found = self.shapes.empty(self._sizes(node), dtype_of(self.model, node), self.model.device)
        self.shapes.add(ReadNode(node, len(self.shapes.program.writes.get(node, [])), self._chosen), (), {}, found)
        return found

    def _sizes(self, node: str) -> list[list[int]]:
        axes, found = self.model.node_axes[node], []
        keys = _POS if self._chosen == Steps() else _KEYS
        for batch, pos, n_keys in zip(_BATCH, _POS, keys, strict=True):
            if "key_pos" in axes.axes and "query_pos" in axes.axes:
                found.append([batch, axes.sizes[1], pos, n_keys])
            else:
                found.append([batch, pos, *axes.sizes[2:]])
        return found

    def _n_writes(self, place: _Place) -> dict[str, int]:
        return {node: len(self.shapes.program.writes.get(node, [])) for node in (*place.nodes, *place.targets)}

    def collect(self) -> None:
        """Makes writes of what was changed in place since."""
        for place, held in list(self._held) if self.is_open else ():
            changes = self.shapes.changes.get(held.tensor.group, 0)
            if changes == held.changes:
                continue
            if held.n_writes != self._n_writes(place):
                raise _core.StaleEditError(
                    f"{' + '.join(place.nodes)} was changed in place in a value that was read before another change of "
                    "it: read it again and change that"
                )
            held.changes = changes
            self._write(place, held.tensor)
            held.n_writes = self._n_writes(place)

    def write_place(self, scope: EngineScope, nodes: tuple[str, ...], step: int, value: Any, by_head: bool) -> None:
        """Puts a value there."""
        self._put(_Place(nodes, by_head), value)

    def _put(self, place: _Place, value: Any) -> None:
        self.collect()
        for other, held in self._held:
            if held.tensor is value and other.key == place.key and held.n_writes == self._n_writes(place):
                return  # It was changed in place, which counts already, and is put back: `output[0] += x`.
        self._write(place, value)

    def _write(self, place: _Place, value: Any) -> None:
        if place.envoy is not None:
            self._write_argument(place, value)
            return
        program = self.shapes.program
        self._check(place, value)
        for number, node in enumerate(place.nodes):
            piece = self.shapes.empty(self._sizes(node), dtype_of(self.model, node), self.model.device)
            self.shapes.add(PutPiece(place.nodes, place.by_head, number), (value,), {}, piece)
            write = Write(piece, len(program.steps), self._chosen)
            for read in program.reads_of(node, write):
                if read.steps != self._chosen:
                    raise _core.UnsupportedError(
                        f"an edit of {described(self.model, node)} at some steps of a run can't be made from what was "
                        "read at others: read it in the same loop over steps"
                    )
            program.writes.setdefault(node, []).append(write)
        self._forget(place.nodes)

    def _check(self, place: _Place, value: Any) -> None:
        there = self._world_shapes(place)
        if isinstance(value, ShapeTensor):
            fits = all(_fits(each.shape, target) for each, target in zip(value.worlds, there, strict=True))
            shape = list(value.shape)
        elif isinstance(value, UnknownNumber):
            return
        else:  # What stands in the place of sizes that aren't known is checked when it is put there.
            shape = list(torch.as_tensor(value).shape)
            known = [size[0] if len(set(size)) == 1 else None for size in zip(*there, strict=True)]
            pairs = list(zip(reversed(shape), reversed(known), strict=False))
            fits = len(shape) <= len(known) and all(target is None or size in (1, target) for size, target in pairs)
        if not fits:
            axes = [size[0] if len(set(size)) == 1 else "any" for size in zip(*there, strict=True)]
            expected = ", ".join(map(str, axes))
            raise _core.ShapeError(f"{' + '.join(place.nodes)}: expected [{expected}]; found {shape}")

    def _world_shapes(self, place: _Place) -> list[list[int]]:
        sizes = [self._sizes(node) for node in place.nodes]
        axes = self.model.node_axes[place.nodes[0]]
        if place.by_head or "key_pos" in axes.axes or len(axes.axes) == 2:
            return sizes[0]
        width = sum(width_of(self.model.node_axes[node]) for node in place.nodes)
        return [[*size[:2], width] for size in sizes[0]]

    def _forget(self, nodes: Sequence[str]) -> None:
        """What was read of these nodes is read anew from now on."""
        for key in [key for key in self._now if set(key[0][0]) & set(nodes)]:
            del self._now[key]

    def read_shared_input(self, scope: EngineScope, envoy: EngineEnvoy) -> ShapeTensor:
        """The argument of a module that others have too: changing it changes what the module returns."""
        return self._read(_Place(envoy.place.inputs, False, envoy))

    def write_shared_input(self, scope: EngineScope, envoy: EngineEnvoy, value: Any) -> None:
        """Puts a value there."""
        self._put(_Place(envoy.place.inputs, False, envoy), value)

    def _write_argument(self, place: _Place, value: Any) -> None:
        envoy = place.envoy
        self._check(_Place(place.nodes, False), value)
        argument = self._assembled(_Place(place.nodes, False)).clone()
        argument[...] = value
        write = Write(argument.clone(), len(self.shapes.program.steps), self._chosen)  # type: ignore[arg-type]
        self.shapes.program.arguments.setdefault(envoy.path, []).append(write)
        output = self.call_module(envoy, (argument,), {}, False)
        self._write(_Place(envoy.place.outputs[0], False), output)
        self._put_arguments[(envoy.path, self._chosen)] = argument
        self._now.pop((place.key, self._chosen), None)

    # --- modules

    def call_module(self, envoy: Any, args: tuple[Any, ...], kwargs: dict[str, Any], watched: bool) -> Any:
        """A module's call, which later traces make."""
        self.collect()
        if not is_shapes((given(args), given(kwargs))):
            own = isinstance(envoy, OwnEnvoy)
            return self._own.call(envoy, args, kwargs, watched) if own else envoy.run(args, kwargs)
        found = called_on_shapes(self.shapes, envoy, args, kwargs, self._own if watched else None)
        if watched and isinstance(envoy, OwnEnvoy):
            self.shapes.program.calls[envoy.path] = (len(self.shapes.program.steps) - 1, self._chosen)
        return found

    def seen(self, envoy: OwnEnvoy, what: str) -> Any:
        """What a module of the user's own was given or returned in this edit."""
        return self._own.read(envoy, what)

    def write(self, envoy: EngineEnvoy, what: str, value: Any) -> None:
        """Puts a value there."""
        if isinstance(envoy, OwnEnvoy):
            self._own.write(envoy, what, value)
        else:
            super().write(envoy, what, value)

    # --- steps

    def step_of(self, envoy: EngineEnvoy) -> int:
        """Nothing here goes by it."""
        return 0

    def go_to(self, step: int) -> bool:
        """What follows belongs to a step of the run."""
        self.collect()
        self._chosen, self.step = Steps((step,)), step
        return True

    def advance(self, envoy: EngineEnvoy, steps: int) -> None:
        """`module.next()`."""
        raise _core.UnsupportedError("module.next() in an edit: write `for step in tracer.iter[…]:`")

    @property
    def iter(self) -> Any:
        """`for step in tracer.iter[:]`: the steps at which what stands in the loop is done."""
        return _EditSteps(self)

    def all(self) -> Any:
        """`for step in tracer.all()`: every step."""
        return _EditSteps(self)[:]

    def choose(self, chosen: Steps) -> Steps:
        """What follows belongs to these steps; gives what was chosen before."""
        self.collect()
        before, self._chosen = self._chosen, chosen
        return before

    def step_number(self) -> UnknownNumber:
        """The number of a step that isn't known."""
        found = self.shapes.number(list(_STEP))
        self.shapes.add(ReadStep(self._chosen), (), {}, found)
        return found

    # --- what an edit hasn't

    def invoke(self, *inputs: Any, **given: Any) -> Any:
        """Edits have no inputs."""
        raise _core.UnsupportedError("tracer.invoke(…) in an edit: an edit has no inputs; write it without")

    def stop(self) -> None:
        """Edits run to their end."""
        raise _core.UnsupportedError("tracer.stop() in an edit: an edit computes nothing that could be stopped")

    def cache(self, modules: Any = None, **options: Any) -> Any:
        """Edits keep no values."""
        raise _core.UnsupportedError("tracer.cache() in an edit: ask for it in a trace of the edited model")

    def _loss(self, step: int) -> None:
        return None


class _OriginalScope(ShapeScope):
    """The same edit, for modules named on the model that was copied."""

    def __init__(self, tracer: EditTracer, original: Any) -> None:
        super().__init__(tracer, original, [])

    def step_of(self, envoy: EngineEnvoy) -> int:
        return 0

    def write(self, envoy: EngineEnvoy, what: str, value: Any) -> None:
        if isinstance(envoy, OwnEnvoy):
            self.tracer.write(envoy, what, value)
        else:
            super().write(envoy, what, value)

    def advance(self, envoy: EngineEnvoy, steps: int) -> None:
        self.tracer.advance(envoy, steps)

    @property
    def iter(self) -> Any:
        return self.tracer.iter

    def all(self) -> Any:
        return self.tracer.all()

    def _loss(self, step: int) -> None:
        return None


class _EditSteps:
    """`tracer.iter` of an edit. A loop without an end runs its body once, for all its steps; one with an end once for
    each."""

    def __init__(self, tracer: EditTracer, chosen: Any = None) -> None:
        self._tracer, self._chosen = tracer, chosen

    def __getitem__(self, chosen: slice | int | list[int]) -> _EditSteps:
        return _EditSteps(self._tracer, chosen)

    def __iter__(self) -> Iterator[Any]:
        chosen = self._chosen
        if chosen is None:
            raise TypeError("tracer.iter is indexed by the steps: tracer.iter[:]")
        before = self._tracer.choose(Steps())
        try:
            if isinstance(chosen, slice) and chosen.stop is None:
                start, stride = operator.index(chosen.start or 0), operator.index(chosen.step or 1)
                if start < 0 or stride < 1:
                    raise _core.InputError(f"tracer.iter[{start}::{stride}]: steps count from 0 on, forward")
                self._tracer.choose(Steps((), start, stride))
                yield self._tracer.step_number()
                return
            for step in step_numbers(chosen):
                self._tracer.choose(Steps((step,)))
                yield step
        finally:
            self._tracer.choose(before)

    def __enter__(self) -> Any:
        raise _core.UnsupportedError("`with tracer.iter[…]:` in an edit: write `for step in tracer.iter[…]:`")

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        pass

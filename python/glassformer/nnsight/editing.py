"""`with model.edit() as edited:` changes that every later trace of the edited model makes."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from glassformer import _core
from glassformer.nnsight import _open
from glassformer.nnsight.modules import EngineEnvoy
from glassformer.nnsight.own_modules import OwnEnvoy
from glassformer.nnsight.program import Program, PutPiece, ReadArgument, ReadNode, ReadStep, StepSet, Write
from glassformer.nnsight.replay import Edit, described
from glassformer.nnsight.scan import (
    EngineCall,
    OwnCall,
    ShapeScope,
    called_on_shapes,
    check_fits,
    dtype_of,
)
from glassformer.nnsight.shapes import (
    EndedNumber,
    Shapes,
    ShapeTensor,
    UnknownNumber,
    given,
    is_shapes,
    name_of,
)
from glassformer.nnsight.steps import Steps, step_numbers
from glassformer.nnsight.tracing import EngineScope, Tracer
from glassformer.nnsight.values import shape_of

_BATCH, _POS, _KEYS, _STEP = (10007, 10009), (20011, 20021), (30011, 30013), (40009, 40013)
"""Sizes that aren't known, in two worlds: primes that no other size is."""


_OF_SHAPES = ("shape", "size", "dim", "ndim", "numel", "dtype", "device", "is_floating_point")


class EditShapes(Shapes, TorchFunctionMode):
    """Shapes whose operations are noted in a program. As a mode it sees those, too, that have no tensor of the edit
    among their arguments, but a number of it (`torch.zeros(h.shape[1])`)."""

    what = "an edit"
    instead = "use a trace, or torch.where"

    def __init__(self) -> None:
        Shapes.__init__(self, 2)
        TorchFunctionMode.__init__(self)
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

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        return self.run(function, args, kwargs) if is_shapes(given((args, kwargs))) else function(*args, **kwargs)

    def note(self, function: Any, args: Any, kwargs: Any, found: Any, changed: list[ShapeTensor]) -> None:
        if isinstance(function, EngineCall | OwnCall) or changed or is_shapes(found):
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
                super().put_tokens(tensor, index, taken)
                groups.add(tensor.group)
        for tensor, index, taken in self._taken:
            if tensor.group in groups and taken.group not in groups:
                taken.copy_(super().tokens(tensor, index))

    def number(self, worlds: list[Any]) -> UnknownNumber:
        self._numbers.append(super().number(worlds))
        return self._numbers[-1]

    def close(self) -> None:
        """The block has ended: nothing is noted any more."""
        self.is_closed = True
        for number in self._numbers:
            number.__class__ = EndedNumber

    def tokens(self, tensor: ShapeTensor, index: Any) -> Any:
        taken = super().tokens(tensor, index)
        self._taken.append((tensor, index, taken))
        return taken

    def put_tokens(self, tensor: ShapeTensor, index: Any, value: Any) -> None:
        if any(value is taken and tensor is source and index is place for source, place, taken in self._taken):
            return  # It was changed in place, which counts already, and is put back: `x.t[0] += 1`.
        super().put_tokens(tensor, index, value)


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


class EditScope(ShapeScope):
    """What is read and set in an edit."""

    def advance(self, envoy: EngineEnvoy, steps: int) -> None:
        """`module.next()`."""
        raise _core.UnsupportedError("module.next() in an edit: write `for step in tracer.iter[…]:`")

    @property
    def iter(self) -> Any:
        """`for step in tracer.iter[:]`: the steps at which what stands in the loop is done."""
        return _EditSteps(self.tracer)  # type: ignore[arg-type]

    def all(self) -> Any:
        """`for step in tracer.all()`: every step."""
        return self.iter[:]

    def _loss(self, step: int) -> None:
        return None


class EditTracer(EditScope, Tracer):
    """An edit while it is recorded; made by `LanguageModel.edit`."""

    def __init__(self, model: Any, original: Any, in_place: bool) -> None:
        self.shapes = EditShapes()
        self._in_place = in_place
        self._chosen = StepSet()
        self._now: dict[Any, _Held] = {}
        self._held: list[tuple[_Place, _Held]] = []
        super().__init__(model, (), {}, edited=False)
        self._alias = EditScope(self, original, [])  # For modules named on the model that was copied.

    # --- the block

    def __enter__(self) -> Any:
        _open.enter(self._alias)
        super().__enter__()
        self.shapes.__enter__()
        if self._in_place:
            return self
        self.model.__dict__["_editing"] = self
        return self.model

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> bool:
        self.shapes.__exit__(kind, error, traceback)
        _open.leave(self._alias)
        self.model.__dict__["_editing"] = None
        try:
            return super().__exit__(kind, error, traceback)
        finally:
            self.shapes.close()

    def _close(self) -> None:
        self.collect()
        self.model.add_edit(Edit(self.shapes.program, self.model))

    # --- values

    def read_place(
        self, scope: EngineScope, nodes: tuple[str, ...], step: int, by_head: bool, envoy: Any = None
    ) -> ShapeTensor:
        """The value of nodes, side by side; with `envoy` the argument that this module has of them with others."""
        place = _Place(nodes, by_head, envoy)
        self.collect()
        held = self._now.get((place.key, self._chosen))
        if held is not None:
            return held.tensor
        given_before = [] if envoy is None else self.shapes.program.arguments.get(envoy.path, [])
        put = next((write.piece for write in reversed(given_before) if write.steps == self._chosen), None)
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
        found = self._empty(place.nodes, False)
        self.shapes.add(ReadArgument(place.envoy.path), (shared,), {}, found)
        return found

    def _raw(self, node: str) -> ShapeTensor:
        found = self._empty((node,), True)
        self.shapes.add(ReadNode(node, len(self.shapes.program.writes.get(node, [])), self._chosen), (), {}, found)
        return found

    def _sizes(self, nodes: tuple[str, ...], by_head: bool) -> list[list[int]]:
        """The shape of nodes side by side in each world."""
        worlds = zip(_BATCH, _POS, _POS if self._chosen == StepSet() else _KEYS, strict=True)
        return [shape_of(self.model.node_axes, nodes, by_head, *sizes) for sizes in worlds]

    def _empty(self, nodes: tuple[str, ...], by_head: bool) -> ShapeTensor:
        return self.shapes.empty(self._sizes(nodes, by_head), dtype_of(self.model, nodes[0]), self.model.device)

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

    def write_place(
        self, scope: EngineScope, nodes: tuple[str, ...], step: int, value: Any, by_head: bool, envoy: Any = None
    ) -> None:
        """Puts a value there."""
        place = _Place(nodes, by_head, envoy)
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
        check_fits(place.nodes, self._sizes(place.nodes, place.by_head), value)
        for number, node in enumerate(place.nodes):
            piece = self._empty((node,), True)
            self.shapes.add(PutPiece(place.nodes, place.by_head, number), (value,), {}, piece)
            write = Write(piece, len(program.steps), self._chosen)
            for read in program.reads(write.piece, write.position):
                if read.steps != self._chosen:
                    raise _core.UnsupportedError(
                        f"an edit of {described(self.model, node)} at some steps of a run can't be made from what was "
                        "read at others: read it in the same loop over steps"
                    )
            program.writes.setdefault(node, []).append(write)
        self._forget(place.nodes)

    def _forget(self, nodes: Sequence[str]) -> None:
        """What was read of these nodes is read anew from now on."""
        for key in [key for key in self._now if set(key[0][0]) & set(nodes)]:
            del self._now[key]

    def _write_argument(self, place: _Place, value: Any) -> None:
        envoy = place.envoy
        check_fits(place.nodes, self._sizes(place.nodes, False), value)
        argument = self._assembled(_Place(place.nodes, False)).clone()
        argument[...] = value
        write = Write(argument.clone(), len(self.shapes.program.steps), self._chosen)  # type: ignore[arg-type]
        self.shapes.program.arguments.setdefault(envoy.path, []).append(write)
        output = self.call_module(envoy, (argument,), {}, False)
        self._write(_Place(envoy.place.outputs[0], False), output)
        self._now.pop((place.key, self._chosen), None)

    # --- modules

    def call_module(self, envoy: Any, args: tuple[Any, ...], kwargs: dict[str, Any], watched: bool) -> Any:
        """A module's call, which later traces make."""
        self.collect()
        if not is_shapes(given((args, kwargs))):
            return EngineScope.call(self, envoy, args, kwargs, watched)
        found = called_on_shapes(self.shapes, envoy, args, kwargs, self.own_calls if watched else None)
        if watched and isinstance(envoy, OwnEnvoy):
            self.shapes.program.calls[envoy.path] = (len(self.shapes.program.steps) - 1, self._chosen)
        return found

    # --- steps

    def go_to(self, step: int) -> bool:
        """What follows belongs to a step of the run."""
        self.choose(StepSet((step,)))
        self.step = step
        return True

    def choose(self, chosen: StepSet) -> StepSet:
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


class _EditSteps(Steps):
    """`tracer.iter` of an edit. A loop without an end runs its body once, for all its steps; one with an end once for
    each."""

    def __init__(self, tracer: EditTracer, chosen: Any = None) -> None:
        super().__init__(tracer.go_to, chosen, "tracer.iter[…]")
        self._tracer = tracer

    def __getitem__(self, chosen: slice | int | list[int]) -> _EditSteps:
        return _EditSteps(self._tracer, chosen)

    def __iter__(self) -> Iterator[Any]:
        chosen = self._chosen
        if chosen is None:
            raise TypeError("tracer.iter is indexed by the steps: tracer.iter[:]")
        before = self._tracer.choose(StepSet())
        try:
            if isinstance(chosen, slice) and chosen.stop is None:
                start, stride = operator.index(chosen.start or 0), operator.index(chosen.step or 1)
                if start < 0 or stride < 1:
                    raise _core.InputError(f"tracer.iter[{start}::{stride}]: steps count from 0 on, forward")
                self._tracer.choose(StepSet((), start, stride))
                yield self._tracer.step_number()
                return
            for step in step_numbers(chosen):
                self._tracer.choose(StepSet((step,)))
                yield step
        finally:
            self._tracer.choose(before)

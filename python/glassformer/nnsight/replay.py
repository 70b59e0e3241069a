"""Edits of a model in its later traces: hooks that run an edit's program on values."""

from __future__ import annotations

import contextlib
import functools
import weakref
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

from glassformer import _core
from glassformer.nnsight.modules import EngineEnvoy
from glassformer.nnsight.outputs import first_argument
from glassformer.nnsight.own_modules import OwnEnvoy, is_below
from glassformer.nnsight.program import Program, ReadNode, Step, Write
from glassformer.nnsight.tracing import AT_LAST_POSITION
from glassformer.nnsight.values import shape_of, width_of

_BY_POSITION = ("block", "attention", "decoder", "model", "rotary", "embed", "pos_embed", "blocks")


_FIRST = "hook_tokens"


class Edit:
    """A recorded edit of a model."""

    def __init__(self, program: Program, root: Any) -> None:
        self.program = program
        self.order = {node: place for place, node in enumerate(root.node_axes)}
        self.foreign: set[str] = set()
        """The nodes that others are made from."""
        self._check(root)

    def _check(self, root: Any) -> None:
        """Refuses what hooks can't do: setting a node from one that comes later."""
        for node, writes in self.program.writes.items():
            for write in writes:
                for read in self.program.reads(write.piece, write.position):
                    if isinstance(read, ReadNode) and read.node != node:
                        self.maker_for(root, node, read.node)
                        self.foreign.add(read.node)
        for position, _ in self.program.calls.values():
            made = self.program.reads(self.program.made_at(position), position + 1)
            self.foreign |= {read.node for read in made if isinstance(read, ReadNode)}

    def maker_for(self, root: Any, target: str, node: str) -> EngineEnvoy | None:
        """How a hook on `target` comes to the value of another node: None: it can be read; else by the module that
        makes it. `UnsupportedError` where it can't."""
        if self.order[node] < self.order[target]:
            return None
        maker = maker_of(root, node)
        if maker is not None and all(self.order[each] < self.order[target] for each in maker.place.inputs):
            return maker
        raise _core.UnsupportedError(
            f"an edit of {described(root, target)} can't be made from {described(root, node)}, which comes later"
        )

    def replay(self, scope: Any) -> None:
        """Puts the hooks of this edit, one of its trace's, onto the runs of a scope."""
        calls = scope.tracer.own_calls
        if calls.replayed is None:
            calls.replayed = ReplayedCalls()
        for run in (run for rows in scope._rows() for run in rows.runs):
            place = RunPlace(scope, run)
            for node, writes in self.program.writes.items():
                chosen = {step for write in writes for step in write.steps.numbers}
                always = any(write.steps.start is not None for write in writes)
                run.trace.hook(node, _Hook(self, place, node), None if always else sorted(chosen))


class RunPlace:
    """A run as hooks know it: not the run itself, whose trace holds the hooks."""

    def __init__(self, scope: Any, run: Any) -> None:
        tracer = scope.tracer
        self.root, self.key, self.n_rows, self.padding = scope.root, id(run), run.n_rows, run.padding
        self.edits, self.generates = tracer.edits, tracer.options is not None
        self.replayed = tracer.own_calls.replayed
        self._calls = weakref.ref(tracer.own_calls)

    def put(self) -> dict[tuple[str, str], Any]:
        """What the user put in the place of what modules take and return."""
        calls = self._calls()
        return {} if calls is None else calls.put


class _Hook:
    """An edit of one node in one run."""

    def __init__(self, edit: Edit, place: RunPlace, node: str) -> None:
        self.edit, self.place, self.node = edit, place, node

    def __call__(self, value: torch.Tensor, call: Any) -> torch.Tensor | None:
        number = self.place.edits.index(self.edit)
        frame = Frame(self.place, call.segment, (call.begin, call.end), call.read, self.node, number, value)
        context = Context(frame, self.edit, self.node, value)
        found = context.written()
        kept = any(self.node in edit.foreign for edit in self.place.edits)
        if found is not None and (context.seen or kept):
            self.place.replayed.add(context)
            if self.node != _FIRST:
                call.read(_FIRST)  # One that reads another node is called whenever its input changes.
        return found


class Frame(NamedTuple):
    """Where edits are evaluated: a step of a run, with its positions; `look` gives the value of nodes. In a hook on
    `node` of the edit `number`, `value` is what that hook was given, and earlier nodes alone can be looked at."""

    place: RunPlace
    step: int
    positions: tuple[int, int]
    look: Any
    node: str | None = None
    number: int = 0
    value: Any = None

    @classmethod
    def of(cls, scope: Any, run: Any, step: int) -> Frame:
        """A step of an open trace's run, outside of hooks."""
        look = functools.partial(run.trace.core.read, positions=run.positions(step))
        return cls(RunPlace(scope, run), step, run.steps[step], look)


class Context:
    """Where a program runs: for what an edit makes of `node`, whose value is `value`; or for no node in particular."""

    def __init__(self, frame: Frame, edit: Edit, node: str = "", value: Any = None) -> None:
        self.frame, self.edit, self.node, self.value = frame, edit, node, value
        self.place, self.step, self.positions = frame.place, frame.step, frame.positions
        self.root, self.device = self.place.root, self.place.root.device
        self.values: dict[int, Any] = {}
        self.seen: dict[tuple[str, str], Any] = {}

    @property
    def padding(self) -> list[int]:
        """How much padding stands before each sequence."""
        return self.place.padding if self.step == 0 else [0] * self.place.n_rows

    def shape(self, nodes: tuple[str, ...], by_head: bool) -> list[int]:
        """The shape of nodes side by side at this step."""
        (begin, end), n_rows = self.positions, self.place.n_rows
        if self._is_last_only(nodes[0]):
            begin = end - 1
        return shape_of(self.root.node_axes, nodes, by_head, n_rows, end - begin, end)

    def _is_last_only(self, node: str) -> bool:
        """Whether a generation shows a node at its last position alone."""
        return self.place.generates and node in AT_LAST_POSITION

    def _shown(self, node: str, value: torch.Tensor) -> torch.Tensor:
        """A private copy of a node's value, as modules show it."""
        return (value[:, -1:] if self._is_last_only(node) else value).clone()

    def module(self, envoy: OwnEnvoy) -> OwnEnvoy:
        """The module that stands where another one stood when the edit was recorded."""
        try:
            found = self.root.get(envoy.path.partition(".")[2])
        except AttributeError:
            return envoy
        return found if isinstance(found, OwnEnvoy) else envoy

    def value_of(self, each: Any) -> Any:
        """What a stand-in of the program is here."""
        return self.values.get(id(each), each)

    def written(self) -> torch.Tensor | None:
        """What the edit puts into the node; None where it does nothing at this step."""
        last = self.edit.program.last_write(self.node, self.step)
        if last is None:
            return None
        found = self.made(last)
        return torch.cat([self.value[:, :-1], found], 1) if self._is_last_only(self.node) else found

    def made(self, write: Write) -> torch.Tensor:
        """What the edit writes there."""
        program = self.edit.program
        return program.run(self, program.needed(self.node, write.piece, write.position, self.step))[id(write.piece)]

    def read(self, read: ReadNode) -> torch.Tensor:
        """A node's value as the program means it."""
        program, node = self.edit.program, read.node
        before = program.last_write(node, self.step, read.n_before)
        if node == self.node:
            return self._shown(node, self.value) if before is None else self.values[id(before.piece)].clone()
        number = self.place.edits.index(self.edit)
        if before is program.last_write(node, self.step):  # Or there is none.
            return self._shown(node, self._before_edit(node, number + 1))
        value = self._before_edit(node, number)
        if before is None:
            return self._shown(node, value)
        return Context(self.frame, self.edit, node, value).made(before)

    def argument(self, path: str) -> torch.Tensor | None:
        """What earlier edits give a module in the place of what it shares with others; None where they don't."""
        return argument_before(self.frame, self.place.edits.index(self.edit), path)

    def _before_edit(self, node: str, number: int) -> torch.Tensor:
        """A node's value with the first `number` edits of the model; and with changes that the trace made itself,
        where no later edit changes it."""
        frame, edits = self.frame, self.place.edits
        order = self.edit.order
        if frame.node is not None and order[node] > order[frame.node]:
            value = self._made(node)
            for edit in edits[:number]:
                made = Context(frame, edit, node, value).written()
                value = value if made is None else made
            return value
        value, end = (frame.value, frame.number) if node == frame.node else (frame.look(node), len(edits))
        for edit in reversed(edits[number:end]):
            if edit.program.last_write(node, self.step) is not None:
                value = self.place.replayed.kept(self, edit, node).value
        return value

    def _made(self, node: str) -> torch.Tensor:
        """A node's value from the module that makes it, in a hook on an earlier node."""
        frame, axes = self.frame, self.root.node_axes
        assert frame.node is not None
        maker = self.edit.maker_for(self.root, frame.node, node)
        assert maker is not None
        inputs = [frame.look(each) for each in maker.place.inputs]
        nodes = maker.place.outputs[0]
        begin = sum(width_of(axes[each]) for each in nodes[: nodes.index(node)])
        whole = maker.run((torch.cat([each.flatten(2) for each in inputs], -1),), {})
        return whole[..., begin : begin + width_of(axes[node])].reshape(self.shape((node,), True))

    @contextlib.contextmanager
    def drawing(self, number: int, step: Step) -> Iterator[None]:
        """Random numbers of a step are drawn once for a run, in however many hooks they are needed."""
        if not step.is_random:
            yield
            return
        states = self.place.replayed.states
        place = (self.place.key, self.step, id(self.edit), number)
        devices = [] if self.device.type == "cpu" else [self.device]
        if place not in states:
            states[place] = torch.get_rng_state(), [torch.cuda.get_rng_state(device) for device in devices]
            yield
            return
        with torch.random.fork_rng(devices=devices):
            torch.set_rng_state(states[place][0])
            for device, state in zip(devices, states[place][1], strict=True):
                torch.cuda.set_rng_state(state, device)
            yield


def argument_before(frame: Frame, number: int, path: str) -> torch.Tensor | None:
    """What the first `number` edits give a module in the place of what it shares with others; None: nothing."""
    for edit in reversed(frame.place.edits[:number]):
        write = edit.program.argument(path, frame.step)
        if write is not None:
            return Context(frame, edit).made(write)
    return None


def maker_of(root: Any, node: str) -> EngineEnvoy | None:
    """The module that makes a node from earlier ones, position by position."""
    for envoy in root.modules():
        place = getattr(envoy, "place", None)
        if place is None or not place.begin or place.part in _BY_POSITION or not place.outputs:
            continue
        if node in place.outputs[0] and node not in place.inputs:
            return envoy
    return None


def described(root: Any, node: str) -> str:
    """A node by the module that returns it."""
    for envoy in reversed(root.modules()):
        place = getattr(envoy, "place", None)
        if place is not None and any(node in nodes for nodes in place.outputs):
            return f"{envoy.path}.output ({node})"
    return node


class Made(NamedTuple):
    """What a hook was called on, and what the user's own modules gave in it."""

    value: torch.Tensor
    seen: dict[tuple[str, str], Any]


class ReplayedCalls:
    """What the hooks of a trace's edits did: for modules of the user's own, and for other hooks."""

    def __init__(self) -> None:
        self.states: dict[Any, Any] = {}
        self._made: dict[Any, Made] = {}
        self._given: list[tuple[torch.Tensor, int, str]] = []

    def add(self, context: Context) -> None:
        """Notes what was done."""
        place = (context.place.key, context.step, id(context.edit), context.node)
        old, new = self._made.get(place), context.value
        if old is not None and old.value.requires_grad > new.requires_grad and torch.equal(old.value, new):
            return  # The same without its graph, which a read with gradients may still need.
        self._made[place] = Made(new.clone(), context.seen)

    def kept(self, context: Context, edit: Edit, node: str) -> Made:
        """What an edit's hook on a node did last."""
        return self._made[(context.place.key, context.step, id(edit), node)]

    def has_run(self, path: str) -> bool:
        """Whether a hook has called a module."""
        return any((path, "inputs") in made.seen for made in self._made.values())

    def read(self, scope: Any, envoy: Any, what: str) -> Any:
        """What a module that an edit calls was given or returned at this step; None where none calls it."""
        key = (envoy.path, "inputs" if what == "input" else what)
        for edit in reversed(scope.tracer.edits):
            for path, (position, steps) in edit.program.calls.items():
                if is_below(envoy.path, path) and steps.has(scope.step):
                    found = [self._of_run(scope, edit, position, run)[key] for run in scope.runs()]
                    if what == "input":
                        found = [first_argument(*inputs) for inputs in found]
                    lengths = [run.length(scope.step) for run in scope.runs()]
                    given = _joined(found, lengths, f"{envoy.path}.{what}")
                    if isinstance(given, torch.Tensor):
                        self._given.append((given, given._version, f"{envoy.path}.{what}"))
                    return given
        return None

    def check_unchanged(self) -> None:
        """Refuses changes in place of what modules gave that an edit has called: nothing would come of them."""
        for given, version, asked in self._given:
            if given._version != version:
                raise _core.UnsupportedError(
                    f"{asked} was changed in place after an edit of the model had used it: assign to it ({asked} = x), "
                    "before anything is read that depends on it"
                )

    def argument(self, scope: Any, envoy: Any, step: int) -> torch.Tensor | None:
        """What edits give a module in the place of what it shares with others; None where they don't."""
        edits = scope.tracer.edits
        if not any(edit.program.argument(envoy.path, step) for edit in edits):
            return None
        runs = [run for run in scope.runs() if run.length(step) > 0]
        found = []
        for run in runs:
            found.append(argument_before(Frame.of(scope, run, step), len(edits), envoy.path))
        return _joined(found, [run.length(step) for run in runs], f"{envoy.path}.input")

    def _of_run(self, scope: Any, edit: Edit, position: int, run: Any) -> dict[tuple[str, str], Any]:
        program, step = edit.program, scope.step
        context = Context(Frame.of(scope, run, step), edit)
        for node in sorted(program.writes, key=edit.order.__getitem__):
            last = program.last_write(node, step)
            if last is not None and position in program.needed(node, last.piece, last.position, step):
                context.frame.look(node)
                return self.kept(context, edit, node).seen
        program.run(context, program.needed("", program.made_at(position), position + 1, step))
        return context.seen


def _joined(found: list[Any], lengths: list[int], asked: str) -> Any:
    """What a module gave for several runs, as one: padded at the left."""
    if len(found) == 1:
        return found[0]
    width = max(lengths)
    if not all(isinstance(each, torch.Tensor) for each in found):
        raise _core.UnsupportedError(f"{asked} of prompts of different lengths: read it invoke by invoke")
    padded = []
    for each, length in zip(found, lengths, strict=True):
        if each.ndim < 2 or each.shape[1] != length:
            raise _core.UnsupportedError(f"{asked} of several prompts has no axes batch pos: read it invoke by invoke")
        filled = each.new_zeros((each.shape[0], width - length, *each.shape[2:]))
        padded.append(torch.cat([filled, each], 1))
    return torch.cat(padded)

"""Traces in nnsight's manner: `with model.trace(…) as tracer:`, its invokes and its steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from glassformer import _core
from glassformer.nnsight import _open, _save, values
from glassformer.nnsight.cache import Cache, CacheView
from glassformer.nnsight.modules import FIRST_ARGUMENT, EngineEnvoy
from glassformer.nnsight.outputs import ModuleOutput, Output, first_of
from glassformer.nnsight.own_modules import OwnCalls, OwnEnvoy, is_below
from glassformer.nnsight.prompts import read_prompts
from glassformer.nnsight.runs import GenerationOptions, Guard, Rows, Run, generated_ids, step_is_over
from glassformer.nnsight.steps import StepChooser, Steps
from glassformer.nnsight.tensors import InputValue, NodeValue, Part, follow, plain, traced

AT_LAST_POSITION = ("unembed.hook_in", "unembed.hook_out", "logits")
"""What a generation, as transformers has it, computes of the last position only."""


class _Stop(BaseException):
    """Ends the body of the innermost trace or invoke."""


class EngineScope:
    """Some rows of a trace: what the modules are asked for inside it is theirs, at its present step."""

    def __init__(self, tracer: Tracer | None, root: Any, rows: list[Rows] | None = None) -> None:
        self.root = root
        self._tracer = tracer  # None in a tracer itself: what refers to itself stays in memory longer than it is used.
        self._own_rows = rows
        self.step = 0
        self._ahead: dict[str, int] = {}  # How many steps further modules are, after `module.next()`.
        self._handed_arguments: dict[str, dict[str, Any]] = {}  # Of each module, as `.inputs` gave them last.
        self._put_inputs: dict[tuple[str, int], torch.Tensor] = {}
        self.reader: _core.Reader | None = None  # Where there is one trace that generates nothing.

    @property
    def tracer(self) -> Tracer:
        """The tracer that the scope belongs to."""
        assert self._tracer is not None
        return self._tracer

    def _open_reader(self) -> None:
        """Looks whether there is a single trace, at its only step, which values can be read of as they are."""
        tracer: Any = self if self._tracer is None else self._tracer
        rows = tracer.rows if self._own_rows is None else self._own_rows
        self.reader = None
        if len(rows) == 1 and len(rows[0].runs) == 1 and tracer.options is None:
            run = rows[0].runs[0]
            self.reader = _core.Reader(tracer.watch, run.trace.core, run.padding, id(self))

    def _rows(self) -> list[Rows]:
        """The rows that are meant: some of the tracer's, or all that it has by now."""
        return self.tracer.rows if self._own_rows is None else self._own_rows

    # --- steps

    def go_to(self, step: int) -> bool:
        """Makes `step` the present one, generating as far as that; False where no row gets there."""
        self.tracer.collect()
        rows = self._rows()
        if rows and not _advance(rows, step):
            return False
        self.step = step
        self._ahead = {}
        return True

    @property
    def iter(self) -> StepChooser:
        """`for step in tracer.iter[:]`: the steps of the generation, here a slice, a number or a list of them."""
        scope = self._innermost()
        return StepChooser(scope.go_to, scope.end_loop)

    def all(self) -> Steps:
        """`for step in tracer.all()`: every step."""
        scope = self._innermost()
        return Steps(scope.go_to, slice(None), "tracer.all()", scope.end_loop)

    def next(self, steps: int = 1) -> Any:
        """Goes some steps on. `UnavailableError` where the run ends before."""
        scope = self._innermost()
        step = scope.step + steps
        if step < 0:
            raise _core.InputError(f"tracer.next({steps}): there is no step before step 0")
        if not scope.go_to(step):
            raise _core.UnavailableError(f"tracer.next(): the run ended before step {step}")
        scope.end_loop()
        return self

    def _innermost(self) -> EngineScope:
        """The scope whose steps are meant: inside an invoke its own."""
        return self

    def end_loop(self) -> None:
        """Called where a loop over steps ends; the present step stays the last one."""

    def advance(self, envoy: EngineEnvoy, steps: int) -> None:
        """`module.next()`: this module alone, and what is below it, is some steps further."""
        self.reader = None
        self._ahead[envoy.path] = self._ahead.get(envoy.path, 0) + steps

    def step_of(self, envoy: EngineEnvoy) -> int:
        """The step at which a module is read and set."""
        if not self._ahead:
            return self.step
        path, ahead = envoy.path, 0
        for start, steps in self._ahead.items():
            if is_below(path, start):
                ahead = max(ahead, steps)
        step = self.step + ahead
        if ahead and not _advance(self._rows(), step):
            raise _core.UnavailableError(f"{envoy.path}.next(): the run ended before step {step}")
        return step

    # --- values

    def runs(self) -> list[Run]:
        """The runs of all rows; `UnavailableError` where no invoke has an input yet."""
        found = [run for rows in self._rows() for run in rows.runs]
        if not found:
            raise _core.UnavailableError(
                "no invoke of this trace has an input yet: give one to trace(...) or to tracer.invoke(...); an invoke "
                "without an input sees those before it, so it stands behind them"
            )
        return found

    def layout(self, nodes: tuple[str, ...], step: int, by_head: bool = False) -> values.Layout:
        """How nodes are put together at a step."""
        runs = self.runs()
        self._rows_reach(step)
        last_only = self.tracer.options is not None and nodes[0] in AT_LAST_POSITION
        return values.Layout(values.View(nodes, by_head, last_only), self.root.node_axes, [(run, step) for run in runs])

    def _rows_reach(self, step: int) -> None:
        if step > 0 and not _advance(self._rows(), step):
            raise _core.UnavailableError(f"the run ended before step {step}")

    def read_nodes(
        self, nodes: tuple[str, ...], step: int, kind: type[NodeValue] = NodeValue, by_head: bool = False
    ) -> Any:
        """The value of nodes at a step, side by side (`by_head`: a single one as it is), watched while the trace is
        open."""
        if self.reader is not None and len(nodes) == 1:
            return self.reader.read(nodes[0], kind, by_head)
        tracer = self.tracer
        tracer.collect()
        watch = tracer.watch if tracer.is_open else None
        guard = Guard(tracer, self._rows(), step) if watch is not None and tracer.options is not None else None
        return values.read(self.layout(nodes, step, by_head), watch, kind, (id(self), nodes, step), guard)

    def write_nodes(
        self, nodes: tuple[str, ...], step: int, value: Any, derived: bool = False, by_head: bool = False
    ) -> None:
        """Puts numbers into nodes at a step."""
        if not self.tracer.is_open:
            raise _core.UnavailableError("the trace is closed: values can be set inside its `with` block only")
        self.tracer.collect()
        self.require_present(step)
        layout = self.layout(nodes, step, by_head)
        if isinstance(value, NodeValue) and value.pieces.parts and value.pieces.place == (id(self), nodes, step):
            now = values.read(layout, None, NodeValue, None)
            if torch.equal(plain(now), plain(value)):
                return  # It was changed in place, which counts already, and is put back: `output[0] += x`.
        values.write(layout, value, derived)

    def require_present(self, step: int) -> None:
        """Raises `OrderError` for a step of a generation that tokens were drawn from."""
        if any(rows.reached > step for rows in self._rows()):
            raise step_is_over(step)

    def read(self, envoy: EngineEnvoy, what: str) -> Any:
        """A module's input, inputs or output."""
        if isinstance(envoy, OwnEnvoy):
            return self.tracer.own_value(self, envoy, what)
        if not isinstance(envoy, EngineEnvoy):
            return envoy.read_in(self, what)
        if what == "output":
            return self._output(envoy)
        found = self._input(envoy)
        if what == "input":
            return found
        others = self._handed_arguments[envoy.path] = envoy.other_arguments(self)
        return (found,), others

    def write(self, envoy: EngineEnvoy, what: str, value: Any) -> None:
        """Puts a value there."""
        if isinstance(envoy, OwnEnvoy):
            self.tracer.own_calls.write(envoy, what, value)
            return
        if what == "output":
            self._put_output(envoy, value)
            return
        if what == "inputs":
            value = self._first_argument(envoy, value)
        self._put_input(envoy, first_of(value))

    def skip(self, envoy: EngineEnvoy, value: Any) -> None:
        """The module returns `value`, and nothing of it is computed."""
        self._put_output(envoy, value)

    def call(self, envoy: EngineEnvoy, args: tuple[Any, ...], kwargs: dict[str, Any], watched: bool) -> Any:
        """Runs a module on something else."""
        self.tracer.collect()
        if isinstance(envoy, OwnEnvoy):
            return self.tracer.own_calls.call(envoy, args, kwargs, watched)
        return traced(envoy.run(args, kwargs), (*args, *kwargs.values()))

    def _output(self, envoy: EngineEnvoy) -> Any:
        place, step = envoy.place, self.step_of(envoy)
        if not place.outputs:
            raise _core.UnavailableError(f"{envoy.path} is a list of modules: it returns nothing; take one of them")
        if place.returns == "tensor":
            return self.read_nodes(place.outputs[0], step)
        if place.returns == "tuple":
            return ModuleOutput(self, place.outputs, step)
        name = "logits" if place.returns == "model" else "last_hidden_state"
        fields: dict[str, Any] = {"loss": lambda: self._loss(step)} if name == "logits" else {}
        fields[name] = lambda: self.read_nodes(place.outputs[0], step)
        fields["past_key_values"] = self._past
        title = "CausalLMOutputWithPast" if name == "logits" else "BaseModelOutputWithPast"
        return Output(title, fields, name, lambda value: self.write_nodes(place.outputs[0], step, value))

    def _put_output(self, envoy: EngineEnvoy, value: Any) -> None:
        place, step = envoy.place, self.step_of(envoy)
        if len(place.outputs) > 1 and isinstance(value, tuple) and len(value) > 1:
            # The hidden state last: it stands, whatever the pattern that comes with it.
            for nodes, each in reversed(list(zip(place.outputs, value, strict=False))):
                if each is not None:
                    self.write_nodes(nodes, step, each)
            return
        self.write_nodes(place.outputs[0], step, first_of(value))

    def _input(self, envoy: EngineEnvoy) -> Any:
        place, step = envoy.place, self.step_of(envoy)
        if not place.inputs:
            raise _core.UnavailableError(f"{envoy.path}.input: the module is called without arguments")
        if place.input_is_private:
            return self.read_nodes(place.inputs, step, InputValue)
        self.tracer.collect()
        found = self._put_inputs.get((envoy.path, step))
        if found is None and self.tracer.edits:
            found = self.tracer.own_calls.replayed.argument(self, envoy, step)
        layout = self.layout(place.inputs, step)
        if found is None:
            found = values.read(layout, None, InputValue, None)
        value = plain(found).clone()
        part = _InputPart(value.clone(), self, envoy, step)
        return follow(value, [part], self.tracer.watch, InputValue, layout.padding)

    def _first_argument(self, envoy: EngineEnvoy, value: Any) -> Any:
        """Of arguments that are put in place the one that can be: the others must be those that are there."""
        given = value if isinstance(value, tuple | list) and len(value) == 2 else (None, None)
        if not isinstance(given[0], tuple | list) or not isinstance(given[1], dict):
            raise _core.InputError(f"{envoy.path}.inputs: expected ((value,), {{…}}); found {type(value).__name__}")
        args, kwargs = given[0], dict(given[1])
        handed = self._handed_arguments.get(envoy.path, {})
        named = [kwargs.pop(name) for name in FIRST_ARGUMENT if name in kwargs]
        first = [*args, *named]
        for name, given in kwargs.items():
            if given is not None and given is not handed.get(name) and not self._stands(envoy, name, given):
                raise _core.UnsupportedError(
                    f"{envoy.path}.inputs: {name} can't be changed here; the first argument can"
                )
        if len(first) != 1:
            raise _core.InputError(f"{envoy.path}.inputs: expected ((value,), {{…}}); found {len(first)} arguments")
        return first[0]

    def _stands(self, envoy: EngineEnvoy, name: str, given: Any) -> bool:
        there = envoy.other_arguments(self)
        return name in there and torch.equal(plain(torch.as_tensor(given)), plain(there[name]))

    def _put_input(self, envoy: EngineEnvoy, value: Any, derived: bool = False) -> None:
        place, step = envoy.place, self.step_of(envoy)
        if place.input_is_private:
            self.write_nodes(place.inputs, step, value)
            return
        # What goes into the module goes elsewhere too: its output is put in place instead.
        layout = self.layout(place.inputs, step)
        given = torch.as_tensor(value, dtype=self.root.dtype, device=self.root.device).expand(layout.shape)
        self.write_nodes(place.outputs[0], step, envoy.run((given,), {}), derived)
        self._put_inputs[(envoy.path, step)] = plain(given).detach().clone()

    def generated(self) -> Any:
        """All token ids of these rows, generated to the end."""
        self.tracer.collect()
        self.runs()
        return generated_ids(self._rows(), self.root)

    def fill(self, cache: Cache) -> None:
        """Puts the values of every step into a cache, generating to the end."""
        for rows in self._rows():
            rows.finish()
        present = self.step
        try:
            for step in range(max((rows.reached for rows in self._rows()), default=-1) + 1):
                self.step = step
                cache.read(self, step)
        finally:
            self.step = present

    def _past(self) -> tuple[tuple[torch.Tensor, torch.Tensor], ...]:
        last = self.step
        return tuple(
            (
                _by_head(self.read_nodes((keys,), last, by_head=True)),
                _by_head(self.read_nodes((held,), last, by_head=True)),
            )
            for keys, held in self.root.past_nodes
        )

    def _loss(self, step: int) -> torch.Tensor | None:
        labels = [rows.prompts.labels for rows in self._rows()]
        if step > 0 or any(each is None for each in labels):
            return None
        logits = self.read_nodes(("logits",), step)
        flat = torch.cat([_left_padded(each, logits.shape[1]) for each in labels])  # type: ignore[arg-type]
        if logits.dtype in (torch.bfloat16, torch.float16):
            logits = logits.float()
        return torch.nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1), flat[:, 1:].flatten().to(logits.device), ignore_index=-100
        )


def _advance(rows: list[Rows], step: int) -> bool:
    """Generates all rows as far as a step; whether any gets there."""
    reached = [each.go_to(step) for each in rows]
    return any(reached)


class _InputPart(Part):
    """The input of a module that goes elsewhere too."""

    def __init__(self, source: torch.Tensor, scope: EngineScope, envoy: EngineEnvoy, step: int) -> None:
        super().__init__(source, ...)
        self.scope, self.envoy, self.step = scope, envoy, step

    def replace(self, numbers: torch.Tensor, mask: torch.Tensor | None) -> None:
        if mask is None and torch.equal(self.source, numbers):
            return
        self.source = numbers.detach().clone()
        self.scope._put_input(self.envoy, numbers, derived=mask is None)


def _by_head(value: torch.Tensor) -> torch.Tensor:
    return value.transpose(1, 2)


def _left_padded(labels: torch.Tensor, width: int) -> torch.Tensor:
    return torch.nn.functional.pad(labels.long(), (width - labels.shape[1], 0), value=-100)


class Invoke(EngineScope):
    """`with tracer.invoke(…):` some rows of the trace, or, without an input, all of them."""

    def __init__(self, tracer: Tracer, own: Rows | None) -> None:
        super().__init__(tracer, tracer.model, None if own is None else [own])
        self.own = own

    @property
    def input(self) -> Any:
        """The token ids, `batch pos`."""
        return self.read(self.root, "input")

    def __enter__(self) -> Invoke:
        self.tracer.collect()
        self._open_reader()
        _open.enter(self)
        return self

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> bool:
        _open.leave(self)
        self.reader = None
        if error is None or isinstance(error, _Stop):
            self.tracer.collect()
        return isinstance(error, _Stop)


class Tracer(EngineScope):
    """An open trace; made by `LanguageModel.trace` and `generate`. As a scope it has the rows of all its invokes."""

    invoke_kind: type[Invoke] = Invoke

    def __init__(
        self,
        model: Any,
        inputs: tuple[Any, ...],
        given: dict[str, Any],
        options: GenerationOptions | None = None,
        edited: bool = True,
    ) -> None:
        self.model = model
        self.options = options
        self.rows: list[Rows] = []
        self.watch = _core.Watch()
        self.own_calls = OwnCalls()
        self.caches: list[Cache] = []
        self.edits: tuple[Any, ...] = model.edits if edited else ()
        self.is_open = False
        super().__init__(None, model)
        self._next_invoke = 0
        self._in_loop = False
        prompts = read_prompts(model, inputs, given)
        if given:
            model.refuse(given)
        if prompts is not None:
            self._add(prompts)

    @property
    def tracer(self) -> Tracer:
        """The tracer itself."""
        return self

    def _add(self, prompts: Any) -> Rows:
        with_graph = self.options is None and torch.is_grad_enabled()
        rows = Rows(self.model.engine, prompts, self.options, with_graph)
        self.rows.append(rows)
        if self.is_open:
            self._open_reader()
        for edit in self.edits:
            edit.replay(EngineScope(self, self.model, [rows]))
        return rows

    def own_value(self, scope: EngineScope, envoy: OwnEnvoy, what: str) -> Any:
        """What a module of the user's own was given or returned: by the last call in this trace, else by an edit's."""
        if self.edits and not self.own_calls.has_seen(envoy):
            found = self.own_calls.replayed.read(scope, envoy, what)
            if found is not None:
                return found
        return self.own_calls.read(envoy, what)

    @property
    def traces(self) -> list[Any]:
        """The engine's traces, one or several for each invoke."""
        return [run.trace for rows in self.rows for run in rows.runs]

    def collect(self) -> None:
        """Makes edits of what was changed in place since."""
        self.watch.collect()

    def __enter__(self) -> Tracer:
        self.is_open = True
        self._open_reader()
        _save.mount()
        _open.enter(self)
        return self

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> bool:
        _open.leave(self)
        if not self.is_open:
            return False  # It was left before, in another context.
        _save.unmount()
        self.reader = None
        stopped = isinstance(error, _Stop)
        finished = error is None or stopped
        try:
            if finished:
                self._close()
        finally:
            self.is_open = False
            for value in self.watch.close():
                if "pieces" in value.__dict__:
                    value.pieces.parts = ()  # They would keep the trace; gradients alone need them.
            if finished:
                for trace in self.traces:
                    trace.core.let_go()
        return stopped

    def _close(self) -> None:
        self.watch.collect()
        if self.own_calls.replayed is not None:
            self.own_calls.replayed.check_unchanged()
        for trace in self.traces:
            trace.core.collect()
        while self.caches:
            self.caches.pop().close()

    def invoke(self, *inputs: Any, **given: Any) -> Invoke:
        """Adds prompts: what is read and set inside is theirs alone, without padding of others. Without an input it is
        the whole batch, padded at the left."""
        prompts = read_prompts(self.model, inputs, given)
        self.model.refuse(given)
        if prompts is None:
            return self.invoke_kind(self, None)
        again = self._next_invoke
        self._next_invoke += 1
        if not self._in_loop or again >= len(self.rows):
            return self.invoke_kind(self, self._add(prompts))
        rows = self.rows[again]  # In a loop over steps around the invokes: the same one, later.
        if [row.tolist() for row in rows.prompts.rows] != [row.tolist() for row in prompts.rows]:
            raise _core.InputError(
                "a loop over steps around invokes goes through the same ones at each step; this one has another input "
                f"than at step 0: {inputs!r}"
            )
        invoke = self.invoke_kind(self, rows)
        invoke.step = self.step
        return invoke

    def go_to(self, step: int) -> bool:
        self._next_invoke = 0
        self._in_loop = True
        return super().go_to(step)

    def end_loop(self) -> None:
        self._in_loop = False

    def _innermost(self) -> EngineScope:
        found = _open.current(self.model)
        return found if isinstance(found, EngineScope) and found.tracer is self else self

    def stop(self) -> None:
        """Ends the body here; what wasn't read by then is not computed, and nothing more generated."""
        for rows in self._innermost()._rows():
            rows.stopped = True
        raise _Stop

    def barrier(self, n_participants: int = 0) -> Callable[[], None]:
        """Does nothing: values flow between invokes without it."""
        return lambda: None

    def cache(self, modules: Any = None, **options: Any) -> CacheView:
        """Values of modules, or of all of them, as they are at the end of the trace, at each step; see `Cache`."""
        scope = self._innermost()
        request = Cache(self.model, modules, **options)
        self.caches.append(request)
        return request.view(scope.fill)

    @property
    def result(self) -> Any:
        """What the traced call returns: the model's output, or all token ids of a generation (batch pos)."""
        scope = self._innermost()
        return scope.read(self.model, "output") if self.options is None else scope.generated()

    @property
    def input(self) -> Any:
        """The token ids of the whole batch."""
        return self.read(self.model, "input")

    def local(self) -> Any:
        """Does nothing: every trace is local."""
        return self

    # Without `with`, `model.generate(…)` is what it generates.

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or self.__dict__.get("options") is None:
            raise AttributeError(f"a tracer has no {name!r}")
        return getattr(self.result, name)

    def __getitem__(self, index: Any) -> Any:
        if self.options is None:
            raise TypeError("a tracer is no sequence: use it in `with model.trace(…) as tracer:`")
        return self.result[index]

    def __len__(self) -> int:
        if self.options is None:
            raise TypeError("a tracer has no length: use it in `with model.trace(…) as tracer:`")
        return len(self.result)

    def __bool__(self) -> bool:
        return True

    def __iter__(self) -> Iterator[Any]:
        if self.options is None:
            raise TypeError("a tracer is no sequence: use it in `with model.trace(…) as tracer:`")
        return iter(self.result)

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return function(*[each.result if isinstance(each, Tracer) else each for each in args], **(kwargs or {}))

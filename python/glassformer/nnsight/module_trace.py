"""`with module.trace(...)`: a body that is ordinary Python and runs once, on real tensors, while the module runs
whenever something is asked of it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from glassformer import _core
from glassformer.nnsight import _open, _save, _trees
from glassformer.nnsight.cache import Cache, CacheView
from glassformer.nnsight.module_scope import ModuleScope
from glassformer.nnsight.steps import StepChooser, Steps


class Stopped(BaseException):
    """Internal: ends the body of a trace, by `tracer.stop()`."""

    def __init__(self, tracer: ModuleTrace) -> None:
        super().__init__("tracer.stop() was called outside of its trace")
        self.tracer = tracer


class ModuleTrace:
    """A trace of a torch module: made by `NNsight.trace`, entered by `with`.

    Inside it `.input`, `.inputs` and `.output` of every module can be read, set and changed in place, in any order. At
    its end whatever has not run yet runs.
    """

    root = None  # Modules ask the scopes of its inputs.

    def __init__(
        self,
        envoy: Any,
        function: str | Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        is_fake: bool = False,
    ) -> None:
        self._envoy = envoy
        self._function = function
        self._arguments = (args, kwargs)
        self._has_input = bool(args or kwargs)
        self._is_fake = is_fake
        self._scopes: list[ModuleScope] = []
        self._inside: list[ModuleScope] = []
        self._caches: list[tuple[ModuleScope, Cache]] = []
        self._exits = contextlib.ExitStack()
        self._is_open = False

    def __enter__(self) -> ModuleTrace:
        if self._is_open or self._envoy is None:
            raise _core.InputError("this trace was entered before; make another one: `with model.trace(...)`")
        self._is_open = True
        try:
            _save.mount()
            self._exits.callback(_save.unmount)
            _open.enter(self)
            self._exits.callback(_open.leave, self)
            if self._is_fake:
                from torch._subclasses.fake_tensor import FakeTensorMode

                self._exits.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
            if self._has_input:
                self._begin(*self._arguments)
            else:
                waiting = _WithoutInput(self._envoy.root)
                _open.enter(waiting)
                self._exits.callback(_open.leave, waiting)
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> bool:
        try:
            if error is None:
                if not self._scopes:
                    raise _core.InputError(
                        f"{self._envoy.path}.trace() has no input: give it one, or use `with tracer.invoke(...):` in it"
                    )
                for scope in self._scopes:
                    if not scope.is_stopped:
                        scope.finish()
            if error is None or self._is_mine(error):
                for scope, cache in self._caches:
                    scope.is_stopped = scope.is_stopped or error is not None
                    cache.close()
        finally:
            self._close()
        return self._is_mine(error)

    def _is_mine(self, error: Any) -> bool:
        return isinstance(error, Stopped) and error.tracer is self

    def _close(self) -> None:
        self._is_open = False
        for scope in [*self._inside, *self._scopes]:
            _open.leave(scope)  # type: ignore[arg-type]
            scope.close()
        for _, cache in self._caches:
            cache.drop()
        self._scopes, self._inside, self._caches = [], [], []
        self._envoy, self._function, self._arguments = None, "", ((), {})  # A tracer may live longer than its model.
        self._exits.close()

    def _begin(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ModuleScope:
        """Begins with another input."""
        envoy, function = self._envoy, self._function
        module, device = envoy._module, envoy.device
        is_call = function == "__call__"
        called = module if is_call else getattr(module, function) if isinstance(function, str) else function
        arguments = _trees.mapped(
            (args, kwargs), lambda _, leaf: leaf.to(device) if isinstance(leaf, torch.Tensor) and device else leaf
        )
        root = envoy.root
        modules = [(f"{root.path}.{name}" if name else root.path, each) for name, each in root._module.named_modules()]
        scope = ModuleScope(root, modules, called, arguments, envoy.path if is_call else None, self._is_fake)
        self._scopes.append(scope)
        return self._enter_scope(scope)

    def _begin_again(self) -> ModuleScope:
        """Goes on with the one input that there was."""
        if not self._scopes:
            raise _core.UnavailableError(
                "an empty tracer.invoke() reads what an input before it has run; there is none yet"
            )
        if len(self._scopes) > 1:
            raise _core.UnsupportedError(
                "an empty tracer.invoke() stands for all inputs as one batch, and several inputs of a module are runs "
                "of their own here: read in their blocks, or give one input that is a batch"
            )
        return self._enter_scope(self._scopes[0])

    def _enter_scope(self, scope: ModuleScope) -> ModuleScope:
        self._inside.append(scope)
        _open.enter(scope)  # type: ignore[arg-type]
        return scope

    # --- inputs

    @contextlib.contextmanager
    def invoke(self, *args: Any, **kwargs: Any) -> Iterator[ModuleTrace]:
        """`with tracer.invoke(x):` in a trace without an input: one input of several, each a run of its own, one after
        the other. Without an input: the run of the one that there was, once more, to read or edit it further."""
        if not self._is_open:
            raise _core.UnavailableError("tracer.invoke(...) belongs inside `with model.trace() as tracer:`")
        if self._has_input or self._inside:
            where = "trace(...) has an input itself" if self._has_input else "it stands inside of another one"
            raise _core.InputError(
                f"tracer.invoke(...): {where}; use `with model.trace() as tracer:` and one after another"
            )
        scope = self._begin(args, kwargs) if args or kwargs else self._begin_again()
        try:
            yield self
            scope.finish()
        except Stopped as stopped:
            if not self._is_mine(stopped):
                raise
            scope.is_stopped = True
        finally:
            _open.leave(scope)  # type: ignore[arg-type]
            self._inside.remove(scope)
            scope.step = 0

    def barrier(self, n_participants: int = 0) -> Callable[[], None]:
        """Something to call: blocks run one after the other here, so none has to wait."""
        return lambda: None

    def stop(self) -> None:
        """Ends the body here. What was not needed so far doesn't run."""
        raise Stopped(self)

    # --- values

    def _scope(self) -> ModuleScope:
        if not self._is_open:
            raise _core.UnavailableError("the trace is over: use its tracer inside `with model.trace(...) as tracer:`")
        if not self._inside:
            raise _core.UnavailableError("the trace has no input yet: use `with tracer.invoke(...):`")
        return self._inside[-1]

    @property
    def result(self) -> Any:
        """What the traced call returned."""
        return self._scope().result()

    @property
    def iter(self) -> StepChooser:
        """`for step in tracer.iter[…]:` goes through the calls of modules that are called several times: inside, values
        of a module are those of its call `step`. A slice, a number or a list; an open slice ends where none of the
        modules that the body asks is called once more."""
        return self._scope().iter

    def all(self) -> Steps:
        """`tracer.iter[:]`."""
        return self._scope().all()

    def next(self, steps: int = 1) -> ModuleTrace:
        """From now on values are those of `steps` calls later."""
        self._scope().step += steps
        return self

    def cache(self, modules: Sequence[Any] | None = None, **options: Any) -> CacheView:
        """Everything at once: the outputs (and inputs) of all modules, or of some, given as envoys or paths, with all
        edits. For `options` see `Cache`, for what is returned `CacheView`."""
        scope = self._scope()
        cache = Cache(scope.root, modules, **options)
        self._caches.append((scope, cache))
        return cache.view(scope.fill)


class _WithoutInput:
    """What modules are asked in a trace outside of its inputs: `UnavailableError`, but they can be called."""

    def __init__(self, root: Any) -> None:
        self.root = root

    def read(self, envoy: Any, what: str) -> Any:
        """A value."""
        raise _core.UnavailableError(
            f"{envoy.path}.{what}: the trace has no input here; ask inside `with tracer.invoke(...):`, or give one to "
            "trace(...)"
        )

    def write(self, envoy: Any, what: str, value: Any) -> None:
        """A value's place."""
        self.read(envoy, what)

    def skip(self, envoy: Any, value: Any) -> None:
        """A module's work."""
        self.read(envoy, "skip")

    def advance(self, envoy: Any, steps: int) -> None:
        """A later call."""
        self.read(envoy, "next")

    @property
    def iter(self) -> StepChooser:
        """The calls of modules."""
        return self.read(self.root, "iter")

    def all(self) -> Steps:
        """All of them."""
        return self.read(self.root, "all")

    def call(self, envoy: Any, args: tuple[Any, ...], kwargs: dict[str, Any], watched: bool) -> Any:
        """Runs a module."""
        return envoy._module(*args, **kwargs)

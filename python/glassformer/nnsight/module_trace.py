"""`with module.trace(...)`: a body that is ordinary Python and runs once, on real tensors, while the module runs
whenever something is asked of it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
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
                self._exits.enter_context(_fake_mode())
            if self._has_input:
                self._begin(*self._arguments)
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
        self._inside.append(scope)
        _open.enter(scope)  # type: ignore[arg-type]
        return scope

    # --- inputs

    def invoke(self, *args: Any, **kwargs: Any) -> Invoke:
        """`with tracer.invoke(x):` in a trace without an input: one input of several, each a run of its own, one after
        the other. Without an input: the run of the one that there was, once more, to read or edit it further."""
        return Invoke(self, args, kwargs)

    def barrier(self, n_participants: int = 0) -> Callable[[], None]:
        """Something to call: blocks run one after the other here, so none has to wait."""
        return lambda: None

    def stop(self) -> None:
        """Ends the body here. What was not needed so far doesn't run."""
        raise Stopped(self)

    # --- values

    @property
    def root(self) -> Any:
        """Internal: nothing, as the values of a trace are those of its inputs."""
        return self

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

    def cache(
        self,
        modules: Sequence[Any] | None = None,
        device: Any = "cpu",
        dtype: torch.dtype | None = None,
        detach: bool = True,
        include_output: bool = True,
        include_inputs: bool = False,
        non_blocking: bool = False,
    ) -> CacheView:
        """Everything at once: the outputs (and inputs) of all modules, or of some, given as envoys or paths, with all
        edits. See `CacheView`."""
        scope = self._scope()
        cache = Cache(scope.root, modules, device, dtype, detach, include_output, include_inputs, non_blocking)
        self._caches.append((scope, cache))
        return cache.view(scope.fill)


class Invoke:
    """One input of a trace; made by `tracer.invoke`."""

    def __init__(self, tracer: ModuleTrace, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._tracer = tracer
        self._arguments = (args, kwargs)
        self._scope: ModuleScope | None = None

    def __enter__(self) -> ModuleTrace:
        tracer = self._tracer
        if not tracer._is_open:
            raise _core.UnavailableError("tracer.invoke(...) belongs inside `with model.trace() as tracer:`")
        if tracer._has_input or tracer._inside:
            where = "trace(...) has an input itself" if tracer._has_input else "it stands inside of another one"
            raise _core.InputError(
                f"tracer.invoke(...): {where}; use `with model.trace() as tracer:` and one after another"
            )
        args, kwargs = self._arguments
        if args or kwargs:
            self._scope = tracer._begin(args, kwargs)
            return tracer
        if not tracer._scopes:
            raise _core.UnavailableError(
                "an empty tracer.invoke() reads what an input before it has run; there is none yet"
            )
        if len(tracer._scopes) > 1:
            raise _core.UnsupportedError(
                "an empty tracer.invoke() stands for all inputs as one batch, and several inputs of a module are runs "
                "of their own here: read in their blocks, or give one input that is a batch"
            )
        self._scope = tracer._scopes[0]
        tracer._inside.append(self._scope)
        _open.enter(self._scope)  # type: ignore[arg-type]
        return tracer

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> bool:
        scope, tracer = self._scope, self._tracer
        assert scope is not None
        try:
            if error is None:
                scope.finish()
        finally:
            _open.leave(scope)  # type: ignore[arg-type]
            tracer._inside.remove(scope)
            scope.step = 0
        if tracer._is_mine(error):
            scope.is_stopped = True
            return True
        return False


def _fake_mode() -> Any:
    from torch._subclasses.fake_tensor import FakeTensorMode

    return FakeTensorMode(allow_non_fake_inputs=True)

"""What a module's work consists of: the nodes of the graph, in computing order."""

from __future__ import annotations

from typing import Any

from glassformer import _core
from glassformer.nnsight import _open


class Operation:
    """A node of a module: `.output` is its value in the open trace, to read and to set; printed, how it comes about."""

    def __init__(self, envoy: Any, node: str) -> None:
        self.__dict__.update(envoy=envoy, node=node)

    @property
    def output(self) -> Any:
        """The node's value: its own shape (`batch pos head d_head`, …)."""
        scope = _open.needed(self.envoy.root, f"{self.node}.output")
        return scope.read_nodes((self.node,), scope.step_of(self.envoy), by_head=True)  # type: ignore[attr-defined]

    @output.setter
    def output(self, value: Any) -> None:
        scope = _open.needed(self.envoy.root, f"{self.node}.output")
        scope.write_nodes((self.node,), scope.step_of(self.envoy), value, by_head=True)  # type: ignore[attr-defined]

    def __repr__(self) -> str:
        return trace_for(self.envoy).explain(self.node)


class Source:
    """The nodes of a module by name: `source.hook_pattern.output`. Printed, all of them and how each comes about."""

    def __init__(self, envoy: Any) -> None:
        self.__dict__.update(envoy=envoy, nodes=_nodes_of(envoy))

    def __getattr__(self, name: str) -> Operation:
        if name.startswith("__"):
            raise AttributeError(name)
        for node in self.nodes:
            if node in (name, f"hook_{name}") or node.endswith((f".{name}", f".hook_{name}")):
                return Operation(self.envoy, node)
        short = ", ".join(node.rpartition(".")[2] for node in self.nodes)
        raise _core.NameError(f"{self.envoy.path}.source has no node '{name}'; it has {short}")

    def __getitem__(self, name: str) -> Operation:
        return self.__getattr__(name)

    def __iter__(self) -> Any:
        return (Operation(self.envoy, node) for node in self.nodes)

    def __len__(self) -> int:
        return len(self.nodes)

    def __repr__(self) -> str:
        trace = trace_for(self.envoy)
        return "\n".join(trace.explain(node) for node in self.nodes) or f"{self.envoy.path} computes nothing"


def _nodes_of(envoy: Any) -> list[str]:
    place = envoy.place
    if not place.outputs:
        return []
    names = list(envoy.root.node_axes)
    begins = [names.index(node) for node in place.inputs]
    ends = [names.index(node) for nodes in place.outputs for node in nodes]
    prefix = f"blocks.{place.layer}." if place.layer >= 0 else ""
    return [name for name in names[min(begins, default=0) + 1 : max(ends) + 1] if name.startswith(prefix)]


def trace_for(envoy: Any) -> Any:
    """Internal: the open trace, else one of a single token: the steps are the same, and nothing is computed."""
    scope = _open.current(envoy.root)
    if scope is not None and getattr(scope, "tracer", None) is not None and scope.tracer.traces:
        scope.tracer.collect()
        return scope.tracer.traces[0]
    return envoy.root.engine.trace([0])

"""How TransformerLens shows the nodes of a model: some with fewer axes, and what experts make expert by expert."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

import glassformer

EXPERT_NODE = re.compile(r"(?P<mlp>blocks\.\d+\.mlp\.)hook_expert_(?P<part>gate|pre|post|out)")


@dataclass(frozen=True)
class Presentation:
    """One hook name of TransformerLens: which node of the core it shows, and what of it.

    `node` is the node's name. `flat` of its first axes are one axis (0: it is shown as it is). With an `expert`, the
    rows of that expert are shown, `[rows, d_mlp]`: those of every token's first slot, then those of the second.
    `indices` is the node that says which expert each slot is of. An expert that `may_be_absent` and has no rows is not
    there: its hooks aren't called.
    """

    node: str
    flat: int = 0
    expert: int | None = None
    indices: str = ""
    may_be_absent: bool = False

    @property
    def is_other(self) -> bool:
        """Whether it is shown otherwise than it is."""
        return self.expert is not None or self.flat > 0

    def show(self, value: torch.Tensor, indices: torch.Tensor | None = None) -> torch.Tensor:
        """The node's value (or gradient) as TransformerLens has it. `indices`: that node's value, for an expert."""
        if self.expert is not None:
            return value.flatten(0, 1)[self._rows(indices)]
        return value.flatten(0, self.flat - 1) if self.flat else value

    def put(self, value: torch.Tensor, shown: torch.Tensor, indices: torch.Tensor | None = None) -> torch.Tensor:
        """The node's value with `shown`, in its shape or one that broadcasts to it (else `ShapeError`), in the place of
        what is shown of it; a new tensor, on the graphs of both."""
        if self.expert is None:
            return self._expanded(shown, self.show(value).shape).reshape(value.shape)
        rows = self._rows(indices)
        shown = self._expanded(shown, (len(rows[0]), *value.shape[3:])).to(value.dtype)
        return value.flatten(0, 1).index_put(rows, shown).unflatten(0, value.shape[:2])

    def is_absent(self, shown: torch.Tensor) -> bool:
        """Whether what is shown is of an expert that isn't there."""
        return self.may_be_absent and shown.shape[0] == 0

    def hook(self, function: Callable) -> Callable:
        """`function(shown, call)` as a hook of `node`: what it returns, or None and the change in place, counts."""

        def present(value: torch.Tensor, call: glassformer.HookCall) -> torch.Tensor | None:
            indices = call.read(self.indices) if self.expert is not None else None
            shown = self.show(value, indices)
            if self.is_absent(shown):
                return None
            result = function(shown, call)
            return self.put(value, shown if result is None else result, indices)

        return present

    def _expanded(self, shown: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
        try:
            return shown.expand(shape)
        except RuntimeError:
            whose = self.node if self.expert is None else f"expert {self.expert} of {self.node}"
            raise glassformer.ShapeError(
                f"{whose}: expected a value of shape {list(shape)} or one that broadcasts to it; found "
                f"{list(shown.shape)}"
            ) from None

    def _rows(self, indices: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Row (of batch and pos in one) and slot of each row that is shown, in order."""
        if indices is None:
            raise ValueError(f"to show expert {self.expert} of {self.node}, give the value of {self.indices}")
        slot, row = torch.where(self.expert == indices.flatten(0, 1).T)
        return row, slot


def presentations(model: glassformer.Model) -> dict[str, Presentation]:
    """All nodes of `model` by TransformerLens' names, in its computing order; those that it has not, by ours."""
    made: dict[str, Presentation] = {}
    waiting: list[re.Match] = []
    n_experts, clamped = model.config.n_experts, model.config.activation == "clamped_glu"
    for node in model.nodes():
        if found := EXPERT_NODE.fullmatch(node.name):
            waiting.append(found)
            if found["part"] == "out":
                made |= _of_experts(waiting, n_experts, clamped)
                waiting = []
        else:
            made[node.name] = Presentation(node.name, _flat(node))
    return made


def _of_experts(nodes: list[re.Match], n_experts: int, may_be_absent: bool) -> dict[str, Presentation]:
    """What the experts of one layer make, one expert after the other."""
    mlp, last = nodes[0]["mlp"], nodes[-1][0]
    indices = f"{mlp}hook_expert_indices"
    by_expert = {
        f"{mlp}experts.{expert}.hook_{found['part']}": Presentation(
            found[0], expert=expert, indices=indices, may_be_absent=may_be_absent
        )
        for expert in range(n_experts)
        for found in nodes[:-1]
    }
    return by_expert | {last: Presentation(last)}


def _flat(node: glassformer.Node) -> int:
    """Of how many axes TransformerLens makes one."""
    if node.name.endswith((".hook_expert_weights", ".hook_expert_indices")):
        return 2
    is_norm = ".attn.q_norm." in node.name or ".attn.k_norm." in node.name
    return 3 if is_norm and len(node.axes) == 4 else 0  # By head.

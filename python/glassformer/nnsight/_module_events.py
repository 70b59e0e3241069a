"""What is known of a module's run: each module's arguments on its way in and what it returned on its way out, in the
order in which it happened, and the edits of these."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from glassformer.nnsight import _trees, gradients
from glassformer.nnsight._trees import Path
from glassformer.nnsight.tensors import TracedTensor, plain

_ORDINARY = (torch.Tensor, torch.nn.Parameter)


class Place(NamedTuple):
    """One end of one call of a module; `what` is "inputs" or "output"."""

    path: str
    call: int
    what: str

    def __str__(self) -> str:
        return f"{self.path}.{self.what}" + (f" (call {self.call})" if self.call else "")


class Source:
    """A tensor on the graph whose gradient is part of a value's."""

    place: Any = ...

    def __init__(self, source: torch.Tensor, group: Sources) -> None:
        self.source = source
        self._group = group

    def replace_gradient(self, numbers: torch.Tensor, backward: Any) -> None:
        """Lets other numbers flow on: through the first of the value's sources that the pass reaches."""
        reached = [each for each in self._group.tensors if backward.gradient(each) is not None]
        backward.put(self.source, numbers if reached and reached[0] is self.source else torch.zeros_like(numbers))


class Sources:
    """Where a value's gradient is found, if not at itself: a module has a copy of a tensor that others have too, and
    each run of it another one. The gradient by the tensor is the sum of all."""

    padding = None

    def __init__(self) -> None:
        self.tensors: list[torch.Tensor] = []
        self._is_kept = False

    @property
    def parts(self) -> list[Source]:
        """The tensors, each with its part in the gradient."""
        return [Source(each, self) for each in self.tensors]

    def add(self, source: torch.Tensor) -> None:
        """One more, unless it is known."""
        if all(each is not source for each in self.tensors):
            self.tensors.append(source)
            if self._is_kept:
                keep_gradient(source)

    def keep(self) -> None:
        """From now on backward passes leave gradients at the sources."""
        self._is_kept = True
        for each in self.tensors:
            keep_gradient(each)

    def gather(self, shape: Any, of: Callable[[torch.Tensor], torch.Tensor | None]) -> torch.Tensor | None:
        """The sum of what `of` gives for each; None where it gives nothing for any."""
        found = [each for each in map(of, self.tensors) if each is not None]
        return sum(found[1:], found[0]) if found else None


class Event:
    """What stood at a place in the run: `raw` as it was computed, `now` with its edits. The module's run goes on with
    copies of `now`, so changing it in place changes nothing else."""

    def __init__(self, place: Place, raw: Any) -> None:
        self.place = place
        self.raw = raw
        self.now = raw
        self.end: int | None = None  # Of a way in: the number of the way out.
        self.can_be_left_out = False
        self.sources: dict[Path, Sources] = {}
        self.changed_in_place: dict[Path, torch.Tensor] = {}  # What others that have the tensor see too.
        self.noted: Any = None  # The structure whose lists and dicts are watched.
        self.is_handed_out = False
        self.is_dropped = False

    def hand_out(self) -> None:
        """From now on what was computed is kept apart from what its user has."""
        if not self.is_handed_out:
            self.raw, self.is_handed_out = snapshots(self.raw), True


@dataclass
class Put:
    """Something else in the place of a part: it stands whatever is computed there."""

    path: Path
    value: Any
    text: str
    order: int


@dataclass
class Region:
    """Numbers in a region of a tensor: they stand whatever is computed there."""

    path: Path
    index: Any
    value: Any
    text: str
    order: int


@dataclass
class Derived:
    """A tensor that its user changed in place: it belongs to the numbers that it had, `source`, after the edits whose
    order is less than `base`."""

    path: Path
    tensor: torch.Tensor
    source: torch.Tensor
    base: int
    text: str
    order: int


Edit = Put | Region | Derived


@dataclass
class Handed:
    """A tensor in its user's hands."""

    tensor: torch.Tensor
    event: Event
    path: Path
    version: int
    source: torch.Tensor
    base: int
    why: str = ""

    def is_current(self) -> bool:
        """Whether changing it changes what stands at its place."""
        if self.event.is_dropped:
            return False
        try:
            return _trees.taken(self.event.now, self.path) is self.tensor
        except KeyError:
            return False


def copied(tensor: torch.Tensor) -> torch.Tensor:
    """A copy on the same graph, whose memory is shared until either is changed."""
    if getattr(tensor, "is_loose", False):
        return plain(tensor).clone()
    tensor = plain(tensor) if isinstance(tensor, TracedTensor) else tensor
    if type(tensor) in _ORDINARY and tensor.layout is torch.strided and not tensor.is_nested:
        memory = tensor.untyped_storage().nbytes()
        if tensor.nbytes <= memory <= 4 * tensor.nbytes:
            try:
                return torch._lazy_clone(tensor)  # type: ignore[attr-defined]
            except RuntimeError:  # Memory that isn't torch's own.
                pass
    return tensor.clone()


def keep_gradient(tensor: torch.Tensor) -> None:
    """Lets backward passes leave the gradient at a tensor that is no leaf."""
    if tensor.requires_grad and not tensor.is_leaf:
        tensor.retain_grad()
        gradients.remember(tensor)


def copies(value: Any) -> Any:
    """A structure with copies of its tensors."""
    return _trees.mapped(value, lambda _, leaf: copied(leaf) if isinstance(leaf, torch.Tensor) else leaf)


def snapshots(value: Any) -> Any:
    """A structure with copies of its tensors that are on no graph."""
    return _trees.mapped(value, lambda _, leaf: copied(leaf.detach()) if isinstance(leaf, torch.Tensor) else leaf)

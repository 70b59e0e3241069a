"""The edits of a trace of a torch module: what was put or changed where, in which order."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from glassformer import _core
from glassformer.nnsight import _trees
from glassformer.nnsight._module_events import Derived, Edit, Event, Place, Put, copied, copies
from glassformer.nnsight._module_state import same_bits
from glassformer.nnsight._trees import Path
from glassformer.nnsight.tensors import plain


class Edits:
    """The edits of every place, in their order."""

    def __init__(self, is_fake: bool) -> None:
        self.n_made = 0
        self._is_fake = is_fake
        self._by_place: dict[Place, list[Edit]] = {}

    def next_order(self) -> int:
        """The number of another edit."""
        self.n_made += 1
        return self.n_made - 1

    def at(self, place: Place) -> list[Edit]:
        """The edits of a place; it may be added to."""
        return self._by_place.setdefault(place, [])

    def all(self) -> Iterable[tuple[Place, list[Edit]]]:
        """The places that have edits."""
        return [(place, edits) for place, edits in self._by_place.items() if edits]

    def add(self, place: Place, edit: Edit) -> None:
        """One more edit; something that is put in the place of an output drops what stands before it."""
        edits = self.at(place)
        if isinstance(edit, Put) and place.what == "output":  # Of an input others may have the tensor that was there.
            edits[:] = [each for each in edits if each.path[: len(edit.path)] != edit.path]
        edits.append(edit)

    def put_on(self, event: Event, known: Iterable[Place]) -> None:
        """Applies the edits of a place to what a run has come to there; `known` are the places that it has passed.

        Raises `OrderError` where a change in place was made from something else.
        """
        edits = self._by_place.get(event.place, [])
        unchecked = [each for each in edits if isinstance(each, Derived)]
        for index, edit in enumerate(edits):
            for derived in [each for each in unchecked if each.base <= edit.order]:
                self._check_source(derived, event, known)
                unchecked.remove(derived)
            event.now = applied(edit, event.now)
            note_change(event, edits[: index + 1])

    def _check_source(self, derived: Derived, event: Event, known: Iterable[Place]) -> None:
        """Whether a change in place was made from what stands there: the same numbers, and no other graph."""
        try:
            there = _trees.taken(event.now, derived.path)
        except KeyError:
            there = None
        has_graph = derived.tensor.requires_grad or not isinstance(there, torch.Tensor) or there.requires_grad
        if not has_graph and (self._is_fake or same_bits(plain(there), plain(derived.source))):
            return
        places = set(known) - {event.place}
        causes = [edit for place in places for edit in self._by_place.get(place, []) if edit.order >= derived.base]
        cause = max(causes, key=lambda edit: edit.order).text if causes else "the module was changed"
        raise _core.OrderError(
            f"{derived.text}, starting from a value that an edit made later has changed: {cause}. Make that edit "
            "first, or set the value (`= …`, `[…] = …`), which stands whatever changes before it"
        )


def applied(edit: Edit, now: Any) -> Any:
    """What stands at a place, with one more edit; `ShapeError` where it has no such part."""
    try:
        if isinstance(edit, Put):
            return _trees.put(now, edit.path, copies(edit.value))
        there = _trees.taken(now, edit.path)
        if isinstance(edit, Derived):
            return _trees.replaced(now, there, edit.tensor)
        fresh = copied(there)
        fresh[edit.index] = copies(edit.value)
        return _trees.replaced(now, there, fresh)
    except KeyError:
        raise _core.ShapeError(f"{edit.text}, but it has no such part in this run") from None


def note_change(event: Event, edits: list[Edit]) -> None:
    """Notes what the last edit changed in place, unless the tensor there was put there."""
    last = edits[-1]
    if not isinstance(last, Put) and not is_put(last.path, edits):
        event.changed_in_place[last.path] = _trees.taken(event.now, last.path)


def is_put(path: Path, edits: list[Edit]) -> bool:
    """Whether an edit has put something else in the place of a part."""
    return any(isinstance(edit, Put) and path[: len(edit.path)] == edit.path for edit in edits)


def is_in_place(path: Path, edits: list[Edit]) -> bool:
    """Whether edits have changed the tensor that was there, and none has put another in its place."""
    return any(edit.path == path for edit in edits) and not is_put(path, edits)

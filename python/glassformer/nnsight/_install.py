"""Glassformer under nnsight's own name, for files that say `import nnsight`."""

from __future__ import annotations

import importlib

from glassformer._take_name import take_name

_NAME, _OWN = "nnsight", "glassformer.nnsight"


def install(force: bool = False) -> None:
    """Let `import nnsight` mean this package.

    RuntimeError if another `nnsight` was imported before, unless `force`: then its modules are forgotten, and what was
    taken from them stays theirs. A second call changes nothing.
    """
    take_name(_NAME, importlib.import_module(_OWN), force)

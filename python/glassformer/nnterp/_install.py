"""Glassformer under nnterp's own name, for files that say `import nnterp`."""

from __future__ import annotations

import importlib
import pkgutil
import sys

from glassformer._take_name import take_name

_NAME, _OWN = "nnterp", "glassformer.nnterp"


def install(force: bool = False) -> None:
    """Let `import nnterp`, and its submodules that have a counterpart here, mean this package.

    RuntimeError if another `nnterp` was imported before, unless `force`: then its modules are forgotten, and what was
    taken from them stays theirs. A second call changes nothing.
    """
    package = importlib.import_module(_OWN)
    take_name(_NAME, package, force)
    for found in pkgutil.iter_modules(package.__path__):
        if not found.name.startswith("_"):
            sys.modules[f"{_NAME}.{found.name}"] = importlib.import_module(f"{_OWN}.{found.name}")

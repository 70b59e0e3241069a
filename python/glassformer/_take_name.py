"""A package of ours under the name of the one whose vocabulary it has."""

from __future__ import annotations

import sys
from types import ModuleType


def take_name(name: str, package: ModuleType, force: bool) -> None:
    """Lets `import name` mean `package`.

    RuntimeError if another package of that name was imported before, unless `force`: then its modules are forgotten,
    and what was taken from them stays theirs.
    """
    if sys.modules.get(name) not in (None, package):
        if not force:
            raise RuntimeError(f"{name} was imported already; call install() before that, or install(force=True)")
        for old in [old for old in sys.modules if old == name or old.startswith(f"{name}.")]:
            del sys.modules[old]
    sys.modules[name] = package

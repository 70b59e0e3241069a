"""Libraries that may be missing."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from types import ModuleType


def is_library_available(name: str) -> bool:
    """Whether a library is installed; it is not imported."""
    return name in sys.modules or importlib.util.find_spec(name) is not None


def needed(library: str, purpose: str) -> ModuleType:
    """A library that is not among what Glassformer needs; ImportError in one line where it is missing."""
    try:
        return importlib.import_module(library)
    except ModuleNotFoundError as error:
        if error.name != library.partition(".")[0]:
            raise
        raise ImportError(f"{purpose} needs the package '{error.name}'; install it: pip install {error.name}") from None

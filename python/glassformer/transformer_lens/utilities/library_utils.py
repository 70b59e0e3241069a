"""Libraries that may be missing."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterable
from types import ModuleType
from typing import Any


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


def with_progress(items: Iterable[Any], **options: Any) -> Iterable[Any]:
    """The same items, with a bar that shows how many are done where `tqdm` is installed; `options` are tqdm's."""
    return importlib.import_module("tqdm.auto").tqdm(items, **options) if is_library_available("tqdm") else items

"""Attributes of attributes."""

from __future__ import annotations

import functools
from typing import Any


def get_nested_attr(obj: Any, attr_str: str) -> Any:
    """`obj.a.b.c` for "a.b.c"; AttributeError where one is missing."""
    return functools.reduce(getattr, attr_str.split("."), obj)


def set_nested_attr(obj: Any, attr_str: str, value: Any) -> None:
    """`obj.a.b.c = value` for "a.b.c"; AttributeError where one before the last is missing."""
    *path, last = attr_str.split(".")
    setattr(functools.reduce(getattr, path, obj), last, value)

"""Values that stand until others are given."""

from __future__ import annotations

from typing import Any

from glassformer.transformer_lens.utilities.attribute_utils import get_nested_attr, set_nested_attr

USE_DEFAULT_VALUE = None

_PLACES = {
    "prepend_bos": ("cfg.default_prepend_bos", [USE_DEFAULT_VALUE, True, False]),
    "padding_side": ("tokenizer.padding_side", [USE_DEFAULT_VALUE, "left", "right"]),
}


def override_or_use_default_value(default_flag: Any, override: Any | None = None) -> Any:
    """`override`, unless it is None: then `default_flag`."""
    return default_flag if override is None else override


class LocallyOverridenDefaults:
    """A block inside which a model's `prepend_bos` (`cfg.default_prepend_bos`) or `padding_side`
    (`tokenizer.padding_side`, if it has a tokenizer) is another; None leaves it.

    Other names, and other values than True, False, "left" and "right", are AssertionErrors.
    """

    def __init__(self, model: Any, **overrides: Any) -> None:
        for name in overrides:
            if name not in _PLACES:
                raise AssertionError(f"'{name}' can't be overridden; expected one of {', '.join(_PLACES)}")
        self.model = model
        self.overrides = overrides
        self._before: dict[str, Any] = {}

    def __enter__(self) -> None:
        for name, value in self.overrides.items():
            place, allowed = _PLACES[name]
            if name == "padding_side" and self.model.tokenizer is None:
                continue
            if value not in allowed:
                self.__exit__(None, None, None)
                raise AssertionError(f"{name} is one of {', '.join(map(repr, allowed))}; found {value!r}")
            self._before[place] = get_nested_attr(self.model, place)
            set_nested_attr(self.model, place, override_or_use_default_value(self._before[place], value))

    def __exit__(self, *error: Any) -> None:
        while self._before:
            place, value = self._before.popitem()
            set_nested_attr(self.model, place, value)

"""The activation function of a config."""

from __future__ import annotations

from typing import Any

from glassformer import _core
from glassformer.transformer_lens.utilities.activation_functions import (
    SUPPORTED_ACTIVATIONS,
    XIELU,
    ActivationFunction,
)


class ActivationFunctionFactory:
    """Finds activation functions."""

    @staticmethod
    def pick_activation_function(cfg: Any) -> ActivationFunction:
        """The function that `cfg.act_fn` names; for "xielu" a new module, which learns. `InputError` for another."""
        if cfg.act_fn == "xielu":
            return XIELU()
        if cfg.act_fn not in SUPPORTED_ACTIVATIONS:
            known = ", ".join(SUPPORTED_ACTIVATIONS)
            raise _core.InputError(f"act_fn is {cfg.act_fn!r}; expected one of {known}")
        return SUPPORTED_ACTIVATIONS[cfg.act_fn]

"""How weights are quantised."""

from __future__ import annotations

from typing import Any


def quantization_method(config: Any) -> str | None:
    """What a config of `transformers` (or what config.json says) calls the quantisation of its weights; None if they
    have none."""

    def part(owner: Any, name: str) -> Any:
        return owner.get(name) if isinstance(owner, dict) else getattr(owner, name, None)

    found = part(part(config, "quantization_config"), "quant_method")
    found = getattr(found, "value", found)
    return found if isinstance(found, str) else None

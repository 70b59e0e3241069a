"""Keys and values of what a model has read, for what it reads next."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from glassformer.transformer_lens.config import HookedTransformerConfig


@dataclass
class TransformerLensKeyValueCacheEntry:
    """One layer's: `past_keys` (before rotation) and `past_values`, batch pos kv_head d_head."""

    past_keys: torch.Tensor
    past_values: torch.Tensor
    frozen: bool = False

    @classmethod
    def init_cache_entry(
        cls, cfg: HookedTransformerConfig, device: torch.device | str | None, batch_size: int = 1
    ) -> TransformerLensKeyValueCacheEntry:
        """An entry without positions."""
        n_heads = cfg.n_heads if cfg.n_key_value_heads is None else cfg.n_key_value_heads
        empty = torch.empty((batch_size, 0, n_heads, cfg.d_head), device=device, dtype=cfg.dtype)
        return cls(empty, empty.clone())

    def append(self, new_keys: torch.Tensor, new_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The entry's keys and values with these behind them (batch pos kv_head d_head), which it then holds unless it
        is frozen."""
        keys = torch.cat([self.past_keys, new_keys], dim=1)
        values = torch.cat([self.past_values, new_values], dim=1)
        if not self.frozen:
            self.past_keys, self.past_values = keys, values
        return keys, values


@dataclass
class TransformerLensKeyValueCache:
    """Every layer's `entries`, and the attention mask (batch pos) of the positions in them.

    A model's call reads it and puts its own keys, values and mask behind, unless it is frozen.
    """

    entries: list[TransformerLensKeyValueCacheEntry]
    previous_attention_mask: torch.Tensor
    frozen: bool = False

    @classmethod
    def init_cache(
        cls, cfg: HookedTransformerConfig, device: torch.device | str | None, batch_size: int = 1
    ) -> TransformerLensKeyValueCache:
        """A cache without positions."""
        made = TransformerLensKeyValueCacheEntry.init_cache_entry
        entries = [made(cfg, device, batch_size) for _ in range(cfg.n_layers)]
        return cls(entries, torch.empty((batch_size, 0), device=device, dtype=torch.int))

    def freeze(self) -> None:
        """Let calls read it without adding to it."""
        self._set_frozen(True)

    def unfreeze(self) -> None:
        """Let calls add to it again."""
        self._set_frozen(False)

    def _set_frozen(self, frozen: bool) -> None:
        self.frozen = frozen
        for entry in self.entries:
            entry.frozen = frozen

    def append_attention_mask(self, attention_mask: torch.Tensor) -> torch.Tensor:
        """The mask of all positions with this one (batch pos) behind it, which is then kept unless frozen."""
        mask = torch.cat([self.previous_attention_mask, attention_mask.to(self.previous_attention_mask.device)], dim=-1)
        if not self.frozen:
            self.previous_attention_mask = mask
        return mask

    def __getitem__(self, index: Any) -> TransformerLensKeyValueCacheEntry:
        return self.entries[index]

    def __iter__(self) -> Iterator[TransformerLensKeyValueCacheEntry]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)


HookedTransformerKeyValueCache = TransformerLensKeyValueCache
HookedTransformerKeyValueCacheEntry = TransformerLensKeyValueCacheEntry

"""Which device is meant, and how much memory CUDA devices have left; models here lie on one device."""

from __future__ import annotations

from typing import Any, TypeAlias

import torch

from glassformer import _core

AvailableDeviceMemory: TypeAlias = list[tuple[int, int]]
"""The number of each CUDA device, and how many of its bytes torch hasn't taken."""


def calculate_available_device_cuda_memory(i: int) -> int:
    """How many bytes of CUDA device `i` torch hasn't taken."""
    return torch.cuda.get_device_properties(i).total_memory - torch.cuda.memory_allocated(i)


def determine_available_memory_for_available_devices(max_devices: int) -> AvailableDeviceMemory:
    """The first `max_devices` CUDA devices, each with its free bytes."""
    return [(i, calculate_available_device_cuda_memory(i)) for i in range(max_devices)]


def sort_devices_based_on_available_memory(devices: AvailableDeviceMemory) -> AvailableDeviceMemory:
    """The same, those with most memory first."""
    return sorted(devices, key=lambda device: device[1], reverse=True)


def get_best_available_cuda_device(max_devices: int | None = None) -> torch.device:
    """The CUDA device with most memory left, of the first `max_devices` (None: of all). OSError if there is none."""
    count = torch.cuda.device_count() if max_devices is None else max_devices
    devices = sort_devices_based_on_available_memory(determine_available_memory_for_available_devices(count))
    if not devices:
        raise OSError("no CUDA device is available; use device='cpu'")
    return torch.device("cuda", devices[0][0])


def get_best_available_device(cfg: Any) -> torch.device:
    """`cfg.device`; of several CUDA devices (`cfg.n_devices`) the one with most memory left."""
    assert cfg.device is not None, "cfg.device is None; expected a device"
    device = torch.device(cfg.device)
    return get_best_available_cuda_device(cfg.n_devices) if device.type == "cuda" and cfg.n_devices > 1 else device


def get_device_for_block_index(index: int, cfg: Any, device: torch.device | str | None = None) -> torch.device:
    """The device of a block when `cfg.n_devices` share the blocks evenly, from `device` (`cfg.device`) on."""
    assert cfg.device is not None, "cfg.device is None; expected a device"
    first = torch.device(cfg.device if device is None else device)
    if first.type == "cpu":
        return first
    return torch.device(first.type, (first.index or 0) + index * cfg.n_devices // cfg.n_layers)


def resolve_device_map(
    n_devices: int | None,
    device_map: str | dict[str, str | int] | None,
    device: str | torch.device | None,
    max_memory: dict[str | int, str | int] | None = None,
) -> tuple[str | dict[str, str | int] | None, dict[str | int, str | int] | None]:
    """`device_map` and `max_memory` for `from_pretrained` of `transformers`: those given, or "balanced" over the first
    `n_devices` CUDA devices, or None for one device.

    ValueError for both `device` and `device_map`, for devices that there are not, for "disk", and for a map with both
    CPU and GPUs.
    """
    if device_map is not None:
        if device is not None:
            raise _core.InputError("device and device_map say the same thing; give one of them")
        if isinstance(device_map, dict):
            _check_map(device_map)
        return device_map, max_memory
    if n_devices is None or n_devices <= 1:
        return None, max_memory
    if torch.cuda.device_count() < n_devices:
        raise _core.InputError(f"n_devices is {n_devices}; torch sees {torch.cuda.device_count()} CUDA devices")
    return "balanced", dict(max_memory or {i: torch.cuda.mem_get_info(i)[0] for i in range(n_devices)})


def _check_map(device_map: dict[str, str | int]) -> None:
    places = {part: f"cuda:{place}" if isinstance(place, int) else place.lower() for part, place in device_map.items()}
    for part, place in places.items():
        if place == "disk":
            raise _core.InputError(f"device_map[{part!r}] is {device_map[part]!r}; expected 'cpu' or a GPU")
    if "cpu" in places.values() and any(place.startswith("cuda") for place in places.values()):
        raise _core.InputError("device_map has both the CPU and GPUs; use one kind")


def find_embedding_device(hf_model: Any) -> torch.device | None:
    """Where the token embedding of a model of `transformers` lies, if a `device_map` placed it; else None."""
    placed = getattr(hf_model, "hf_device_map", None)
    if not placed:
        return None
    try:
        return next(hf_model.get_input_embeddings().parameters()).device
    except (AttributeError, NotImplementedError, StopIteration):
        first = next(iter(placed.values()))
        return torch.device("cuda", first) if isinstance(first, int) else torch.device(first)


def count_unique_devices(hf_model: Any) -> int:
    """On how many devices a model of `transformers` lies, by its `hf_device_map`."""
    return len(set((getattr(hf_model, "hf_device_map", None) or {"": 0}).values()))

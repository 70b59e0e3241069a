"""Which device is meant, and how much memory CUDA devices have left; models here lie on one device."""

from __future__ import annotations

from typing import Any, TypeAlias

import torch

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

"""Memory of GPUs."""

from __future__ import annotations

import torch


def print_gpu_mem(step_name: str = "") -> None:
    """Print how much memory torch holds on the current GPU."""
    print(f"{step_name} ~ {round(torch.cuda.memory_allocated() / 2**30, 2)} GiB allocated on GPU.")

"""Where models are computed."""

from __future__ import annotations

import os
import warnings
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from glassformer import _core
from glassformer._arguments import device_of

_warned = False


@runtime_checkable
class ModelWithCfg(Protocol):
    """A model that has a config and can be moved."""

    cfg: Any

    def state_dict(self) -> dict[str, torch.Tensor]: ...

    def to(self, device_or_dtype: torch.device | str | torch.dtype) -> Any: ...


def _mps_allowed() -> bool:
    return os.environ.get("TRANSFORMERLENS_ALLOW_MPS", "") == "1"


def get_device() -> str:
    """ "cuda" where there is one, else "cpu"; "mps" only if the environment says TRANSFORMERLENS_ALLOW_MPS=1, because
    some of its results are wrong."""
    if torch.cuda.is_available():
        return "cuda"
    mps = torch.backends.mps
    return "mps" if mps.is_available() and mps.is_built() and _mps_allowed() else "cpu"


def warn_if_mps(device: torch.device | str) -> None:
    """Warn once that results on "mps" can be wrong, unless the environment says TRANSFORMERLENS_ALLOW_MPS=1."""
    global _warned
    kind = device.type if isinstance(device, torch.device) else device
    if kind == "mps" and not _warned and not _mps_allowed():
        _warned = True
        warnings.warn(
            f"some results of torch {torch.__version__} on mps are wrong; set TRANSFORMERLENS_ALLOW_MPS=1 to use it "
            "without this warning",
            UserWarning,
            stacklevel=2,
        )


def checked_device(device: torch.device | str) -> torch.device:
    """The device, if the core computes there and it is there; else UnsupportedError."""
    found = device_of(device)
    if found.type not in ("cpu", "cuda", "meta"):
        raise _core.UnsupportedError(f"device {found} is not supported; use cpu or cuda")
    try:
        torch.empty(0, device=found)
    except (AssertionError, RuntimeError):  # What torch raises without CUDA, and without such a GPU.
        raise _core.UnsupportedError(
            f"device {found} is not there: this torch or this machine has none; use cpu"
        ) from None
    return found


def move_to_and_update_config(
    model: ModelWithCfg, device_or_dtype: torch.device | str | torch.dtype, print_details: bool = True
) -> Any:
    """`torch.nn.Module.to` of a model, whose `cfg.device` or `cfg.dtype` (if it has one) then says so; returns it.

    `print_details` prints where it goes. UnsupportedError for a device that is not there: all stays as it is then.
    """
    if isinstance(device_or_dtype, torch.dtype):
        if hasattr(model.cfg, "dtype"):
            model.cfg.dtype = device_or_dtype
        if print_details:
            print("Changing model dtype to", device_or_dtype)
    elif isinstance(device_or_dtype, torch.device | str):
        checked_device(device_or_dtype)
        model.cfg.device = device_or_dtype if isinstance(device_or_dtype, str) else device_or_dtype.type
        if print_details:
            print("Moving model to device: ", model.cfg.device)
    return nn.Module.to(model, device_or_dtype)

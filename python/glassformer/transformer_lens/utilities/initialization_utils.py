"""Where weights of new models come from: TransformerLens' distributions, drawn in its order."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import nn

NonlinearityType = Literal[
    "linear",
    "conv1d",
    "conv2d",
    "conv3d",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
    "sigmoid",
    "tanh",
    "relu",
    "leaky_relu",
    "selu",
]


def calc_fan_in_and_fan_out(tensor: torch.Tensor) -> tuple[int, int]:
    """How many numbers each output of a weight is made of, and how many each input goes to.

    [out]: 1, out. [in, out]: in, out. [head, in, out]: in, head * out. ValueError for other numbers of axes.
    """
    shape = tensor.shape
    if len(shape) not in (1, 2, 3):
        raise ValueError(f"fans of a tensor of shape {list(shape)}; expected [out], [in, out] or [head, in, out]")
    if len(shape) == 3:
        return shape[1], shape[0] * shape[2]
    return (1, *shape) if len(shape) == 1 else tuple(shape)


def _drawn(param: torch.Tensor, draw: Callable[..., Any], *numbers: float) -> torch.Tensor:
    """`param` filled by `draw`, beside it: torch draws in another order where memory is not contiguous."""
    with torch.no_grad():
        made = torch.empty(param.shape, dtype=param.dtype, device=param.device)
        return param.copy_(draw(made, *numbers))


def init_xavier_uniform_(param: torch.Tensor, gain: float = 1.0) -> torch.Tensor:
    """Fill `param` uniformly between -x and x, x = gain * sqrt(6 / (fan in + fan out)); returns it."""
    most = gain * math.sqrt(6.0 / sum(calc_fan_in_and_fan_out(param)))
    return _drawn(param, nn.init.uniform_, -most, most)


def init_xavier_normal_(param: torch.Tensor, gain: float = 1.0) -> torch.Tensor:
    """Fill `param` normally with standard deviation gain * sqrt(2 / (fan in + fan out)); returns it."""
    std = gain * math.sqrt(2.0 / sum(calc_fan_in_and_fan_out(param)))
    return _drawn(param, nn.init.normal_, 0.0, std)


def _fan_and_gain(param: torch.Tensor, a: float, nonlinearity: NonlinearityType, gain: float, mode: str):
    fan_in, fan_out = calc_fan_in_and_fan_out(param)
    return fan_in if mode == "fan_in" else fan_out, gain * nn.init.calculate_gain(nonlinearity, a)


def init_kaiming_uniform_(
    param: torch.Tensor,
    a: float = 0,
    nonlinearity: NonlinearityType = "relu",
    gain: float = 1.0,
    mode: str = "fan_in",
) -> torch.Tensor:
    """Fill `param` uniformly between -x and x, x = gain * torch's gain of `nonlinearity` * sqrt(3 / fan); returns it.

    `a` is the nonlinearity's parameter if it has one; `mode` says which fan: "fan_in" or "fan_out".
    """
    fan, whole = _fan_and_gain(param, a, nonlinearity, gain, mode)
    most = whole * math.sqrt(3.0 / fan)
    return _drawn(param, nn.init.uniform_, -most, most)


def init_kaiming_normal_(
    param: torch.Tensor,
    a: float = 0,
    nonlinearity: NonlinearityType = "relu",
    gain: float = 1.0,
    mode: str = "fan_in",
) -> torch.Tensor:
    """As `init_kaiming_uniform_`, normally with standard deviation gain * torch's gain * sqrt(1 / fan)."""
    fan, whole = _fan_and_gain(param, a, nonlinearity, gain, mode)
    return _drawn(param, nn.init.normal_, 0.0, whole * math.sqrt(1.0 / fan))


def init_weights(model: Any) -> None:
    """Draw every parameter of `model` with "W_" in its name, in the order of `named_parameters`, as `model.cfg` says.

    `cfg.init_mode` is "gpt2" (standard deviation `cfg.initializer_range`), "xavier_uniform", "xavier_normal",
    "kaiming_uniform" or "kaiming_normal" (`cfg.initializer_range` is the gain), or "muP" (embeddings and unembedding
    1, others 1 / sqrt(fan in)); ValueError otherwise. `cfg.seed`, if there is one, seeds torch first. Other parameters
    stay as they are.
    """
    gain = model.cfg.initializer_range
    by_mode = {
        "gpt2": lambda name, param: _drawn(param, nn.init.normal_, 0.0, gain),
        "xavier_uniform": lambda name, param: init_xavier_uniform_(param, gain),
        "xavier_normal": lambda name, param: init_xavier_normal_(param, gain),
        "kaiming_uniform": lambda name, param: init_kaiming_uniform_(param, gain=gain),
        "kaiming_normal": lambda name, param: init_kaiming_normal_(param, gain=gain),
        "muP": lambda name, param: _drawn(
            param, nn.init.normal_, 0.0, 1.0 if "embed" in name else 1 / calc_fan_in_and_fan_out(param)[0] ** 0.5
        ),
    }
    if model.cfg.init_mode not in by_mode:
        raise ValueError(f"cfg.init_mode is {model.cfg.init_mode!r}; expected one of {list(by_mode)}")
    if model.cfg.seed is not None:
        torch.manual_seed(model.cfg.seed)
    for name, param in model.named_parameters():
        if "W_" in name:
            by_mode[model.cfg.init_mode](name, param)

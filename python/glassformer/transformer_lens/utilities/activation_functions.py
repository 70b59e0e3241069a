"""Activation functions by their names in configs; computed by the core, whose models use the same."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn

from glassformer import _core

ActivationFunction = Callable[..., torch.Tensor]


def gelu(input: torch.Tensor) -> torch.Tensor:
    """x Φ(x), elementwise."""
    return _core.activate(input, "gelu")


def gelu_new(input: torch.Tensor) -> torch.Tensor:
    """GPT-2's GELU, with tanh in the place of Φ; elementwise."""
    return _core.activate(input, "gelu_new")


def gelu_fast(input: torch.Tensor) -> torch.Tensor:
    """The same as `gelu_new`."""
    return _core.activate(input, "gelu_fast")


def gelu_pytorch_tanh(input: torch.Tensor) -> torch.Tensor:
    """The same as `gelu_new`."""
    return _core.activate(input, "gelu_pytorch_tanh")


def silu(input: torch.Tensor) -> torch.Tensor:
    """x sigmoid(x), elementwise."""
    return _core.activate(input, "silu")


def relu(input: torch.Tensor) -> torch.Tensor:
    """max(x, 0), elementwise."""
    return _core.activate(input, "relu")


def relu2(input: torch.Tensor) -> torch.Tensor:
    """max(x, 0)², elementwise."""
    return _core.activate(input, "relu2")


def solu(input: torch.Tensor) -> torch.Tensor:
    """x softmax(x) over the last axis. The norm behind it is the MLP's."""
    return _core.activate(input, "solu")


def xielu(input: torch.Tensor) -> torch.Tensor:
    """xIELU with the numbers that training begins with (0.8, 0.8, 0.5), elementwise; `XIELU` can learn them."""
    return _core.xielu(input, 0.8, 0.8, 0.5, -1e-6)


class XIELU(nn.Module):
    """xIELU, elementwise, with its own alphas: `alpha_p` and `alpha_n` are learned, in the form in which `transformers`
    stores them (softplus gives alpha_p, and alpha_n less beta); `beta` and `eps` are not."""

    beta: torch.Tensor
    eps: torch.Tensor

    def __init__(
        self, alpha_p_init: float = 0.8, alpha_n_init: float = 0.8, beta_init: float = 0.5, eps: float = -1e-6
    ) -> None:
        super().__init__()
        self.alpha_p = nn.Parameter(torch.tensor(math.log(math.expm1(alpha_p_init))))
        self.alpha_n = nn.Parameter(torch.tensor(math.log(math.expm1(alpha_n_init - beta_init))))
        self.register_buffer("beta", torch.tensor(beta_init))
        self.register_buffer("eps", torch.tensor(eps))

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return _core.learned_xielu(input, self.alpha_p, self.alpha_n, self.beta, self.eps)


SOFTCAP_DISABLED: float = -1.0


def softcap_enabled(cap: float | None) -> bool:
    """Whether a cap is one: a number above 0."""
    return cap is not None and cap > 0


def apply_softcap(x: torch.Tensor, cap: float | None) -> torch.Tensor:
    """cap tanh(x / cap), elementwise; `x` itself where `cap` is none."""
    return _core.soft_cap(x, cap) if cap is not None and softcap_enabled(cap) else x


SUPPORTED_ACTIVATIONS: dict[str, ActivationFunction] = {
    "solu": solu,
    "solu_ln": solu,
    "gelu_new": gelu_new,
    "gelu_fast": gelu_fast,
    "silu": silu,
    "relu": relu,
    "gelu": gelu,
    "gelu_pytorch_tanh": gelu_pytorch_tanh,
    "xielu": xielu,
    "relu2": relu2,
}

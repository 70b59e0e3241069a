"""Ways of changing a tensor in place."""

import torch


def _out(value):
    torch.mul(value.detach().clone(), 0.5, out=value.detach())


def _row(value):
    return value[..., 0, :]


IN_PLACE = {
    "fill_": lambda value: value.fill_(0.5),
    "zero_ of a row": lambda value: _row(value).zero_(),
    "add_ with a tensor": lambda value: value.add_(torch.ones_like(value)),
    "add_ broadcast": lambda value: value.add_(torch.linspace(-1, 1, value.shape[-1], dtype=value.dtype)),
    "addcmul_": lambda value: value.addcmul_(value.detach().clone(), torch.full_like(value, 0.5)),
    "clamp_": lambda value: value.clamp_(-0.25, 0.25),
    "relu_": lambda value: torch.nn.functional.relu_(value),
    "relu inplace": lambda value: torch.nn.functional.relu(value, inplace=True),
    "masked_fill_": lambda value: value.masked_fill_(value > 0, 0.1),
    "index_fill_": lambda value: value.index_fill_(-1, torch.tensor([0, 2]), 0.3),
    "index_copy_": lambda value: value.index_copy_(-1, torch.tensor([1]), torch.ones_like(value[..., :1])),
    "scatter_": lambda value: value.scatter_(-1, torch.zeros_like(value[..., :1], dtype=torch.long), 2.0),
    "masked_scatter_": lambda value: value.masked_scatter_(value < 0, torch.zeros_like(value)),
    "put through a slice": lambda value: value[..., 1:3].copy_(torch.ones_like(value[..., 1:3])),
    "through chained views": lambda value: value.transpose(-1, -2)[..., 2:4, :].mul_(-1),
    "through view": lambda value: value.view(-1)[3:7].fill_(1.5) if value.is_contiguous() else value.zero_(),
    "through unflatten": lambda value: value[..., :6].unflatten(-1, (2, -1))[..., 0, :].mul_(0.1),
    "through squeeze": lambda value: value.unsqueeze(0).squeeze(0).mul_(2),
    "through detach": lambda value: value.detach().mul_(2),
    "through data": lambda value: value.data.mul_(2),
    "through numpy": lambda value: value.detach().numpy().__imul__(2),
    "setitem with none": lambda value: value.__setitem__((Ellipsis, None, 0), 0.5),
    "setitem with step": lambda value: value.__setitem__((Ellipsis, slice(1, None, 2)), 0.5),
    "setitem with mask": lambda value: value.__setitem__(value.abs() < 0.2, 1.0),
    "setitem with lists": lambda value: value.__setitem__((Ellipsis, [0, -1]), 0.5),
    "setitem with tensor": lambda value: value.__setitem__(Ellipsis, value.flip(-1)),
    "out=": _out,
    "random": lambda value: value.uniform_(generator=torch.Generator().manual_seed(3)),
    "lerp_": lambda value: value.lerp_(torch.zeros_like(value), 0.3),
    "pow_": lambda value: value.pow_(2),
    "cumsum_": lambda value: value.cumsum_(-1),
    "tril_": lambda value: value.tril_(),
    "swap": lambda value: value.copy_(value.flip(-1).clone()),
    "foreach": lambda value: torch._foreach_mul_([value], 0.5),
}

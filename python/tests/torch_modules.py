"""Small torch modules of many kinds, float64, made anew from a seed."""

import dataclasses

import torch
from torch import nn


class Mlp(nn.Module):
    """Three layers; the function between the first two is no module."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.act = nn.GELU()

    def forward(self, x, scale=1.0):
        x = torch.tanh(self.first(x)) * scale
        return self.head(self.act(self.second(x)) + x)


class Cnn(nn.Module):
    """Batch norms, dropouts, and functions in place."""

    def __init__(self):
        super().__init__()
        self.conv1, self.norm1, self.relu = nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True)
        self.drop1 = nn.Dropout(0.3)
        self.conv2, self.norm2, self.drop2 = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        x = self.drop1(self.relu(self.norm1(self.conv1(x))))
        y = self.norm2(self.conv2(x))
        self.relu(y)  # In place: what it returns isn't used.
        return self.head(self.drop2(y.mean((2, 3))))


class Twice(nn.Module):
    """A module used twice in the forward, and under two names."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(6, 6), nn.Tanh())
        self.other = nn.Linear(6, 6)
        self.again = self.inner

    def forward(self, x):
        return self.again(self.other(self.inner(x))) + x


class Recurrent(nn.Module):
    """A cell called once for each position, and once a read-out."""

    def __init__(self):
        super().__init__()
        self.embed, self.cell, self.out = nn.Linear(5, 6), nn.GRUCell(6, 6), nn.Linear(6, 2)

    def forward(self, x):
        x = self.embed(x)
        state = torch.zeros(x.shape[0], 6, dtype=x.dtype)
        for step in range(x.shape[1]):
            state = self.cell(x[:, step], state)
        return self.out(state)


@dataclasses.dataclass
class Found:
    """What `Many` returns."""

    total: torch.Tensor
    parts: list
    note: str = ""


class Split(nn.Module):
    """Returns a tuple."""

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(6, 4), nn.Linear(6, 4)

    def forward(self, x, *, shift=None):
        left = self.left(x)
        return left if shift is None else left + shift, self.right(x), None


class Join(nn.Module):
    """Takes keyword arguments and returns a dict."""

    def __init__(self):
        super().__init__()
        self.mix = nn.Linear(4, 4)

    def forward(self, left, right=None):
        return {"sum": self.mix(left) + right, "product": left * right}


class Many(nn.Module):
    """Tuples, dicts and dataclasses go from module to module."""

    def __init__(self):
        super().__init__()
        self.split, self.join, self.head = Split(), Join(), nn.Linear(4, 2)

    def forward(self, x, shift=None):
        left, right, _ = self.split(x, shift=shift)
        joined = self.join(left, right=right)
        return Found(self.head(joined["sum"] * joined["product"]), [left, joined["sum"]], "made")


class Residual(nn.Module):
    """Blocks with residual connections."""

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.up, self.down = nn.LayerNorm(6), nn.Linear(6, 12), nn.Linear(12, 6)

        def forward(self, x):
            return x + self.down(torch.relu(self.up(self.norm(x))))

    def __init__(self, n_layers=4):
        super().__init__()
        self.layers = nn.ModuleList(self.Block() for _ in range(n_layers))
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


def _encoder():
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True)
    return nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)


def _gpt_neo():
    from transformers import GPTNeoConfig, GPTNeoForCausalLM

    config = GPTNeoConfig(
        vocab_size=30,
        hidden_size=16,
        num_layers=3,
        attention_types=[[["global", "local", "global"], 1]],
        num_heads=2,
        intermediate_size=32,
        window_size=4,
        max_position_embeddings=32,
    )
    return GPTNeoForCausalLM(config)


def _bert():
    from transformers import BertConfig, BertModel

    config = BertConfig(vocab_size=30, hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32)
    return BertModel(config)


_KINDS = {
    "mlp": (Mlp, (4, 6)),
    "cnn": (Cnn, (4, 2, 8, 8)),
    "twice": (Twice, (4, 6)),
    "recurrent": (Recurrent, (3, 5, 5)),
    "many": (Many, (4, 6)),
    "residual": (Residual, (2, 5, 6)),
    "encoder": (_encoder, (2, 5, 8)),
    "gpt_neo": (_gpt_neo, 30),
    "bert": (_bert, 30),
}


def make(kind, training=False):
    """A module and an input; the same ones whenever it is called."""
    build, shape = _KINDS[kind]
    torch.manual_seed(5)
    module = build().double().train(training)
    if isinstance(shape, int):
        return module, torch.randint(0, shape, (2, 7))
    return module, torch.randn(shape, dtype=torch.float64)

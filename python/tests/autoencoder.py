"""A random sparse autoencoder, for tests of splicing."""

import torch

N_FEATURES = 12


class Autoencoder(torch.nn.Module):
    """A random one, wide enough that some features are on and some are off."""

    def __init__(self, width, n_features=N_FEATURES, dtype=torch.float64, seed=3):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weight = torch.nn.Parameter(torch.randn(width, n_features, generator=generator, dtype=dtype))
        self.back = torch.nn.Parameter(torch.randn(n_features, width, generator=generator, dtype=dtype) * 0.2)
        self.bias = torch.nn.Parameter(torch.randn(n_features, generator=generator, dtype=dtype))
        self.calls = 0

    def encode(self, x):
        self.calls += 1
        return torch.relu(x @ self.weight + self.bias)

    def decode(self, acts):
        return acts @ self.back


def spliced(tiny, node, sae, name="sae", **options):
    return tiny.model.splice(node, name, sae.encode, sae.decode, **options)


def width_of(model, node):
    found = next(one for one in model.nodes() if one.name == model.node_name(node))
    return found.sizes[-1]

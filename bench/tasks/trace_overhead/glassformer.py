from models import gpt2_tiny, traced_values

from glassformer.nnsight import LanguageModel


def setup(n_values, gradients=True):
    import torch

    torch.set_grad_enabled(gradients)
    return LanguageModel(gpt2_tiny()), n_values


def run(state):
    return traced_values(*state)

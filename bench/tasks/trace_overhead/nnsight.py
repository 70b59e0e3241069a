from models import gpt2_tiny, nnsight_model, traced_values

ENVIRONMENT = "nnsight"


def setup(n_values, gradients=True):
    import torch

    torch.set_grad_enabled(gradients)
    return nnsight_model(gpt2_tiny()), n_values


def run(state):
    return traced_values(*state)

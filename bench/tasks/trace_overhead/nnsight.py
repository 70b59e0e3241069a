from models import TracedValues, gpt2_tiny, nnsight_model

ENVIRONMENT = "nnsight"


def setup(n_values, beside, gradients):
    return TracedValues(nnsight_model(gpt2_tiny()), n_values, beside, gradients)


def run(state):
    return state.run()


def overhead(state):
    return state.overhead

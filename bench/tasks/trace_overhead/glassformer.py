from models import TracedValues, gpt2_tiny

from glassformer.nnsight import LanguageModel


def setup(n_values, gradients=True):
    return TracedValues(LanguageModel(gpt2_tiny()), n_values, gradients)


def run(state):
    return state.run()


def overhead(state):
    return state.overhead

from models import TracedValues, gpt2_tiny

from glassformer.nnsight import LanguageModel


def setup(n_values, beside, gradients):
    return TracedValues(LanguageModel(gpt2_tiny()), n_values, beside, gradients)


def run(state):
    return state.run()


def overhead(state):
    return state.overhead

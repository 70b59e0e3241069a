from models import demo_gguf, generated_with_edits, tokens

from glassformer.nnsight import LanguageModel


def setup():
    return LanguageModel(demo_gguf()), tokens(1, 60)


def run(state):
    return generated_with_edits(*state)

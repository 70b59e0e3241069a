from models import demo_gguf, some_texts

import glassformer


def setup():
    return glassformer.Tokenizer.from_pretrained(demo_gguf()).core, some_texts()


def run(state):
    tokenizer, texts = state
    return [tokenizer.encode(text) for text in texts]

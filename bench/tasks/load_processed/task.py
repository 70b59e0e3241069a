TITLE = (
    "A HookedTransformer from the files of a random model of GPT-2 small's shape, its weights processed "
    "(norms folded, writers and unembedding centred, value biases folded), to the logits after five tokens. "
    "It has 622 MB of parameters."
)
FRESH = True
TOLERANCE = 1e-4
ROUNDS = 3

TITLE = (
    "Activation patching of each of 12 heads in each of 12 layers, at all of 15 positions, by a difference of two "
    "logits that is a Python function; the same notebook lines in either system, on a random model of GPT-2 small's "
    "shape. The clean run counts too."
)
TOLERANCE = 1e-3
ROUNDS = 3

TITLE = (
    "Activation patching of the residual stream before each of 12 layers at each of 15 positions, by a difference of "
    "two logits; a random model of GPT-2 small's shape. The clean run counts too."
)
TOLERANCE = 1e-3
ROUNDS = 3

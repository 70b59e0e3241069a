TITLE = "A random model of GPT-2 small's shape, from tokens to the logits at every position."
CASES = {"1 x 16 tokens": {"batch": 1, "length": 16}, "8 x 128 tokens": {"batch": 8, "length": 128}}
TOLERANCE = 1e-4

TITLE = (
    "50 tokens of SmolLM2-135M-Instruct in nnsight's vocabulary, the most likely each time, after a prompt of 60; at "
    "every step a block's output is changed and the last block's output is read."
)
TOLERANCE = 1e-3
ROUNDS = 5

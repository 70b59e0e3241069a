TITLE = (
    "Fifty traces in nnsight's vocabulary that read values of a random model of 4 layers and d_model 32 on 8 tokens. "
    "They take turns, by tens, with the shortest way to the same values that each system stands on: the core's own "
    "reads, or the model's call with torch's forward hooks. The time is of both, the overhead is what the traces take "
    "more. `nnsight` is 0.8.1, `nnsight_07` is 0.7.0; `transformers` is its model's bare call, as many times in all, "
    "without a look at anything. One thread; with gradients but for the last cases."
)
CASES = {
    "one value": {"n_values": 1},
    "24 values": {"n_values": 24},
    "one value, without gradients": {"n_values": 1, "gradients": False},
    "24 values, without gradients": {"n_values": 24, "gradients": False},
}
TOLERANCE = 1e-4
THREADS = 1
ROUNDS = 15

TITLE = (
    "Fifty traces in nnsight's vocabulary of a random model of 4 layers and d_model 32 on 8 tokens: the model's call "
    "alone, and traces that read one value or 24. What a trace costs more than the call alone is its overhead. "
    "`nnsight` is 0.8.1, `nnsight_07` is 0.7.0. One thread; with gradients but for the last case."
)
CASES = {
    "the call alone": {"n_values": 0},
    "one value": {"n_values": 1},
    "24 values": {"n_values": 24},
    "24 values, without gradients": {"n_values": 24, "gradients": False},
}
TOLERANCE = 1e-4
THREADS = 1

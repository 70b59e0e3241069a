TITLE = (
    "Fifty traces in nnsight's vocabulary that read values of a random model of 4 layers and d_model 32 on 8 tokens. "
    "They take turns, by tens, with as many plain calls of the model (of transformers' model for nnsight), which give "
    "logits, keys and values; or with the shortest way to the same values that each system stands on: the core's own "
    "reads, or the model's call with torch's forward hooks. The time is of both, the overhead is what the traces take "
    "more. `nnsight` is 0.8.1, `nnsight_07` is 0.7.0. One thread."
)
CASES = {
    f"{name} beside {said}{', without gradients' * (not gradients)}": {
        "n_values": n_values,
        "beside": beside,
        "gradients": gradients,
    }
    for beside, said in (("call", "calls"), ("reads", "bare reads"))
    for gradients in (True, False)
    for name, n_values in (("one value", 1), ("24 values", 24))
}
TOLERANCE = 1e-4
THREADS = 1
ROUNDS = 15

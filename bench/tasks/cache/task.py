TITLE = (
    "run_with_cache: every activation of a random model of GPT-2 small's shape on 1 x 128 tokens, by each system's "
    "HookedTransformer."
)
TOLERANCE = 1e-4

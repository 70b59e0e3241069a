TITLE = (
    "Every activation of a random model of GPT-2 small's shape on 1 x 128 tokens, those that HookedTransformer caches."
)
TOLERANCE = 1e-4

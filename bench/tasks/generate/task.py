TITLE = (
    "50 tokens, the most likely each time, after a prompt of 60; with the keys and values of earlier positions kept."
)
CASES = {"SmolLM2-135M-Instruct": {"model": "demo"}, "GPT-2 small's shape, random": {"model": "gpt2"}}
ROUNDS = 5

TITLE = "SmolLM2-135M-Instruct from a quantised GGUF file to the logits after a prompt of five tokens."
FRESH = True
TOLERANCE = 1e-4
ROUNDS = 3
